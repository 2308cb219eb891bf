"""Scale channels so that they share the range of their tensor evenly: equalization across layers.

Before:  conv1(w1, b1) [+ sum] [-> relu] -> x -> conv2(w2)
After:   conv1(s w1, s b1) -> s x -> conv2(w2 / s)              s: a positive number for each channel

One range serves all channels of a tensor, so a channel that uses a tenth of it has three bits less. Scaling it up costs
nothing in conv1, whose weights have a step per channel, nor in a depthwise conv2; in a dense one, columns of w2 shrink
against others.

A BatchNorm that could not be folded stands for conv1, conv2 or both, as a depthwise convolution does. In networks with
activation before convolution they read the stream of sums, which is scaled as a whole and no further:

Before:  x -> BatchNorm(gamma, beta, mean, variance) -> y
After:   s x -> BatchNorm(r gamma / s, r beta, s mean, variance) -> r y           r is to y's channels what s is to x's

Conditions: everything between conv1 and conv2 commutes with positive scales: ReLU, leaky ReLU, pooling, Flatten, sums,
whose operands then share s. A clip at a does where ``s * max <= a``, so there s only grows, and up to that. No other
operator reads the tensors, they are no output, and the weights belong to their layers alone. All that reads and writes
them takes the same axis for channels: the last one for a fully connected layer without flattening, else axis 1.
BatchNorm normalises axis 1 with moving statistics, its gamma is not fixed (`mxq.passes.simplify` makes one of ones).

Formula. ``s_c = min((1 / r_c)^p, a_c)`` with r_c the largest value of channel c, in shares of its tensor's, and p of
`POWERS` with the least noise of rounding, in shares of each reader's output:

    sum_j [ t^2/12 sum_c |w_jc|^2 / s_c^2  +  sum_o t_o^2/12 sum_c s_c^2 E[x_c^2] ] / sum_c |w_jc|^2 E[x_c^2]       (1)

t the tensor's step, t_o that of output channel o's weights. Of a BatchNorm w is diagonal, gamma / sqrt(variance + eps),
and not rounded, and below the fraction line is what calibration data shows of its output. Sources: Nagel et al.,
arXiv:1906.04721, section 4.1, for the identity; Xiao et al., "SmoothQuant" (arXiv:2211.10438), eq. 4, for powers of
activations' ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mxq.backends import groups_of, the_layer_of
from mxq.graph.ir import Array, Model, Node, Runner
from mxq.numerics import channel_rows
from mxq.quant import INT8, MXNET, UINT8, WEIGHT, QuantSpec
from mxq.quant.bits import Bits
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.weights.families import Family, families, is_norm
from mxq.weights.layerwise_executor import Batches, passing
from mxq.weights.pieces import pieces

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST = 64.0
"""The largest s: a channel that calibration data hardly excites may be larger in other data."""
WORTH = 0.25
"""Scales are applied where (1) becomes less than so much of what it was. It leaves out what `rounding` and `ranges` do
for the network as it is; on networks without outlier channels, scaling for smaller gains cost up to 4 dB."""
MARGIN = 2.0
"""Below a clip, a channel keeps so much room above its largest value."""
EIGHT: Final = Bits()


@dataclass(frozen=True)
class Channels:
    """What calibration data shows of the channels of a tensor: (C,) float64 each."""

    low: Array
    high: Array
    square: Array

    @property
    def largest(self) -> Array:
        largest: Array = np.maximum(np.abs(self.low), np.abs(self.high))
        return largest

    @property
    def signed(self) -> bool:
        return bool(self.low.min() < 0)


def channels_seen(runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]) -> dict[str, Channels]:
    """The channels of the tensors that may be scaled, and of what BatchNorms make of them, on the axis they stand on.

    Left out are tensors of which operators disagree where their channels are.
    """
    found, wanted = {}, _to_be_seen(model)
    for node, held in passing(runner, model, feeds):
        if node.name in wanted and node.out in held and (axis := _agreed(wanted[node.name], held[node.out])):
            found[node.name] = channels_of(held[node.out], axis)
    return found


def _to_be_seen(model: Model) -> dict[str, Family]:
    """The families of the tensors that `channels_seen` looks at."""
    every = families(model)
    of = {name: family for family in every for name in family.tensors}
    free = [family for family in every if not family.blocked and family.writers and family.readers]
    norms = (node.name for family in free for node in family.readers if is_norm(node))
    return {name: of[name] for name in (*(t for family in free for t in family.tensors), *norms)}


def _agreed(family: Family, batches: Batches) -> int:
    """The axis of a tensor's channels; 0 where there is none."""
    ranks = {b.ndim for b in batches}
    agreed = ranks == {2} or (len(family.axes) == 1 and min(ranks) > 1)
    return family.axis if agreed and len({b.shape[family.axis] for b in batches}) == 1 else 0


