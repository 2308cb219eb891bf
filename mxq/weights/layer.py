"""One int8 layer: its weights and bias, chosen for what comes in and what should go out.

What is held beside the layer's parameters stays below about 1 GiB, whatever their size: samples are of some groups at a
time, large weights are gone through by output channels, and a covariance of very many inputs is not a matrix
(`lowrank`). Layers for which none of this is needed are computed in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mxq.calibration import patches
from mxq.calibration.patches import Geometry
from mxq.config import Methods
from mxq.graph.ir import Array, Node
from mxq.saturation.limits import Sums
from mxq.weights import grid, lowrank
from mxq.weights.bias import Activation, correction
from mxq.weights.grid import Grid
from mxq.weights.lowrank import LowRank
from mxq.weights.pieces import pieces
from mxq.weights.rounding import Covariance

DAMPING: Final = 0.01
"""Of the covariance, in shares of its mean variance; GPTQ's (arXiv:2210.17323)."""
LEAST_PLACES: Final = 4096
"""Places of a layer's output that are looked at; twice as many as it has inputs where those are more."""
LARGEST: Final = 5000
"""Inputs of a layer up to which their covariance is a matrix: 96 MiB, of which five are held at once."""
SAMPLES: Final = 1 << 26
"""Values that the samples of several groups may have: 256 MiB."""


@dataclass(frozen=True)
class Seen:
    """What calibration data shows of a layer at some places of its output.

    Attributes:
        inputs: (G, N, K) float32, what the quantized network multiplies with the weights.
        target: (G, N, O) float32, what the float network's weights make of its own inputs; with a fused sum, plus the
            difference between the float and the quantized summand.
    """

    inputs: Array
    target: Array


@dataclass(frozen=True)
class Chosen:
    """A layer's new parameters.

    Attributes:
        weight: (O, ...) float32, as the kernel has to read it.
        values: (O, ...) float32, what its codes stand for.
        bias: (O,) float32.
        moved: share of the codes (0..1) that are not the nearest to their weights.
    """

    weight: Array
    values: Array
    bias: Array
    moved: float


