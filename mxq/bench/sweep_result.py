"""What a sweep found: a row for each setup and batch size, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mxq.host.cores import launch_lines
from mxq.host.machine import Machine


@dataclass(frozen=True, slots=True)
class Setup:
    """Processes side by side.

    Attributes:
        threads: of each process.
        sets: the CPUs that each is held on.
    """

    threads: int
    sets: tuple[tuple[int, ...], ...]

    @property
    def instances(self) -> int:
        return len(self.sets)


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast the processes of a setup were together.

    Attributes:
        median, p90: seconds per batch, over all calls of all processes.
        rate: examples per second of all processes together.
        calls: how many calls that is.
        memory: bytes that the largest process needed at its peak.
    """

    median: float
    p90: float
    rate: float
    calls: int
    memory: int


def combine(answers: Iterable[Mapping[str, Any]], batch: int) -> Reading:
    """The `Reading` of processes that timed at once.

    Args:
        answers: of each process "seconds" of its calls, "elapsed" seconds in all, and "memory" in bytes.
        batch: examples to a call.
    """
    told = list(answers)
    seconds = np.concatenate([np.asarray(a["seconds"], np.float64) for a in told])
    return Reading(
        median=float(np.median(seconds)),
        p90=float(np.percentile(seconds, 90)),
        rate=float(sum(batch * len(a["seconds"]) / a["elapsed"] for a in told)),
        calls=len(seconds),
        memory=max(int(a["memory"]) for a in told),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One setup at one batch size: its ``reading``, or the ``problem`` that there is none."""

    setup: Setup
    batch: int
    reading: Reading | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        r = self.reading
        measured = None if r is None else {
            "median_ms": r.median * 1e3,
            "p90_ms": r.p90 * 1e3,
            "examples_per_second": r.rate,
            "calls": r.calls,
            "memory": r.memory,
        }  # fmt: skip
        return {
            "threads": self.setup.threads,
            "instances": self.setup.instances,
            "cpus": [list(cpus) for cpus in self.setup.sets],
            "batch_size": self.batch,
            "reading": measured,
            "problem": self.problem or None,
        }


@dataclass(frozen=True, slots=True)
class Sweep:
    """All rows in the order they were tried; ``complete``: nobody interrupted it."""

    rows: tuple[Row, ...]
    complete: bool = True

    @property
    def latency(self) -> Row | None:
        """The single process that answers soonest at the smallest batch size; None where none was timed."""
        timed = [row for row in self.rows if row.reading is not None and row.setup.instances == 1]
        smallest = min((row.batch for row in timed), default=None)
        return _least([row for row in timed if row.batch == smallest], lambda reading: reading.median)

    @property
    def throughput(self) -> Row | None:
        """The row with most examples per second; None where none was timed."""
        return _least(self.rows, lambda reading: -reading.rate)

    def to_json(self, machine: Machine) -> dict[str, Any]:
        best = {"latency": self.latency, "throughput": self.throughput}
        return {
            "complete": self.complete,
            "rows": [row.to_json() for row in self.rows],
            "best": {
                name: row and {"row": self.rows.index(row), "commands": list(launch_lines(row.setup.sets, machine))}
                for name, row in best.items()
            },
        }


def _least(rows: Sequence[Row], key: Callable[[Reading], float]) -> Row | None:
    """The row whose reading has the least ``key``; of equals the first."""
    timed = [(key(row.reading), i) for i, row in enumerate(rows) if row.reading is not None]
    return rows[min(timed)[1]] if timed else None
