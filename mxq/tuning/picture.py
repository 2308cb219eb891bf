"""The picture of a sensitivity analysis: a row for each layer, the worst on top."""
# ruff: noqa: PLC0415 - matplotlib is optional

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mxq.reporting import plots
from mxq.reporting.plots import FAINT, GRID, INK
from mxq.tuning.layer_sensitivity import LayerSensitivity, Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST: Final = 60
"""Layers drawn, at most: the worst."""

_INT8, _FLOAT = plots.PALETTE[:2]
_WIDTH, _ROW, _MARGIN, _DPI = 10.0, 0.22, 1.6, 100


def figure(found: Sensitivity) -> Figure:
    """The plot, 1000 pixels wide; lines stand where the float network is, and that with all layers in int8.

    Raises:
        ConfigError: matplotlib is missing.
    """
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found.layers[:MOST]
    drawn = Figure(figsize=(_WIDTH, _MARGIN + _ROW * max(len(rows), 4)), dpi=_DPI, facecolor="white")
    drawn.set_layout_engine("constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    quantized = (f"only it {found.codes}", "int8", _INT8, "o")
    for title, mode, colour, marker in (quantized, ("only it float", "float", _FLOAT, "D")):
        points = [(value, i) for i, row in enumerate(rows) if (value := _value(row, mode, found.measure)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, linestyle="", marker=marker, markersize=6, color=colour, label=title, zorder=3)
    for title, numbers, style in (("all float", found.float, "-"), (f"all {found.codes}", found.int8, "--")):
        value = None if numbers is None else numbers.get(found.measure)
        if value is not None and math.isfinite(value):
            axes.axvline(value, color=FAINT, linestyle=style, linewidth=1.2, label=title, zorder=2)
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], parse_math=False)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel(f"{found.measure}{' (dB)' if found.measure == 'sqnr' else ''}", color=FAINT)
    axes.set_title(f"Sensitivity by {found.by}", loc="left", fontsize=13, color=INK, parse_math=False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(color=GRID, labelcolor=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
    if rows:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return drawn


def write(found: Sensitivity, path: str | Path) -> Path:
    """Draws ``found`` into a .png, .svg or .pdf; see `mxq.reporting.plots.write`."""
    return plots.write(figure(found), path)


def _value(row: LayerSensitivity, mode: str, measure: str) -> float | None:
    numbers = row.only_int8 if mode == "int8" else row.only_float
    value = None if numbers is None else numbers.get(measure)
    return value if value is not None and math.isfinite(value) else None
