"""The loops that touch every value or every bin, compiled by numba, and the threads that share them.

Each is compiled once per machine and cached beside the package (or in the user's cache directory). They let go
of the interpreter's lock, so that `in_parallel` runs them on all cores: MXNet's threads are idle while a tensor is
looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from mxq import machine

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Reals = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A")
B = TypeVar("B")

PIECE: Final = 1 << 16
"""Values below which splitting an array costs more than a second core saves."""

LANES: Final = 4
"""Counters per bin: neighbouring values are often equal, and increments of one counter wait for each other."""


def _compiled(function: F) -> F:
    try:
        return cast("F", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither the package nor the home directory can be written: compile for this process
        return cast("F", numba.njit(nogil=True)(function))


@_compiled
def extremes(codes: NDArray[np.int32]) -> tuple[np.int32, np.int32]:
    """Smallest and largest key (see `key_value`) of float32 values, whose bits are given as (n,) int32, n > 0."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for code in codes:
        key = code ^ ((code >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low = min(low, key)
        high = max(high, key)
    return low, high


@_compiled
def count(x: Floats, factor: np.float32, half: np.int32, counts: Counts) -> tuple[np.float32, np.float32, bool]:
    """Counts ``trunc(x * factor) + half`` into ``counts`` (LANES, 2 half + 1), in place.

    Returns:
        The smallest and the largest value, and whether all lay inside; it stops at the first that does not (or is
        NaN), and then ``counts`` is worthless.
    """
    low, high = np.float32(np.inf), np.float32(-np.inf)
    limit = np.float32(half + 1)
    for i in range(x.size):
        value = x[i]
        scaled = value * factor
        if not (-limit < scaled < limit):
            return low, high, False
        low = min(low, value)
        high = max(high, value)
        counts[i & (LANES - 1), np.int32(scaled) + half] += 1
    return low, high, True


@_compiled
def _antiderivative(x: float, step: float, whole: float, lowest: int, highest: int) -> float:
    code = min(max(np.rint(x / step), lowest), highest)
    rest = x - code * step
    found: float = code * whole + rest * rest * rest / 3
    return found


@_compiled
def expected_errors(edges: Reals, counts: Reals, thresholds: Reals, lowest: int, highest: int) -> Reals:
    """Mean squared quantization error of values spread evenly over each bin, for each threshold.

    With step ``s = threshold / (highest + 0.5)``, a value ``x`` becomes ``s clip(rint(x / s), lowest, highest)``.
    Its squared error has the antiderivative ``k s^3 / 12 + r^3 / 3`` with ``k = rint(x / s)``, ``r = x - k s`` (each
    whole step adds ``s^3 / 12``), beyond the last code ``(x - k s)^3 / 3`` with the clipped ``k``; no sampling.

    Args:
        edges: (n, 2) float64, lower and upper edge of each bin that holds something.
        counts: (n,) float64 > 0.
        thresholds: (m,) float64 > 0.
        lowest, highest: the codes' bounds, (-128, 127) or (0, 255).

    Returns:
        (m,) float64, in squared activation units.
    """
    found = np.empty(len(thresholds))
    total = counts.sum()
    for j in range(len(thresholds)):
        step = thresholds[j] / (highest + 0.5)
        whole = step * step * step / 12
        error, before, at = 0.0, np.nan, np.nan  # the antiderivative at the edge seen last
        for i in range(len(counts)):
            if edges[i, 0] != before:
                at = _antiderivative(edges[i, 0], step, whole, lowest, highest)
            before = edges[i, 1]
            upper = _antiderivative(before, step, whole, lowest, highest)
            error += counts[i] * (upper - at) / (before - edges[i, 0])
            at = upper
        found[j] = error / total
    return found


@cache
def _pool() -> tuple[ThreadPoolExecutor | None, int]:
    """Threads as MXNet uses: as many as OMP_NUM_THREADS says, else one for each core."""
    asked = machine.check_omp_num_threads(os.environ)
    workers = asked or machine.recommended_threads(machine.detect())
    return (ThreadPoolExecutor(workers, "mxq-observe") if workers > 1 else None), workers


def in_parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``[function(item) for item in items]``, on all threads; the first error is raised."""
    pool, _ = _pool()
    work = list(items)
    return [function(item) for item in work] if pool is None or len(work) < 2 else list(pool.map(function, work))


def pieces(x: Floats) -> Sequence[Floats]:
    """``x`` (n,) cut into as many parts as there are threads; one part where it is short."""
    _, workers = _pool()
    parts = min(workers, max(1, x.size // PIECE))
    ends = [x.size * k // parts for k in range(parts + 1)]
    return [x[a:b] for a, b in pairwise(ends)]


def key_value(key: int | np.int32) -> float:
    """The float32 whose key is ``key``: its bits, with those of negative numbers turned round so that keys sort."""
    code = np.array([key if key >= 0 else key ^ 0x7FFFFFFF], np.int32)
    return float(code.view(np.float32)[0])
