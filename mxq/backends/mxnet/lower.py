"""Lower: a quantized network becomes the int8 graph that stock MXNet runs.

Before:  x -> _sg_mkldnn_conv -> y -> softmax
After:   x -> _contrib_quantize_v2 -> _sg_mkldnn_conv(quantized, ranges) -> _contrib_dequantize -> softmax

An int8 node is named ``quantized_<name>`` (with zeros after it where the network has such a node) and has three outputs
(values, minimum, maximum); where a float reader or the network's output needs the tensor, a dequantize node takes the
float tensor's own name, so float readers, output names and thresholds stay as they were. Ranges go into
``min_calib_range``/``max_calib_range``; scales follow from them in the kernels (`mxq.quant.MXNET`). What is stored as
what, `mxq.passes.assignment` and `mxq.quant.records` decide; nothing is decided here.

* Ranges found at run time may leave no room for a bias: see `mxq.backends.mxnet.run_time`.
* conv + sum has no clip in int8. It is written as ReLU, with the range that records give: u8 saturates at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mxq.backends import BackendSpec, OpSpec
from mxq.backends.mxnet.run_time import least_range, widened
from mxq.errors import QuantizeError
from mxq.graph.annotation import Annotation
from mxq.graph.annotation_text import MADE, REMADE
from mxq.graph.ir import Array, Graph, Model, Node, Ref, origins, toposort
from mxq.graph.layers import FULLY_CONNECTED
from mxq.passes.biases import with_bias
from mxq.quant import Operation, QuantizedNetwork
from mxq.quant.plan import TensorRecord, Tensors
from mxq.weights.grid import on_grid


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor of codes in the new graph: refs of its values, minimum and maximum; how it is stored."""

    values: Ref
    min: Ref
    max: Ref
    record: TensorRecord

    @staticmethod
    def of(node: str, record: TensorRecord) -> Coded:
        """The tensor that ``node`` makes."""
        return Coded(Ref(node), Ref(node, 1), Ref(node, 2), record)


def int8_graph(network: QuantizedNetwork, spec: BackendSpec) -> tuple[Model, Tensors]:
    """Builds the int8 model.

    Args:
        network: what is decided.
        spec: what kernels there are.

    Returns:
        The int8 model, and how each of its int8 tensors is coded.

    Raises:
        QuantizeError: something is stored as the backend cannot hold it.
    """
    spec.check(network)
    model, operations = network.fused, network.operations
    builder = _Builder(network, spec)
    absorbed = {operation.norm for operation in operations.values()}
    for node in model.graph:
        if node.name in operations:
            builder.quantize(node, operations[node.name])
        elif node.name not in absorbed:
            builder.keep(node)
    for head in model.graph.heads:
        builder.as_float(head)
    graph = toposort(builder.nodes.values(), model.graph.heads, model.graph.attrs)
    return model.with_graph(graph, builder.args), builder.tensors


