"""Records: in which range each tensor of codes is stored, from what is decided of its type and what was calibrated.

A range is the calibrated one, but for stock kernels that would otherwise fail or compute something else:

* conv + sum writes into its summand's memory with *the summand's type* (``mkldnn_conv.cc``: ``output`` is
  ``inputs[in_sum]``). An s8 summand under a u8 result would saturate at half the range: the written range is
  doubled, so that values stay within 0..127.
* a u8 range must not have a negative minimum (the CHECK of a convolution that reads it, ``mkldnn_conv.cc``): it is
  written from 0.
* a range of zero width makes scales infinite: it is written as [0, 1].
* int8 BatchNorm and ReLU write s8, of which the ReLU leaves half: see `mxq.passes.fuse_relu_into_batchnorm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Final

import numpy as np

from mxq.graph.ir import Graph, Node, Ref
from mxq.quant.plan import TensorRecord
from mxq.quant.scheme import MXNET
from mxq.quant.spec import BY_DTYPE
from mxq.quant.thresholds import Range, Thresholds

INT8, UINT8 = "int8", "uint8"
DOUBLED: Final = 255.5 / 127.5
"""Widening of a u8 range that keeps its values within 0..127."""
_TINY: Final = 1e-30
"""What kernels hold apart from 0: the scale of such a range, and that times a weight's, are finite in float32."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator that reads codes.

    Attributes:
        reads: place of an input -> the type as which it is read.
        dtype: of its result, or as which that would be read where it writes float.
        ranged: whether its result has a range of its own; else it has that of what it reads.
        doubled: whether its u8 result is written into s8 memory.
        bound: what its values do not exceed, whatever range is asked for.
        writes_float: whether its kernel writes float itself.
        halves: whether its kernel takes half of the u8 codes that it reads, as s8.
        passes_on: whether it has nothing to do: its result is stored as what it reads.
        norm: the BatchNorm that does its work with its own; empty where there is none.
    """

    reads: Mapping[int, str]
    dtype: str
    ranged: bool = False
    doubled: bool = False
    bound: float = np.inf
    writes_float: bool = False
    halves: bool = False
    passes_on: bool = False
    norm: str = ""


@dataclass
class Records:
    """The records of a network's tensors; see `mxq.quant.QuantizedNetwork` for its attributes."""

    graph: Graph
    thresholds: Thresholds
    at_run_time: bool
    made: dict[Ref, TensorRecord] = field(default_factory=dict)
    quantized: dict[tuple[Ref, str], TensorRecord] = field(default_factory=dict)
    floats: set[Ref] = field(default_factory=set)

    @staticmethod
    def of(
        graph: Graph,
        operations: Mapping[str, Operation],
        conversions: Iterable[tuple[Ref, str]],
        thresholds: Thresholds,
        *,
        at_run_time: bool,
    ) -> Records:
        """Those of all that ``operations`` make, in graph order, and of ``conversions``."""
        found = Records(graph, thresholds, at_run_time)
        for name, operation in operations.items():
            found._operation(graph[name], operation)
        found.quantized = {(ref, dtype): found._read(ref, dtype) for ref, dtype in conversions}
        return found

    def _operation(self, node: Node, operation: Operation) -> None:
        if operation.writes_float:
            self.floats.add(node.out)
            return
        reader = self.graph[operation.norm] if operation.norm else node
        reads = [self._read(reader.inputs[place], dtype) for place, dtype in operation.reads.items()]
        if operation.passes_on:
            self.made[node.out] = reads[0]
        elif operation.norm:
            self.made[node.out] = self._absorbed_relu(node.out)
        elif operation.ranged:
            record = self._record(node.out, operation.dtype, doubled=operation.doubled, bound=operation.bound)
            self.made[node.out] = replace(record, of=node.name)
        else:
            self.made[node.out] = replace(_carried(reads, operation.dtype), of=node.name)

    def _read(self, ref: Ref, dtype: str) -> TensorRecord:
        """How ``ref`` is stored where it is read as ``dtype``."""
        made = self.made.get(ref)
        if made is not None:
            return made if made.dtype == dtype else _recoded(made, dtype)
        record = self._record(ref, dtype)
        return replace(record, of=ref.name) if ref in self.floats else record

    def _record(self, ref: Ref, dtype: str, *, doubled: bool = False, bound: float = np.inf) -> TensorRecord:
        """The range to write for tensor ``ref`` stored as ``dtype``."""
        if self.at_run_time:
            return TensorRecord(dtype, note="range found at run time", at_run_time=True)
        found, notes, given = self.thresholds.range(str(ref)), list[str](), self.thresholds[str(ref)].is_fixed
        if dtype == UINT8 and found.min != 0:
            found = Range(0.0, max(found.max, 0.0))
            notes += ["from zero: u8 codes have no zero point"] if given else []
        if found.absmax < _TINY:
            found, notes = Range(0.0, 1.0), ["the calibrated range was zero"]
        if found.max > bound:
            found = Range(min(found.min, bound), bound)
            notes += [f"up to {bound:.6g}, where the values end: the kernel saturates there"] if given else []
        if doubled:
            found = Range(found.min, found.max * DOUBLED)
            notes.append("range doubled: the kernel writes this u8 tensor into s8 memory, which holds 0..127")
        low, high = (float(np.float32(end)) for end in (found.min, found.max))
        return TensorRecord(dtype, low, high, "; ".join(notes), widened=DOUBLED if doubled else 1.0)

    def _absorbed_relu(self, ref: Ref) -> TensorRecord:
        """Of a ReLU that saturation does; see `mxq.passes.fuse_relu_into_batchnorm`."""
        plain = self._record(ref, UINT8)
        span, offset = saturating(plain.max or 0.0)
        note = "; ".join(filter(None, (plain.note, "the lowest code is zero, so that saturation is the ReLU")))
        low, high = (float(np.float32(end)) for end in (span.min, span.max))
        return TensorRecord(INT8, low, high, note, offset, of=ref.name)


def saturating(top: float) -> tuple[Range, float]:
    """What a BatchNorm that does its ReLU writes of values up to ``top``: range, and offset -c, in activation units."""
    s8, u8 = BY_DTYPE[INT8], BY_DTYPE[UINT8]
    half = top * MXNET.top(s8) / MXNET.top(u8)
    return Range(-half, half), s8.lowest * half / MXNET.top(s8)


def _range(record: TensorRecord) -> Range | None:
    return None if record.min is None or record.max is None else Range(record.min, record.max)


def _carried(reads: list[TensorRecord], dtype: str) -> TensorRecord:
    """The record of a tensor that a passthrough op makes: its range is the union of its inputs'."""
    spans = [_range(record) for record in reads]
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return TensorRecord(dtype)
    span = reduce(Range.union, known)
    return TensorRecord(dtype, span.min, span.max, offset=reads[0].offset)


def _recoded(record: TensorRecord, dtype: str) -> TensorRecord:
    """The record of a stored tensor in another type."""
    note = f"converted from {record.dtype}: the kernel needs its summand in the type of its result"
    return TensorRecord(dtype, record.min, record.max, note)
