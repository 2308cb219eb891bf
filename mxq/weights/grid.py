"""The grid on which the stock kernels put a layer's weights, and float weights that they read back as chosen codes.

Formula. A kernel takes ``code = saturate(rint(w * 127.5 / absmax))`` in every output channel (``GetQuantizeScale`` in
``quantization_utils.h``), so the step is ``s = absmax / 127.5``. A code k is written as ``k * s``, and one weight of the
channel, the extreme one, as ``a = 127.5 * s``, which saturates to 127; without it the kernel would take a finer step.
A negative one, ``-a``, would round to -128, the even neighbour of -127.5. It is moved by a few units in the last place,
to where ``fl(fl(127.5 / a) * a) < 127.5``, and so rounds to -127.
"""

from __future__ import annotations

import numpy as np

from mxq.ir import Array
from mxq.numerics import CODES, SPAN

LOW, HIGH = CODES["int8"]
RATIOS = (127.5 / 127, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Bounds that `steps` tries, in shares of a channel's largest weight. The first is for weights that were codes once."""
_DEAD = 1e-30


def steps(weight: Array, importance: Array) -> Array:
    """The step of each channel for which rounding to the nearest code costs least: the bound clips, too.

    Args:
        weight: (G, O, K) float.
        importance: (G, K), the weight of an input in the sum of squared errors: its second moment.

    Returns:
        (G, O) float64; 1 where all of the channel is zero. Source: MMSE range, arXiv:2106.08295, section 3.1.
    """
    largest = np.abs(weight).max(axis=2).astype(np.float64)
    best, least = largest / SPAN["int8"], np.full(largest.shape, np.inf)
    for ratio in RATIOS:
        step = np.maximum(largest * ratio / SPAN["int8"], _DEAD)
        off = np.clip(np.rint(weight / step[:, :, None]), LOW, HIGH) * step[:, :, None] - weight
        cost = np.einsum("gok,gk->go", off * off, importance)
        better = cost < least
        best, least = np.where(better, step, best), np.where(better, cost, least)
    return np.where(largest > _DEAD, best, 1.0)


def extremes(weight: Array, step: Array) -> Array:
    """The code of the extreme weight of each channel at its place, zero elsewhere: (G, O, K) int16."""
    fixed = np.zeros(weight.shape, np.int16)
    place = np.abs(weight).argmax(axis=2)[:, :, None]
    sign = np.take_along_axis(weight, place, axis=2)
    code = np.where(sign < 0, -HIGH, HIGH).astype(np.int16)
    dead = np.abs(sign) <= _DEAD
    np.put_along_axis(fixed, place, np.where(dead, 0, code), axis=2)
    return fixed


def written(codes: Array, step: Array) -> Array:
    """Float weights that the kernel reads back as ``codes``.

    Args:
        codes: (G, O, K) integers, -127 to 127, with the code 127 or -127 in every channel that is not zero.
        step: (G, O).

    Returns:
        (G, O, K) float32.
    """
    end = _rounding_down((step * SPAN["int8"]).astype(np.float32))[:, :, None]
    inner = (codes * step[:, :, None]).astype(np.float32)
    return np.where(codes == HIGH, end, np.where(codes == -HIGH, -end, inner))


def _rounding_down(absmax: Array, tries: int = 4096) -> Array:
    """The next float32 at or above each ``absmax`` that the kernel's own scale takes to less than 127.5."""
    span = np.float32(SPAN["int8"])
    found = absmax.copy()
    for _ in range(tries):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            reaches = (span / found) * found >= span
        if not reaches.any():
            break
        found = np.where(reaches, np.nextafter(found, np.float32(np.inf)), found)
    return found


def values(codes: Array, step: Array) -> Array:
    """What codes stand for: (G, O, K) float64."""
    found: Array = codes * step[:, :, None]
    return found
