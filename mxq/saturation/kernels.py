"""Which sums saturate in oneDNN's int8 kernels where there is no VNNI, what that costs, and what to do about it.

What kernels do (oneDNN 2.4.4 in MXNet 1.9.1, ``jit_uni_x8s8s32x_conv_kernel.cpp`` and ``jit_avx2_gemm_s8u8s32_kern``;
every line is held by ``tests/test_saturation.py``):

* convolution of u8: ``vpmaddubsw`` adds the products of input channels 2k and 2k + 1 at one kernel position in signed
  16 bits, saturated; those sums are added in 32 bits ("pairs").
* convolution of s8, depthwise or not: weights are put on half the grid, ``rint(w / (2 s))``, straight from float, so
  that nothing saturates; their codes are even, the last bit is lost ("halved").
* depthwise convolution of u8: values are widened before they are multiplied (``vpmaddwd``), which is exact ("exact").
* fully connected, u8: as "pairs".
* fully connected, s8: values are shifted by 128 to u8, and back after the sum. Pairs saturate, also where values are
  small: 0 counts as 128 ("shifted").

Runtimes of ONNX files multiply u8 codes as they are and take away the zero point after the sum (`mxq.quant.products`):
"pairs" where the zero point is 0, else "shifted" by it. Weights of 7 bits are exact there: 2 x 255 x 64 < 32768.

Formula. Of the pair of codes (w, v) with activation codes (a, b) the kernel adds ``clip(a w + b v, -32768, 32767)``.
With 0 <= a <= A and 0 <= b <= B it is exact for all a, b if and only if

    A max(w, 0) + B max(v, 0) <= 32767   and   A min(w, 0) + B min(v, 0) >= -32768                     (1)

One weight alone never breaks (1): 255 x 127 < 32767 and 255 x 128 < 32768. So every pair can be limited, and a channel
keeps the extreme weight that sets its scale. What that and other remedies cost is in `mxq.saturation.remedies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Concatenate, Final, Literal, ParamSpec, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mxq.graph.ir import Array
from mxq.quant import INT8, UINT8

BOTTOM: Final = -32768
TOP: Final = 32767
HIGHEST: Final = UINT8.highest
"""The largest code that these kernels multiply, of u8."""
SHIFT: Final = -INT8.lowest
"""What "shifted" kernels of MXNet add to s8 codes."""

Kernel: TypeAlias = Literal["exact", "pairs", "shifted", "halved"]
_CHUNK = 1 << 21
_BLOCK = 1 << 24
"""Weights that are looked at together: of a layer of more, so many outputs at once as have them."""
_Given = ParamSpec("_Given")


def _in_blocks(one: Callable[Concatenate[Array, _Given], Array]) -> Callable[Concatenate[Array, _Given], Array]:
    """A function of codes (O, ...) that gives (O, ...), block by block."""

    @wraps(one)
    def every(codes: Array, /, *args: _Given.args, **kwargs: _Given.kwargs) -> Array:
        rows = max(1, _BLOCK // max(codes[0].size, 1))
        if len(codes) <= rows:
            return one(codes, *args, **kwargs)
        return np.concatenate([one(codes[i : i + rows], *args, **kwargs) for i in range(0, len(codes), rows)])

    return every


def kernel_of(float_op: str, dtype: str, *, depthwise: bool = False) -> Kernel:
    """What the kernel of a layer does without VNNI.

    Args:
        float_op: "Convolution" or "FullyConnected".
        dtype: of its input, "int8" or "uint8".
        depthwise: whether each input channel has weights of its own.
    """
    if float_op == "FullyConnected":
        return "pairs" if dtype == "uint8" else "shifted"
    if dtype == "int8":
        return "halved"
    return "exact" if depthwise else "pairs"


def pairs(codes: Array) -> Array:
    """The pairs that kernels add first.

    Args:
        codes: (O, I, ...) or (O, I).

    Returns:
        (O, P, 2, K), P = ceil(I / 2), K the size of the axes after I; an odd last channel is paired with zeros.
    """
    found = codes.reshape(*codes.shape[:2], -1)
    if found.shape[1] % 2:
        found = np.pad(found, ((0, 0), (0, 1), (0, 0)))
    return np.asarray(found.reshape(len(found), -1, 2, found.shape[2]))


def excess(codes: Array, highest: ArrayLike = HIGHEST) -> Array:
    """How far the sum of each pair can be beyond 16 bits; 0 where (1) holds.

    Args:
        codes: (O, I, ...) integers in -128..127.
        highest: (I,) or one number, the largest activation code of each channel, 0..255.

    Returns:
        (O, P, K) int32, positive above `TOP`, negative below `BOTTOM`.
    """
    both, top = pairs(codes).astype(np.int32), _of_pairs(highest, codes.shape[1])
    above, below = _reached(both, top)
    above, below = above - TOP, below - BOTTOM
    return np.asarray(np.maximum(above, 0) + np.minimum(below, 0), np.int32)


@_in_blocks
def at_risk(codes: Array, highest: ArrayLike = HIGHEST) -> Array:
    """The number of pairs in each output channel that break (1): (O,) int; arguments as for `excess`."""
    return np.asarray(np.count_nonzero(excess(codes, highest), axis=(1, 2)))


@_in_blocks
def limit_pairs(codes: Array, highest: ArrayLike = HIGHEST) -> Array:
    """Codes that are close to ``codes`` and all satisfy (1).

    In a pair that breaks it, weights shrink in proportion to their ``highest``, the shortest way to (1). One extreme
    code of each output channel, 127 or -128, stays, since the kernel's scale follows from it: one outside such pairs
    where there is any; else its partner alone shrinks, at worst to 0.

    Args:
        codes: (O, I, ...) integers in -128..127.
        highest: as for `excess`.

    Returns:
        The shape and type of ``codes``, which are not changed.
    """
    over = excess(codes, highest)
    channel, pair, place = np.nonzero(over)
    if not len(channel):
        return codes
    made, top = pairs(codes).copy(), _of_pairs(highest, codes.shape[1])[0, :, :, 0]
    broken = made[channel, pair, :, place].astype(np.int64)
    fixed = _kept(made, over)[channel, pair, :, place]
    sign = np.where(over[channel, pair, place] > 0, 1, -1)
    bound = np.where(sign > 0, TOP, -BOTTOM)
    made[channel, pair, :, place] = sign[:, None] * _shrunk(np.abs(broken), top[pair], bound, fixed)
    whole = made.reshape(len(codes), -1, made.shape[3])[:, : codes.shape[1]]
    return np.asarray(whole.reshape(codes.shape))


def _kept(both: Array, over: Array) -> Array:
    """Where the extreme code of each channel stands that is to stay: (O, P, 2, K) bool."""
    rows = np.abs(both.astype(np.int16)).reshape(len(both), -1)
    free = np.broadcast_to((over == 0)[:, :, None], both.shape).reshape(rows.shape)
    place = (2 * rows.astype(np.int32) + free).argmax(axis=1)  # 127 and 128 are both extremes, but one sets the scale
    kept = np.zeros(rows.shape, bool)
    kept[np.arange(len(rows)), place] = True
    return kept.reshape(both.shape)


def _shrunk(sizes: Array, top: Array, bound: Array, fixed: Array) -> Array:
    """Sizes (M, 2) with ``sizes . top <= bound`` (M,); those ``fixed`` are as they were."""
    over = (sizes * top).sum(axis=1) - bound
    share = top / np.maximum((top.astype(np.int64) ** 2).sum(axis=1), 1)[:, None]
    first = np.clip(np.floor(sizes[:, 0] - over * share[:, 0]), 0, sizes[:, 0]).astype(np.int64)
    first = np.where(fixed[:, 0], sizes[:, 0], np.where(fixed[:, 1], _room(bound, sizes[:, 1], top, 0, sizes), first))
    second = np.where(fixed[:, 1], sizes[:, 1], _room(bound, first, top, 1, sizes))
    first = np.where(fixed.any(axis=1), first, _room(bound, second, top, 0, sizes))
    return np.stack([first, second], axis=1)


def _room(bound: Array, other: Array, top: Array, side: int, sizes: Array) -> Array:
    """The largest size on ``side`` that fits with ``other``, at most that in ``sizes``."""
    left = (bound - other * top[:, 1 - side]) // np.maximum(top[:, side], 1)
    return np.asarray(np.clip(left, 0, sizes[:, side]))


@_in_blocks
def summed(codes: Array, samples: Array, kernel: Kernel, shift: int = SHIFT) -> Array:
    """What a kernel makes of activation codes: each sum of products, less any shift.

    Args:
        codes: (O, I, ...) integers in -128..127, even ones where the kernel halves them.
        samples: (n, I, K), activation codes, integers.
        kernel: see the module.
        shift: what a "shifted" one adds to activation codes before it multiplies them.

    Returns:
        (O, n) float64, exact.
    """
    data = samples.reshape(*samples.shape[:2], -1).astype(np.float64)
    found: Array = codes.reshape(len(codes), -1).astype(np.float64) @ data.reshape(len(data), -1).T
    if kernel in ("pairs", "shifted"):
        both, given = pairs(codes), pairs((data + (shift if kernel == "shifted" else 0)).astype(np.float32))
        found -= _gone(both, given, _risky(both, given, 1.0), 1.0)
    return found


@_in_blocks
def lost(codes: Array, samples: Array, factor: float = 1.0, kernel: Kernel = "pairs", shift: int = SHIFT) -> Array:
    """The mean square of what saturation takes from each output.

    Args:
        codes: (O, I, ...) integers in -128..127.
        samples: (n, I), activation codes of one place each, of all channels; or (n, I, K), of all kernel positions.
        factor: what the range of the activation is widened by; ``samples`` are codes of the range before.
        kernel: see the module.
        shift: as for `summed`.

    Returns:
        (O,) float64, in units of code products of the range before. With samples (n, I) losses at different kernel
        positions count as independent of each other.
    """
    if kernel not in ("pairs", "shifted"):
        return np.zeros(len(codes))
    data = samples.reshape(*samples.shape[:2], -1).astype(np.float32)
    offset = np.float32(shift * factor if kernel == "shifted" else 0)
    both, given = pairs(codes), pairs(data + offset)
    risky = _risky(both, given, factor)
    if data.shape[2] > 1:
        return _square(both, given, risky, factor)
    total = np.zeros(len(codes))
    for place in range(both.shape[3]):
        total += _square(both[:, :, :, place, None], given, risky[:, :, place, None], factor)
    return total


def _square(both: Array, given: Array, risky: Array, factor: float) -> Array:
    """The mean square of what the ``risky`` pairs lose together in each output: (O,)."""
    sums = _gone(both, given, risky, factor)
    return np.asarray(np.einsum("on,on->o", sums, sums, dtype=np.float64) / max(len(given), 1))


def _gone(both: Array, given: Array, risky: Array, factor: float) -> Array:
    """What the ``risky`` pairs lose together in each output: (O, n) float32."""
    sums = np.zeros((len(both), len(given)), np.float32)
    for channel, pair, place in _chunks(risky, max(1, _CHUNK // len(given))):
        weight = both[channel, pair, :, place].astype(np.float32)
        value = given[:, pair, :, place]
        total = value[:, :, 0] * weight[:, 0, None] + value[:, :, 1] * weight[:, 1, None]
        gone = total - np.clip(total, np.float32(factor * BOTTOM), np.float32(factor * TOP))
        starts = np.flatnonzero(np.diff(channel, prepend=-1))
        sums[channel[starts]] += np.add.reduceat(gone, starts, axis=0)
    return sums


def _risky(both: Array, given: Array, factor: float) -> Array:
    """Which pairs can be beyond 16 bits on these samples: (O, P, K) bool."""
    above, below = _reached(both, given.max(axis=0))
    found: Array = (above > factor * TOP) | (below < factor * BOTTOM)
    return found


def _reached(both: Array, top: Array) -> tuple[Array, Array]:
    """The highest and the lowest sum of each pair where activation codes are 0 to ``top``: (O, P, K) each."""
    first, second = (both[:, :, side] * top[..., side, :] for side in (0, 1))
    return np.maximum(first, 0) + np.maximum(second, 0), np.minimum(first, 0) + np.minimum(second, 0)


def _chunks(mask: Array, size: int) -> Iterator[tuple[Array, Array, Array]]:
    places = np.nonzero(mask)
    for start in range(0, len(places[0]), size):
        channel, pair, place = (p[start : start + size] for p in places)
        yield channel, pair, place


def _of_pairs(highest: ArrayLike, channels: int) -> Array:
    """``highest`` for each channel of each pair: (1, P, 2, 1) int32."""
    row = np.broadcast_to(np.asarray(highest, np.int32), (channels,))
    return pairs(row[None])
