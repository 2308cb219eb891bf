"""Sums that a runtime adds within a convolution, to what it has in float: OpenVINO's.

    conv -> a -> Q, DQ -> sum -> Q          one operator: the convolution, clipped to a's range but not rounded to its
    peer ------- Q, DQ --/                  codes, plus the peer's codes, rounded once

So what the convolution makes for the sum is not rounded, and training does not round it either. Where both summands are
convolutions, the first is the one that adds, or the second where the first has other readers. The sum stays an operator
of its own, whose summands are codes, where the convolution has other readers, reads its peer, or where somebody else
reads the peer who need not be done before the sum: it is written over the peer.

Source: ``FuseConvolutionSumAndConvolutionSumActivation`` in ``graph_optimizer.cpp`` of OpenVINO's plugin for CPUs;
that nothing is rounded is what 2026.4 computes.
"""

from __future__ import annotations

from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.traits import Arithmetic, traits_of
from mxq.quant import QuantizedNetwork

_CONVOLUTION = "_sg_mkldnn_conv"


def unrounded_summands(network: QuantizedNetwork) -> frozenset[Ref]:
    """What convolutions make for sums that are added within them."""
    sums = (node for node in network.fused.graph.operators if traits_of(node).arithmetic is Arithmetic.ADD)
    found = (_adding(network, node) for node in sums if len({ref.name for ref in node.inputs}) == 2)
    return frozenset(node.out for node in found if node is not None)


def _adding(network: QuantizedNetwork, summing: Node) -> Node | None:
    """The convolution that adds in place of a sum of two tensors; None where the sum stays."""
    graph = network.fused.graph
    first, second = (graph[ref.name] for ref in summing.inputs)
    able = [node for node in (first, second) if _is_int8_convolution(network, node)]
    if not able:
        return None
    chosen = second if len(able) == 2 and not _is_read_by_alone(graph, first, summing) else able[0]
    peer = second if chosen is first else first
    fits = _is_read_by_alone(graph, chosen, summing) and chosen.inputs[0].name != peer.name
    return chosen if fits and _is_done_with(graph, peer, summing) else None


def _is_int8_convolution(network: QuantizedNetwork, node: Node) -> bool:
    operation = network.operations.get(node.name)
    return node.op == _CONVOLUTION and operation is not None and not operation.writes_float


def _is_read_by_alone(graph: Graph, node: Node, reader: Node) -> bool:
    return graph.consumers[node.name] == (reader,) and node.name not in graph.head_names


def _is_done_with(graph: Graph, peer: Node, summing: Node) -> bool:
    """Whether all who read ``peer`` have done so before the sum, on whose way they lie."""
    before, waiting = {summing.name}, [summing.name]
    while waiting:
        new = {ref.name for ref in graph[waiting.pop()].inputs} - before
        before |= new
        waiting += new
    return peer.name not in graph.head_names and all(node.name in before for node in graph.consumers[peer.name])
