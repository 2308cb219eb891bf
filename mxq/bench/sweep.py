"""What to try on a machine, and trying it. How a setup is run is given from outside (`mxq.bench.processes.Job.run`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from mxq.bench.sweep_result import Reading, Row, Setup, Sweep
from mxq.errors import MxqError, StorageError
from mxq.host.cores import split, usable_cores
from mxq.host.machine import Machine

Run = Callable[[Setup], Generator[Reading, None, None]]
"""Yields a reading for each batch size, in order; raises `MxqError` where a process fails."""


def setups(machine: Machine) -> tuple[Setup, ...]:
    """One process on 1, 2, 4, ... and all cores, then as many as fit with all cores, half of them, a quarter, ...

    Machines with several NUMA nodes also get one process to a node.
    """
    cores = usable_cores(machine)
    total, nodes = len(cores), len({core.node for core in cores})
    halves = {total >> i for i in range(total.bit_length())} | {max(1, total // nodes)}
    alone = sorted({1 << i for i in range(total.bit_length())} | {total})
    pairs = [(threads, 1) for threads in alone]
    pairs += [(threads, total // threads) for threads in sorted(halves, reverse=True) if total // threads > 1]
    return tuple(Setup(threads, split(cores, instances, threads)) for threads, instances in pairs)


def sweep(
    tried: Iterable[Setup],
    batches: Sequence[int],
    run: Run,
    *,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Times every setup at every batch size.

    A setup that fails gives rows that say why. After an interruption (Ctrl-C) what there is by then is the result.

    Args:
        tried: such as `setups`.
        batches: examples to a batch, in the order that ``run`` yields readings.
        run: starts the processes of a setup; closed when no more is asked of it.
        memory: bytes that all processes of a setup may need; setups that, by what was seen so far, need more are
            not started. None: no limit.
        progress: told after each row how many there are.
    """
    rows: list[Row] = []
    try:
        for setup in tried:
            needed = setup.instances * max((row.reading.memory for row in rows if row.reading is not None), default=0)
            problem = ""
            if memory is not None and needed > memory:
                problem = f"not started: needs about {needed / 1e9:.1f} GB, there are {memory / 1e9:.1f}"
            for row in _rows(setup, batches, run, problem):
                rows.append(row)
                if progress is not None:
                    progress(len(rows))
    except KeyboardInterrupt:
        return Sweep(tuple(rows), complete=False)
    return Sweep(tuple(rows))


def _rows(setup: Setup, batches: Sequence[int], run: Run, problem: str) -> Generator[Row, None, None]:
    with closing(run(setup)) as readings:
        for batch in batches:
            reading = None
            try:
                reading = None if problem else next(readings)
            except StorageError:
                raise  # no fault of the setup
            except MxqError as error:
                problem = " ".join(str(error).split())
            yield Row(setup, batch, reading, "" if reading is not None else problem)
