"""The histogram of one tensor with the threshold of every calibrator on it, counts on a log scale.

After figure 2 of H. Wu et al., "Integer quantization for deep learning inference: principles and empirical
evaluation" (2020): a threshold trades the values that it clips for the resolution of the rest, and the picture
shows both. Thresholds stand where the kernels clip: at the largest absolute value of a range, on both sides of a
tensor with negative values.

matplotlib is an optional dependency (``mxq[plot]``), used through its objects: no display, no global state.
"""
# ruff: noqa: PLC0415 - matplotlib is optional

from __future__ import annotations

import importlib
import io
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mxq import observers
from mxq.calibration.statistics import Statistics
from mxq.errors import CalibrationError, ConfigError, DataError, close_to
from mxq.observers.auto import specs as specs_of_auto
from mxq.observers.histogram import HALF, Counts, HistogramState
from mxq.quant import ANY8, QuantSpec
from mxq.quant.plan import Report
from mxq.quant.thresholds import Range, RangeKind, Threshold, Thresholds
from mxq.storage.writing import check_suffix, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BARS: Final = 256
"""Bars on the whole axis, about."""

SAME: Final = 0.005
"""Thresholds closer than this share of the larger are drawn as one."""

CHOSEN, USED, LEAST_ERROR = "chosen", "used", "least expected error"
"""Why a line stands out: the user names it, the network has it, or neither is known."""

SUFFIXES: Final = (".png", ".svg", ".pdf")

PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of M. Okabe and K. Ito, "Color universal design" (2008), without the yellow, which is faint on white."""

_DASHES: Final = ((5.0, 2.0), (2.0, 1.5), (7.0, 2.0, 1.5, 2.0))
INK, FAINT, GRID = "#22272E", "#6B7480", "#E6E9ED"
"""Of text and outlines, of what is second, and of grids."""
_KEPT, _CLIPPED = "#AEB6C0", "#D3D9E0"
_INCHES, _DPI = (10.0, 6.0), 100
_FLOOR = 0.5  # bottom of the log scale: one value is a visible bar
_LEGEND_CHARS, _TITLE_CHARS = 28, 82


@dataclass(frozen=True, slots=True)
class Line:
    """A calibrator's range, in activation units; ``chosen`` makes it the one that stands out, with a ``mark`` why."""

    name: str
    range: Range
    chosen: bool = False
    mark: str = CHOSEN


def heading(tensor: str, examples: int, dtype: str) -> str:
    """A title for `figure`: what the tensor is called, how much data it saw, and its type in the network."""
    return f"{tensor}: {examples:,} example{'' if examples == 1 else 's'}, {dtype}"


def figure(title: str, state: HistogramState, lines: Sequence[Line]) -> Figure:
    """The plot of one tensor, 1000 x 600 pixels.

    Bars beyond the chosen threshold are pale, and triangles on the axis mark the observed minimum and maximum.
    The legend gives each threshold and the share of all values that it clips.

    Args:
        title: drawn as it is; see `heading`.
        state: the values, at least one.
        lines: a calibrator's place decides its colour, so one order for all tensors makes their plots alike.

    Raises:
        ConfigError: matplotlib is missing, or more than one line is chosen.
        DataError: no values were observed.
    """
    require_matplotlib()
    chosen = [line.name for line in lines if line.chosen]
    if len(chosen) > 1:
        raise ConfigError(f"{len(chosen)} lines are chosen ({', '.join(chosen)}); allowed: one or none")
    if not state.extent.count:
        raise DataError("the histogram is empty, so there is nothing to plot; at least one batch is needed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white")
    drawn.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(drawn)
    wrapped = textwrap.fill(title, _TITLE_CHARS)
    drawn.suptitle(wrapped, x=0.012, ha="left", fontsize=13, color=INK, parse_math=False)
    axes = drawn.add_subplot()
    signed = state.extent.min < 0
    limit = max([state.extent.absmax, *(covered(line.range, signed)[1] for line in lines)]) or 1.0
    _bars(axes, state, limit, next((line for line in lines if line.chosen), None))
    _frame(axes, limit, signed)
    handles = [_threshold(axes, state, group, lines) for group in grouped(lines, signed)]
    handles.append(_observed(axes, state))
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=10,
        labelspacing=0.9,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return drawn


