"""Assign: as what each tensor of the int8 network is stored, before anything is written.

A tensor that an int8 operator makes has the type of its kernel: a convolution writes u8 after ReLU or clip, s8
otherwise. What is quantized from float is u8 where the range has no negative part (``auto``). A range is the calibrated
one, but for stock kernels that would otherwise fail or compute something else:

* conv + sum writes into its summand's memory with *the summand's type* (``mkldnn_conv.cc``: ``output`` is
  ``inputs[in_sum]``). An s8 summand under a u8 result would saturate at half the range: the written range is
  doubled, so that values stay within 0..127. A u8 summand under an s8 result is converted to s8 first.
* a u8 range must not have a negative minimum (the CHECK of a convolution that reads it, ``mkldnn_conv.cc``): it is
  written from 0.
* a range of zero width makes scales infinite: it is written as [0, 1].
* int8 ReLU takes s8 only; on a u8 tensor it has nothing to do.
* int8 BatchNorm and ReLU write s8, of which the ReLU leaves half: see `mxq.passes.rectify`.
* conv + sum has no clip in int8. It is a ReLU with a range that ends at the clip's bound, where u8 saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from mxq.backends import MXNET_191, BackendSpec, OpSpec, result_of, summand_place
from mxq.config import QuantConfig
from mxq.errors import ConfigError, QuantizeError
from mxq.graph.ir import Model, Node, Ref
from mxq.passes.overrides import LayerChoices
from mxq.passes.partition import NONE, data_inputs, writes_float
from mxq.passes.rectify import rectified, written
from mxq.quant.model import Operation, QuantizedModel
from mxq.quant.plan import Plan, TensorRecord
from mxq.quant.thresholds import Range, Thresholds

INT8, UINT8 = "int8", "uint8"
HALF = 255.5 / 127.5
"""Widening of a u8 range that keeps its values within 0..127."""
_TINY = 1e-30
"""What kernels hold apart from 0: the scale of such a range, and that times a weight's, are finite in float32."""


def assign(
    model: Model, plan: Plan, thresholds: Thresholds, config: QuantConfig, backend: BackendSpec = MXNET_191
) -> QuantizedModel:
    """What `mxq.passes.quantize` is to write.

    Args:
        model: the fused float model that ``plan`` was made for.
        plan: from `partition`.
        thresholds: a range for every tensor in ``plan.observe``.
        config: types that were asked for.
        backend: whose kernels there are.

    Raises:
        CalibrationError: a range is missing.
        ConfigError: a type was asked for that a kernel does not write.
        QuantizeError: "uint8" was asked for a tensor with negative values, or of which nothing is known.
    """
    merged = rectified(model, plan.quantized)
    assigner = _Assigner(model, plan, thresholds, config, backend, LayerChoices.of(model.graph, config))
    absorbed = {norm.name for norm in merged.values()}  # each is made with the ReLU that reads it
    for node in model.graph:
        if node.name in merged:
            assigner.rectify(node, merged[node.name])
        elif node.name in plan.quantized and node.name not in absorbed:
            assigner.operation(node)
    at_run_time = config.calib_mode == NONE
    return QuantizedModel(model, plan, assigner.operations, assigner.made, assigner.quantized, at_run_time)


