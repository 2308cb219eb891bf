"""Pair channels: order the channels inside a network so that fewest sums of two products can saturate without VNNI.

Before:  x -> conv_a (channels 0, 1, 2, 3) -> relu -> conv_b (its weights of channels 0 and 1 are large together)
After:   x -> conv_a (channels 0, 2, 1, 3) -> relu -> conv_b (reads them in that order)

Kernels without VNNI add the products of channels 2k and 2k + 1 in 16 bits (`mxq.saturation.kernels`). Which channels
those are is free wherever all that makes and reads them can be put in the same order: rows of the weight and bias of
the layer that makes them, columns of those that read them, both of what lies between. The float network computes what
it did, up to the order of its sums, and the int8 one costs nothing more. The worst-case cost that is
left, median over groups read by one layer and by several: ResNet-18 1 % and 8 %, ResNet-50 8 % and 10 %, MobileNet v2
0.01 % and 48 %; MobileNet v1, all by one, 0.2 %.

Conditions: no tensor of the group (those whose channels stand in one order) is an input or output of the network or
is read or made by anything but convolutions, depthwise ones, fully connected layers, sums of equals, pooling and
element-wise operators; their parameters are theirs alone.
Formula: `mxq.saturation.pairing`, with the costs of all int8 layers that read the group added, each in shares of its
own weights' energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mxq.backends import groups_of, layer_of
from mxq.graph.ir import Array, Graph, Model, Node, Ref
from mxq.graph.traits import traits_of
from mxq.quant import MXNET, WEIGHT, NetworkPass, QuantizedNetwork
from mxq.rewrite import NO_EVENTS, Event, Trace
from mxq.saturation.pairing import conflicts, cost_of, matching

NAME = "pair_channels"


@dataclass
class _Group:
    """Tensors whose channels stand in one order."""

    makers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    between: list[Node] = field(default_factory=list)
    tensors: list[Ref] = field(default_factory=list)
    free: bool = True

    def take(self, other: _Group) -> None:
        self.makers += other.makers
        self.readers += other.readers
        self.between += other.between
        self.tensors += other.tensors
        self.free &= other.free


def _paired(network: QuantizedNetwork) -> tuple[QuantizedNetwork, Trace]:
    """The same network with permuted parameters, so that its inner channels have an order that saturates least.

    The `Annotation.order` of each node whose result has its channels in another order says where each of them was:
    ``new = old[:, order]``.
    """
    model, events = network.fused, list[Event]()
    args, given, nodes = dict(model.args), dict(network.given), dict[str, Sequence[Node]]()
    for group in _groups(model):
        order = _order(group, args, network)
        if order is None:
            continue
        _permute(group, args, order)
        given |= {name: given[name].ordered(order) for name in _rows(group) if name in given}
        nodes |= {ref.name: (_ordered(model.graph[ref.name], order),) for ref in group.tensors}
        events += [Event(NAME, NAME, node.name) for node in group.makers]
    if not nodes:
        return network, NO_EVENTS
    fused = Model(model.graph.replace(nodes), args, model.auxs)
    return replace(network, fused=fused, given=given), Trace(tuple(events))


PAIR_CHANNELS = NetworkPass(NAME, _paired)


def _ordered(node: Node, order: Array) -> Node:
    """``node`` with what its note says of channels."""
    places, scale = tuple(map(int, order)), node.note.scale
    return node.noted(order=places, scale=tuple(scale[i] for i in places) if scale else ())


def weight_codes(weight: Array) -> Array:
    """The codes that MXNet's kernels give a weight (O, ...): of its shape, int8."""
    return MXNET.covering(WEIGHT, weight).quantize(weight)


@dataclass
class _Groups:
    """The group of each tensor."""

    found: dict[Ref, _Group] = field(default_factory=dict)

    def of(self, ref: Ref) -> _Group:
        return self.found.setdefault(ref, _Group(tensors=[ref]))

    def join(self, refs: Iterable[Ref], *, free: bool = True) -> _Group:
        """Makes one group of those of ``refs``; it is not free where it is not to be reordered."""
        first, *others = {id(g): g for g in map(self.of, refs)}.values()  # each once: n + n reads n twice
        for other in others:
            first.take(other)
            self.found.update(dict.fromkeys(other.tensors, first))
        first.free &= free
        return first