def channels_of(batches: Batches, axis: int) -> Channels:
    flat = channel_rows(batches, axis)
    count = sum(f.shape[1] for f in flat)
    square = sum(np.einsum("cn,cn->c", f, f, dtype=np.float64) for f in flat) / count
    low, high = np.min([f.min(axis=1) for f in flat], axis=0), np.max([f.max(axis=1) for f in flat], axis=0)
    return Channels(low.astype(np.float64), high.astype(np.float64), np.asarray(square))


def scales(model: Model, family: Family, seen: Mapping[str, Channels], bits: Bits = EIGHT) -> Array | None:
    """The factors of a family's channels, (C,) float64; None where scaling does not help.

    Args:
        seen: tensor -> what calibration data shows of it.
        bits: of codes.
    """
    if family.blocked or not family.writers or not family.readers:
        return None
    if any(name not in seen for name in (*family.tensors, *(n.name for n in family.readers if is_norm(n)))):
        return None
    known = [seen[name] for name in family.tensors]
    if len({len(c.largest) for c in known}) > 1:
        return None
    share = np.max([c.largest / max(c.largest.max(), 1e-30) for c in known], axis=0)
    room = np.max([c.largest for c in known], axis=0) * MARGIN
    most = np.maximum(np.minimum(MOST, family.cap / np.maximum(room, 1e-30)), 1.0)
    inverse = 1 / np.maximum(share, 1 / MOST)
    choices = [np.minimum(inverse**power, most) for power in POWERS]
    costs = [sum(_noise(model, node, seen, s, bits) for node in family.readers) for s in choices]
    best = int(np.argmin(costs))
    return choices[best] if costs[best] < WORTH * costs[0] else None


