"""Exact: an int8 network whose layers are computed in float32, to the numbers that kernels with VNNI give.

Before:  codes -> _sg_mkldnn_conv(quantized, weight) -> codes
After:   codes -> dequantize -> _sg_mkldnn_conv(float, weight on its grid) -> quantize_v2 -> codes

Sums of products of codes are integers below 2^24 nearly always, which float32 holds, so only the last rounding can
differ, by one code. Without VNNI the int8 kernels add products in pairs in 16 bits, where large sums saturate; what
differs between a network and its exact form on such a CPU is that, and the even codes of weights that convolutions of
s8 have there (``halved`` has them too). It is for looking, not for speed.

Conditions: ranges are calibrated. Operators that only carry codes stay as they are; they are exact on every CPU.
"""

from __future__ import annotations

from dataclasses import replace

from mxq.backends import summand_of
from mxq.backends.mxnet.table import MXNET_191
from mxq.backends.mxnet.written import dtype_of, ranges_read, tensor_name
from mxq.errors import QuantizeError
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Graph, Model, Node, toposort
from mxq.quant import INT8, MXNET, UINT8
from mxq.weights.grid import on_grid

_GONE = ("quantized", "min_calib_range", "max_calib_range", "enable_float_output", "channel_wise_quantize")
_RANGE = ("min_calib_range", "max_calib_range")


def exact(model: Model, *, halved: bool = False) -> Model:
    """``model`` with its int8 layers in float32 arithmetic.

    Args:
        model: an int8 network.
        halved: whether convolutions of s8 have even codes alone, as where there is no VNNI.

    Raises:
        QuantizeError: a layer finds its range at run time.
    """
    nodes: dict[str, Node] = {}
    args = dict(model.args)
    for node in model.graph:
        spec = MXNET_191.find(node.op)
        if spec is None or spec.role != "compute" or not node.flag("quantized"):
            nodes[node.name] = node
            continue
        for new in _in_float(model.graph, node):
            nodes[new.name] = new
        weight = node.inputs[1].name
        even = halved and spec.float_op == "Convolution" and dtype_of(model.graph, node.inputs[0]) == "int8"
        args[weight] = on_grid(model.args[weight], halved=even)
    return model.with_graph(toposort(nodes.values(), model.graph.heads, model.graph.attrs), args)


def _in_float(graph: Graph, node: Node) -> list[Node]:
    """The float operator in place of ``node``, with its conversions."""
    ranges, summand = ranges_read(node), summand_of(node)
    inputs, made = list(node.inputs[: len(node.inputs) - 2 * len(ranges)]), []
    for order, (place, bounds) in enumerate(ranges.items()):
        back = Node(f"{node.name}_dequantize{order}", "_contrib_dequantize", {}, (inputs[place], *bounds))
        made.append(back)
        inputs[place] = back.out
    attrs = {k: v for k, v in node.attrs.items() if k not in _GONE}
    if node.flag("enable_float_output"):
        return [*made, replace(node, attrs=attrs, inputs=tuple(inputs))]
    if not all(name in node.attrs for name in _RANGE):
        raise QuantizeError(f"{node.name!r} finds its range at run time; allowed: calibrated ranges")
    note = replace(node.note, tensor="", unshifted="")
    plain = replace(node, name=f"{node.name}_float", attrs=attrs, inputs=tuple(inputs), label="", note=note)
    dtype = dtype_of(graph, node.out)
    coding = {"out_type": dtype, **{name: node.attrs[name] for name in _RANGE}}
    end = plain
    if summand is not None and dtype == "uint8" and dtype_of(graph, summand) == "int8":  # written into s8
        top = INT8.highest / float(MXNET.params(UINT8, 0.0, node.number(_RANGE[1], 1.0)).scale)
        end = Node(f"{node.name}_end", "clip", {"a_min": "0.0", "a_max": repr(top)}, (plain.out,))
        plain, made = end, [*made, plain]
    codes = Annotation(tensor=tensor_name(node))
    return [*made, plain, Node(node.name, "_contrib_quantize_v2", coding, (end.out,), label=node.label, note=codes)]
