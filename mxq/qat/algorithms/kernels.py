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


def _parts(x: Floats) -> list[_Part]:
    """Where to cut ``x`` (A, C, B) for the threads; each part is contiguous."""
    everything = slice(None)
    if len(x) > 1:
        return [(rows, everything) for rows in slices(len(x), x.size)]
    return [(everything, channels) for channels in slices(x.shape[1], x.size)]
