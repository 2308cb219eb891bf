"""One int8 layer: its weights and bias, chosen for what comes in and what should go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.config import Methods
from mxq.ir import Array, Node
from mxq.weights import grid, patches, rounding
from mxq.weights.bias import Activation, correction
from mxq.weights.grid import Grid
from mxq.weights.limits import Sums
from mxq.weights.patches import Geometry

DAMPING: Final = 0.01
"""Of the covariance, in shares of its mean variance; GPTQ's (arXiv:2210.17323)."""


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


def seen(
    weight: Array,
    exact: Sequence[Array],
    noisy: Sequence[Array],
    summands: tuple[Sequence[Array], Sequence[Array]] | None,
    geometry: Geometry,
    most: int,
    rng: np.random.Generator,
) -> Seen:
    """Samples at random places.

    Args:
        weight: (O, ...), the float one.
        exact, noisy: batches of the layer's input in the float and in the quantized network.
        summands: likewise of a fused sum's operand; None where there is none.
        most: how many places to look at.
        rng: chooses them.
    """
    places = patches.choose_places([geometry.places_of(b.shape) for b in noisy], most, rng)
    target = patches.inputs_at(exact, places, geometry) @ np.swapaxes(geometry.grouped(weight), 1, 2)
    if summands is not None:
        target += patches.outputs_at(summands[0], places, geometry)
        target -= patches.outputs_at(summands[1], places, geometry)
    return Seen(patches.inputs_at(noisy, places, geometry), target)


def choose(
    node: Node,
    weight: Array,
    bias: Array,
    data: Seen,
    geometry: Geometry,
    methods: Methods,
    levels: Grid,
    sweeps: int = 0,
    sums: Sums | None = None,
) -> Chosen:
    """New parameters of ``node`` from samples of what it reads.

    Args:
        node: fused, int8 to be.
        weight: (O, ...) float32.
        bias: (O,) float32.
        data: samples.
        geometry: of the layer.
        methods: which of them to use.
        levels: the codes that its kernel has.
        sweeps: of `rounding.descend`.
        sums: of a kernel whose sums saturate.
    """
    wanted = geometry.grouped(weight)
    energy = np.square(data.inputs, dtype=np.float32).mean(axis=1, dtype=np.float64)
    step = grid.steps(wanted, energy, levels)
    fixed = grid.extremes(wanted, levels)
    nearest = codes = grid.nearest(wanted, step, fixed, levels)
    if methods.rounding == "reconstruction":
        codes = _reconstructed(wanted, nearest, step, fixed, data, levels, sweeps, sums)
    written = grid.written(codes, step, levels)
    values = grid.read(written, codes, step, levels).astype(np.float32)
    if methods.bias_correction == "empirical":
        made = data.inputs @ np.swapaxes(values, 1, 2)
        offset = bias.reshape(geometry.groups, 1, -1)
        added = correction(data.target + offset, made + offset, Activation.of(node))
        bias = (bias + added.ravel()).astype(np.float32)
    return Chosen(
        geometry.ungrouped(written, weight.shape),
        geometry.ungrouped(values, weight.shape),
        bias,
        float(np.mean(codes != nearest)),
    )


def _reconstructed(
    wanted: Array,
    nearest: Array,
    step: Array,
    fixed: Array,
    data: Seen,
    levels: Grid,
    sweeps: int,
    sums: Sums | None,
) -> Array:
    """Codes by `rounding`; the nearest in the channels where these are better."""
    hessian = rounding.damped(rounding.covariance(data.inputs), DAMPING)

    def best(*limits: Sums | None) -> Array:
        found = rounding.successive(wanted, hessian, step, fixed, levels.most, *limits)
        return rounding.descend(found, wanted, hessian, step, fixed, levels.most, sweeps, *limits)

    codes = best()
    before, after = (rounding.error_of(c, wanted, hessian, step) for c in (nearest, codes))
    codes = np.where((after < before)[:, :, None], codes, nearest)
    if sums is None or not sums.breaks(codes[0]).any():
        return codes
    tried = [codes, best(sums), sums.limited(codes[0])[None]]
    errors = [rounding.error_of(c, wanted, hessian, step)[0] + sums.lost(c[0], step[0]) for c in tried]
    chosen = np.argmin(errors, axis=0)
    return np.asarray(np.choose(chosen[None, :, None], tried))
