"""Quantize: the fused float graph becomes the int8 graph that stock MXNet runs.

Before:  x -> _sg_mkldnn_conv -> y -> softmax
After:   x -> _contrib_quantize_v2 -> _sg_mkldnn_conv(quantized, ranges) -> _contrib_dequantize -> softmax

An int8 node is named ``quantized_<name>`` (with zeros after it where the network has such a node, and `TENSOR` to tell)
and has three outputs (values, minimum, maximum); where a float reader or the network's output needs the tensor, a
dequantize node takes the float tensor's own name, so float readers, output names and thresholds stay as they were.
Ranges go into ``min_calib_range``/``max_calib_range``; scales follow from them in the kernels (`mxq.numerics`). Types
are the kernels': a convolution writes u8 after ReLU or clip, s8 otherwise; what is quantized from float is u8 where the
range has no negative part (``auto``).

Guards, each for a stock kernel that would otherwise fail or compute something else:

* conv + sum writes into its summand's memory with *the summand's type* (``mkldnn_conv.cc``: ``output`` is
  ``inputs[in_sum]``). An s8 summand under a u8 result would saturate at half the range: the written range is
  doubled, so that values stay within 0..127. A u8 summand under an s8 result is converted to s8 first.
* a u8 range must not have a negative minimum (the CHECK of a convolution that reads it, ``mkldnn_conv.cc``): it is
  written from 0.
* a range of zero width makes scales infinite: it is written as [0, 1].
* ranges found at run time may leave no room for a bias: see `mxq.passes.run_time`.
* int8 ReLU takes s8 only; on a u8 tensor it has nothing to do and goes.
* int8 BatchNorm and ReLU write s8, of which the ReLU leaves half: see `mxq.passes.rectify`.
* conv + sum has no clip in int8. It is written as ReLU with a range that ends at the clip's bound, where u8 saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from mxq.backends import MXNET_191, BackendSpec, OpSpec
from mxq.backends.onednn import FULLY_CONNECTED
from mxq.config import QuantConfig
from mxq.errors import ConfigError, QuantizeError
from mxq.ir import Array, Graph, Model, Node, Ref, standing_for, toposort
from mxq.passes.biases import with_bias
from mxq.passes.exact import on_grid
from mxq.passes.overrides import LayerChoices
from mxq.passes.partition import NONE, data_inputs, writes_float
from mxq.passes.rectify import rectified, written
from mxq.passes.run_time import least_range, widened
from mxq.plan import Plan, TensorRecord, Tensors
from mxq.thresholds import Range, Thresholds
from mxq.verify.held import MADE, OFFSET, REMADE, TENSOR

INT8, UINT8 = "int8", "uint8"
HALF = 255.5 / 127.5
"""Widening of a u8 range that keeps its values within 0..127."""
_TINY = 1e-30
"""What kernels hold apart from 0: the scale of such a range, and that times a weight's, are finite in float32."""


@dataclass(frozen=True, slots=True)
class Coded:
    """An int8 tensor of the new graph: refs of its values, minimum and maximum; what `TensorRecord` says of it."""

    values: Ref
    min: Ref
    max: Ref
    dtype: str
    range: Range | None = None
    offset: float = 0.0

    @staticmethod
    def of(node: str, record: TensorRecord) -> Coded:
        """The tensor that ``node`` makes."""
        return Coded(Ref(node), Ref(node, 1), Ref(node, 2), record.dtype, _range(record), record.offset)


