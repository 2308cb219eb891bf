"""One network in several runtimes, timed against each other: which to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mxq.bench.timing import Timing
from mxq.text import Shown


@dataclass(frozen=True, slots=True)
class RuntimeRow:
    """A network in a runtime, at one batch size.

    Attributes:
        network: path of the file, prefix of the pair, or the name of its type.
        runtime: its name.
        version: of the runtime.
        batch: examples to a batch.
        timing: what was measured; None where there is a problem. ``speedup`` is over the first row of the batch size.
        problem: why nothing was measured.
        lines: of Python, that open it without mxq and run a ``batch``.
        command: the shell line that starts a program with them, as it was timed.
    """

    network: str
    runtime: str
    version: str
    batch: int
    timing: Timing | None = None
    problem: str = ""
    lines: tuple[str, ...] = ()
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "runtime": self.runtime,
            "version": self.version,
            "batch_size": self.batch,
            "timing": None if self.timing is None else self.timing.to_json(),
            "problem": self.problem or None,
            "lines": list(self.lines),
            "command": self.command,
        }


@dataclass(frozen=True)
class BestRuntime(Shown):
    """What ``mxq bench --runtimes`` shows; so does ``str``.

    Attributes:
        rows: batch size by batch size, each in the order that networks were given.
        threads: of each runtime.
        cpus: that all of them were held on, in turn.
        missing: runtimes that could not be tried -> why.
    """

    rows: tuple[RuntimeRow, ...]
    threads: int
    cpus: tuple[int, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Mapping[int, RuntimeRow]:
        """Batch size -> the row of the least median; none for a size at which nothing ran."""
        ranked = {batch: self._ranked(batch) for batch in dict.fromkeys(row.batch for row in self.rows)}
        return {batch: rows[0] for batch, rows in ranked.items() if rows}

    def ahead(self, row: RuntimeRow) -> float | None:
        """How much longer the next best takes at the batch size of ``row``, the best: a ratio; None without one."""
        ranked = self._ranked(row.batch)
        if len(ranked) < 2 or ranked[0] is not row:
            return None
        return _median(ranked[1]) / _median(row)

    def _ranked(self, batch: int) -> list[RuntimeRow]:
        return sorted((row for row in self.rows if row.batch == batch and row.timing is not None), key=_median)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; ``best`` has places in ``rows``."""
        return {
            "threads": self.threads,
            "cpus": list(self.cpus),
            "missing": dict(self.missing),
            "rows": [row.to_json() for row in self.rows],
            "best": {str(batch): self.rows.index(row) for batch, row in self.best.items()},
        }


def _median(row: RuntimeRow) -> float:
    return float("inf") if row.timing is None else row.timing.median
