"""Networks as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mxq import runtime
from mxq.drawing import PNG, SUFFIXES, layout_of, png_of, scene_of, svg_of
from mxq.errors import ConfigError
from mxq.graph.ir import Model
from mxq.passes.simplify import FLOAT
from mxq.storage.writing import check_suffix, write_bytes
from mxq.workflow.comparing import short_name


def draw(nets: Sequence[runtime.Net], path: Path, *, epoch: int | None = None, zoom: float = 1.0) -> Path:
    """Draws networks side by side: operators as boxes, tensors as arrows, what is INT8 in another color.

    Args:
        nets: what to draw, from left to right; see `mxq.runtime.load_model`.
        path: the picture, .svg or .png.
        epoch: which parameters of the first, where that is a prefix.
        zoom: pixels of a .png for each of the .svg's; fewer where the picture would be too large.

    Raises:
        ConfigError: another suffix, no network, or a library is missing.
        FormatError: a file is missing or damaged.
        StorageError: the picture cannot be written.
    """
    check_suffix(path, "picture", SUFFIXES)
    if not nets:
        raise ConfigError("there is no network to draw; allowed: one or more")
    models = [runtime.load_model(net, epoch if i == 0 else None) for i, net in enumerate(nets)]
    layouts = [layout_of(scene_of(model, _title(net, model))) for net, model in zip(nets, models, strict=True)]
    svg = svg_of(layouts)
    return write_bytes(path, png_of(svg, zoom) if path.suffix.lower() == PNG else svg.encode())


def _title(net: runtime.Net, model: Model) -> str:
    """Such as "INT8, net-int8"."""
    return f"{'FP32' if FLOAT.check(model) is None else 'INT8'}, {short_name(net)}"