def quantize_graph(
    model: Model,
    plan: Plan,
    thresholds: Thresholds,
    config: QuantConfig,
    backend: BackendSpec = MXNET_191,
    *,
    exact: bool = True,
) -> tuple[Model, Tensors]:
    """Builds the int8 model.

    Args:
        model: the fused float model that ``plan`` was made for.
        plan: from `partition`.
        thresholds: a range for every tensor in ``plan.observe``.
        exact: whether the target's kernels add products exactly; otherwise they halve the weights of s8 tensors.

    Returns:
        The int8 model, and how each of its int8 tensors is coded.

    Raises:
        CalibrationError: a range is missing.
        QuantizeError: "uint8" was asked for a tensor with negative values, or of which nothing is known.
    """
    choices, merged = LayerChoices.of(model.graph, config), rectified(model, plan.quantized)
    builder = _Builder(model, plan, thresholds, config, backend, choices, merged, exact)
    absorbed = {norm.name for norm in merged.values()}  # each is made with the ReLU that reads it
    for node in model.graph:
        if node.name in absorbed:
            continue
        if node.name in plan.quantized:
            builder.quantize(node)
        else:
            builder.keep(node)
    for head in model.graph.heads:
        builder.as_float(head)
    graph = toposort(builder.nodes.values(), model.graph.heads, model.graph.attrs)
    return model.with_graph(graph, builder.args), builder.tensors


