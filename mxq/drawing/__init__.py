"""A network as a picture: what it shows (`scene`), where that stands (`layout`), and how it is written (`svg`)."""

from __future__ import annotations

from typing import Final

from mxq.drawing.layout import Layout, layout_of
from mxq.drawing.scene import Arrow, Box, Kind, Scene, scene_of
from mxq.drawing.svg import png_of, svg_of

__all__ = ["PNG", "SUFFIXES", "Arrow", "Box", "Kind", "Layout", "Scene", "layout_of", "png_of", "scene_of", "svg_of"]

PNG: Final = ".png"
SUFFIXES: Final = (".svg", PNG)
"""Of pictures."""