def compared(
    statistics: Statistics,
    tensor: str,
    chosen: str | None = None,
    spec: QuantSpec = ANY8,
    used: Threshold | None = None,
) -> tuple[Line, ...]:
    """What every calibrator finds for one tensor of ``statistics``.

    Args:
        statistics: with histograms, as `mxq.calibrate` keeps them with ``stats=``.
        tensor: its name.
        chosen: spec of the calibrator to mark as chosen.
        spec: what codes are to be.
        used: the range that a network has for the tensor, a line of its own. Without it and ``chosen``, the calibrator
            of the least expected error is marked as that.

    Raises:
        ConfigError: no such tensor or calibrator.
        CalibrationError: the statistics hold no histogram of it.
    """
    _check_tensor(tensor, statistics)
    named = None if chosen is None else observers.spec_of(observers.get(chosen))
    asked = dict.fromkeys((*specs_of_auto(), *([named] if named else [])))
    found = {name: statistics.thresholds({tensor: observers.get(name)}, spec)[tensor].range for name in asked}
    marked, why = named, CHOSEN
    if named is None and used is None:
        marked, why = statistics.thresholds({tensor: observers.get("auto")}, spec)[tensor].observer, LEAST_ERROR
    lines = tuple(Line(name, interval, name == marked, why) for name, interval in found.items())
    return lines if used is None else (*lines, Line("the network's", used.range, chosen=True, mark=USED))


def _check_tensor(tensor: str, statistics: Statistics) -> None:
    names = statistics.states
    if tensor in names:
        return
    fused = [name for name in names if name.startswith(f"{tensor}_")]  # conv3, which ends as conv3_relu6
    close = fused[:3] or close_to(tensor, names) or [*names][:3]
    raise ConfigError(f"no tensor {tensor!r} among {len(names)}; close ones: {', '.join(close)}")


def used_by(report: Report, statistics: Statistics, tensor: str) -> Threshold:
    """The range that the network of ``report`` has for one tensor of ``statistics``.

    Raises:
        CalibrationError: the statistics are of another network, or the tensor is another there.
        ConfigError: it has no range for the tensor.
    """
    if statistics.network and report.source:
        statistics.check_network(report.source)
    _check_tensor(tensor, statistics)
    ranges = Thresholds.from_json(report.thresholds)
    if tensor not in ranges:
        raise ConfigError(f"the network has no range for tensor {tensor!r}; it has some for {len(ranges)} others")
    found = ranges[tensor]
    if found.kind is RangeKind.DERIVED:
        raise CalibrationError(
            f"the network's range for {tensor!r} is of other values than the statistics': {found.note}; allowed: a "
            "tensor that is not changed, or a network made with effort 'fast'"
        )
    return found


