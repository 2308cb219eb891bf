"""What to do where the sums of a layer may saturate (`saturation`): the remedy of the least expected error.

Known remedies: weights of 7 bits (onnxruntime, ``reduce_range``), of half the range (NNCF's overflow fix), activations
within 0..127 (torchao). Each treats all weights or values for the few pairs that can saturate, and most of those never
meet values that large. Measured layer by layer (minmax ranges, 16 images): in a ResNet-18 what saturates is at most a
thousandth of what rounding of weights adds, whereas limiting every such pair adds 3 to 190 times as much; in MobileNets
v1 and v2, after ReLU6, what saturates is up to 20 times as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mxq.graph.ir import Array
from mxq.quant import INT8, UINT8
from mxq.saturation.kernels import HIGHEST, SHIFT, Kernel, at_risk, limit_pairs, lost

FACTORS: Final = (2**0.25, 2**0.5, 2**0.75, 2.0)
"""Widenings of a range that are tried; with 2, codes end at 127, and 127 x 128 x 2 < 32768."""
MORE: Final = (2**1.5, 4.0)
"""And for "shifted" kernels, where zero counts as 128: beside it a pair of 127 and 127 is at its limit already."""

FREE: Final = 0.05
"""Limiting every pair that can saturate at all costs nothing where it adds so much of the weights' rounding noise."""

