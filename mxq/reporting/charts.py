"""Charts of a page as inline SVG: latency, throughput, accuracy, sensitivity, trials, training.

After figures 5 to 7 of "Model quantization for production-level neural network inference" (Apache MXNet, 2019). They
are drawn by matplotlib with the page's own colours, as names of CSS, so that they are dark where the page is.
"""
# ruff: noqa: PLC0415 - matplotlib is optional

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mxq.bench.timing import FLOAT, FUSED, INT8, Benchmark, Timing
from mxq.reporting import plots, training
from mxq.reporting.additions import Additions, Learned, RuntimeTime, Search, Sensitive
from mxq.reporting.plots import FAINT, GRID, INK
from mxq.verification import Verification

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES: Final = {FLOAT: "float32", FUSED: "float32, fused", INT8: "INT8"}
"""Of the forms that are timed."""
MOST: Final = 25
"""Layers of a sensitivity analysis that are drawn: the worst."""
_THEME: Final = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--line)",
    "#000000": "var(--ink)",
}
"""Colours that follow the page."""
_SIZE, _DPI = (6.4, 3.6), 100
_GREY = "#90A4AE"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        id: of its element.
        title: above it.
        svg: the drawing.
        part: what of the page's data it shows, as a key.
    """

    id: str
    title: str
    svg: str
    part: str


def charts(verified: Verification, timed: Mapping[int, Benchmark], added: Additions) -> list[Chart]:
    """All that there is something to draw of.

    Raises:
        ConfigError: matplotlib is missing.
    """
    return [*_accuracy(verified), *_speed(timed), *_raced(added), *_searched(added)]


# ---- what was measured ---------------------------------------------------------------------------------------


def _accuracy(found: Verification) -> Iterator[Chart]:
    a = found.accuracy
    if a is None:
        return
    groups = {"top-1": (a.float_top1, a.int8_top1)}
    groups |= {} if a.float_top5 is None or a.int8_top5 is None else {"top-5": (a.float_top5, a.int8_top5)}
    figure, axes = _canvas()
    for i, (name, colour) in enumerate((("float32", _GREY), ("INT8", plots.PALETTE[0]))):
        places = [j + 0.38 * (i - 0.5) for j in range(len(groups))]
        heights = [100 * pair[i] for pair in groups.values()]
        axes.bar_label(axes.bar(places, heights, 0.36, color=colour, label=name), fmt="%.2f", color=INK, fontsize=9)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 112)
    axes.set_ylabel(f"% of {found.examples:,} examples", color=FAINT)
    _frame(axes)
    _legend(axes)
    yield Chart("chart-accuracy", "Accuracy", _svg(figure, "acc", "Accuracy of float32 and INT8"), "verification")


def _speed(timed: Mapping[int, Benchmark]) -> Iterator[Chart]:
    if not timed:
        return
    least, most = min(timed), max(timed)
    yield _bars("latency", f"Latency at batch {least}, ms", timed[least].timings, lambda t: 1e3 * t.median)
    yield _bars("throughput", f"Examples per second at batch {most}", timed[most].timings, lambda t: t.rate)
    yield _bars("speedup", f"Times as fast as float32 at batch {most}", timed[most].timings, lambda t: t.speedup)
    if len(timed) > 1:
        by_name: dict[str, list[tuple[int, float]]] = {}
        for batch, found in sorted(timed.items()):
            for t in found.timings:
                by_name.setdefault(NAMES.get(t.name, t.name), []).append((batch, 1e3 * t.median))
        yield _by_batch("batches", "Latency by batch size", by_name, "benchmarks")


def _bars(name: str, title: str, timings: Sequence[Timing], value: Callable[[Timing], float]) -> Chart:
    labels = [NAMES.get(t.name, t.name) for t in timings]
    figure, axes = _canvas(0.9 + 0.5 * len(labels))
    colours = [_GREY if t.name in (FLOAT, FUSED) else plots.PALETTE[0 if t.name == INT8 else 1] for t in timings]
    drawn = axes.barh(labels, [value(t) for t in timings], 0.62, color=colours)
    axes.bar_label(drawn, fmt=_short, padding=4, color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    _frame(axes)
    axes.grid(visible=False, axis="y")
    return Chart(f"chart-{name}", title, _svg(figure, name, title), "benchmarks")


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _by_batch(name: str, title: str, lines: Mapping[str, Sequence[tuple[int, float]]], part: str) -> Chart:
    """Latency against batch size, both on log scales."""
    figure, axes = _canvas()
    for i, (label, points) in enumerate(lines.items()):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", color=plots.PALETTE[i % len(plots.PALETTE)], label=label)
    from matplotlib.ticker import NullLocator, ScalarFormatter

    batches = sorted({batch for points in lines.values() for batch, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("batch size", color=FAINT)
    axes.set_ylabel("ms per batch", color=FAINT)
    _frame(axes)
    _legend(axes)
    return Chart(f"chart-{name}", title, _svg(figure, name, title), part)


# ---- what was added ------------------------------------------------------------------------------------------


def _raced(added: Additions) -> Iterator[Chart]:
    rows = [] if added.runtimes is None else [row for row in added.runtimes.rows if row.timing is not None]
    if rows:
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            lines.setdefault(_called(row), []).append((row.batch_size, row.timing.median_ms if row.timing else 0.0))
        yield _by_batch("runtimes", "Latency by batch size, in each runtime", lines, "runtimes")


def _called(row: RuntimeTime) -> str:
    return f"{row.network.rpartition('/')[2]} in {row.runtime}"


def _searched(added: Additions) -> Iterator[Chart]:
    if added.sensitivity is not None and added.sensitivity.layers:
        yield _sensitivity(added.sensitivity)
    if added.tuning is not None:
        yield from _trials(added.tuning)
    if added.training is not None:
        yield _training(added.training)


def _sensitivity(found: Sensitive) -> Chart:
    rows = found.layers[:MOST]
    figure, axes = _canvas(1.2 + 0.2 * len(rows))
    for mode, label, marker, colour in (
        ("only_int8", "it alone in INT8", "o", plots.PALETTE[0]),
        ("only_float", "it alone in float", "D", plots.PALETTE[1]),
    ):
        values = [_number((getattr(row, mode) or {}).get(found.measure)) for row in rows]
        points = [(value, i) for i, value in enumerate(values) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
    axes.set_yticks(range(len(rows)), [row.layer[-36:] for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"{found.measure}{' (dB)' if found.measure == 'sqnr' else ''}", color=FAINT)
    _frame(axes)
    axes.tick_params(axis="y", labelsize=7)
    _legend(axes, "lower right")
    title = "Sensitivity, the worst layers first"
    return Chart("chart-sensitivity", title, _svg(figure, "sens", title), "sensitivity")


def _trials(found: Search) -> Iterator[Chart]:
    """The score of each trial against the modelled time of its network; the bar as a line."""
    figure, axes = _canvas()
    stages = dict.fromkeys(trial.stage for trial in found.trials)
    for i, stage in enumerate(stages):
        points = [(1 / t.modelled_speedup, t.score) for t in found.trials
                  if t.stage == stage and t.modelled_speedup and t.score is not None]  # fmt: skip
        if points:
            colour = plots.PALETTE[i % len(plots.PALETTE)]
            axes.plot(*zip(*points, strict=True), "o", color=colour, label=stage, markersize=7, alpha=0.8)
    best = found.best
    if best.modelled_speedup and best.score is not None:
        axes.plot([1 / best.modelled_speedup], [best.score], "o", markersize=14, markerfacecolor="none",
                  markeredgecolor=INK, label="chosen")  # fmt: skip
    axes.plot([1.0], [found.float_score], "s", color=_GREY, markersize=8, label="float32")
    axes.axhline(found.float_score - found.max_drop, color=FAINT, linestyle="--", label="the bar")
    axes.set_xlabel("time, in shares of float32's (modelled)", color=FAINT)
    axes.set_ylabel("score", color=FAINT)
    _frame(axes)
    _legend(axes, "lower right")
    title = "Trials of the search: accuracy against time"
    yield Chart("chart-trials", title, _svg(figure, "trials", title), "tuning")


def _training(found: Learned) -> Chart:
    title = "Training"
    return Chart(
        "chart-training", title, _svg(training.figure(found.lines, found.baseline), "train", title), "training"
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


# ---- drawing -------------------------------------------------------------------------------------------------


def _canvas(height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0], height), dpi=_DPI)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _frame(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(which="both", color=GRID, labelcolor=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)


def _legend(axes: Axes, place: str = "upper left") -> None:
    """At a stated place: the search for the best one takes long, and says so, where a machine is busy."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc=place)


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of a page: text as text, colours of the page, ids that no other figure has."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.set_facecolor("none")
    written = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", facecolor="none", metadata={"Date": None})
    drawn = written.getvalue().decode()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = drawn.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", drawn)
    for colour, word in _THEME.items():
        drawn = re.sub(colour, word, drawn, flags=re.IGNORECASE)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    return _sized(drawn, float(size[1]) if size else 460.0, label)


def _sized(drawn: str, width: float, label: str) -> str:
    """The first tag without a fixed size, but hardly wider than ``width``, in points, as it was drawn."""
    head, _, rest = drawn.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}" style="max-width:{1.35 * width:.0f}px">{rest}'