@dataclass
class _Assigner:
    model: Model
    plan: Plan
    thresholds: Thresholds
    config: QuantConfig
    backend: BackendSpec
    choices: LayerChoices
    operations: dict[str, Operation] = field(default_factory=dict)
    made: dict[Ref, TensorRecord] = field(default_factory=dict)
    quantized: dict[tuple[Ref, str], TensorRecord] = field(default_factory=dict)
    floats: dict[Ref, TensorRecord] = field(default_factory=dict)
    """What int8 layers write in float -> as what their int8 readers expect it."""

    def operation(self, node: Node) -> None:
        """An operator that becomes int8."""
        spec = self._spec(node)
        types = dict(zip(spec.data_inputs, spec.takes, strict=False))
        reads = {i: self._read(node.inputs[i], types.get(i, "")) for i in data_inputs(node, spec)}
        dtype = self._output_dtype(node, spec, reads)
        if spec.s8_only and reads[0].dtype == UINT8:
            self.operations[node.name] = Operation(reads, reads[0], passes_on=True)
            self.made[node.out] = reads[0]
            return
        half = False
        if (summed := summand_place(node)) is not None:
            half = dtype == UINT8 and reads[summed].dtype == INT8
            if dtype == INT8 and reads[summed].dtype == UINT8:
                reads[summed] = self._read(node.inputs[summed], INT8)
        to_float = writes_float(self.model.graph, node, spec, self.plan.quantized)
        if spec.calibrated and not to_float:
            record = self._record(node.out, dtype, half=half, bound=_bound(node, spec))
        else:
            record = _carried(reads, dtype)
        self._add(node, Operation(reads, replace(record, of=node.name), to_float, spec.halves_u8))

    def rectify(self, relu: Node, norm: Node) -> None:
        """A BatchNorm that does what the ReLU after it would; see `mxq.passes.rectify`."""
        reads = {0: self._read(norm.inputs[0])}
        plain = self._record(relu.out, UINT8)
        span, offset = written(plain.max or 0.0)
        note = "; ".join(filter(None, (plain.note, "the lowest code is zero, so that saturation is the ReLU")))
        low, high = (float(np.float32(end)) for end in (span.min, span.max))
        record = TensorRecord(INT8, low, high, note, offset, of=relu.name)
        self._add(relu, Operation(reads, record, halves=self._spec(norm).halves_u8, norm=norm.name))

    def _add(self, node: Node, operation: Operation) -> None:
        self.operations[node.name] = operation
        (self.floats if operation.writes_float else self.made)[node.out] = operation.writes

    def _spec(self, node: Node) -> OpSpec:
        spec = self.backend.find(node.op)
        if spec is None:
            raise QuantizeError(f"{node.name!r} ({node.op}) has no int8 kernel in {self.backend.name}")
        return spec

    def _read(self, ref: Ref, dtype: str = "") -> TensorRecord:
        """How ``ref`` is stored when it is read as ``dtype`` or, without, as whatever it is."""
        made = self.made.get(ref)
        if made is not None and dtype in ("", made.dtype):
            return made
        dtype = dtype or self._input_dtype(ref)
        if (ref, dtype) not in self.quantized:
            record = self._record(ref, dtype) if made is None else _recoded(made, dtype)
            self.quantized[ref, dtype] = replace(record, of=ref.name) if ref in self.floats else record
        return self.quantized[ref, dtype]

    def _input_dtype(self, ref: Ref) -> str:
        """The type in which a float tensor is quantized."""
        if ref in self.floats:
            return self.floats[ref].dtype
        wanted = self.choices.dtype(ref.name) or self.config.quantized_dtype
        if self.config.calib_mode == NONE:
            if wanted == UINT8:
                raise QuantizeError(
                    f"quantized_dtype is 'uint8', but calib_mode is 'none', and nothing shows that tensor {str(ref)!r} "
                    "has no negative values, at which the int8 kernels would fail: use 'auto' or 'int8', or a "
                    "calib_mode that looks at data, such as 'naive'"
                )
            return INT8
        found = self.thresholds.range(str(ref))
        if wanted == UINT8 and found.min < 0:
            raise QuantizeError(
                f"quantized_dtype is 'uint8', but tensor {str(ref)!r} goes down to {found.min:.6g}; uint8 holds no "
                "negative value: use 'auto', which picks uint8 where the range allows it, or 'int8'"
            )
        return INT8 if wanted == INT8 or found.min < 0 else UINT8

    def _record(self, ref: Ref, dtype: str, *, half: bool = False, bound: float = np.inf) -> TensorRecord:
        """The range to write for tensor ``ref`` stored as ``dtype``."""
        if self.config.calib_mode == NONE:
            return TensorRecord(dtype, note="range found at run time", at_run_time=True)
        found, notes = self.thresholds.range(str(ref)), []
        if dtype == UINT8 and found.min != 0:
            found = Range(0.0, max(found.max, 0.0))
        if found.absmax < _TINY:
            found = Range(0.0, 1.0)
            notes.append("the calibrated range was zero")
        if found.max > bound:
            found = Range(min(found.min, bound), bound)
        if half:
            found = Range(found.min, found.max * HALF)
            notes.append("range doubled: the kernel writes this u8 tensor into s8 memory, which holds 0..127")
        low, high = (float(np.float32(end)) for end in (found.min, found.max))
        return TensorRecord(dtype, low, high, "; ".join(notes), widened=HALF if half else 1.0)

    def _output_dtype(self, node: Node, spec: OpSpec, reads: Mapping[int, TensorRecord]) -> str:
        types = [record.dtype for record in reads.values()]
        if spec.output == "post_op":
            last = result_of(node)
            row = spec.post_op(last)
            dtype = UINT8 if row is not None and row.unsigned else INT8
            asked = self.choices.dtype(node.name)
            if asked and asked not in ("auto", dtype):
                raise ConfigError(
                    f"overrides: dtype is {asked!r} for {node.name!r}, but its kernel writes {dtype} "
                    f"after {last.op}; allowed: 'auto' or {dtype!r}"
                )
            return dtype
        if spec.output == "same":
            return types[0]
        return INT8 if spec.output == "int8" or INT8 in types else UINT8


def _bound(node: Node, spec: OpSpec) -> float:
    """What the values of ``node`` do not exceed, whatever range is asked for."""
    last = result_of(node)
    row = spec.post_op(last)
    return last.number("a_max", np.inf) if row is not None and row.saturates else np.inf


def _range(record: TensorRecord) -> Range | None:
    return None if record.min is None or record.max is None else Range(record.min, record.max)


def _carried(reads: Mapping[int, TensorRecord], dtype: str) -> TensorRecord:
    """The record of a tensor that a carry op makes: its range is the union of its inputs'."""
    spans = [_range(record) for record in reads.values()]
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return TensorRecord(dtype)
    span, offset = reduce(Range.union, known), next(iter(reads.values())).offset
    return TensorRecord(dtype, span.min, span.max, offset=offset)


def _recoded(record: TensorRecord, dtype: str) -> TensorRecord:
    """The record of a stored tensor in another type."""
    note = f"converted from {record.dtype}: the kernel needs its summand in the type of its result"
    return TensorRecord(dtype, record.min, record.max, note)
