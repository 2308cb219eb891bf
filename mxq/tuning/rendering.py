"""Tables for the terminal. Nothing prints here."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from mxq.report.plain import parts
from mxq.report.tables import decibels, facts, percent, ruled, short_op
from mxq.tuning.layer_sensitivity import Numbers, Sensitivity
from mxq.tuning.search import Trial
from mxq.tuning.tuned import Tuned

SHARES = ("top1", "top5", "agreement")
"""Numbers that are shown in per cent."""

SHOWN = 2
"""How many of a measurement's numbers have a column; the first are those that count."""


def sensitivity(found: Sensitivity) -> RenderableType:
    """A line for each layer, the worst first, and what the whole network has; "share" is of the multiply-adds."""
    measured = [m for m in ("int8", "float") if any(getattr(r, f"only_{m}") for r in found.layers)]
    names = [*found.float][:SHOWN]
    columns = [f">alone\n{mode}\n{name}" for mode in measured for name in names]
    table = ruled("", ("layer", "op", ">share", *columns, "problem"))
    for row in found.layers:
        cells = [number(name, getattr(row, f"only_{mode}")) for mode in measured for name in names]
        table.add_row(Text(row.layer), Text(short_op(row.op)), percent(row.share), *cells, Text(row.problem, "red"))
    if not any(row.problem for row in found.layers):
        table.columns.pop()
    whole = [("measured by", found.by)]
    for title, numbers in (("all float", found.float), ("all int8", found.int8)):
        if numbers:
            whole.append((title, ", ".join(f"{name} {number(name, numbers).plain}" for name in numbers)))
    return Group(table, Text(""), facts(whole))


def tuned(found: Tuned) -> RenderableType:
    """A line for each trial, then what came of it."""
    table = ruled("", ("calibrator", "method", ">in float", ">score", ">drop", ">vs float", ">s", ""))
    table.columns[0].no_wrap = True  # names of calibrators
    for trial in found.trials:
        table.add_row(*_cells(found, trial))
    rows = [
        ("scored by", found.by),
        ("float", f"{found.bar.reference:.4f}, allowed drop {found.bar.max_drop:g}"),
        ("stopped", found.stopped),
        ("result", found.verdict),
        ("in float", ", ".join(found.best.settings.floats) or "no layer"),
    ]
    if found.prefix is not None:
        rows.append(("written", f"{found.prefix}-symbol.json and -0000.params, -mxq.json"))
    return Group(table, Text(""), facts(rows))


@parts.register(Sensitivity)
def _(found: Sensitivity) -> Sequence[RenderableType]:
    return [sensitivity(found)]


@parts.register(Tuned)
def _(found: Tuned) -> Sequence[RenderableType]:
    return [tuned(found)]


def number(name: str, numbers: Numbers | None) -> Text:
    """One number of a measurement."""
    if numbers is None or name not in numbers:
        return Text("-", "dim")
    if name == "sqnr":
        return decibels(numbers[name])
    return Text(percent(numbers[name]) if name in SHARES else f"{numbers[name]:.2g}")


def _cells(found: Tuned, trial: Trial) -> tuple[Text, ...]:
    s, drop, speedup = trial.settings, found.bar.drop(trial), found.speedup(trial)
    praise = Text("best" if trial is found.best else "", "bold green")
    return (
        Text(s.calib_mode),
        Text(str(s.method)),
        Text(str(len(s.floats) or "-")),
        Text("-" if trial.score is None else f"{trial.score:.4f}"),
        Text("-" if drop is None else f"{drop:.4f}", "green" if found.bar.met(trial) else "red"),
        Text("-" if speedup is None else f"{speedup:.2f}x"),
        Text(f"{trial.seconds:.1f}"),
        Text(trial.reason, "red") if trial.reason else praise,
    )
