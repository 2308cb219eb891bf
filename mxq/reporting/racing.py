"""Which runtime to use: a line for each network in each runtime, and how to start the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import RenderableType
from rich.text import Text

from mxq.bench.runtimes import BestRuntime, RuntimeRow
from mxq.host.kernel_text import cpu_list
from mxq.reporting import tables

LETTERS: Final = 26


def parts(found: BestRuntime) -> Sequence[RenderableType]:
    """The table, what all had in common, and for each batch size what is best."""
    table = tables.ruled("", ("network", "runtime", ">batch", ">median ms", ">p90", ">examples/s", ">vs first", ""))
    best, letters = found.best, _letters(found)
    for row in found.rows:
        table.add_row(
            letters[row.network], Text(row.runtime), str(row.batch), *_cells(row), _praise(row, best.get(row.batch))
        )
    rows = [(letter, name) for name, letter in letters.items()]
    rows += [("threads", f"{found.threads}, on CPUs {cpu_list(found.cpus)}")]
    rows += [("not tried", why) for why in found.missing.values()]
    return [table, tables.facts(rows), *(_whole(_advice(found, group)) for group in _groups(best.values()))]


def _letters(found: BestRuntime) -> dict[str, str]:
    """Network -> the letter that stands for it in the table, as names may be long."""
    names = dict.fromkeys(row.network for row in found.rows)
    return {name: chr(ord("A") + i) if i < LETTERS else str(i) for i, name in enumerate(names)}


def _cells(row: RuntimeRow) -> tuple[str, ...]:
    t = row.timing
    return ("-",) * 4 if t is None else (*tables.times(t), f"{t.speedup:.2f}x")


def _praise(row: RuntimeRow, best: RuntimeRow | None) -> Text:
    return Text(row.problem, "red") if row.problem else Text("best" if row is best else "", "bold green")


def _groups(best: Iterable[RuntimeRow]) -> list[list[RuntimeRow]]:
    """Rows of one network in one runtime together."""
    groups: dict[tuple[str, str], list[RuntimeRow]] = {}
    for row in best:
        groups.setdefault((row.network, row.runtime), []).append(row)
    return [*groups.values()]


def _advice(found: BestRuntime, rows: Sequence[RuntimeRow]) -> str:
    """What is best at these batch sizes, by how much, and the lines that start it."""
    first, sizes = rows[0], ", ".join(str(row.batch) for row in rows)
    leads = [ahead for row in rows if (ahead := found.ahead(row)) is not None]
    by = f", {_range(leads)}x as fast as the next" if leads else ""
    head = f"batch {sizes}: {first.network} in {first.runtime} {first.version}{by}"
    return "\n".join([head, f"  {first.command}", *(f"    {line}" for line in first.lines)])


def _whole(text: str) -> Text:
    """Lines that are copied stay lines, however wide the terminal is."""
    return Text(text, no_wrap=True, overflow="ignore")


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
