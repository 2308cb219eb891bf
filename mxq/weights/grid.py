"""The grid on which the stock kernels put a layer's weights, and float weights that they read back as chosen codes.

Formula. A kernel takes ``code = saturate(rint(w * 127.5 / absmax))`` in every output channel (``GetQuantizeScale`` in
``quantization_utils.h``), so the step is ``s = absmax / 127.5``. A code k is written as ``k * s``, and one weight of
the channel, the extreme one, as ``a = 127.5 * s``, which saturates to 127; without it the step would be finer.
A negative one, ``-a``, would round to -128, the even neighbour of -127.5. It is moved by a few units in the last place,
to where ``fl(fl(127.5 / a) * a) < 127.5``, and so rounds to -127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.graph.ir import Array
from mxq.numerics import SPAN, quantize, scale
from mxq.saturation.kernels import Kernel

_DEAD = 1e-30


@dataclass(frozen=True, slots=True)
class Grid:
    """The codes that a kernel can be made to use.

    Attributes:
        top: the code of the extreme weight, of either sign.
        most: the largest code of the others.
        span: what the extreme weight is written as, in steps.
    """

    top: int = 127
    most: int = 127
    span: float = SPAN["int8"]


FULL: Final = Grid()
HALVED: Final = Grid(64, 63, SPAN["int8"] / 2)
"""Of kernels that read s8 without VNNI: they halve the codes, ``rint(w * 63.75 / absmax)``; see `saturation`."""


def grid_of(kernel: Kernel, *, exact: bool) -> Grid:
    """Of a kernel as `saturation` knows it, on a target that adds products exactly or not."""
    return HALVED if kernel == "halved" and not exact else FULL


RATIOS: Final = (127.5 / 127, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Bounds that `steps` tries, in shares of a channel's largest weight. The first is for weights that were codes once."""


def steps(weight: Array, importance: Array, grid: Grid) -> Array:
    """The step of each channel for which rounding to the nearest code costs least: the bound clips, too.

    Args:
        weight: (G, O, K) float.
        importance: (G, K), the weight of an input in the sum of squared errors: its second moment.

    Returns:
        (G, O) float64; 1 where all of the channel is zero. Source: MMSE range, arXiv:2106.08295, section 3.1.
    """
    largest = np.abs(weight).max(axis=2).astype(np.float64)
    shares = weight / np.maximum(largest, _DEAD)[:, :, None].astype(np.float32)
    costs, weights = [], importance.astype(np.float32)[:, :, None]
    for ratio in RATIOS:
        step = np.float32(ratio / grid.span)
        off = np.rint(shares / step)
        np.clip(off, -grid.top, grid.top, out=off)
        off *= step
        off -= shares
        off *= off
        costs.append(off @ weights)
    best = np.take(RATIOS, np.argmin(costs, axis=0)[:, :, 0]) * largest / grid.span
    return np.where(largest > _DEAD, best, 1.0)


def extremes(weight: Array, grid: Grid) -> Array:
    """The code of the extreme weight of each channel at its place, zero elsewhere: (G, O, K) int16."""
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
        codes: (G, O, K) integers, one of them ``grid.top`` or its negative in every channel that is not zero.
        step: (G, O).

    Returns:
        (G, O, K) float32.
    """
    end = (step * grid.span).astype(np.float32)
    if grid == FULL:
        end = _rounding_down(end)
    end = end[:, :, None]
    inner = (codes * step[:, :, None]).astype(np.float32)
    return np.where(codes == grid.top, end, np.where(codes == -grid.top, -end, inner))


def _rounding_down(absmax: Array, tries: int = 512) -> Array:
    """The next float32 at or above each ``absmax`` that the kernel's own scale takes to less than 127.5.

    Where there is none within ``tries`` (1 % of them), it is left as it is, and `read` as -128.
    """
    span, found = np.float32(SPAN["int8"]), absmax.ravel().copy()
    left = np.flatnonzero(found > 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for _ in range(tries):
            left = left[(span / found[left]) * found[left] >= span]
            if not len(left):
                break
            found[left] = np.nextafter(found[left], np.float32(np.inf))
        left = left[(span / found[left]) * found[left] >= span]
    found[left] = absmax.ravel()[left]
    return found.reshape(absmax.shape)


def read(weight: Array, codes: Array, step: Array, grid: Grid) -> Array:
    """What the kernel makes of written weights: (G, O, K) float64. Few steps have no float32 that is read as -127."""
    if grid != FULL:
        return values(codes, step)
    bounds = np.abs(weight).max(axis=2, keepdims=True)
    found = quantize(weight, scale(np.where(bounds > 0, bounds, 1.0), "int8"), "int8")
    return values(found, step)


def values(codes: Array, step: Array) -> Array:
    """What codes stand for: (G, O, K) float64."""
    found: Array = codes * step[:, :, None]
    return found