def _noise(model: Model, reader: Node, seen: Mapping[str, Channels], s: Array, bits: Bits) -> float:
    """The reader's term of (1)."""
    x = seen[reader.inputs[0].name]
    tensor_step = (s * x.largest).max() / MXNET.top(replace(INT8 if x.signed else UINT8, bits=bits.activations))
    if is_norm(reader):
        squares, energy = _gains(model, reader) ** 2, float(seen[reader.name].square.sum())
        return float(tensor_step**2 / 12 * (squares / s**2).sum() / max(energy, 1e-30))
    layer = the_layer_of(reader)
    weight = model.args[reader.inputs[1].name]
    if groups_of(layer) > 1:
        squares = (weight.reshape(len(weight), -1).astype(np.float64) ** 2).sum(axis=1)
        rounding = 0.0
    else:
        squares, steps = _dense(weight, s, replace(WEIGHT, bits=bits.weights))
        rounding = float(steps / 12 * (s**2 * x.square).sum() * (weight[0].size // len(s)))
    energy = float((squares * x.square).sum())
    return float((tensor_step**2 / 12 * (squares / s**2).sum() + rounding) / max(energy, 1e-30))


def _dense(weight: Array, s: Array, spec: QuantSpec) -> tuple[Array, float]:
    """Of a weight (O, C * positions) for inputs that are scaled by s: sums of squares, (C,), and of squared steps."""
    squares, total = np.zeros(len(s)), 0.0
    for rows in pieces(len(weight), weight[0].size):
        columns = weight[rows].astype(np.float64).reshape(rows.stop - rows.start, len(s), -1)
        squares += (columns**2).sum(axis=(0, 2))
        steps = (np.abs(columns).max(axis=2) / s).max(axis=1) / MXNET.top(spec)
        total += float((steps**2).sum())
    return squares, total


def _gains(model: Model, norm: Node) -> Array:
    """What a BatchNorm multiplies each channel by, (C,) float64."""
    gamma, variance = model.args[norm.inputs[1].name], model.auxs[norm.inputs[4].name]
    gains: Array = gamma / np.sqrt(variance.astype(np.float64) + norm.number("eps", 1e-3))
    return gains


def scaled(model: Model, chosen: Sequence[tuple[Family, Array]]) -> Model:
    """The model with all the scales of ``chosen``, in its parameters; attributes of nodes say so."""
    args, auxs = dict(model.args), dict(model.auxs)
    changes: dict[str, Sequence[Node]] = {}
    for family, s in chosen:
        for node in family.writers:  # weight and bias, or gamma and beta
            for name in (r.name for r in node.inputs[1:3] if r.name in args):
                args[name] = _times(args[name], s)
            written = tuple(float(f"{v:.8g}") for v in s)  # as files have them: what reads a file sees the same
            changes[node.name] = (node.noted(scale=written, axis=family.axis),)
        for node in family.readers:
            args[node.inputs[1].name] = _divided(args[node.inputs[1].name], s, node)
            if is_norm(node):
                auxs[node.inputs[3].name] = _times(auxs[node.inputs[3].name], s)
    return replace(model.with_graph(model.graph.replace(changes), args), auxs=auxs)


def _times(value: Array, s: Array) -> Array:
    """``value``, (C, ...) float32, times s."""
    found, factors = np.empty(value.shape, np.float32), s.reshape(-1, *[1] * (value.ndim - 1))
    for rows in pieces(len(value), value[0].size):
        found[rows] = value[rows].astype(np.float64) * factors[rows]
    return found


def _divided(weight: Array, s: Array, reader: Node) -> Array:
    """What a reader multiplies its inputs by, for inputs that are scaled by s.

    Args:
        weight: (O, C, ...) or (O, C * positions) of a dense layer, (C, ...) of a depthwise one and of BatchNorm.
    """
    if is_norm(reader) or groups_of(the_layer_of(reader)) > 1:
        return _times(weight, 1 / s)
    found = np.empty(weight.shape, np.float32)
    for rows in pieces(len(weight), weight[0].size):
        part = weight[rows]
        found[rows] = (part.reshape(len(part), len(s), -1).astype(np.float64) / s[None, :, None]).reshape(part.shape)
    return found


def equalize(
    model: Model, thresholds: Thresholds, seen: Mapping[str, Channels], bits: Bits = EIGHT
) -> tuple[Model, Thresholds, tuple[str, ...]]:
    """Scales all families where that helps, but for those with a range that is given: it is of the values as they are.

    Returns:
        The model and the ranges of its tensors, and the names of the tensors that are scaled.
    """
    given = {name for name, threshold in thresholds.items() if threshold.is_fixed}
    free = (f for f in families(model) if given.isdisjoint(f.tensors))
    chosen = [(f, s) for f in free if (s := scales(model, f, seen, bits)) is not None]
    table = dict(thresholds)
    for family, s in chosen:
        for name in family.tensors & table.keys():
            table[name] = rescaled(table[name], seen[name], s)
    names = tuple(n.name for n in model.graph.operators if any(n.name in f.tensors for f, _ in chosen))
    return (scaled(model, chosen), Thresholds(table), names) if chosen else (model, thresholds, ())


def rescaled(threshold: Threshold, seen: Channels, s: Array) -> Threshold:
    """The range after scaling: as far beyond or below the largest value as it was before, in shares of that."""
    low, high = float((seen.low * s).min()), float((seen.high * s).max())
    kept = [
        abs(asked) / abs(was) if was else 1.0
        for asked, was in ((threshold.range.min, seen.low.min()), (threshold.range.max, seen.high.max()))
    ]
    span = Range(min(low * kept[0], 0.0), max(high * kept[1], 0.0))
    return threshold.unobserved().ranged(span, "its channels are scaled to share it")
