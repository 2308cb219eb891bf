"""Shift signed tensors between convolutions so that they are u8, for kernels that lose a bit of the weights of s8.

Before:  conv1 [+ sum] -> x in [-a, b] (s8) -> conv2(w, bias; halved)
After:   conv1 + c [+ sum - c'] -> relu -> x + c in [0, a + b] (u8) -> conv2(w, bias - c sum(w))

Without VNNI convolutions of s8 put weights on half the grid (`mxq.saturation.kernels`); of u8 they have all codes, and
sums of pairs that have to be looked after. With c = a the tensor has the resolution of asymmetric quantization, too. A
stream of sums, as between the blocks of a MobileNet v2, is shifted as a whole: each sum by its own c, less that of its
summand. In float, values within the calibrated range are unchanged; what the rounding of w makes of c is the business
of bias correction, without which this is not done.

Formula. A stream is shifted where that leaves less noise in the layers that read it, each in shares of its output's
energy: with t the step of the tensor, s_o those of the weights w of output o,

    t^2 / 12 sum w^2  +  F sum_o s_o^2 / 12 sum E[x^2]  +  what saturates, or limits against it (`limits.Exposed`)   (1)

without the last and with twice the steps s_o for s8; F is what rounding leaves where other weights make up for it.

Conditions: each tensor of a stream is made by an int8 convolution without activation and read by nothing but the sums
of the stream and int8 layers without groups or padding (a zero of padding would be -c), and is no output; one of these
is a convolution. Its calibrated minimum is negative, nobody fixed its range or asked for int8. The parameters of all
these layers are theirs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from mxq.backends import BackendSpec, OpSpec, groups_of, layer_of, summand_of, the_layer_of
from mxq.graph.annotation_text import SHIFTED
from mxq.graph.ir import Array, Model, Node, Ref
from mxq.graph.layers import CONVOLUTION
from mxq.passes.assignment import assigned_anew
from mxq.passes.biases import has_bias, with_bias
from mxq.passes.pair_channels import weight_codes
from mxq.passes.shapes import pads
from mxq.passes.shift_summand import shifted, with_relu
from mxq.quant import INT8, MXNET, UINT8, WEIGHT, NetworkPass, QuantizedNetwork
from mxq.rewrite import NO_EVENTS, Event, Trace
from mxq.saturation.limits import FEEDBACK, Exposed
from mxq.saturation.pairing import conflicts, matching

NAME = "shift_streams"
_TINY = 1e-30
Look: TypeAlias = Callable[[Sequence[Node]], Mapping[str, Array]]
"""Gives samples of what layers read, as `mxq.saturation.activity` does."""
_FLAGS = ("with_act", "with_postsum_act")


@dataclass(frozen=True)
class _Streams:
    """Which tensors of a network can be shifted.

    Attributes:
        network: before.
        conv: the row of convolutions.
        look: gives samples of what layers read.
    """

    network: QuantizedNetwork
    conv: OpSpec
    look: Look | None

    @property
    def model(self) -> Model:
        return self.network.fused

    def offsets(self) -> dict[str, float]:
        """Name of each tensor that is shifted -> by how much."""
        writers = [node for node in self.model.graph.operators if self._writes(node)]
        streams: dict[str, frozenset[str]] = {}
        for node in writers:
            stream = frozenset({node.name})
            if summand := summand_of(node):
                stream |= streams.get(summand.name, frozenset({summand.name}))
            streams |= dict.fromkeys(stream, stream)
        made = [node.name for node in writers]
        every = dict.fromkeys(streams[name] for name in made)  # in graph order, in which samples are drawn
        free = [s for s in every if s <= set(made) and all(self._is_free(n, s) for n in s)]
        free = [s for s, readers in self._readers(free).items() if self._helps(readers)]
        return {name: -self.network.thresholds.range(name).min for name in made if streams[name] in free}

    def _writes(self, node: Node) -> bool:
        """Whether a tensor is an int8 convolution's without activation, or a sum with one."""
        if node.op != self.conv.fused_op or node.name not in self.network.plan.quantized:
            return False
        return not any(map(node.flag, _FLAGS)) and self._is_own(node)

    def _is_own(self, node: Node) -> bool:
        names = [r.name for r in node.inputs[1 : 3 if has_bias(node) else 2]]
        return all(map(self.model.is_own, names))

    def _is_free(self, name: str, stream: frozenset[str]) -> bool:
        """Whether the tensor ``name`` may be shifted as far as its range and its readers go."""
        threshold = self.network.thresholds.get(name)
        if threshold is None or threshold.range.min >= 0 or threshold.is_fixed:
            return False
        if self.network.requests.of(name) == "int8" or name in self.model.graph.head_names:
            return False
        return all(self._reads(node, Ref(name), stream) for node in self.model.graph.consumers[name])

    def _reads(self, node: Node, ref: Ref, stream: frozenset[str]) -> bool:
        """Whether ``node`` is right, or can be made so, if a constant is added to ``ref``, which it reads."""
        summed = [ref] if summand_of(node) == ref else []
        if summed and node.name not in stream:
            return False
        if [r for r in node.inputs if r == ref] == summed:
            return bool(summed)
        layer = layer_of(node)
        if layer is None or node.name not in self.network.plan.quantized or node.inputs.count(ref) != 1 + len(summed):
            return False
        dense = groups_of(layer) == 1 and not pads(layer)
        return dense and node.inputs[0] == ref and self._is_own(node)

    def _readers(self, streams: Iterable[frozenset[str]]) -> dict[frozenset[str], dict[str, Array | None]]:
        """The convolutions that read tensors of each stream, where there are any, with samples of what they read."""
        consumers = self.model.graph.consumers
        nodes = {s: [n for name in sorted(s) for n in consumers[name] if n.inputs[0].name == name] for s in streams}
        convs = {s: [n for n in found if the_layer_of(n).op == CONVOLUTION] for s, found in nodes.items()}
        every = [n for found in convs.values() for n in found]
        samples = self.look(every) if self.look is not None and every else {}
        return {s: {n.name: samples.get(n.name) for n in found} for s, found in convs.items() if found}

    def _helps(self, readers: Mapping[str, Array | None]) -> bool:
        """Whether there is less noise in all ``readers`` together, as far as there are samples."""
        noises = [self._noises(name, seen) for name, seen in readers.items() if seen is not None]
        return not noises or sum(u8 for u8, _ in noises) < sum(s8 for _, s8 in noises)

    def _noises(self, reader: str, seen: Array) -> tuple[float, float]:
        """(1) of a layer that reads a tensor as u8, and as s8."""
        node = self.model.graph[reader]
        weight, span = self.model.args[node.inputs[1].name], self.network.thresholds.range(str(node.inputs[0]))
        rows = weight.reshape(len(weight), -1)
        made = seen.reshape(len(seen), -1) @ rows.T
        energy = max(float(made.var(axis=0).sum()), _TINY)
        squares, width = float(np.square(rows, dtype=np.float64).sum()), span.max - span.min
        steps = np.square(np.abs(rows).max(axis=1) / MXNET.top(WEIGHT), dtype=np.float64).sum()
        rounding = FEEDBACK * float(steps) / 12 * float(seen.var(axis=0, dtype=np.float64).sum())
        u8, s8 = (squares * step**2 / 12 for step in (width / MXNET.top(UINT8), span.absmax / MXNET.top(INT8)))
        order = matching(conflicts(weight_codes(weight)))  # as `pair_channels` may put them
        exposed = Exposed.of("pairs", weight[:, order], (seen - np.float32(span.min))[:, order])
        saturated = 0.0 if exposed is None else exposed.cost(MXNET.top(UINT8) / width) * exposed.energy
        return (u8 + rounding + saturated) / energy, (s8 + 4 * rounding) / energy


