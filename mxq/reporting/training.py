"""The picture of a training: curves, learned ranges, and what rounding costs each tensor.

After Li et al., "MQBench", arXiv:2111.03759, appendix B: the loss of each step under its moving average (of momentum
0.3), accuracy in training and on held-out data, ranges against those that were calibrated, and quantization error.
"""
# ruff: noqa: PLC0415 - matplotlib is optional

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mxq.errors import ConfigError
from mxq.qat.journal import JOURNAL, read_journal
from mxq.reporting import plots
from mxq.reporting.plots import FAINT, GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines: TypeAlias = Sequence[Mapping[str, Any]]

SMOOTH: Final = 0.3
"""What a step adds to the moving average."""
MOST: Final = 18
"""Tensors whose rounding is drawn: the worst."""
NAMED: Final = 3
"""Ranges that are named at the end of their lines, at either end."""
_LETTERS: Final = 30
_BLUE, _RED, _GREEN = plots.PALETTE[:3]
_INCHES, _ROW, _DPI = 12.0, 4.4, 100


def is_training(folder: Path) -> bool:
    """Whether it is the workdir of a training."""
    return folder.is_dir() and (folder / JOURNAL).is_file()


def draw(folder: Path, path: Path) -> Path:
    """Draws the training in ``folder``, with the float network's beside it where there is one; see `plots.write`.

    Raises:
        FormatError: its journal is damaged.
        ConfigError: matplotlib is missing, or the picture has another suffix.
    """
    baseline = read_journal(folder / "float") if is_training(folder / "float") else ()
    return plots.write(figure(read_journal(folder), baseline), path)


def figure(lines: Lines, baseline: Lines = ()) -> Figure:
    """The picture; ranges and rounding are in it where the journal has them.

    Args:
        lines: of the journal.
        baseline: of the float network's.

    Raises:
        ConfigError: matplotlib is missing, or no step was taken yet.
    """
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not _of(lines, "step"):
        raise ConfigError("the training has no finished epoch yet, so there is nothing to plot")
    rows = 1 + bool(_of(lines, "ranges"))
    drawn = Figure(figsize=(_INCHES, _ROW * rows), dpi=_DPI, facecolor="white")
    drawn.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(rows, 2, squeeze=False)
    _loss(panels[0][0], lines, baseline)
    _numbers(panels[0][1], lines, baseline)
    if rows > 1:
        _ranges(panels[1][0], _of(lines, "ranges"))
        _noise(panels[1][1], _of(lines, "noise"))
    return drawn


def _of(lines: Lines, kind: str) -> Lines:
    return [line for line in lines if line["kind"] == kind]


def smoothed(values: Sequence[float], share: float = SMOOTH) -> list[float]:
    """The moving average of values, each of which adds its ``share``; it starts at the first."""
    found: list[float] = []
    for value in values:
        found.append(value if not found else (1 - share) * found[-1] + share * value)
    return found


