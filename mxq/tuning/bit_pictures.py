"""Pictures of simulations: accuracy by width on every hardware, and the bits of every layer."""
# ruff: noqa: PLC0415 - matplotlib is optional

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mxq.quant.bits import Bits
from mxq.reporting import plots
from mxq.reporting.plots import FAINT, GRID, INK
from mxq.tuning.bit_sweep import BitSweep
from mxq.tuning.mixed_bits import MixedBits
from mxq.tuning.rendering import SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST: Final = 80
"""Layers drawn, at most: the first."""
_COLOURS: Final = (*plots.PALETTE, "#5B4B8A", "#8C510A", "#B2182B", "#4D9221")
_MARKERS: Final = "osD^vPXhp*"
_LINES: Final = ("-", "--", ":")
_WIDTH, _HEIGHT, _ROW, _DPI = 10.0, 5.6, 0.22, 100


def sweep_figure(found: BitSweep) -> Figure:
    """A line for each hardware, from the widest codes to the fewest bits; a line across is the float network.

    Raises:
        ConfigError: matplotlib is missing.
    """
    drawn, axes = _empty(_HEIGHT)
    widths = sorted(found.widths, key=lambda b: (-b.weights, -b.activations))
    for i, name in enumerate(found.hardware):
        points = [(j, value) for j, bits in enumerate(widths) if (value := _value(found, name, bits)) is not None]
        if points:
            x, y = zip(*points, strict=True)
            place, turn = i % len(_COLOURS), i // len(_COLOURS) % len(_LINES)
            style: dict[str, Any] = {"marker": _MARKERS[place], "color": _COLOURS[place], "linestyle": _LINES[turn]}
            axes.plot(x, y, **style, label=name, zorder=3)
    whole = found.float.get(found.measure)
    if whole is not None and math.isfinite(whole):
        axes.axhline(_scaled(found.measure, whole), color=FAINT, linewidth=1.2, label="float", zorder=2)
    axes.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    axes.set_ylabel(_unit(found.measure), color=FAINT)
    axes.set_xlabel("bits of weights (W) and of activations (A)", color=FAINT)
    axes.set_title(f"Simulated by hardware and bits: {found.by}", loc="left", fontsize=13, color=INK, parse_math=False)
    if found.hardware:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return drawn


def mixed_figure(found: MixedBits) -> Figure:
    """A bar for each layer, as long as its weights have bits, the network's first layer on top.

    Raises:
        ConfigError: matplotlib is missing.
    """
    rows = found.layers[:MOST]
    drawn, axes = _empty(1.6 + _ROW * max(len(rows), 4))
    axes.barh(range(len(rows)), [row.bits.weights for row in rows], color=plots.PALETTE[0], zorder=3, height=0.7)
    mean = f"mean of all weights: {found.mean:.3g}"
    axes.axvline(found.mean, color=plots.PALETTE[1], linewidth=1.2, label=mean, zorder=4)
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], parse_math=False)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("bits of weights", color=FAINT)
    title = f"Bits chosen for each layer, simulated as {found.hardware}"
    axes.set_title(title, loc="left", fontsize=13, color=INK, parse_math=False)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return drawn


def write(found: BitSweep | MixedBits, path: str | Path) -> Path:
    """Draws ``found`` into a .png, .svg or .pdf; see `mxq.reporting.plots.write`."""
    return plots.write(sweep_figure(found) if isinstance(found, BitSweep) else mixed_figure(found), path)


def _empty(height: float) -> tuple[Figure, Axes]:
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    drawn.set_layout_engine("constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(color=GRID, labelcolor=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(FAINT)
    return drawn, axes


def _value(found: BitSweep, hardware: str, bits: Bits) -> float | None:
    point = found.at(hardware, bits)
    value = None if point is None or point.numbers is None else point.numbers.get(found.measure)
    return _scaled(found.measure, value) if value is not None and math.isfinite(value) else None


def _scaled(measure: str, value: float) -> float:
    """In per cent what is a share."""
    return 100 * value if measure in SHARES else value


def _unit(measure: str) -> str:
    return f"{measure} (%)" if measure in SHARES else f"{measure} (dB)" if measure == "sqnr" else measure