def draw(statistics: Statistics, tensor: str, lines: Sequence[Line], path: str | os.PathLike[str]) -> Path:
    """Draws one tensor of ``statistics`` with the thresholds of `compared`, and writes the picture; see `write`."""
    state = statistics.states[tensor]
    if not isinstance(state, HistogramState):
        raise CalibrationError(f"tensor {tensor!r}: the statistics hold its {state.statistic}, not a histogram")
    signed = any(line.range.min < 0 for line in lines)
    return write(figure(heading(tensor, statistics.examples, "int8" if signed else "uint8"), state, lines), path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Whether `write` could write there: to be looked at before long work whose result is drawn.

    Raises:
        ConfigError: the suffix is another than those allowed, there is no such folder, or matplotlib is missing.
    """
    require_matplotlib()
    target = Path(path)
    check_suffix(target, "plot", SUFFIXES)
    if not target.parent.is_dir():
        raise ConfigError(f"plot is {str(target)!r}, but there is no folder {str(target.parent)!r}")


def write(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes ``figure`` as png, svg or pdf, which the suffix of ``path`` decides. It appears whole or not at all.

    Raises:
        ConfigError: another suffix.
        FormatError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    check_suffix(target, "plot", SUFFIXES)
    picture = io.BytesIO()
    figure.savefig(picture, format=target.suffix[1:].lower())
    return write_bytes(target, picture.getvalue())


def covered(interval: Range, signed: bool) -> tuple[float, float]:
    """What the kernels represent of ``interval``, in activation units: lowest and highest value, 0 between them.

    A tensor without negative values counts from 0, uint8 (a range from 0 up) as well, int8 alike on both sides.
    """
    return (-interval.absmax if signed and interval.min < 0 else 0.0, interval.absmax)


def clipped(state: HistogramState, interval: Range) -> float:
    """The share of all values that lie outside what ``interval`` represents, 0 to 1.

    Exact where a bound is the edge of a bin; inside a bin, its values count as evenly spread. Those of the middle
    bin count as 0, which is never clipped.
    """
    low, high = covered(interval, state.extent.min < 0)
    above = _beyond(state.counts[HALF + 1 :], high / state.width, state.extent.max / state.width)
    below = _beyond(state.counts[HALF - 1 :: -1], -low / state.width, -state.extent.min / state.width)
    return (above + below) / state.extent.count


def coarse(state: HistogramState, span: float, bars: int = BARS) -> tuple[NDArray[np.float64], Counts]:
    """Whole bins joined into wider ones, about ``bars`` of them on an axis of ``span`` activation units.

    Returns:
        edges: (n + 1,) float64, in activation units, evenly spaced: from 0, or symmetric where values are negative.
        counts: (n,) int64, whose sum is that of ``state.counts``.
    """
    signed = state.extent.min < 0
    joined = max(math.ceil(span / bars / state.width), 1)
    joined += joined % 2 if signed else 0  # 0 is at the centre of a bar, as it is of the middle bin
    step = min(joined, 2 * (HALF + 1))  # that puts all of them in the bar at 0
    kept = state.cropped()
    last = len(kept) // 2
    offset = np.arange(-last, last + 1)
    bar = np.sign(offset) * ((np.abs(offset) + (step // 2 if signed else 0)) // step)
    low, high = (int(bar[0]) if signed else 0), int(bar[-1])
    counts = np.zeros(high - low + 1, dtype=np.int64)
    np.add.at(counts, np.maximum(bar - low, 0), kept)
    edges: NDArray[np.float64] = (np.arange(low, high + 2) - (0.5 if signed else 0.0)) * (joined * state.width)
    return edges, counts


def grouped(lines: Sequence[Line], signed: bool) -> list[list[Line]]:
    """Lines that coincide (see `SAME`) together, by threshold; in a group the chosen line first, then as given."""
    groups: list[list[Line]] = []
    for line in sorted(lines, key=lambda one: covered(one.range, signed)[::-1]):
        low, high = covered(line.range, signed)
        first = covered(groups[-1][0].range, signed) if groups else (np.inf, np.inf)
        if max(high - first[1], abs(low - first[0])) <= SAME * high:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [sorted(group, key=lambda one: (not one.chosen, lines.index(one))) for group in groups]


def require_matplotlib() -> None:
    """Raises `ConfigError` where it is missing."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'mxq[plot]'") from None


def _beyond(side: Counts, bound: float, last: float) -> float:
    """How many values of one side lie beyond ``bound``.

    Args:
        side: (4095,) int64, counts outwards from the middle bin.
        bound: 0 or more, in bins.
        last: the outermost value of the side, in bins; negative where the side is empty.
    """
    if bound >= last:
        return 0.0
    edges = np.minimum(np.arange(1, len(side) + 2), last)
    outside = np.append(side[::-1].cumsum()[::-1], 0)
    return float(np.interp(bound, edges, outside))