Kind: TypeAlias = Literal["none", "pairs", "range"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about the sums of one layer.

    Attributes:
        kind: "none", leave it; "pairs", use `limited`; "range", widen its input's range, and use `limited` where that
            is better still.
        factor: by which the range is widened, above 1 with "range" alone.
        pairs: how many pairs can saturate at all.
        cost: expected squared error that the remedy leaves or adds, summed over output channels.
        unguarded: the same with nothing done; in units of (code products x step)^2.
        exact: whether nothing can saturate afterwards, on any data; else it is for values up to those of the samples.
        limits: whether pairs of weights are limited.
    """

    kind: Kind
    factor: float
    pairs: int
    cost: float
    unguarded: float
    exact: bool = False
    limits: bool = False


def factors(kernel: Kernel) -> tuple[float, ...]:
    """The widenings that are tried for a layer's range."""
    return (*FACTORS, *MORE) if kernel == "shifted" else FACTORS


def remedy(
    codes: Array,
    samples: Array,
    step: ArrayLike = 1.0,
    *,
    kernel: Kernel = "pairs",
    widen: bool = True,
    limit: bool = True,
    shift: int = SHIFT,
) -> Remedy:
    """The remedy of the least expected squared error of the layer's output.

    Where limiting every pair for the largest codes there are is as good as free (`FREE`), it is that. Else "none" costs
    `lost`; "pairs" the change of weights on the samples; "range" the lesser of both in that range, and the coarser
    step's noise, ``(factor^2 - 1) / 12 x sum(codes^2)``. Activations in s8 would cost a bit of both sides of the
    product ("halved"), always more than "range" with factor 2.

    Args:
        codes: (O, I, ...) integers in -128..127.
        samples: as for `lost`; of calibration data, or `assumed_activations`.
        step: (O,) or one number, the step of the weights of each channel.
        kernel: see the module.
        widen: whether the range may be widened.
        limit: whether weights may be changed.
        shift: as for `lost`.
    """
    square = _square(codes, step)
    count = int(at_risk(codes).sum()) if kernel in ("pairs", "shifted") else 0
    if count == 0:
        return Remedy("none", 1.0, 0, 0.0, 0.0, exact=True)
    unguarded = float(lost(codes, samples, kernel=kernel, shift=shift) @ square)
    nothing = Remedy("none", 1.0, count, unguarded, unguarded)
    whole = float(change(codes, limit_pairs(codes), samples) @ square) if limit else np.inf
    everywhere = replace(nothing, kind="pairs", cost=whole, exact=True, limits=True)
    if whole <= FREE * float(rounding(codes, samples) * square.sum()):
        return everywhere
    if unguarded == 0:
        return nothing
    part = _limiting(codes, samples, 1.0, kernel, square, shift) if limit else np.inf
    found = [nothing, replace(nothing, kind="pairs", cost=part, limits=True), everywhere]
    for factor in factors(kernel) if widen else ():
        wide = widened(codes, samples, factor, step, kernel=kernel, limit=limit, shift=shift)
        found.append(replace(wide, pairs=count, unguarded=unguarded))
    return min(found, key=lambda r: r.cost)


def widened(
    codes: Array,
    samples: Array,
    factor: float,
    step: ArrayLike = 1.0,
    *,
    kernel: Kernel = "pairs",
    limit: bool = True,
    shift: int = SHIFT,
) -> Remedy:
    """The remedy of kind "range" where the range is wider by ``factor``, above 1; other arguments as of `remedy`."""
    square = _square(codes, step)
    left = float(lost(codes, samples, factor, kernel, shift) @ square)
    part = _limiting(codes, samples, factor, kernel, square, shift) if limit and left > 0 else np.inf
    cost = min(part, left) + float(coarser(codes, factor) @ square)
    exact = factor == FACTORS[-1] and kernel == "pairs"
    return Remedy("range", factor, 0, cost, left, exact, limits=part < left)


def _square(codes: Array, step: ArrayLike) -> Array:
    return np.broadcast_to(np.asarray(step, np.float64) ** 2, len(codes))


def _limiting(codes: Array, samples: Array, factor: float, kernel: Kernel, square: Array, shift: int) -> float:
    """What limiting pairs costs for activations up to those of the samples."""
    return float(change(codes, limit_pairs(codes, highest_of(samples, kernel, factor, shift)), samples) @ square)


def limited(codes: Array, samples: Array, chosen: Remedy, kernel: Kernel = "pairs", shift: int = SHIFT) -> Array:
    """The codes that a `Remedy` stands for; arguments as for `remedy`."""
    if not chosen.limits:
        return codes
    everywhere = chosen.exact and chosen.kind == "pairs"
    return limit_pairs(codes, HIGHEST if everywhere else highest_of(samples, kernel, chosen.factor, shift))


def rounding(codes: Array, samples: Array) -> float:
    """The noise of an output whose weights, with a step of 1, are rounded to the nearest code."""
    second = np.square(samples, dtype=np.float64).mean(axis=0)
    places = codes[0].size / second.size
    return float(second.sum() * places / 12)


def highest_of(samples: Array, kernel: Kernel = "pairs", factor: float = 1.0, shift: int = SHIFT) -> Array:
    """The largest code that the kernel multiplies in each channel: (I,) int32, 0..255; arguments as for `lost`."""
    top = samples.max(axis=(0, *range(2, samples.ndim))) / factor + (shift if kernel == "shifted" else 0)
    return np.asarray(np.clip(np.ceil(top), 0, HIGHEST), np.int32)


def change(codes: Array, other: Array, samples: Array) -> Array:
    """The mean square that ``other`` codes change each output by: (O,) float64; ``samples`` as for `lost`."""
    rows = np.flatnonzero((other != codes).reshape(len(codes), -1).any(axis=1))
    if not len(rows):
        return np.zeros(len(codes))
    off = (other[rows].astype(np.float32) - codes[rows]).reshape(len(rows), codes.shape[1], -1)
    data = samples.reshape(*samples.shape[:2], -1).astype(np.float32)
    parts = [(data, off)] if data.shape[2] > 1 else [(data, off[:, :, k, None]) for k in range(off.shape[2])]
    total = np.zeros(len(codes))
    for seen, part in parts:
        made = seen.reshape(len(seen), -1) @ part.reshape(len(rows), -1).T
        total[rows] += np.square(made, dtype=np.float64).mean(axis=0)
    return total


def coarser(codes: Array, factor: float) -> Array:
    """The noise that a range widened by ``factor`` adds to each output, (O,): uniform rounding errors of a step."""
    rows = codes.reshape(len(codes), -1).astype(np.float64)
    return np.asarray((factor**2 - 1) / 12 * np.einsum("ok,ok->o", rows, rows))


def assumed_activations(channels: int, *, bounded: bool, signed: bool = False, count: int = 256) -> Array:
    """Activation codes as they may be, for want of data: (count, channels) float32.

    A range that ends at the largest value seen leaves most codes small: in a ResNet-18 their root mean square is 7 to
    29, in small networks up to 80 of 255. A range that ends where a clip does (ReLU6) is used more fully: 25 to 106 in
    MobileNets v1 and v2. Both are taken as normal with a mean and a deviation that differ between channels, cut at the
    ends of the codes. Sizes are large ones, as a layer that saturates loses more than one that is limited for nothing:
    fully connected layers of random weights on normal data have 36 to 45 dB with them and 15 to 46 with a third.

    Args:
        channels: how many.
        bounded: whether values pile up at the range's end.
        signed: whether codes are s8.
        count: samples.
    """
    rng = np.random.default_rng(0)
    size = 80.0 if bounded else 64.0
    mean, deviation = rng.uniform(-1, 1, channels), rng.uniform(0.4, 1.6, channels)
    values = size * (mean + deviation * rng.standard_normal((count, channels)))
    spec = INT8 if signed else UINT8
    return np.clip(values / 2 if signed else values, spec.lowest, spec.highest).astype(np.float32)