@dataclass
class _Builder:
    network: QuantizedNetwork
    spec: BackendSpec
    args: dict[str, Array] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    coded: dict[Ref, Coded] = field(default_factory=dict)
    quantizers: dict[tuple[Ref, str], Coded] = field(default_factory=dict)
    records: dict[str, TensorRecord] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        return self.network.fused

    @property
    def tensors(self) -> Tensors:
        """What was made."""
        quantized = {ref: tensor.values.name for (ref, _), tensor in reversed(self.quantizers.items())}
        return Tensors(self.records, {**quantized, **{ref: tensor.values.name for ref, tensor in self.coded.items()}})

    def unused(self, name: str) -> str:
        """``name``, with zeros after it where a node of either network has it."""
        return self.model.graph.unused(name, self.nodes)

    # ---- reading tensors ----

    def as_float(self, ref: Ref) -> None:
        """Makes sure that the float tensor ``ref`` exists under its own name."""
        if ref in self.coded and ref.name not in self.nodes:
            tensor = self.coded[ref]
            inputs, label = (tensor.values, tensor.min, tensor.max), self.model.graph[ref.name].label
            self.nodes[ref.name] = Node(ref.name, "_contrib_dequantize", {}, inputs, label=label)

    def as_int8(self, ref: Ref, dtype: str) -> Coded:
        """The codes of tensor ``ref`` in a type: those that an operator made, or a quantizer's."""
        if ref in self.coded and self.coded[ref].record.dtype == dtype:
            return self.coded[ref]
        self.as_float(ref)
        for (read, other), stored in self.network.quantized.items():
            if read == ref and (read, other) not in self.quantizers:
                self.quantizers[read, other] = self._quantizer(read, stored)
            if (read, other) == (ref, dtype):
                break
        return self.quantizers[ref, dtype]

    def _quantizer(self, ref: Ref, record: TensorRecord) -> Coded:
        name = f"{ref.name}_{ref.output}_quantize" if ref.output else f"{ref.name}_quantize"
        name = name if self.unused(name) == name else self.unused(f"{name}_{record.dtype}")
        attrs = {"out_type": record.dtype, **_range_attrs(record)}
        self.nodes[name] = Node(name, "_contrib_quantize_v2", attrs, (ref,))
        self.records[name] = record
        return Coded.of(name, record)

    # ---- writing nodes ----

    def keep(self, node: Node) -> None:
        """A variable or a node that stays in float."""
        for ref in node.inputs:
            self.as_float(ref)
        self.nodes[node.name] = node

    def quantize(self, node: Node, operation: Operation) -> None:
        """A node that becomes int8."""
        if operation.norm:
            self._absorb_relu(node, operation)
            return
        spec = self._row(node)
        tensors = {i: self.as_int8(node.inputs[i], dtype) for i, dtype in operation.reads.items()}
        if operation.passes_on:
            self.coded[node.out] = tensors[0]
            return
        if spec.role == "compute" and tensors[0].record.offset:
            node = self._without_offset(node, tensors[0].record)
        if spec.role == "compute" and self.network.at_run_time:
            tensors[0] = self._with_room_for_bias(node, tensors[0])
        inputs = tuple(tensors[i].values if i in tensors else ref for i, ref in enumerate(node.inputs))
        ranges = tuple(r for i in tensors for r in (tensors[i].min, tensors[i].max))
        self._add(node, spec, (*inputs, *ranges), operation)

    def _row(self, node: Node) -> OpSpec:
        row = self.spec.find(node.op)
        if row is None:
            raise QuantizeError(f"{node.name!r} ({node.op}) has no int8 kernel in {self.spec.name}")
        return row

    def _absorb_relu(self, relu: Node, operation: Operation) -> None:
        """A BatchNorm that does what the ReLU after it would; see `mxq.passes.fuse_relu_into_batchnorm`."""
        norm = self.model.graph[operation.norm]
        data, beta = self.as_int8(norm.inputs[0], operation.reads[0]), norm.inputs[2].name
        offset = self.network.made[relu.out].offset
        self.args[beta] = (self.model.args[beta].astype(np.float64) + offset).astype(np.float32)
        both = replace(norm, name=relu.name, label=relu.label).standing_for(norm, relu)
        self._add(both, self._row(norm), (data.values, *norm.inputs[1:], data.min, data.max), operation)

    def _without_offset(self, conv: Node, data: TensorRecord) -> Node:
        """A convolution whose bias takes back what was added to the tensor that it reads."""
        weight = on_grid(self.model.args[conv.inputs[1].name], halved=data.dtype == "int8" and not self.network.exact)
        sums = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.float64)
        nodes, values = with_bias(self.model, conv, -data.offset * sums)
        self.args |= values
        self.nodes |= {node.name: node for node in nodes[:-1]}
        return nodes[-1]

    def _with_room_for_bias(self, conv: Node, data: Coded) -> Coded:
        """``data`` in a range, found at run time, that is not too small for the bias of ``conv``."""
        least = least_range(self.model, conv, data.record.dtype)
        if least is None:
            return data
        node = widened(self.unused(f"{conv.name}_least_range"), data.max, least)
        self.nodes[node.name] = node
        return replace(data, max=node.out)

    def _add(self, node: Node, spec: OpSpec, inputs: tuple[Ref, ...], operation: Operation) -> None:
        if operation.writes_float:
            self.nodes[node.name] = self._int8_node(node, spec, node.name, inputs, {"enable_float_output": "True"})
            return
        record = self.network.made[node.out]
        name, ranges = self.unused(MADE + node.name), _range_attrs(record) if spec.calibrated else {}
        made = replace(self._int8_node(node, spec, name, inputs, ranges), label="")
        self.nodes[name] = made.noted(tensor=node.name, offset=record.offset or made.note.offset)
        at_run_time = spec.calibrated and self.network.at_run_time
        coded = self._requantize(node, name, record) if at_run_time else Coded.of(name, record)
        self.coded[node.out] = coded
        self.records[coded.values.name] = record

    def _int8_node(
        self, node: Node, spec: OpSpec, name: str, inputs: tuple[Ref, ...], attrs: Mapping[str, str]
    ) -> Node:
        fused = {"quantized": "true"} if spec.fused_op else {}
        if spec.float_op == FULLY_CONNECTED:
            fused["channel_wise_quantize"] = "True"
        everything, note = {**node.attrs, **fused, **attrs}, replace(node.note, origins=origins(node))
        made = replace(node, name=name, op=spec.int8_op, attrs=everything, inputs=inputs, note=note)
        return replace(made, subgraphs=tuple(_saturated(node, spec, sub) for sub in node.subgraphs))

    def _requantize(self, node: Node, sums: str, record: TensorRecord) -> Coded:
        """int32 results become 8 bits in a range found at run time."""
        name, source = self.unused(REMADE + node.name), Coded.of(sums, TensorRecord("int32"))
        attrs, inputs = {"out_type": record.dtype}, (source.values, source.min, source.max)
        self.nodes[name] = Node(name, "_contrib_requantize", attrs, inputs, note=Annotation(tensor=node.name))
        return Coded.of(name, record)


def _saturated(node: Node, spec: OpSpec, inside: Graph) -> Graph:
    """The subgraph of a fused node with ReLU in place of a clip after a sum, which the int8 kernel does not know."""
    last = inside[inside.heads[0].name]
    row = spec.post_op(last)
    if row is None or not row.saturates or not node.flag("with_sum"):
        return inside
    relu = replace(last, op="Activation", attrs={"act_type": "relu"}, note=Annotation())
    return Graph(tuple(relu if inner is last else inner for inner in inside), inside.heads, inside.attrs)


def _range_attrs(record: TensorRecord) -> dict[str, str]:
    if record.min is None or record.max is None:
        return {}
    return {"min_calib_range": repr(record.min), "max_calib_range": repr(record.max)}