def shift_streams(spec: BackendSpec, look: Look | None = None) -> NetworkPass:
    """Shifts all that it can where that helps; a shifted tensor has a name and range of its own, and is u8.

    Args:
        spec: what kernels there are.
        look: without it, shifting is held to help.
    """
    return NetworkPass(NAME, lambda network: _moved(network, spec, look))


def _moved(network: QuantizedNetwork, spec: BackendSpec, look: Look | None) -> tuple[QuantizedNetwork, Trace]:
    conv = spec.find(CONVOLUTION)
    offsets = _Streams(network, conv, look).offsets() if conv is not None else {}
    if not offsets:
        return network, NO_EVENTS
    model, changes, args = network.fused, dict[str, tuple[Node, ...]](), dict[str, Array]()
    for node in model.graph.operators:
        if node.name in offsets or any(r.name in offsets for r in node.inputs):
            changes[node.name], new = _shifted(model, node, offsets)
            args |= new
    fused = model.with_graph(model.graph.replace(changes), args)
    why = "so that it is u8, whose readers have all codes for their weights"
    found = assigned_anew(shifted(network, fused, offsets, why), spec)
    return found, Trace(tuple(Event(NAME, NAME, name) for name in offsets))


def _shifted(model: Model, node: Node, offsets: Mapping[str, float]) -> tuple[tuple[Node, ...], dict[str, Array]]:
    """A layer that makes or reads shifted tensors: its bias makes up for what it reads and adds its own offset."""
    own, bias = offsets.get(node.name, 0.0), np.zeros(len(model.args[node.inputs[1].name]))
    bias += own
    if summand := summand_of(node):
        bias -= offsets.get(summand.name, 0.0)
    weight = model.args[node.inputs[1].name].reshape(len(bias), -1)
    bias -= offsets.get(node.inputs[0].name, 0.0) * weight.sum(axis=1, dtype=np.float64)
    moved = replace(node, inputs=tuple(replace(r, name=r.name + SHIFTED * (r.name in offsets)) for r in node.inputs))
    return with_bias(model, with_relu(moved, own) if node.name in offsets else moved, bias)