@dataclass
class _Builder:
    model: Model
    plan: Plan
    thresholds: Thresholds
    config: QuantConfig
    backend: BackendSpec
    choices: LayerChoices
    rectified: Mapping[str, Node]
    exact: bool
    args: dict[str, Array] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    coded: dict[Ref, Coded] = field(default_factory=dict)
    quantizers: dict[tuple[Ref, str], Coded] = field(default_factory=dict)
    layers: dict[Ref, str] = field(default_factory=dict)
    """The type that int8 readers expect of what an int8 layer writes in float."""
    records: dict[str, TensorRecord] = field(default_factory=dict)

    @property
    def tensors(self) -> Tensors:
        """What was made."""
        quantized = {ref: tensor.values.name for (ref, _), tensor in reversed(self.quantizers.items())}
        return Tensors(self.records, {**quantized, **{ref: tensor.values.name for ref, tensor in self.coded.items()}})

    def unused(self, name: str) -> str:
        """``name``, with zeros after it where a node of either network has it."""
        while name in self.nodes or name in self.model.graph:
            name += "0"
        return name

    # ---- reading tensors ----

    def as_float(self, ref: Ref) -> None:
        """Makes sure that the float tensor ``ref`` exists under its own name."""
        if ref in self.coded and ref.name not in self.nodes:
            tensor = self.coded[ref]
            inputs, label = (tensor.values, tensor.min, tensor.max), self.model.graph[ref.name].label
            self.nodes[ref.name] = Node(ref.name, "_contrib_dequantize", {}, inputs, label=label)

    def as_int8(self, ref: Ref, dtype: str = "") -> Coded:
        """The int8 form of tensor ``ref``, of type ``dtype`` if given; quantizes it where only float exists."""
        tensor = self.coded.get(ref)
        if tensor is not None and dtype in ("", tensor.dtype):
            return tensor
        self.as_float(ref)
        dtype = dtype or self._input_dtype(ref)
        if (ref, dtype) not in self.quantizers:
            name = f"{ref.name}_{ref.output}_quantize" if ref.output else f"{ref.name}_quantize"
            name = name if self.unused(name) == name else self.unused(f"{name}_{dtype}")
            record = self._record(ref, dtype) if tensor is None else _recoded(tensor, dtype)
            self.nodes[name] = Node(name, "_contrib_quantize_v2", {"out_type": dtype, **_range_attrs(record)}, (ref,))
            self.records[name] = replace(record, of=ref.name) if ref in self.layers else record
            self.quantizers[ref, dtype] = Coded.of(name, record)
        return self.quantizers[ref, dtype]

    def _input_dtype(self, ref: Ref) -> str:
        """The type in which a float tensor is quantized."""
        if ref in self.layers:
            return self.layers[ref]
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
        """The range to write for tensor ``ref`` held as ``dtype``."""
        if self.config.calib_mode == NONE:
            return TensorRecord(dtype, note="range found at run time")
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

    # ---- writing nodes ----

    def keep(self, node: Node) -> None:
        """A variable or a node that stays in float."""
        for ref in node.inputs:
            self.as_float(ref)
        self.nodes[node.name] = node

    def quantize(self, node: Node) -> None:
        """A node that becomes int8."""
        if node.name in self.rectified:
            self._rectify(node, self.rectified[node.name])
            return
        spec = self.backend.find(node.op)
        if spec is None:
            raise QuantizeError(f"{node.name!r} ({node.op}) has no int8 kernel in {self.backend.name}")
        types = dict(zip(spec.data_inputs, spec.takes, strict=False))
        tensors = {i: self.as_int8(node.inputs[i], types.get(i, "")) for i in data_inputs(node, spec)}
        dtype = self._output_dtype(node, spec, tensors)
        if spec.s8_only and tensors[0].dtype == UINT8:
            self.coded[node.out] = tensors[0]
            return
        half = False
        if node.flag("with_sum"):
            last = len(node.inputs) - 1
            half = dtype == UINT8 and tensors[last].dtype == INT8
            if dtype == INT8 and tensors[last].dtype == UINT8:
                tensors[last] = self.as_int8(node.inputs[last], INT8)
        if spec.role == "compute" and tensors[0].offset:
            node = self._without_offset(node, tensors[0])
        if spec.role == "compute" and self.config.calib_mode == NONE:
            tensors[0] = self._with_room_for_bias(node, tensors[0])
        inputs = tuple(tensors[i].values if i in tensors else ref for i, ref in enumerate(node.inputs))
        ranges = tuple(r for i in tensors for r in (tensors[i].min, tensors[i].max))
        if self._calibrated(node, spec):
            record = self._record(node.out, dtype, half=half, bound=_bound(node, spec))
        else:
            record = _carried(tensors, dtype)
        self._add(node, spec, (*inputs, *ranges), record)

    def _rectify(self, relu: Node, norm: Node) -> None:
        """A BatchNorm that does what the ReLU after it would; see `mxq.passes.rectify`."""
        spec, data = self.backend.find(norm.op), self.as_int8(norm.inputs[0])
        if spec is None:
            raise QuantizeError(f"{norm.name!r} ({norm.op}) has no int8 kernel in {self.backend.name}")
        plain = self._record(relu.out, UINT8)
        span, offset = written(plain.max or 0.0)
        note = "; ".join(filter(None, (plain.note, "the lowest code is zero, so that saturation is the ReLU")))
        record = TensorRecord(INT8, float(np.float32(span.min)), float(np.float32(span.max)), note, offset)
        beta = norm.inputs[2].name
        self.args[beta] = (self.model.args[beta].astype(np.float64) + offset).astype(np.float32)
        both = replace(norm, name=relu.name, label=relu.label).with_attrs(**standing_for(norm, relu))
        self._add(both, spec, (data.values, *norm.inputs[1:], data.min, data.max), record)

    def _without_offset(self, conv: Node, data: Coded) -> Node:
        """A convolution whose bias takes back what was added to the tensor that it reads."""
        weight = on_grid(self.model.args[conv.inputs[1].name], halved=data.dtype == INT8 and not self.exact)
        sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.float64)
        nodes, values = with_bias(self.model, conv, -data.offset * sums)
        self.args |= values
        self.nodes |= {node.name: node for node in nodes[:-1]}
        return nodes[-1]

    def _with_room_for_bias(self, conv: Node, data: Coded) -> Coded:
        """``data`` in a range, found at run time, that is not too small for the bias of ``conv``."""
        least = least_range(self.model, conv, data.dtype)
        if least is None:
            return data
        node = widened(self.unused(f"{conv.name}_least_range"), data.max, least)
        self.nodes[node.name] = node
        return replace(data, max=node.out)

    def _output_dtype(self, node: Node, spec: OpSpec, tensors: Mapping[int, Coded]) -> str:
        types = [t.dtype for t in tensors.values()]
        if spec.output == "post_op":
            last = node.subgraphs[0][node.subgraphs[0].heads[0].name]
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

    def _calibrated(self, node: Node, spec: OpSpec) -> bool:
        return spec.calibrated and not self._to_float(node, spec)

    def _add(self, node: Node, spec: OpSpec, inputs: tuple[Ref, ...], record: TensorRecord) -> None:
        if self._to_float(node, spec):
            attrs = {"enable_float_output": "True"}
            self.layers[node.out] = record.dtype
            self.nodes[node.name] = self._int8_node(node, spec, node.name, inputs, attrs)
            return
        name = self.unused(MADE + node.name)
        attrs = {**(_range_attrs(record) if spec.calibrated else {}), **_said(name, MADE, node)}
        if record.offset:
            attrs = {**attrs, OFFSET: repr(record.offset)}
        self.nodes[name] = replace(self._int8_node(node, spec, name, inputs, attrs), label="")
        at_runtime = spec.calibrated and self.config.calib_mode == NONE
        coded = self._requantize(node, name, record) if at_runtime else Coded.of(name, record)
        self.coded[node.out] = coded
        self.records[coded.values.name] = replace(record, of=node.name)

    def _to_float(self, node: Node, spec: OpSpec) -> bool:
        """Whether the kernel writes float itself."""
        return writes_float(self.model.graph, node, spec, self.plan.quantized)

    def _int8_node(
        self, node: Node, spec: OpSpec, name: str, inputs: tuple[Ref, ...], attrs: Mapping[str, str]
    ) -> Node:
        fused = {"quantized": "true"} if spec.fused_op else {}
        if spec.float_op == FULLY_CONNECTED.float_op:
            fused["channel_wise_quantize"] = "True"
        everything = {**node.attrs, **standing_for(node), **fused, **attrs}
        inside = tuple(_saturated(node, spec, sub) for sub in node.subgraphs)
        return replace(node, name=name, op=spec.int8_op, attrs=everything, inputs=inputs, subgraphs=inside)

    def _requantize(self, node: Node, sums: str, record: TensorRecord) -> Coded:
        """int32 results become 8 bits in a range found at run time."""
        name, source = self.unused(REMADE + node.name), Coded.of(sums, TensorRecord("int32"))
        attrs = {"out_type": record.dtype, **_said(name, REMADE, node)}
        self.nodes[name] = Node(name, "_contrib_requantize", attrs, (source.values, source.min, source.max))
        return Coded.of(name, record)


