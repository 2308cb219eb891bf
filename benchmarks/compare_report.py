"""What `compare.py` found: to JSON and back, as tables, as a chart. Imports no MXNet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from mxq.bench.timing import Timing, summarize

OURS, BASE = "mxq", "fused"


@dataclass(frozen=True)
class Candidate:
    """What a candidate is called in tables, and its color in charts."""

    label: str
    color: str


CANDIDATES = {
    "float32": Candidate("float32", "#b8b8b8"),
    "mxnet": Candidate("MXNet's fused float32", "#9b9b9b"),
    "fused": Candidate("fused float32", "#7f7f7f"),
    "contrib": Candidate("contrib int8", "#e0a34a"),
    "mxq": Candidate("mxq int8", "#1f6fb2"),
    "float_onnxruntime": Candidate("float32 in ONNX Runtime", "#c4dcc9"),
    "onnxruntime": Candidate("ONNX Runtime int8", "#5aa469"),
    "onnxruntime_reduced": Candidate("ONNX Runtime int8, 7-bit weights", "#8cc19a"),
    "mxq_onnxruntime": Candidate("mxq int8 in ONNX Runtime", "#12557f"),
    "float_openvino": Candidate("float32 in OpenVINO", "#d9cde6"),
    "openvino": Candidate("OpenVINO int8", "#8e6bb5"),
    "openvino_mixed": Candidate("OpenVINO int8, mixed", "#b096cc"),
    "mxq_openvino": Candidate("mxq int8 in OpenVINO", "#0b3a5b"),
}


@dataclass
class Figure:
    """One candidate on one network at one batch size.

    Attributes:
        seconds: per call, one number a round; the rounds of a row's candidates belong together.
        sqnr_db: of each output against float32 MXNet on the same input; None where shapes differ.
        judged: of a trained network, over all evaluation inputs: "score" and "agreement" with float32 in percent,
            "sqnr_db".
        size: bytes of its files.
        failure: why there is nothing.
        about: what the server said of itself.
    """

    seconds: list[float] = field(default_factory=list)
    sqnr_db: list[float | None] = field(default_factory=list)
    judged: dict[str, float] = field(default_factory=dict)
    size: int | None = None
    failure: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One network at one batch size: multiply-adds of the batch, the share that mxq does in int8, and the figures."""

    net: str
    batch: int
    macs: int = 0
    int8_share: float | None = None
    figures: dict[str, Figure] = field(default_factory=dict)

    def timing(self, name: str, base: str) -> Timing | None:
        """The candidate ``name`` with ratios to ``base``; None where either is missing."""
        own, other = (self.figures.get(n, Figure()).seconds for n in (name, base))
        return summarize(name, own, other, self.batch) if own and other else None

    def share(self, name: str, peak: float) -> float | None:
        """Share of the int8 peak (operations per second) that a candidate reaches."""
        timing = self.timing(name, name)
        return 2 * self.macs / timing.median / peak if timing and self.macs and peak else None


