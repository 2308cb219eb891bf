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
from mxq.graph.ir import Array, Node
from mxq.saturation.limits import Sums
from mxq.weights import grid, lowrank
from mxq.weights.grid import Grid, Nearest
from mxq.weights.methods import BiasMethod, Methods, Rounded, Seen, Unrounded
from mxq.weights.pieces import pieces

LEAST_PLACES: Final = 4096
"""Places of a layer's output that are looked at; twice as many as it has inputs where those are more."""
SAMPLES: Final = 1 << 26
"""Values that the samples of several groups may have: 256 MiB."""


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
        levels: the codes that its kernel has, or the weight as it is where those are of no grid.
        sweeps: of `rounding.descend`.
    """

    node: Node
    weight: Array
    bias: Array
    geometry: Geometry
    methods: Methods
    levels: Grid | Nearest
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
        return lowrank.is_wide(self.geometry.groups, self.inputs)

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
            levels = self.levels.part(rows) if isinstance(self.levels, Nearest) else self.levels
            yield (
                replace(self, weight=self.weight[rows], bias=self.bias[rows], geometry=part, levels=levels),
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


def choose(layer: Layer, data: Seen | None, sums: Sums | None = None) -> Chosen:
    """New parameters from samples of what the layer reads, or from its weights alone.

    Args:
        data: samples; None where there are none.
        sums: of a kernel whose sums saturate.
    """
    if isinstance(layer.levels, Nearest):
        return _as_it_is(layer, layer.levels, data)
    wanted, moved, levels = layer.geometry.grouped(layer.weight), 0, layer.levels
    energy, rounder = _energy(wanted, data), layer.methods.round.rounder(data)
    written, values = (np.empty(wanted.shape, np.float32) for _ in range(2))
    for rows in pieces(wanted.shape[1], wanted.size // wanted.shape[1]):
        channels = _unrounded(layer, levels, wanted[:, rows], energy, sums)
        codes, step = rounder(channels), channels.step
        moved += int(np.count_nonzero(codes != channels.nearest))
        written[:, rows] = grid.written(codes, step, levels)
        values[:, rows] = grid.read(written[:, rows], codes, step, levels)
    return Chosen(
        layer.geometry.ungrouped(written, layer.weight.shape),
        layer.geometry.ungrouped(values, layer.weight.shape),
        _bias(Rounded(layer.node, layer.geometry, layer.weight, values, layer.bias, data), layer.methods.bias),
        moved / wanted.size,
    )


def _energy(wanted: Array, data: Seen | None) -> Array:
    """(G, K), the second moment of each input; without data all are alike."""
    if data is None:
        return np.ones((wanted.shape[0], wanted.shape[2]))
    return np.asarray(np.square(data.inputs, dtype=np.float32).mean(axis=1, dtype=np.float64))


def _unrounded(layer: Layer, levels: Grid, wanted: Array, energy: Array, sums: Sums | None) -> Unrounded:
    """Weights (G, O, K) on the grid of the layer's kernel."""
    step = grid.steps(wanted, energy, levels)
    fixed = grid.extremes(wanted, levels)
    nearest = grid.nearest(wanted, step, fixed, levels)
    return Unrounded(wanted, step, nearest, fixed, levels, sums, layer.sweeps)


def _as_it_is(layer: Layer, weight: Nearest, data: Seen | None) -> Chosen:
    """The nearest codes, and a bias that makes up for them."""
    values = layer.geometry.grouped(weight.values)
    bias = _bias(Rounded(layer.node, layer.geometry, layer.weight, values, layer.bias, data), layer.methods.bias)
    return Chosen(weight.weight, weight.values, bias, 0.0)


def _bias(layer: Rounded, method: BiasMethod) -> Array:
    added = method.correction(layer)
    return layer.bias if added is None else (layer.bias + added).astype(np.float32)