def _groups(model: Model) -> list[_Group]:
    """The groups of tensors whose channels may be put in another order, each once."""
    groups = _Groups()
    join = groups.join
    for node in model.graph.operators:
        data = [r for r in node.inputs if model.param(r.name) is None]
        kind = _kind(model, node)
        if kind == "dense":
            join([node.out, *data[1:]]).makers.append(node)
            join(data[:1]).readers.append(node)
        elif kind in ("depthwise", "alike"):
            join([node.out, *data]).between += [node] * (kind == "depthwise")
        else:
            for ref in (*data, *(Ref(node.name, i) for i in range(_outputs(model.graph, node)))):
                join([ref], free=False)
    for ref in (*model.graph.heads, *(Ref(name) for name in model.inputs)):
        join([ref], free=False)
    return [g for g in {id(g): g for g in groups.found.values()}.values() if g.free and g.makers and g.readers]


def _kind(model: Model, node: Node) -> str:
    """How ``node`` treats channels: "dense", "depthwise", "alike", or "" where it is unknown."""
    layer = layer_of(node)
    if layer is None:
        reads_parameters = any(model.param(r.name) is not None for r in node.inputs)
        return "alike" if traits_of(node).per_channel and not reads_parameters else ""
    own = [r for r in node.inputs[1:] if model.param(r.name) is not None]
    inside = () if not node.subgraphs else node.subgraphs[0].operators
    if not all(n is layer or traits_of(n).per_channel for n in inside):
        return ""
    if len(own) != (1 if layer.flag("no_bias") else 2) or any(len(model.graph.consumers[r.name]) > 1 for r in own):
        return ""
    groups = groups_of(layer)
    if groups == 1:
        spatial = layer.op == "FullyConnected" and not layer.flag("flatten", True)
        return "" if spatial or layer.attrs.get("layout", "None") not in ("None", "NCHW", "NCDHW") else "dense"
    weight = model.args.get(own[0].name)
    return "depthwise" if weight is not None and groups == len(weight) and weight.shape[1] == 1 else ""


def _outputs(graph: Graph, node: Node) -> int:
    read = [r.output for n in graph.consumers[node.name] for r in n.inputs if r.name == node.name]
    return 1 + max([*read, *(r.output for r in graph.heads if r.name == node.name)], default=0)


def _order(group: _Group, args: dict[str, Array], network: QuantizedNetwork) -> Array | None:
    """The better order of the channels of ``group``; None where there is none."""
    sizes = {len(args[n.inputs[1].name]) for n in (*group.makers, *group.between)}
    sizes |= {args[n.inputs[1].name].shape[1] for n in group.readers}
    readers = [n for n in group.readers if n.name in network.plan.quantized]
    if len(sizes) != 1 or not readers:  # a fully connected layer that reads several values of a channel
        return None
    channels = sizes.pop()
    costs = np.zeros((channels, channels))
    for node in readers:
        name = node.inputs[1].name
        codes = network.weight_as(name, args[name]).quantize(args[name])
        costs += conflicts(codes) / max(float(np.square(codes, dtype=np.float64).sum()), 1.0)
    order, same = matching(costs), np.arange(channels)
    return order if cost_of(order, costs) < cost_of(same, costs) else None


def _permute(group: _Group, args: dict[str, Array], order: Array) -> None:
    """Puts the parameters of ``group`` in ``order``, in ``args``."""
    args.update({name: np.ascontiguousarray(args[name][order]) for name in _rows(group) if name in args})
    for node in group.readers:
        name = node.inputs[1].name
        args[name] = np.ascontiguousarray(args[name][:, order])


def _rows(group: _Group) -> list[str]:
    """What the layers read beside data that make the tensors of ``group``."""
    return [ref.name for node in (*group.makers, *group.between) for ref in node.inputs[1:]]
