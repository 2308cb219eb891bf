"""Loops that numba compiles, and the threads that share them.

Each loop is compiled once per machine and cached beside the package (or in the user's cache directory). They let go
of the interpreter's lock, so that `in_parallel` runs them on all cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from mxq.host import environment, machine

Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A")
B = TypeVar("B")

PIECE: Final = 1 << 16
"""Values below which splitting an array costs more than a second core saves."""

THREADS: Final = "mxq-kernels"
"""What the threads are called."""


def compiled(function: F) -> F:
    """``function`` compiled when it is first called, or read from the cache."""
    return _compiled(function)


def reassociated(function: F) -> F:
    """As `compiled`, with sums in any order, which lets many values be summed at a time."""
    return _compiled(function, fastmath={"reassoc", "nsz"})


def _compiled(function: F, **options: Any) -> F:
    try:
        return cast("F", numba.njit(nogil=True, cache=True, **options)(function))
    except RuntimeError:  # neither the package nor the home directory can be written: compile for this process
        return cast("F", numba.njit(nogil=True, **options)(function))


@cache
def _pool() -> tuple[ThreadPoolExecutor | None, int]:
    """Threads as MXNet uses: as many as OMP_NUM_THREADS says, else one for each core."""
    asked = environment.check_omp_num_threads(os.environ)
    workers = asked or environment.recommended_threads(machine.detect())
    return (ThreadPoolExecutor(workers, THREADS) if workers > 1 else None), workers


def in_parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``[function(item) for item in items]``, on all threads; the first error is raised."""
    pool, _ = _pool()
    work = list(items)
    nested = threading.current_thread().name.startswith(THREADS)  # it could wait for itself
    if pool is None or nested or len(work) < 2:
        return [function(item) for item in work]
    return list(pool.map(function, work))


def pieces(x: Floats) -> Sequence[Floats]:
    """``x`` (n,) cut into as many parts as there are threads; one part where it is short."""
    return [x[part] for part in slices(x.size, x.size)]


def slices(count: int, size: int) -> Sequence[slice]:
    """Rows 0 to ``count``, of ``size`` values in all, in a part for each thread; in one where it is short."""
    _, workers = _pool()
    parts = min(workers, count, max(1, size // PIECE))
    ends = [count * k // parts for k in range(parts + 1)] if parts else [0, count]
    return [slice(a, b) for a, b in pairwise(ends)]
