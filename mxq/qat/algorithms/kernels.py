"""The compiled loops of fake quantization: values onto a grid, and gradients from there.

They are what `mxq.qat.algorithms.grid` says in numpy's words, in one pass over memory. Sums are taken over 1,024 values
in float32, beyond in float64, in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxq.host.parallel import compiled, in_parallel, reassociated, slices

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]

_Part: TypeAlias = tuple[slice, slice]
_RUN: Final = 1024
"""Values that are summed in float32."""


@compiled
def _fake(x: Floats, scale: Floats, low: Floats, high: Floats, out: Floats) -> None:
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            s, bottom, top = scale[channel], low[channel], high[channel]
            for i in range(x.shape[2]):
                code = x[row, channel, i] * s
                code = max(code, bottom)
                code = min(code, top)
                out[row, channel, i] = np.rint(code) / s


@reassociated
def _gradients(x: Floats, grad: Floats, scale: Floats, low: Floats, high: Floats, out: Floats, sums: Reals) -> None:
    zero = np.float32(0)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            s, bottom, top = scale[channel], low[channel], high[channel]
            for start in range(0, x.shape[2], _RUN):
                inside, below, above = zero, zero, zero
                for i in range(start, min(start + _RUN, x.shape[2])):
                    g, code = grad[row, channel, i], x[row, channel, i] * s
                    under, over = code < bottom, code > top
                    out[row, channel, i] = zero if under or over else g
                    inside += zero if under or over else g * (np.rint(code) - code)
                    below += g if under else zero
                    above += g if over else zero
                sums[row, channel, 0] += inside
                sums[row, channel, 1] += below
                sums[row, channel, 2] += above


@compiled
def _soften(x: Floats, scale: Floats, sharpness: np.float32, factor: np.float32, grad: Floats) -> None:
    half, one = np.float32(0.5), np.float32(1)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            for i in range(x.shape[2]):
                code = x[row, channel, i] * scale[channel]
                bent = np.tanh(sharpness * (code - np.floor(code) - half))
                if grad[row, channel, i] != 0:  # an infinite code has no fraction
                    grad[row, channel, i] *= factor * (one - bent * bent)


@compiled
def _interval(x: Floats, center: Floats, distance: Floats, gain: Floats, signed: bool, out: Floats) -> None:
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            c, d, top = center[channel], distance[channel], gain[channel]
            for i in range(x.shape[2]):
                value = x[row, channel, i]
                part = (abs(value) - c) * half / d + half
                part = zero if part < zero else min(part, one)
                sign = zero if value == 0 or (value < 0 and not signed) else -one if value < 0 else one
                out[row, channel, i] = part * sign * top


@compiled
def _interval_gradients(
    x: Floats, grad: Floats, center: Floats, distance: Floats, gain: Floats, signed: bool, out: Floats, sums: Reals
) -> None:
    zero, half, _one = np.float32(0), np.float32(0.5), np.float32(1)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            c, d, top = center[channel], distance[channel], gain[channel]
            for i in range(x.shape[2]):
                value = x[row, channel, i]
                place = (abs(value) - c) * half / d
                dead = value == 0 or (value < 0 and not signed) or place < -half or place > half
                found = zero if dead else grad[row, channel, i] * top * half / d
                out[row, channel, i] = found
                moved = -found if value > 0 else found
                sums[row, channel, 0] += moved
                if not dead:  # else an infinite value would give NaN
                    sums[row, channel, 1] += moved * place / half


@compiled
def _nearest(size: np.float32, middles: Floats) -> int:
    """How many of rising ``middles`` are no more than ``size``."""
    first, last = 0, middles.size
    while first < last:
        middle = (first + last) // 2
        if middles[middle] <= size:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _to_levels(x: Floats, clip: Floats, levels: Floats, middles: Floats, signed: bool, out: Floats) -> None:
    zero, one = np.float32(0), np.float32(1)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            top, scale = clip[channel], one / clip[channel]
            for i in range(x.shape[2]):
                part = x[row, channel, i] * scale
                level = levels[_nearest(abs(part), middles)] * top
                level = -level if part < zero else level
                level = zero if part < zero and not signed else level
                out[row, channel, i] = part if np.isnan(part) else level


@reassociated
def _level_gradients(
    x: Floats, grad: Floats, clip: Floats, levels: Floats, middles: Floats, signed: bool, out: Floats, sums: Reals
) -> None:
    zero, one = np.float32(0), np.float32(1)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            scale, least = one / clip[channel], -one if signed else zero
            for i in range(x.shape[2]):
                g, part = grad[row, channel, i], x[row, channel, i] * scale
                kept = least if part < least else min(part, one)
                level = levels[_nearest(abs(kept), middles)]
                level = -level if kept < zero else level
                inside = kept == part
                out[row, channel, i] = g if inside else zero
                sums[row, channel] += g * (level - kept) if inside else g * level


def fake(x: Floats, scale: Floats, low: Floats, high: Floats, out: Floats) -> None:
    """Writes ``clip(rint(x * scale), low, high) / scale`` to ``out``; (A, C, B), and (C,) each."""

    def part(at: _Part) -> None:
        _fake(x[at], scale[at[1]], low[at[1]], high[at[1]], out[at])

    in_parallel(part, _parts(x))


def gradients(x: Floats, grad: Floats, scale: Floats, low: Floats, high: Floats, out: Floats) -> Reals:
    """Writes the gradient of ``x`` to ``out``, and gives three sums over each channel, (3, C).

    With ``g`` the gradient of the result and ``u = x * scale``: ``g (rint(u) - u)`` of values within ``low`` and
    ``high``, ``g`` of those below, ``g`` of those above.
    """
    sums = np.zeros((*x.shape[:2], 3))

    def part(at: _Part) -> None:
        _gradients(x[at], grad[at], scale[at[1]], low[at[1]], high[at[1]], out[at], sums[at])

    in_parallel(part, _parts(x))
    return np.ascontiguousarray(sums.sum(axis=0).T)


def soften(x: Floats, scale: Floats, sharpness: float, grad: Floats) -> None:
    """Multiplies ``grad`` by the slope of the staircase of `mxq.qat.algorithms.dsq`: (A, C, B), and (C,)."""
    factor = np.float32(sharpness / (2 * np.tanh(sharpness / 2)))

    def part(at: _Part) -> None:
        _soften(x[at], scale[at[1]], np.float32(sharpness), factor, grad[at])

    in_parallel(part, _parts(x))


def interval(x: Floats, center: Floats, distance: Floats, gain: Floats, signed: bool, out: Floats) -> None:
    """Writes T(x) of `mxq.qat.algorithms.qil` to ``out``; (A, C, B), and (C,) each."""

    def part(at: _Part) -> None:
        _interval(x[at], center[at[1]], distance[at[1]], gain[at[1]], signed, out[at])

    in_parallel(part, _parts(x))


def interval_gradients(
    x: Floats, grad: Floats, center: Floats, distance: Floats, gain: Floats, signed: bool, out: Floats
) -> Reals:
    """Writes the gradient of ``x`` to ``out``, and gives those of center and distance, (2, C)."""
    sums = np.zeros((*x.shape[:2], 2))

    def part(at: _Part) -> None:
        numbers = (center[at[1]], distance[at[1]], gain[at[1]])
        _interval_gradients(x[at], grad[at], *numbers, signed, out[at], sums[at])

    in_parallel(part, _parts(x))
    return np.ascontiguousarray(sums.sum(axis=0).T)


def to_levels(x: Floats, clip: Floats, levels: Floats, middles: Floats, signed: bool, out: Floats) -> None:
    """Writes y of `mxq.qat.algorithms.apot` to ``out``; (A, C, B), and (C,) each."""

    def part(at: _Part) -> None:
        _to_levels(x[at], clip[at[1]], levels, middles, signed, out[at])

    in_parallel(part, _parts(x))


def level_gradients(
    x: Floats, grad: Floats, clip: Floats, levels: Floats, middles: Floats, signed: bool, out: Floats
) -> Reals:
    """Writes the gradient of ``x`` to ``out``, and gives that of ``clip``, (C,)."""
    sums = np.zeros(x.shape[:2])

    def part(at: _Part) -> None:
        _level_gradients(x[at], grad[at], clip[at[1]], levels, middles, signed, out[at], sums[at])

    in_parallel(part, _parts(x))
    return np.asarray(sums.sum(axis=0))


def _parts(x: Floats) -> list[_Part]:
    """Where to cut ``x`` (A, C, B) for the threads; each part is contiguous."""
    everything = slice(None)
    if len(x) > 1:
        return [(rows, everything) for rows in slices(len(x), x.size)]
    return [(everything, channels) for channels in slices(x.shape[1], x.size)]