@dataclass(frozen=True)
class Layer:
    """What is to be chosen for.

    Attributes:
        node: fused, int8 to be.
        weight: (O, ...) float32.
        bias: (O,) float32.
        geometry: of the layer.
        methods: which of them to use.
        levels: the codes that its kernel has.
        sweeps: of `rounding.descend`.
    """

    node: Node
    weight: Array
    bias: Array
    geometry: Geometry
    methods: Methods
    levels: Grid
    sweeps: int = 0

    @property
    def inputs(self) -> int:
        """K: how many an output has."""
        return int(self.weight[0].size)

    def places(self, factor: int) -> int:
        """How many places of the output to look at, ``factor`` times the least."""
        return lowrank.places(self.inputs) if self.is_wide else max(LEAST_PLACES * factor, 2 * self.inputs)

    @property
    def is_wide(self) -> bool:
        """Whether it has too many inputs for a covariance matrix."""
        return self.geometry.groups == 1 and self.inputs > LARGEST

    def parts(self, places: int) -> Iterator[tuple[Layer, slice, slice]]:
        """Some of the groups at a time, so that samples take no more than `SAMPLES`; with their inputs and outputs."""
        groups = self.geometry.groups
        some = max(1, SAMPLES // max(places * self.inputs, 1))
        if some >= groups:
            yield self, slice(None), slice(None)
            return
        wide, high = self.weight.shape[1], len(self.weight) // groups
        for start in range(0, groups, some):
            stop = min(start + some, groups)
            rows = slice(start * high, stop * high)
            part = replace(self.geometry, groups=stop - start)
            yield (
                replace(self, weight=self.weight[rows], bias=self.bias[rows], geometry=part),
                slice(start * wide, stop * wide),
                rows,
            )


def choose_places(layer: Layer, batches: Sequence[Array], factor: int, rng: np.random.Generator) -> patches.Places:
    """Places of the output at random; ``factor`` times the least."""
    return patches.choose_places([layer.geometry.places_of(b.shape) for b in batches], layer.places(factor), rng)


def seen(
    layer: Layer,
    exact: Sequence[Array],
    noisy: Sequence[Array],
    summands: tuple[Sequence[Array], Sequence[Array]] | None,
    places: patches.Places,
) -> Seen:
    """Samples at ``places``.

    Args:
        exact, noisy: batches of the layer's input in the float and in the quantized network.
        summands: likewise of a fused sum's operand; None where there is none.
    """
    geometry = layer.geometry
    target = patches.inputs_at(exact, places, geometry) @ np.swapaxes(geometry.grouped(layer.weight), 1, 2)
    if summands is not None:
        target += patches.outputs_at(summands[0], places, geometry)
        target -= patches.outputs_at(summands[1], places, geometry)
    return Seen(patches.inputs_at(noisy, places, geometry), target)


def improved(
    layer: Layer,
    exact: Sequence[Array],
    noisy: Sequence[Array],
    summands: tuple[Sequence[Array], Sequence[Array]] | None,
    places: patches.Places,
    sums: Callable[[Array], Sums | None] = lambda _: None,
) -> Chosen:
    """New parameters from what the layer reads at ``places``.

    Args:
        exact, noisy, summands: as for `seen`.
        sums: from samples (N, K) of a dense layer, how its kernel adds them.
    """
    found = []
    for part, inputs, rows in layer.parts(sum(map(len, places))):
        added = None if summands is None else (_channels(summands[0], rows), _channels(summands[1], rows))
        data = seen(part, _channels(exact, inputs), _channels(noisy, inputs), added, places)
        found.append(choose(part, data, sums(data.inputs[0]) if part.geometry.groups == 1 else None))
    if len(found) == 1:
        return found[0]
    weight, values, bias = (np.concatenate([getattr(c, name) for c in found]) for name in ("weight", "values", "bias"))
    sizes = [c.weight.size for c in found]
    return Chosen(weight, values, bias, float(np.average([c.moved for c in found], weights=sizes)))


def _channels(batches: Sequence[Array], some: slice) -> list[Array]:
    """Of tensors (examples, channels, ...)."""
    return [batch[:, some] for batch in batches]


def choose(layer: Layer, data: Seen, sums: Sums | None = None) -> Chosen:
    """New parameters from samples of what the layer reads.

    Args:
        data: samples.
        sums: of a kernel whose sums saturate.
    """
    wanted, moved = layer.geometry.grouped(layer.weight), 0
    energy = np.square(data.inputs, dtype=np.float32).mean(axis=1, dtype=np.float64)
    hessian = None
    if layer.methods.rounding == "reconstruction":
        hessian = (LowRank if layer.is_wide else Covariance).of(data.inputs, DAMPING)
    written, values = (np.empty(wanted.shape, np.float32) for _ in range(2))
    for rows in pieces(wanted.shape[1], wanted.size // wanted.shape[1]):
        codes, step, nearest = _codes(layer, wanted[:, rows], energy, hessian, sums)
        moved += int(np.count_nonzero(codes != nearest))
        written[:, rows] = grid.written(codes, step, layer.levels)
        values[:, rows] = grid.read(written[:, rows], codes, step, layer.levels)
    return Chosen(
        layer.geometry.ungrouped(written, layer.weight.shape),
        layer.geometry.ungrouped(values, layer.weight.shape),
        _bias(layer, data, values),
        moved / wanted.size,
    )


def _bias(layer: Layer, data: Seen, values: Array) -> Array:
    """The bias for weights that stand for ``values`` (G, O, K)."""
    if layer.methods.bias_correction != "empirical":
        return layer.bias
    made = data.inputs @ np.swapaxes(values, 1, 2)
    offset = layer.bias.reshape(layer.geometry.groups, 1, -1)
    added = correction(data.target + offset, made + offset, Activation.of(layer.node))
    found: Array = (layer.bias + added.ravel()).astype(np.float32)
    return found


def _codes(
    layer: Layer, wanted: Array, energy: Array, hessian: Covariance | LowRank | None, sums: Sums | None
) -> tuple[Array, Array, Array]:
    """Codes (G, O, K), their steps (G, O), and the nearest codes."""
    step = grid.steps(wanted, energy, layer.levels)
    fixed = grid.extremes(wanted, layer.levels)
    nearest = grid.nearest(wanted, step, fixed, layer.levels)
    if hessian is None:
        return nearest, step, nearest
    return _reconstructed(layer, wanted, nearest, step, fixed, hessian, sums), step, nearest


def _reconstructed(
    layer: Layer,
    wanted: Array,
    nearest: Array,
    step: Array,
    fixed: Array,
    hessian: Covariance | LowRank,
    sums: Sums | None,
) -> Array:
    """Codes by `rounding`; the nearest in the channels where these are better."""
    most = layer.levels.most

    def best(*limits: Sums | None) -> Array:
        found = hessian.successive(wanted, step, fixed, most, *limits)
        return hessian.descend(found, wanted, step, fixed, most, layer.sweeps, *limits)

    codes = best()
    before, after = (hessian.error_of(c, wanted, step) for c in (nearest, codes))
    codes = np.where((after < before)[:, :, None], codes, nearest)
    if sums is None or not sums.breaks(codes[0]).any():
        return codes
    tried = [codes, best(sums), sums.limited(codes[0])[None]]
    errors = [hessian.error_of(c, wanted, step)[0] + sums.lost(c[0], step[0]) for c in tried]
    chosen = np.argmin(errors, axis=0)
    return np.asarray(np.choose(chosen[None, :, None], tried))
