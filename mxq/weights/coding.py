"""How tensors are coded in the int8 network, and what coding does to their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mxq import numerics
from mxq.ir import Array, Ref
from mxq.numerics import CODES, SPAN
from mxq.plan import TensorRecord
from mxq.thresholds import Range
from mxq.weights.live import Batches

_DOUBLED = 1.9
"""A written range so many times the calibrated one was doubled by `mxq.passes.quantize`."""


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
        doubled = record.dtype == "uint8" and top > _DOUBLED * calibrated.max > 0
        widened = SPAN["uint8"] / SPAN["int8"] if doubled else 1.0
        bound = top if top < calibrated.max else np.inf
        return Code(record.dtype, widened, bound)

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


def codes_of(records: Mapping[str, TensorRecord], spans: Mapping[str, Range]) -> dict[Ref, Code]:
    """The code of every calibrated tensor.

    Args:
        records: name of each int8 tensor -> how it is coded, from `mxq.passes.quantize_graph`.
        spans: tensor -> its calibrated range.
    """
    found = {}
    for name, span in spans.items():
        base, _, output = name.partition(":")
        ref = Ref(base, int(output or 0))
        door = f"{base}_{output}_quantize" if output else f"{base}_quantize"
        record = records.get(f"quantized_{base}") or records.get(door)
        if record is not None:
            found[ref] = Code.of(record, span)
    return found
