"""Tables for the terminal. Nothing prints here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from mxq.reporting.plain import parts
from mxq.reporting.tables import decibels, facts, percent, ruled, short_op
from mxq.tuning.bit_sweep import BitSweep
from mxq.tuning.layer_sensitivity import Numbers, Sensitivity
from mxq.tuning.mixed_bits import MixedBits
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
    titles = {"int8": found.codes, "float": "float"}
    columns = [f">alone\n{titles[mode]}\n{name}" for mode in measured for name in names]
    table = ruled("", ("layer", "op", ">share", *columns, "problem"))
    for row in found.layers:
        cells = [number(name, getattr(row, f"only_{mode}")) for mode in measured for name in names]
        table.add_row(Text(row.layer), Text(short_op(row.op)), percent(row.share), *cells, Text(row.problem, "red"))
    if not any(row.problem for row in found.layers):
        table.columns.pop()
    whole = [("measured by", found.by)]
    for title, numbers in (("all float", found.float), (f"all {found.codes}", found.int8)):
        if numbers:
            whole.append((title, ", ".join(f"{name} {number(name, numbers).plain}" for name in numbers)))
    return Group(table, Text(""), facts(whole))


def bit_sweep(found: BitSweep) -> RenderableType:
    """A line for each hardware, a column for each width, of the number that counts."""
    table = ruled("", ("hardware", *(f">{width}" for width in found.widths)))
    for name in found.hardware:
        points = [found.at(name, width) for width in found.widths]
        table.add_row(Text(name), *(number(found.measure, None if p is None else p.numbers) for p in points))
    rows = [("measured by", f"{found.by}: {found.measure}"), ("float", number(found.measure, found.float).plain)]
    rows += [(f"{p.hardware} {p.bits}", p.problem) for p in found.points if p.problem]
    return Group(table, Text(""), facts(rows))


def mixed_bits(found: MixedBits) -> RenderableType:
    """A line for each layer with the bits that were chosen, and its noise at every width; then whole networks."""
    widths = list(found.layers[0].noise)
    table = ruled("", ("layer", "op", ">weights", ">bits", *(f">alone\n{bits}" for bits in widths)))
    for row in found.layers:
        noises = (decibels(_decibels(row.noise.get(bits))) for bits in widths)
        table.add_row(Text(row.layer), Text(short_op(row.op)), f"{row.weights:,}", str(row.bits), *noises)
    rows = [
        ("alone", "SQNR at the output where this layer alone has so many bits; more dB is less noise"),
        ("measured by", f"{found.by}: {found.measure}"),
        ("float", number(found.measure, found.float).plain),
    ]
    rows += [(f"all {bits}", number(found.measure, numbers).plain) for bits, numbers in found.uniform.items()]
    mean = f"{number(found.measure, found.mixed).plain} at {found.mean:.3g} bits, of {found.budget:g} allowed"
    return Group(table, Text(""), facts([*rows, ("mixed", mean)]))


def _decibels(noise: float | None) -> float | None:
    """Signal over noise of a `LayerBits`."""
    if noise is None:
        return None
    return math.inf if noise == 0 else -10 * math.log10(noise) if math.isfinite(noise) else -math.inf


def tuned(found: Tuned) -> RenderableType:
    """A line for each trial, then what came of it."""
    table = ruled(
        "",
        (
            "calibrator",
            "method",
            ">in float",
            ">score",
            ">drop, points" if found.share else ">drop",
            ">vs float",
            ">s",
            "",
        ),
    )
    table.columns[0].no_wrap = True  # names of calibrators
    for trial in found.trials:
        table.add_row(*_cells(found, trial))
    rows = [
        ("scored by", found.by),
        ("float", f"{found.said(found.bar.reference)}, allowed drop {found.allowed}"),
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


@parts.register(BitSweep)
def _(found: BitSweep) -> Sequence[RenderableType]:
    return [bit_sweep(found)]


@parts.register(MixedBits)
def _(found: MixedBits) -> Sequence[RenderableType]:
    return [mixed_bits(found)]


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
        Text(s.how),
        Text(str(len(s.floats) or "-")),
        Text("-" if trial.score is None else found.said(trial.score)),
        Text(
            "-" if drop is None else found.said_drop(drop).removesuffix(" points"),
            "green" if found.bar.met(trial) else "red",
        ),
        Text("-" if speedup is None else f"{speedup:.2f}x"),
        Text(f"{trial.seconds:.1f}"),
        Text(trial.reason, "red") if trial.reason else praise,
    )