def _said(name: str, prefix: str, node: Node) -> dict[str, str]:
    """The attribute that says whose codes a node called ``name`` gives, where that is not the usual name."""
    return {} if name == prefix + node.name else {TENSOR: node.name}


def _saturated(node: Node, spec: OpSpec, inside: Graph) -> Graph:
    """The subgraph of a fused node with ReLU in place of a clip after a sum, which the int8 kernel does not know."""
    last = inside.nodes[-1]
    row = spec.post_op(last)
    if row is None or not row.saturates or not node.flag("with_sum"):
        return inside
    relu = replace(last, op="Activation", attrs={"act_type": "relu"})
    return Graph((*inside.nodes[:-1], relu), inside.heads, inside.attrs)


def _bound(node: Node, spec: OpSpec) -> float:
    """What the values of ``node`` do not exceed, whatever range is asked for."""
    last = node.subgraphs[0].nodes[-1] if node.subgraphs else node
    row = spec.post_op(last)
    return last.number("a_max", np.inf) if row is not None and row.saturates else np.inf


def _range(record: TensorRecord) -> Range | None:
    return None if record.min is None or record.max is None else Range(record.min, record.max)


def _carried(tensors: Mapping[int, Coded], dtype: str) -> TensorRecord:
    """The record of a tensor that a carry op makes: its range is the union of its inputs'."""
    spans = [t.range for t in tensors.values()]
    known = [s for s in spans if s is not None]
    if len(known) < len(spans):
        return TensorRecord(dtype)
    span, offset = reduce(Range.union, known), next(iter(tensors.values())).offset
    return TensorRecord(dtype, span.min, span.max, offset=offset)


def _recoded(tensor: Coded, dtype: str) -> TensorRecord:
    """The record of ``tensor`` in another type."""
    note = f"converted from {tensor.dtype}: the kernel needs its summand in the type of its result"
    if tensor.range is None:
        return TensorRecord(dtype, note=note)
    return TensorRecord(dtype, tensor.range.min, tensor.range.max, note)


def _range_attrs(record: TensorRecord) -> dict[str, str]:
    if record.min is None or record.max is None:
        return {}
    return {"min_calib_range": repr(record.min), "max_calib_range": repr(record.max)}
