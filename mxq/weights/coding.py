"""How tensors are coded in the int8 network, and what coding does to their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mxq import numerics
from mxq.graph.ir import Array, Ref
from mxq.numerics import CODES
from mxq.quant import QuantizedModel
from mxq.quant.plan import TensorRecord
from mxq.quant.thresholds import Range
from mxq.weights.live import Batches


@dataclass(frozen=True, slots=True)
class Code:
    """The code of one tensor.

    Attributes:
        dtype: "int8" or "uint8".
        widened: the written range in shares of the calibrated one.
        bound: what its values do not exceed, in activation units.
        rectified: s8 codes stand for values from zero on (`mxq.passes.rectify`), as u8 ones do.
    """

    dtype: str
    widened: float = 1.0
    bound: float = np.inf
    rectified: bool = False

    @staticmethod
    def of(record: TensorRecord, calibrated: Range) -> Code:
        """From what `mxq.passes.quantize` wrote for a tensor of that calibrated range."""
        if record.offset:
            return Code(record.dtype, rectified=True)
        top = record.max if record.max is not None else calibrated.max
        bound = top if top < calibrated.max else np.inf
        return Code(record.dtype, record.widened, bound)

    @property
    def levels(self) -> str:
        """The type that has the levels of this code."""
        return "uint8" if self.rectified else self.dtype

    def scale(self, span: Range) -> float:
        """Codes per unit where ``span`` is the calibrated range."""
        size = max(span.max, 0.0) if self.levels == "uint8" else span.absmax
        size = min(size, self.bound) * self.widened
        return float(numerics.scale(size if size > 0 else 1.0, self.levels))

    def coded(self, value: Array, span: Range) -> Array:
        """``value`` as its codes represent it."""
        low, high = CODES[self.levels]
        scale = np.float32(self.scale(span))
        top = CODES["int8"][1] if self.widened > 1 else high
        codes = np.multiply(value, scale, dtype=np.float32)
        np.rint(codes, out=codes)
        np.clip(codes, low, min(top, high), out=codes)
        codes /= scale
        return codes


def code_all(batches: Batches, code: Code, span: Range) -> list[Array]:
    """`Code.coded` of every batch."""
    return [code.coded(b, span) for b in batches]


def codes_of(quantized: QuantizedModel, spans: Mapping[str, Range]) -> dict[Ref, Code]:
    """The code of every calibrated tensor.

    Args:
        quantized: says how tensors are stored.
        spans: tensor -> its calibrated range.
    """
    records = {ref: quantized.stored(ref) for ref in quantized.refs if str(ref) in spans}
    return {ref: Code.of(record, spans[str(ref)]) for ref, record in records.items() if record is not None}