@dataclass
class Run:
    """A whole run: how it was taken, operations per second of each stack of `roofline.py`, and the rows."""

    settings: dict[str, Any]
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def peak(self, kind: str) -> float:
        """The most operations per second in "int8" or "float32"; 0 where it was not measured."""
        return max(self.peaks.get(kind, {}).values(), default=0.0)

    @property
    def candidates(self) -> list[str]:
        """All that occur, in the order of `CANDIDATES`."""
        return [name for name in CANDIDATES if any(name in row.figures for row in self.rows)]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(_finite(asdict(self)), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Run:
        """What `save` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            Row(**{**row, "figures": {name: Figure(**figure) for name, figure in row["figures"].items()}})
            for row in found["rows"]
        ]
        return cls(found["settings"], found["peaks"], rows)


def _finite(value: Any) -> Any:
    # JSON knows no infinity, which is the SQNR of equal outputs.
    if isinstance(value, float) and not math.isfinite(value):
        return 1e6 if value > 0 else -1e6
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def show(run: Run, console: Console) -> None:
    """Prints settings, tables and failures."""
    console.print(", ".join(f"{key} {value}" for key, value in run.settings.items()))
    for table in (times(run), ratios(run), *([accuracy(run)] if _judged(run) else []), roofline(run)):
        console.print(table)
    for line in failures(run.rows):
        console.print(line, markup=False, highlight=False)


def failures(rows: Iterable[Row]) -> list[str]:
    """One line for all that fail on a network in one way."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for name, figure in row.figures.items():
            if figure.failure:
                found.setdefault((row.net, figure.failure), {})[CANDIDATES[name].label] = None
    return [f"{net} fails in {', '.join(names)}: {failure}" for (net, failure), names in found.items()]


def times(run: Run) -> Table:
    """Median milliseconds, with the half distance of p10 and p90 in percent."""
    table = _table(
        "milliseconds per batch, median (+- half of p10 to p90)", [CANDIDATES[n].label for n in run.candidates]
    )
    for row in run.rows:
        table.add_row(row.net, str(row.batch), *(_time(row, name) for name in run.candidates))
    return table


def _time(row: Row, name: str) -> str:
    figure = row.figures.get(name, Figure())
    if not figure.seconds:
        return "fails" if figure.failure else "-"
    low, middle, high = np.percentile(figure.seconds, (10, 50, 90))
    return f"{1e3 * middle:.2f} ±{50 * (high - low) / middle:.0f}%"


def ratios(run: Run) -> Table:
    """How many times as fast as each other candidate mxq is: median and p10 to p90 of the rounds; geometric means."""
    others = [name for name in run.candidates if name != OURS]
    table = _table("mxq is so many times as fast as (p10-p90 of the rounds)", [CANDIDATES[n].label for n in others])
    found: dict[tuple[str, int], list[float]] = {}
    for row in run.rows:
        cells = []
        for name in others:
            timing = row.timing(OURS, name)
            if timing:
                found.setdefault((name, row.batch), []).append(timing.speedup)
                cells.append(f"{timing.speedup:.2f} ({timing.low:.2f}-{timing.high:.2f})")
            else:
                cells.append(_time(row, name) if not row.figures.get(name, Figure()).seconds else "-")
        table.add_row(row.net, str(row.batch), *cells)
    for batch in sorted({row.batch for row in run.rows}):
        table.add_row("geometric mean", str(batch), *(_mean(found.get((name, batch), [])) for name in others))
    return table


def _mean(values: Iterable[float]) -> str:
    logs = [math.log(value) for value in values]
    return f"{math.exp(sum(logs) / len(logs)):.2f} of {len(logs)}" if logs else "-"


def roofline(run: Run) -> Table:
    """Multiply-adds, the least SQNR of mxq's outputs, and each candidate's share of the int8 peak."""
    peak, single = run.peak("int8"), run.peak("float32")
    title = "share of the int8 peak"
    if peak and single:
        title += f" ({peak / 1e9:.0f} GOPS; float32 {single / 1e9:.0f}, ratio {peak / single:.2f})"
    table = _table(title, ["GMAC", "int8 MACs", "mxq SQNR dB", *(CANDIDATES[n].label for n in run.candidates)])
    for row in run.rows:
        shares = [row.share(name, peak) for name in run.candidates]
        agreement = [value for value in row.figures.get(OURS, Figure()).sqnr_db if value is not None]
        table.add_row(
            row.net,
            str(row.batch),
            f"{row.macs / 1e9:.2f}",
            "-" if row.int8_share is None else f"{100 * row.int8_share:.1f}%",
            f"{min(agreement):.1f}" if agreement else "-",
            *("-" if share is None else f"{100 * share:.0f}%" for share in shares),
        )
    return table


def _judged(run: Run) -> bool:
    return any(figure.judged for row in run.rows for figure in row.figures.values())


def accuracy(run: Run) -> Table:
    """Of trained networks: score, agreement and SQNR over all evaluation inputs, size, and milliseconds by batch."""
    batches = sorted({row.batch for row in run.rows})
    columns = ("score %", "agreement %", "SQNR dB", "MB", *(f"ms at {batch}" for batch in batches))
    table = Table("network", "", *(Column(name, justify="right") for name in columns), title="accuracy beside speed")
    for net in dict.fromkeys(row.net for row in run.rows):
        rows = [row for row in run.rows if row.net == net]
        for name in run.candidates:
            figures = [row.figures.get(name, Figure()) for row in rows]
            judged = next((f.judged for f in figures if f.judged), {})
            size = next((f.size for f in figures if f.size), None)
            cells = [f"{judged[k]:.{d}f}" if k in judged else "" for k, d in JUDGED]
            speed = {row.batch: _time(row, name).partition(" ")[0] for row in rows}
            mega = "" if size is None else f"{size / 1e6:.1f}"
            table.add_row(net, CANDIDATES[name].label, *cells, mega, *(speed.get(batch, "") for batch in batches))
        table.add_section()
    return table


JUDGED = (("score", 2), ("agreement", 1), ("sqnr_db", 2))
RIVALS = (("onnxruntime", "mxq_onnxruntime"), ("openvino", "mxq_openvino"))
"""A runtime's own quantizer, and mxq's file in it."""


def markdown(run: Run) -> str:
    """Two tables for the docs: accuracy and size by candidate; how many times as fast mxq's files are as the others."""
    judged = [name for name in run.candidates if any(row.figures.get(name, Figure()).judged for row in run.rows)]
    accurate = [["network", *(CANDIDATES[name].label for name in judged)]]
    batches = sorted({row.batch for row in run.rows})
    fast = [["network", *(f"{CANDIDATES[ours].label}, batch {batch}" for _, ours in RIVALS for batch in batches)]]
    for net in dict.fromkeys(row.net for row in run.rows):
        rows = {row.batch: row for row in run.rows if row.net == net}
        accurate.append([net, *(_judgement(list(rows.values()), name) for name in judged)])
        found = [rows[b].timing(ours, own) if b in rows else None for own, ours in RIVALS for b in batches]
        fast.append([net, *("-" if timing is None else f"{timing.speedup:.2f}" for timing in found)])
    said = ", ".join(f"{key} {value}" for key, value in run.settings.items())
    return "\n\n".join([said, *("\n".join(_lines(table)) for table in (accurate, fast))]) + "\n"


def _judgement(rows: list[Row], name: str) -> str:
    """Score / agreement / SQNR, and megabytes."""
    figures = [row.figures.get(name, Figure()) for row in rows]
    judged = next((f.judged for f in figures if f.judged), {})
    size = next((f.size for f in figures if f.size), None)
    cells = [f"{judged[key]:.1f}" if key in judged else "-" for key, _ in JUDGED]
    return " / ".join(cells) + ("" if size is None else f", {size / 1e6:.1f} MB")


def _lines(rows: list[list[str]]) -> Iterable[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table("network", "batch", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def chart(run: Run, path: Path) -> None:
    """Draws how many times as fast as fused float32 each candidate is, one panel a batch size, p10 to p90 as whiskers.

    A candidate that fails has a cross on the axis.
    """
    import matplotlib as mpl  # noqa: PLC0415  (only a chart needs it)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    batches = sorted({row.batch for row in run.rows})
    nets = list(dict.fromkeys(row.net for row in run.rows))
    size = (max(9.0, 1.1 * len(nets) + 1.5), 2.8 * max(1, len(batches)) + 1.4)
    style: dict[str, Any] = {"squeeze": False, "sharey": True, "layout": "constrained"}
    figure, panels = plt.subplots(max(1, len(batches)), 1, figsize=size, **style)
    for axes, batch in zip(panels[:, 0], batches, strict=False):
        _panel(axes, {row.net: row for row in run.rows if row.batch == batch}, nets, run.candidates)
        axes.set_title(f"batch {batch}", loc="left", fontsize=10)
        axes.set_xticks(range(len(nets)), [""] * len(nets))
    panels[-1, 0].set_xticks(range(len(nets)), nets, rotation=25, ha="right")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    figure.supylabel("times as fast as fused float32", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axes: Any, rows: dict[str, Row], nets: list[str], names: list[str]) -> None:
    shown = [name for name in names if name != BASE]
    width = 0.84 / max(1, len(shown))
    for i, name in enumerate(shown):
        places = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(nets))]
        found = [rows[net].timing(name, BASE) if net in rows else None for net in nets]
        heights = [t.speedup if t else 0 for t in found]
        whiskers = [[t.speedup - t.low if t else 0 for t in found], [t.high - t.speedup if t else 0 for t in found]]
        style = {"linewidth": 0.7, "alpha": 0.6}
        axes.bar(
            places,
            heights,
            width * 0.94,
            yerr=whiskers,
            color=CANDIDATES[name].color,
            label=CANDIDATES[name].label,
            error_kw=style,
        )
        failures = [rows[net].figures.get(name, Figure()).failure if net in rows else "" for net in nets]
        failed = [x for x, failure in zip(places, failures, strict=True) if failure]
        if failed:  # an empty line that is not clipped would upset the layout
            axes.plot(failed, [0.04] * len(failed), "x", color=CANDIDATES[name].color, markersize=5, clip_on=False)
    axes.axhline(1, color="#444444", linewidth=0.8, linestyle="--")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.6, len(nets) - 0.4)
