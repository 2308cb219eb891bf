"""Images in another size."""

from __future__ import annotations

import math
from typing import Final

from mxq.backends.onnx.context import Context, whole
from mxq.backends.onnx.row import Row, Rows
from mxq.graph.tensors import Side


def _resized(c: Context, shape: tuple[Side, ...], **attrs: str) -> str:
    return c.emit("Resize", c.read(), "", "", c.builder.extents(shape), **attrs)


def _nearest(c: Context, place: int, scale: int) -> str:
    scales = c.constant([1, 1, *(scale,) * (c.rank(place) - 2)])
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return c.emit("Resize", c.read(place), "", scales, **attrs)


def upsampling(c: Context) -> str:
    """``upsampling.cc``: pixels repeated; several inputs to the size that the first gets, together or summed."""
    scale = c.node.integer("scale", 1)
    if c.node.attrs.get("sample_type") == "bilinear":
        return _by_weights(c, scale)
    if len(c.node.inputs) == 1:
        return _nearest(c, 0, scale)
    height = whole(c.made.shape[2], "its height")
    parts = [_nearest(c, i, height // c.fixed(i, 2)) for i in range(len(c.node.inputs))]
    return c.emit("Sum", *parts) if c.node.attrs.get("multi_input_mode") == "sum" else c.emit("Concat", *parts, axis=1)


def _by_weights(c: Context, scale: int) -> str:
    """``upsampling-inl.h``: a deconvolution of each channel, whose weights are parameters."""
    kernel, pad = 2 * scale - scale % 2, math.ceil((scale - 1) / 2)
    return c.emit(
        "ConvTranspose",
        c.read(),
        c.weight(1),
        kernel_shape=[kernel] * 2,
        strides=[scale] * 2,
        pads=[pad] * 4,
        group=c.fixed(0, 1),
    )


def bilinear_resize(c: Context) -> str:
    """``bilinear_resize-inl.h``: corners on corners, or pixels as areas, cut off at the border."""
    corners = c.node.flag("align_corners", True)
    if c.made.shape == c.shape():
        return c.read()
    mode = "align_corners" if corners else "half_pixel"
    return _resized(c, c.made.shape, mode="linear", coordinate_transformation_mode=mode)


ROWS: Final[Rows] = {
    "UpSampling": Row(upsampling),
    "_contrib_BilinearResize2D": Row(bilinear_resize),
}
