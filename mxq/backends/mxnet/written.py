"""Written: what the nodes of an int8 graph, as stock MXNet runs it, say of the tensors that they make."""

from __future__ import annotations

from mxq.backends.mxnet.table import MXNET_191
from mxq.backends.spec import OpSpec
from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.layers import result_of, summand_place
from mxq.graph.traits import traits_of

QUANTIZE, DEQUANTIZE, REQUANTIZE = "_contrib_quantize_v2", "_contrib_dequantize", "_contrib_requantize"


def tensor_name(node: Node) -> str:
    """The name of the float tensor whose codes ``node`` gives; its own where it gives no codes, or quantizes."""
    return node.note.tensor or node.name


def plain_name(node: Node) -> str:
    """The name that the tensor had in the network as it was given, which is not shifted."""
    return node.note.unshifted or tensor_name(node)


def recodes(node: Node) -> bool:
    """Whether ``node`` only codes, decodes or recodes a tensor."""
    return traits_of(node).recodes


def is_int8(node: Node) -> bool:
    """Whether a node of an int8 network computes on codes; what only codes or decodes does not."""
    return traits_of(node).reads_codes and not recodes(node)


def is_coded(node: Node) -> bool:
    """Whether a node of an int8 network gives codes with their range: values, minimum, maximum."""
    return traits_of(node).writes_codes


def dtype_of(graph: Graph, ref: Ref) -> str:
    """The type of a tensor of an int8 network, as its nodes declare it."""
    node = graph[ref.name]
    if node.is_variable:
        return node.input_dtype
    if not is_coded(node):
        return "float32"
    if node.op in (QUANTIZE, REQUANTIZE):
        return node.attrs.get("out_type", "int8")
    spec = _row(node)
    if spec is None or spec.output == "int8":
        return "int8"
    if spec.output == "post_op":
        row = spec.post_op(result_of(node))
        return "uint8" if row is not None and row.unsigned else "int8"
    types = {dtype_of(graph, node.inputs[place]) for place in code_places(node)}
    return "int8" if "int8" in types else "uint8"


def ranges_read(node: Node) -> dict[int, tuple[Ref, Ref]]:
    """Of each input of codes of an int8 operator, by its place: the minimum and the maximum of its range."""
    places = code_places(node)
    bounds = node.inputs[len(node.inputs) - 2 * len(places) :]
    return {place: (bounds[2 * i], bounds[2 * i + 1]) for i, place in enumerate(places)}


def code_places(node: Node) -> tuple[int, ...]:
    """The places of an int8 operator's inputs of codes: its data and, of a layer + sum, the summand."""
    if not traits_of(node).reads_codes:
        return ()
    spec = _row(node)
    if spec is None:
        return (0,) if recodes(node) else ()
    summed = summand_place(node)
    return (*(spec.data_inputs or range(node.integer("num_args", 1))), *(() if summed is None else (summed,)))


def _row(node: Node) -> OpSpec | None:
    return next((spec for spec in MXNET_191.ops if spec.int8_op == node.op), None)
