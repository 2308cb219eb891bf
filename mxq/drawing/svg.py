"""Layouts as SVG, side by side, and SVG as PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from mxq.drawing.layout import HEIGHT, SIZE, Layout, Point
from mxq.drawing.libraries import library, template
from mxq.drawing.scene import Kind
from mxq.text import printable

MARGIN: Final = 24.0
"""Around all, in pixels."""
BETWEEN: Final = 72.0
"""Between two networks."""
ABOVE: Final = 36.0
"""For a title."""
KEY: Final = ((Kind.FLOAT, "float32"), (Kind.INT8, "INT8"), (Kind.RECODED, "quantize / dequantize"))
LARGEST: Final = 30_000
"""Pixels that a PNG is wide or high, at most."""
MOST: Final = 60_000_000
"""Pixels of a PNG, at most."""


@dataclass(frozen=True)
class Panel:
    """A layout and where its upper left corner is."""

    layout: Layout
    x: float
    y: float


def svg_of(layouts: Sequence[Layout]) -> str:
    """One picture of all, from left to right.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    panels, x = [], MARGIN
    for layout in layouts:
        panels.append(Panel(layout, x, MARGIN + ABOVE))
        x += layout.width + BETWEEN
    drawn: str = _template().render(
        panels=panels,
        width=max(x - BETWEEN + MARGIN, 210.0 * len(KEY)),
        height=max((layout.height for layout in layouts), default=0.0) + 2 * MARGIN + 2 * ABOVE,
        size=SIZE,
        box=HEIGHT,
        margin=MARGIN,
        key=[(kind.name.lower(), words) for kind, words in KEY],
        label=" beside ".join(layout.title for layout in layouts),
    )
    return drawn


def png_of(svg: str, zoom: float = 1.0) -> bytes:
    """A picture of ``svg``; smaller than ``zoom`` asks for where it would be larger than `LARGEST` and `MOST` allow.

    Raises:
        ConfigError: resvg-py or matplotlib, whose fonts are used, is not installed.
    """
    fonts = Path(library("matplotlib").get_data_path()) / "fonts" / "ttf"
    width, height = map(float, re.findall(r'(?:width|height)="([\d.]+)"', svg.partition(">")[0]))
    most = min(LARGEST / max(width, height), (MOST / (width * height)) ** 0.5)
    own = {"skip_system_fonts": True, "font_dirs": [str(fonts)], "font_family": "DejaVu Sans"}
    return bytes(library("resvg_py").svg_to_bytes(svg_string=svg, zoom=min(zoom, most), **own))


@cache
def _template() -> Any:
    return template(Path(__file__).parent / "templates" / "network.svg", curve=_curve, printable=printable)


def _curve(points: Sequence[Point]) -> str:
    """A path through ``points`` that leaves and arrives straight down."""
    (x, y), *_ = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for (x, y), (u, v) in pairwise(points):
        bend = f"{(y + v) / 2:.1f}"
        parts.append(f"V{v:.1f}" if abs(u - x) < 0.05 else f"C{x:.1f} {bend} {u:.1f} {bend} {u:.1f} {v:.1f}")
    return "".join(parts)
