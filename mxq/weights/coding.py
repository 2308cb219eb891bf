"""How tensors are coded in the int8 network, and what coding does to their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mxq.graph.ir import Array, Ref
from mxq.quant import BY_DTYPE, MXNET, UINT8, QParams, QuantizedNetwork, QuantSpec, Scheme
from mxq.quant.model import HALVED
from mxq.quant.plan import TensorRecord
from mxq.quant.thresholds import Range
from mxq.weights.layerwise_executor import Batches


@dataclass(frozen=True, slots=True)
class Code:
    """The code of one tensor.

    Attributes:
        dtype: "int8" or "uint8".
        widened: the written range in shares of the calibrated one.
        bound: what its values do not exceed, in activation units.
        nonnegative: s8 codes stand for values from zero on (`mxq.passes.fuse_relu_into_batchnorm`), as u8 ones do.
        other: what codes are, where they are not those of MXNet's kernels.
        scheme: how their scale follows from their range.
    """

    dtype: str
    widened: float = 1.0
    bound: float = np.inf
    nonnegative: bool = False
    other: QuantSpec | None = None
    scheme: Scheme = MXNET

    @staticmethod
    def of(record: TensorRecord, calibrated: Range) -> Code:
        """From the record of a tensor of that calibrated range, in MXNet's kernels."""
        if record.offset:
            return Code(record.dtype, nonnegative=True)
        top = record.max if record.max is not None else calibrated.max
        bound = top if top < calibrated.max else np.inf
        return Code(record.dtype, record.widened, bound)

    def in_network(self, network: QuantizedNetwork, ref: Ref) -> Code:
        """This as ``network`` has it of ``ref``: in codes of other kinds than MXNet's, where it has such."""
        other = network.activation_of(ref)
        return self if other is None else replace(self, other=other, scheme=network.scheme(other))

    @property
    def is_unsigned(self) -> bool:
        """Whether values below 0 are not represented."""
        return self.nonnegative or self.dtype == UINT8.dtype

    @property
    def spec(self) -> QuantSpec:
        """The codes that values can have, but for those that `widened` leaves out."""
        return UINT8 if self.is_unsigned else BY_DTYPE[self.dtype]

    def params(self, span: Range) -> QParams:
        """Scale and codes where ``span`` is the calibrated range."""
        if self.other is not None:
            low, high = 0.0 if self.is_unsigned else min(span.min, self.bound), min(span.max, self.bound)
            return self.scheme.params(self.other, low, max(low, high))
        size = min(span.absmax if self.spec.signed else max(span.max, 0.0), self.bound) * self.widened
        size = size if size > 0 else 1.0
        params = MXNET.params(self.spec, -size, size)
        return QParams(HALVED, params.scale) if self.widened > 1 else params

    def within(self, span: Range, share: float) -> Range:
        """What of ``span`` codes are to cover where absolute values beyond a ``share`` of the largest may saturate.

        Without a zero point both ends move. With one the nearer end stays until the other one has come as near: a
        hard-swish, from -0.375 on, has most of its values there.
        """
        if self.other is None or self.other.symmetric or share > 1:
            return span.times(share)
        bound = share * span.absmax
        return Range(max(span.min, -bound), min(span.max, bound))

    def scale(self, span: Range) -> float:
        """Codes per unit where ``span`` is the calibrated range."""
        return float(self.params(span).scale)

    def coded(self, value: Array, span: Range) -> Array:
        """``value`` as its codes represent it."""
        return self.params(span).fake(value)


def code_all(batches: Batches, code: Code, span: Range) -> list[Array]:
    """`Code.coded` of every batch."""
    return [code.coded(b, span) for b in batches]


def codes_of(network: QuantizedNetwork, spans: Mapping[str, Range]) -> dict[Ref, Code]:
    """The code of every calibrated tensor.

    Args:
        network: says how tensors are stored.
        spans: tensor -> its calibrated range.
    """
    records = {ref: network.stored(ref) for ref in network.refs if str(ref) in spans}
    return {
        ref: Code.of(record, spans[str(ref)]).in_network(network, ref)
        for ref, record in records.items()
        if record is not None
    }
