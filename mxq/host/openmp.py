"""Sets the number of threads of this process, before or after MXNet is imported, and the CPUs they stay on.

Before the import it is ``OMP_NUM_THREADS``. Afterwards MXNet no longer reads that, and its ``MXSetNumOMPThreads`` has
no effect from Python: OpenMP keeps the number for each thread that starts parallel work, and operators are started by
the engine's worker threads (``src/engine/threaded_engine_perdevice.cc`` of 1.9.1). So the call is pushed to the engine
as an operation, and each worker sets its own number. A fork, as by a DataLoader with workers, makes MXNet start its
engine anew; the number is set again then. Two things stay:

- oneDNN shares a primitive's work out when it makes the primitive. What has run already keeps its number of threads.
- Where ``OMP_NUM_THREADS`` was not set at the import, many operators of MXNet's own (take, clip; not oneDNN's) stay on
  no more threads than MXNet took then, half of the CPUs (``GetRecommendedOMPThreadCount``, ``src/engine/openmp.cc``).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mxq.errors import ConfigError, one_of
from mxq.host.environment import check_omp_num_threads, recommended_threads
from mxq.host.kernel_text import cpu_list
from mxq.host.machine import Machine, detect

PATIENCE = 60.0
"""Seconds that the engine has, for the work before ours in its queue."""

ENGINES = ("ThreadedEnginePerDevice", "NaiveEngine")
"""Those whose threads can be reached; the first is the default."""

_CPU = (ctypes.c_int * 3)(1, 0, 0)  # mxnet::Context: device type, device, and one for shared memory
_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_PAUSE_HARD = 2  # omp_pause_hard
_pushed: list[Any] = []  # for good: a worker may still be leaving a task when we hear that it is done
_after_fork: list[int] = []  # the number to set again; empty: none was set so


def use(count: int | None = None, cores: Iterable[int] | None = None) -> int:
    """Lets MXNet run on ``count`` threads, before or after it is imported, and holds this process on ``cores``.

    Call it before networks run: what has run keeps its threads (see `mxq.host.openmp`).

    Args:
        count: how many threads. By default one for each of ``cores``; without them, what ``OMP_NUM_THREADS`` says, or
            one per physical core that the affinity and the cgroup's quota grant.
        cores: logical CPUs, such as those that `mxq.threads.plan` gives. All threads of this process, also those
            there are already, stay on them. By default they stay where they are.

    Returns:
        The number of threads.

    Raises:
        ConfigError: a number or CPU that this process does not have, or an engine of MXNet whose threads cannot be
            reached.
    """
    machine = detect()
    held = _checked_cpus(cores, machine)
    threads = _checked_count(count, held, machine)
    if "mxnet" in sys.modules:
        _check_engine()
    if held:
        pin(held)
    if "mxnet" in sys.modules:
        _set_in_engine(threads)
        release_openmp_threads()
        if not _after_fork:
            os.register_at_fork(after_in_parent=lambda: _set_in_engine(_after_fork[0]))
        _after_fork[:] = [threads]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def use_physical_cores() -> int:
    """Lets MXNet run on one thread per physical core; call it before MXNet is imported.

    MXNet on its own halves the CPU count, because it takes every CPU for half a core. What the user set in
    ``OMP_NUM_THREADS`` stays.

    Returns:
        The number of threads that MXNet will use.

    Raises:
        ConfigError: ``OMP_NUM_THREADS`` is not one number, or MXNet has been imported already without it.
    """
    asked = check_omp_num_threads(os.environ)
    if asked is not None:
        return asked
    if "mxnet" in sys.modules:
        raise ConfigError(
            "use_physical_cores comes too late: import mxnet after it, set OMP_NUM_THREADS yourself, or call "
            "mxq.threads.use before a network runs"
        )
    return use()


def pin(cpus: Iterable[int]) -> None:
    """Holds every thread of this process on ``cpus``; threads that it starts later inherit that."""
    wanted = set(cpus)
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(task.name), wanted)


def _checked_cpus(cores: Iterable[int] | None, machine: Machine) -> tuple[int, ...]:
    if cores is None:
        return ()
    held = tuple(dict.fromkeys(cores))
    foreign = [cpu for cpu in held if cpu not in machine.affinity]
    if foreign or not held:
        found = f"has CPU {foreign[0]!r}" if foreign else "is empty"
        raise ConfigError(f"cores {found}; allowed: CPUs of this process, {cpu_list(machine.affinity)}")
    return held


def _checked_count(count: int | None, held: tuple[int, ...], machine: Machine) -> int:
    if count is None:
        asked = None if held else check_omp_num_threads(os.environ)
        return asked if asked is not None and asked > 0 else len(held) or recommended_threads(machine)
    most = len(held) or machine.cpus
    if not 1 <= count <= most:
        raise ConfigError(f"count is {count!r}; allowed: 1..{most}, the CPUs {'of cores' if held else 'there are'}")
    return count


def _check_engine() -> None:
    kind = os.environ.get("MXNET_ENGINE_TYPE", "")
    if kind and kind not in ENGINES:
        raise one_of("MXNET_ENGINE_TYPE", kind, ENGINES)
    _workers()
    _calls()


def _workers() -> int:
    """How many worker threads for the CPU MXNet's engine has.

    Raises:
        ConfigError: ``MXNET_CPU_WORKER_NTHREADS`` is no such number.
    """
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine":
        return 1
    text = os.environ.get("MXNET_CPU_WORKER_NTHREADS") or "1"
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*", text):
        raise ConfigError(f"MXNET_CPU_WORKER_NTHREADS is {text!r}; allowed: one whole number")
    return max(1, int(text))


def _set_in_engine(count: int) -> None:
    """Has each of the engine's CPU workers set its number of OpenMP threads; returns when all have.

    `NaiveEngine` calls at once, in this thread, where it also runs its operators.

    Raises:
        ConfigError: the engine does not do it within `PATIENCE`, or this build of MXNet has no such call.
    """
    push, set_threads = _calls()
    workers = _workers()
    together, done = threading.Barrier(workers), threading.Semaphore(0)

    def task(_context: object, _parameter: object) -> None:
        set_threads(count)
        with suppress(threading.BrokenBarrierError):
            together.wait(PATIENCE)  # so that no worker does it twice while another does not
            done.release()

    kept = _Task(task)
    _pushed.append(kept)
    for _ in range(workers):
        push(kept, None, None, ctypes.byref(_CPU), None, 0, None, 0, None, 0, b"mxq.threads")
    if not all(done.acquire(timeout=PATIENCE) for _ in range(workers)):
        raise ConfigError(f"MXNet's engine did not take {count} threads within {PATIENCE:g} s; call it before mxnet")


def release_openmp_threads() -> None:
    """Ends the OpenMP threads of this thread, such as reading an output in oneDNN's layout or a large copy starts.

    They slow the engine's down (see `mxq.host.environment.disable_parallel_copy`), and come back where they are needed
    again.
    """
    with suppress(OSError, AttributeError):  # another OpenMP, or libgomp before GCC 9
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(_PAUSE_HARD)


def _calls() -> tuple[Callable[..., int], Callable[[int], int]]:
    """``MXEnginePushSync`` and ``MXSetNumOMPThreads`` of the library that ``import mxnet`` has loaded."""
    library = ctypes.CDLL(sys.modules["mxnet"].libinfo.find_lib_path()[0])
    try:
        return library.MXEnginePushSync, library.MXSetNumOMPThreads
    except AttributeError as error:
        raise ConfigError(f"too late for this build of MXNet: {error}; call it before mxnet is imported") from None
