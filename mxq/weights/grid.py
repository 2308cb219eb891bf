"""The grid on which a scheme puts a layer's weights, and float weights that are read back as chosen codes.

Formula. A kernel takes ``code = saturate(rint(w * top / absmax))`` in every output channel, with the `Scheme.top` of
its scheme: 127.5 for int8 in MXNet (``GetQuantizeScale`` in ``quantization_utils.h``). So the step is
``s = absmax / top``. A code k is written as ``k * s``, and one weight of the channel, the extreme one, as
``a = top * s``, which saturates to the last code; without it the step would be finer. Where a negative one, ``-a``, is
half a code beyond that, it would round to the even neighbour, -128 of -127.5. It is moved by a few units in the last
place, to where ``fl(fl(top / a) * a) < top``, and so rounds to -127; or, where -128 is wanted, to where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from mxq.errors import ConfigError
from mxq.graph.ir import Array
from mxq.quant import MXNET, WEIGHT, QParams, QuantizedNetwork, QuantSpec, Scheme
from mxq.saturation.kernels import Kernel

_DEAD = 1e-30
SHARES: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Bounds of a channel that are tried, in shares of its largest weight."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The codes that a kernel can be made to use.

    Attributes:
        spec: what the codes are: signed, symmetric, with a scale of any size for each output channel, or one for all.
        scheme: how the scale follows from a channel's largest weight.
        halved: whether the kernel takes ``rint(w * top / 2 / absmax)`` and doubles that, as oneDNN's that read s8
            without VNNI; see `saturation`.
        step: of all channels, where the spec has one scale for all; see `Grid.of_whole`.
        largest: then, the size of the largest weight of all.

    Raises:
        ConfigError: the spec is another.
    """

    spec: QuantSpec = WEIGHT
    scheme: Scheme = MXNET
    halved: bool = False
    step: float | None = None
    largest: float = 0.0

    def __post_init__(self) -> None:
        if not (Grid.holds(self.spec) if self.step is None else Grid.holds_whole(self.spec)):
            raise ConfigError(f"the codes of weights are {self.spec}; allowed: intN, per channel on axis 0, any scale")

    @staticmethod
    def holds(spec: QuantSpec) -> bool:
        """Whether ``spec`` is one of these."""
        return bool(spec.signed) and spec.symmetric and spec.axis == 0 and spec.scale == "float"

    @staticmethod
    def holds_whole(spec: QuantSpec) -> bool:
        """Whether ``spec`` is one of these with one scale for all channels, which may be a power of two."""
        return bool(spec.signed) and spec.symmetric and spec.axis is None

    @staticmethod
    def of_whole(weight: Array, spec: QuantSpec, scheme: Scheme) -> Grid:
        """The codes of a weight (O, ...) that has one scale, by the range of `Nearest`."""
        params = scheme.covering(spec, Nearest.of(weight, spec, scheme).weight)
        return Grid(spec, scheme, step=float(params.step), largest=float(np.abs(weight).max()))

    @property
    def top(self) -> int:
        """The code of the extreme weight, of either sign."""
        return self.spec.highest // 2 + 1 if self.halved else self.spec.highest

    @property
    def most(self) -> int:
        """The largest code of the others."""
        return self.spec.highest // 2 if self.halved else self.spec.highest

    @property
    def span(self) -> float:
        """What the extreme weight is written as, in steps."""
        return self.scheme.top(self.spec) / (2 if self.halved else 1)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Bounds that `steps` tries, in shares of a channel's largest weight.

        The first is for weights that were codes once.
        """
        return (self.scheme.top(self.spec) / self.spec.highest, *SHARES)

    @property
    def is_moved(self) -> bool:
        """Whether an extreme weight that is negative has to be moved, lest it be read as the code below its own."""
        return not self.halved and self.span > self.top and self.spec.lowest < -self.top


FULL: Final = Grid()
HALVED: Final = Grid(halved=True)


def grid_of(kernel: Kernel, *, exact: bool) -> Grid:
    """Of a kernel as `saturation` knows it, on a target that adds products exactly or not."""
    return HALVED if kernel == "halved" and not exact else FULL


def grid_in(network: QuantizedNetwork, weight: str, kernel: Kernel) -> Grid | None:
    """The codes that a network has for a weight, whose layer is of that kernel; None where no grid holds such."""
    if network.weight is None:
        return grid_of(kernel, exact=network.exact)
    spec = network.weight_of(weight)
    return Grid(spec, network.weight_scheme(weight)) if Grid.holds(spec) else None


@dataclass(frozen=True)
class Nearest:
    """A weight in codes that no `Grid` holds: with a zero point, or a power of two for each channel.

    Attributes:
        weight: (O, ...) float32, whose range is that of the codes.
        values: (O, ...) float32, what its codes stand for, each the nearest.
    """

    weight: Array
    values: Array

    @staticmethod
    def of(weight: Array, spec: QuantSpec, scheme: Scheme) -> Nearest:
        """With the range of least squared error, of `SHARES` of the whole one; for each channel with ``spec.axis``.

        Source: MMSE range, arXiv:2106.08295, section 3.1.
        """
        rows = weight.reshape(len(weight), -1)
        axis = None if spec.axis is None else 1
        best, cost = weight, np.full(1 if axis is None else len(weight), np.inf)
        for share in SHARES:
            low, high = (end(rows, axis=axis, keepdims=True) * np.float32(share) for end in (np.min, np.max))
            if spec.symmetric:
                low, high = -np.maximum(-low, high), np.maximum(-low, high)
            tried = np.clip(rows, low, high).reshape(weight.shape)
            off = np.square(scheme.covering(spec, tried).fake(tried) - weight, dtype=np.float64)
            found = off.reshape(len(weight), -1).sum(axis=axis).reshape(-1)
            better = (found < cost).reshape(-1, *[1] * (weight.ndim - 1))
            best, cost = np.where(better, tried, best), np.minimum(cost, found)
        return Nearest(best, scheme.covering(spec, best).fake(best))

    def part(self, rows: slice) -> Nearest:
        """That of some output channels."""
        return Nearest(self.weight[rows], self.values[rows])


def steps(weight: Array, importance: Array, grid: Grid) -> Array:
    """The step of each channel for which rounding to the nearest code costs least: the bound clips, too.

    Args:
        weight: (G, O, K) float.
        importance: (G, K), the weight of an input in the sum of squared errors: its second moment.

    Returns:
        (G, O) float64; 1 where all of the channel is zero. Source: MMSE range, arXiv:2106.08295, section 3.1.
    """
    if grid.step is not None:
        return np.full(weight.shape[:2], grid.step)
    largest = np.abs(weight).max(axis=2).astype(np.float64)
    shares = weight / np.maximum(largest, _DEAD)[:, :, None].astype(np.float32)
    costs, weights = [], importance.astype(np.float32)[:, :, None]
    for ratio in grid.ratios:
        step = np.float32(ratio / grid.span)
        off = np.rint(shares / step)
        np.clip(off, -grid.top, grid.top, out=off)
        off *= step
        off -= shares
        off *= off
        costs.append(off @ weights)
    best = np.take(grid.ratios, np.argmin(costs, axis=0)[:, :, 0]) * largest / grid.span
    return np.where(largest > _DEAD, best, 1.0)


def extremes(weight: Array, grid: Grid) -> Array:
    """The code of the extreme weight of each channel, or of all, at its place, zero elsewhere: (G, O, K) int16."""
    if grid.step is not None:
        highest = min(grid.top, round(grid.largest / grid.step)) if grid.largest > _DEAD else 0
        is_largest = np.abs(weight) >= np.float32(grid.largest)
        return np.where(is_largest, np.sign(weight) * highest, 0).astype(np.int16)
    fixed = np.zeros(weight.shape, np.int16)
    place = np.abs(weight).argmax(axis=2)[:, :, None]
    sign = np.take_along_axis(weight, place, axis=2)
    code = np.where(np.abs(sign) > _DEAD, np.sign(sign) * grid.top, 0)
    np.put_along_axis(fixed, place, code.astype(np.int16), axis=2)
    return fixed


def nearest(weight: Array, step: Array, fixed: Array, grid: Grid) -> Array:
    """The nearest codes, (G, O, K) int16, but for those that are ``fixed``."""
    codes = np.clip(np.rint(weight / step[:, :, None]), -grid.most, grid.most).astype(np.int16)
    return np.where(fixed != 0, fixed, codes)


def written(codes: Array, step: Array, grid: Grid) -> Array:
    """Float weights that the kernel reads back as ``codes``.

    Args:
        codes: (G, O, K) integers, one of them ``grid.top``, its negative, or the code below that, which kernels hold
            as well, in every channel that is not zero.
        step: (G, O).

    Returns:
        (G, O, K) float32.
    """
    exact, inner = (step * grid.span).astype(np.float32), (codes * step[:, :, None]).astype(np.float32)
    end = (_moved(exact, grid.span, "down") if grid.is_moved else exact)[:, :, None]
    found = np.where(codes == grid.top, end, np.where(codes == -grid.top, -end, inner))
    below = codes < -grid.top
    if not below.any():
        return found
    last = np.where(below, -_moved(exact, grid.span, "up")[:, :, None], inner)
    return np.where(below.any(axis=2, keepdims=True), last, found)


def _moved(absmax: Array, top: float, way: Literal["down", "up"], tries: int = 512) -> Array:
    """The next float32 at or above each ``absmax`` that the kernel's own scale takes to less than ``top``, or to it.

    Where none within ``tries`` goes "down" (1 % of them for int8, a third for int2), it is left as it is, and `read`
    as the code below, -128. A narrow spec has no such code. "up" there is always one.
    """
    span, found = np.float32(top), absmax.ravel().copy()
    left = np.flatnonzero(found > 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for _ in range(tries):
            left = left[((span / found[left]) * found[left] >= span) == (way == "down")]
            if not len(left):
                break
            found[left] = np.nextafter(found[left], np.float32(np.inf))
        left = left[((span / found[left]) * found[left] >= span) == (way == "down")]
    found[left] = absmax.ravel()[left]
    return found.reshape(absmax.shape)


def read(weight: Array, codes: Array, step: Array, grid: Grid) -> Array:
    """What the kernel makes of written weights: (G, O, K) float64. Few steps have no float32 that is read as -127."""
    if not grid.is_moved:
        return values(codes, step)
    rows = weight.reshape(-1, weight.shape[2])
    found = grid.scheme.covering(grid.spec, rows).quantize(rows)
    return values(found.reshape(weight.shape), step)


def values(codes: Array, step: Array) -> Array:
    """What codes stand for: (G, O, K) float64."""
    found: Array = codes * step[:, :, None]
    return found


def on_grid(weight: Array, *, halved: bool = False) -> Array:
    """The values that the kernels' codes of a weight (O, ...) stand for, per output channel: float32.

    Args:
        weight: as it is written.
        halved: of a kernel that reads s8 without VNNI, which has even codes alone (`mxq.saturation.kernels`).
    """
    params = MXNET.covering(WEIGHT, weight)
    return (QParams(WEIGHT, params.scale / 2) if halved else params).fake(weight)