def _loss(axes: Axes, lines: Lines, baseline: Lines) -> None:
    for steps, colour, name in ((_of(baseline, "step"), _GREEN, "float"), (_of(lines, "step"), _BLUE, "quantized")):
        if steps:
            places, losses = [s["step"] + 1 for s in steps], [s["loss"] for s in steps]
            axes.plot(places, losses, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(places, smoothed(losses), color=colour, linewidth=1.8, label=name)
    rate = axes.twinx()
    steps = _of(lines, "step")
    rate.plot([s["step"] + 1 for s in steps], [s["rate"] for s in steps], color=FAINT, linewidth=1.0, linestyle=":")
    rate.set_ylim(0, 1.25 * max(s["rate"] for s in steps))
    rate.set_ylabel("learning rate (dotted)", color=FAINT)
    _frame(rate, grid=False)
    _frame(axes)
    axes.set_title("Training loss (pale: each step; bold: moving average)", loc="left", color=INK)
    axes.set_xlabel("step", color=FAINT)
    if baseline:
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")


def _numbers(axes: Axes, lines: Lines, baseline: Lines) -> None:
    """The first number of each epoch, in training (dashed) and on held-out data."""
    from matplotlib.ticker import MaxNLocator

    epochs = _of(lines, "epoch")
    name = next(iter({**epochs[0]["eval"], **epochs[-1].get("train", {})}), "loss")
    own = "quantized, " if baseline else ""
    for found, colour, who in ((_of(baseline, "epoch"), _GREEN, "float, "), (epochs, _BLUE, own)):
        for part, style, marker in (("train", "--", ""), ("eval", "-", "o")):
            points = [(e["epoch"], e[part][name]) for e in found if name in e.get(part, {})]
            if points:
                label = f"{who}{'training data' if part == 'train' else 'evaluation data'}"
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, marker=marker, markersize=5, color=colour, linewidth=1.8, label=label)
    _frame(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(name, loc="left", color=INK, parse_math=False)
    axes.set_xlabel("epoch (0: before training)", color=FAINT)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")


def _ranges(axes: Axes, lines: Lines) -> None:
    """The width of each range in shares of the calibrated one; the palest line is the first tensor's."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    first = {name: high - low for name, (low, high) in lines[0]["ranges"].items() if high > low}
    ends: dict[str, float] = {}
    for place, name in enumerate(first):
        widths = [(e["ranges"][name][1] - e["ranges"][name][0]) / first[name] for e in lines]
        colour = colormaps["viridis_r"](0.15 + 0.8 * place / max(len(first) - 1, 1))
        axes.plot([e["epoch"] for e in lines], widths, color=colour, linewidth=1.2)
        ends[name] = widths[-1]
    ranked = sorted(ends, key=lambda name: ends[name])
    shown = dict.fromkeys((*ranked[:NAMED], *ranked[-NAMED:]))
    _label(axes, {name: ends[name] for name in shown}, lines[-1]["epoch"])
    _frame(axes)
    axes.axhline(1.0, color=FAINT, linewidth=1.0, linestyle="--", zorder=1)
    axes.set_title("Learned ranges, a line for each tensor", loc="left", color=INK)
    axes.set_xlabel("epoch (0: as calibrated)", color=FAINT)
    axes.set_ylabel("width / calibrated width", color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(axes: Axes, ends: Mapping[str, float], at: float) -> None:
    """Names beside the ends of lines, far enough apart to be read."""
    bottom, top = axes.get_ylim()
    last, words = -math.inf, _short(ends)
    for name, value in sorted(ends.items(), key=lambda pair: pair[1]):
        last = max(value, last + 0.055 * (top - bottom))
        axes.annotate(
            words[name],
            (at, last),
            xytext=(8, 0),
            textcoords="offset points",
            fontsize=7,
            color=INK,
            va="center",
            parse_math=False,
            annotation_clip=False,
        )
    axes.set_ylim(bottom, max(top, last))


def _noise(axes: Axes, lines: Lines) -> None:
    """SQNR of the tensors that rounding hurts most, before training and after it."""
    before, after = (e["sqnr_db"] for e in (lines[0], lines[-1]))
    known = [name for name in after if after[name] is not None and before.get(name) is not None]
    worst = sorted(known, key=lambda name: after[name])[:MOST]
    rows, words = range(len(worst)), _short(worst)
    axes.hlines(rows, [before[n] for n in worst], [after[n] for n in worst], color=GRID, linewidth=2.5, zorder=2)
    for found, marker, colour, when in ((before, "o", FAINT, "before training"), (after, "D", _BLUE, "after it")):
        axes.plot([found[n] for n in worst], rows, linestyle="", marker=marker, color=colour, label=when, zorder=3)
    axes.set_yticks(rows, [words[name] for name in worst], parse_math=False)
    axes.set_ylim(max(len(worst), 1) - 0.5, -0.5)
    _frame(axes)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("Tensors with the most quantization noise", loc="left", color=INK)
    axes.set_xlabel("SQNR (dB); further right: less noise", color=FAINT)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")


def _short(names: Iterable[str]) -> dict[str, str]:
    """Names without the words that all begin with, and with their middle left out where they are long still."""
    listed = list(names)
    same = next((i for i, letters in enumerate(zip(*listed, strict=False)) if len(set(letters)) > 1), 0)
    common = listed[0][:same].rpartition("_")[0] if listed else ""
    found = {name: name[len(common) :].lstrip("_") for name in listed}
    half = _LETTERS // 2
    return {k: v if len(v) <= _LETTERS else f"{v[: half - 3]}...{v[-half:]}" for k, v in found.items()}


def _frame(axes: Axes, *, grid: bool = True) -> None:
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(which="both", color=GRID, labelcolor=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