def _bars(axes: Axes, state: HistogramState, limit: float, chosen: Line | None) -> None:
    """The histogram, pale where the chosen line clips."""
    from matplotlib.patches import Rectangle

    signed = state.extent.min < 0
    edges, counts = coarse(state, 2 * limit if signed else limit)
    heights = np.maximum(counts, _FLOOR)
    axes.stairs(heights, edges, baseline=_FLOOR, fill=True, color=_CLIPPED if chosen else _KEPT, zorder=2)
    if chosen:
        low, high = covered(chosen.range, signed)
        low = edges[0] if low <= state.extent.min else low  # a bar may stand out beyond its largest value
        high = edges[-1] if high >= state.extent.max else high
        kept = axes.stairs(heights, edges, baseline=_FLOOR, fill=True, color=_KEPT, zorder=2)
        kept.set_clip_path(Rectangle((low, 0), high - low, 1, transform=axes.get_xaxis_transform()))
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR, 3 * counts.max())
    axes.set_ylabel(f"values per bar ({edges[1] - edges[0]:.2g} wide)", color=FAINT)


def _frame(axes: Axes, limit: float, signed: bool) -> None:
    """The axes: light, without a box."""
    axes.set_xlim(-1.03 * limit if signed else 0.0, 1.03 * limit)
    axes.set_xlabel("value, in activation units", color=FAINT)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(which="both", color=GRID, labelcolor=INK, labelsize=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")  # one on the left would hide the bar at 0
        spine.set_color(FAINT)


def _threshold(axes: Axes, state: HistogramState, group: Sequence[Line], lines: Sequence[Line]) -> Line2D:
    """Draws a group at its first line's threshold and returns its row of the legend."""
    from matplotlib.lines import Line2D

    signed = state.extent.min < 0
    lead = group[0]
    place = lines.index(lead)
    look: dict[str, Any] = {
        "color": PALETTE[place % len(PALETTE)],
        "linewidth": 2.6 if lead.chosen else 1.6,
        "linestyle": "-" if lead.chosen else (0.0, _DASHES[place // len(PALETTE) % len(_DASHES)]),
    }
    low, high = covered(lead.range, signed)
    for bound in (low, high) if signed else (high,):
        axes.axvline(bound, zorder=4 if lead.chosen else 3, **look)
    ascending = sorted((line.range for line in group), key=lambda one: one.absmax)
    values = _between(_number(one.absmax) for one in ascending)
    shares = _between(_percent(clipped(state, one)) for one in ascending)
    text = f"{'±' if low else ''}{values}, clips {shares} %"
    names = ", ".join(line.name + (f" ({line.mark})" if line.chosen else "") for line in group)
    return Line2D([], [], label=f"{textwrap.fill(names, _LEGEND_CHARS)}\n{text}", **look)


def _observed(axes: Axes, state: HistogramState) -> Line2D:
    """Marks the observed minimum and maximum on the axis and returns their row of the legend."""
    extent = state.extent
    (marks,) = axes.plot(
        [extent.min, extent.max],
        [0, 0],
        transform=axes.get_xaxis_transform(),
        linestyle="",
        marker="^",
        markersize=7,
        color=FAINT,
        clip_on=False,
        zorder=5,
        label=f"observed\n{_number(extent.min)} .. {_number(extent.max)}, {extent.count:,} values",
    )
    return marks


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")  # the minus sign of the axis


def _percent(share: float) -> str:
    return f"{share * 100:.3g}" if share == 0 or share >= 1e-5 else "< 0.001"


def _between(texts: Iterable[str]) -> str:
    """One text where all are the same, else the first and the last."""
    distinct = list(dict.fromkeys(texts))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]} .. {distinct[-1]}"
