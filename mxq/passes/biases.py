"""Give every int8 layer a bias of its own, zero where it has none, for methods that choose it.

Before:  x -> _sg_mkldnn_conv(w; no_bias) -> y
After:   x -> _sg_mkldnn_conv(w, y_bias = 0) -> y

Conditions: the layer has no bias. Kernels add one for free.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mxq.backends import layer_of, the_layer_of
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref
from mxq.quant import Operation, QuantizedNetwork
from mxq.quant.plan import Plan


def has_bias(node: Node) -> bool:
    """Whether the layer in a fused node has one."""
    layer = layer_of(node)
    return layer is not None and not layer.flag("no_bias")


def with_bias(model: Model, node: Node, offset: float | Array) -> tuple[tuple[Node, ...], dict[str, Array]]:
    """A fused layer with ``offset`` added to its bias; the nodes and the new values.

    Args:
        offset: of each channel, (O,), or of all, in activation units.
    """
    if has_bias(node):
        name = node.inputs[2].name
        return (node,), {name: (model.args[name].astype(np.float64) + offset).astype(np.float32)}
    layer, inner, name = the_layer_of(node), node.subgraphs[0], model.graph.unused(f"{node.name}_bias")
    slot = Node(f"{layer.name}_bias_slot", VARIABLE)
    nodes = tuple(
        replace(n, attrs={**n.attrs, "no_bias": "False"}, inputs=(*n.inputs, slot.out)) if n is layer else n
        for n in inner.nodes
    )
    at = inner.nodes.index(layer)
    graph = Graph((*nodes[:at], slot, *nodes[at:]), inner.heads, inner.attrs)
    inputs = (*node.inputs[:2], Ref(name), *node.inputs[2:])
    channels = len(model.args[node.inputs[1].name])
    made = replace(node, inputs=inputs, subgraphs=(graph,))
    return (Node(name, VARIABLE), made), {name: np.full(channels, offset, np.float32)}


def add_biases(model: Model, plan: Plan) -> Model:
    """The model with a bias in every int8 layer; the same object where all have one."""
    changes, args = dict[str, tuple[Node, ...]](), dict[str, Array]()
    for node in model.graph.operators:
        if node.name in plan.quantized and layer_of(node) is not None and not has_bias(node):
            changes[node.name], new = with_bias(model, node, 0.0)
            args |= new
    return model.with_graph(model.graph.replace(changes), args) if changes else model


def with_biases(network: QuantizedNetwork) -> QuantizedNetwork:
    """`add_biases` to a network whose types are assigned."""
    before, fused = network.fused.graph, add_biases(network.fused, network.plan)
    if fused is network.fused:
        return network
    longer = {n.name for n in fused.graph.operators if n.name in before and len(n.inputs) > len(before[n.name].inputs)}
    operations = {name: _moved(op) if name in longer else op for name, op in network.operations.items()}
    return replace(network, fused=fused, operations=operations)


def _moved(operation: Operation) -> Operation:
    """An operation with a bias at place 2, where a summand was."""
    return replace(operation, reads={place + (place > 1): dtype for place, dtype in operation.reads.items()})
