"""The same values at other places: shapes, parts, order, copies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Result, Unfit, Why, whole
from mxq.backends.onnx.row import Row, Rows, rows_of
from mxq.graph.tensors import Shape, Side

# ---- shapes --------------------------------------------------------------------------------------------------


def reshape(c: Context) -> str:
    """By the shape that MXNet infers: its codes (0, -1 to -4, reverse) need no like in ONNX."""
    return c.reshape(c.raw(), c.made.shape)


def flatten(c: Context) -> str:
    return c.emit("Flatten", c.raw(), axis=1)


def expand_dims(c: Context) -> str:
    axis = c.node.integer("axis", 0)
    return c.emit("Unsqueeze", c.read(), c.integers(axis % (c.rank() + 1)))


def transpose(c: Context) -> str:
    axes = list(c.node.ints("axes")) or [*range(c.rank())][::-1]
    return c.emit("Transpose", c.read(), perm=axes)


def swap_axes(c: Context) -> str:
    axes, one, two = [*range(c.rank())], c.axis("dim1", 0), c.axis("dim2", 0)
    axes[one], axes[two] = axes[two], axes[one]
    return c.emit("Transpose", c.read(), perm=axes)


def _blocks(c: Context, split: Sequence[Side], order: Sequence[int]) -> str:
    apart = c.reshape(c.read(), split)
    return c.reshape(c.emit("Transpose", apart, perm=list(order)), c.made.shape)


def depth_to_space(c: Context) -> str:
    return c.emit("DepthToSpace", c.read(), blocksize=c.node.integer("block_size", 1), mode="DCR")


def space_to_depth(c: Context) -> str:
    return c.emit("SpaceToDepth", c.read(), blocksize=c.node.integer("block_size", 1))


# ---- parts ---------------------------------------------------------------------------------------------------


def bounds(text: str) -> list[int | None]:
    """The numbers of a tuple such as "(None, 0, 2)"."""
    found = re.findall(r"None|-?\d+", text)
    return [None if each == "None" else int(each) for each in found]


def slice_(c: Context) -> str:
    begins, ends, steps = (bounds(c.node.attrs.get(attr, "()")) for attr in ("begin", "end", "step"))
    steps = steps or [None] * len(begins)
    x = c.read()
    for axis, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        forward = (step or 1) > 0
        if (begin, end, step or 1) != (None, None, 1):
            start = begin if begin is not None else 0 if forward else -1
            x = c.sliced(x, axis, start, end, step or 1)
    return x


def slice_axis(c: Context) -> str:
    (end,) = bounds(c.node.attrs.get("end", "None"))
    return c.sliced(c.read(), c.axis("axis", 0), c.node.integer("begin", 0), end)


def slice_like(c: Context) -> str:
    wanted = c.shape(1)
    axes = [axis % c.rank() for axis in c.node.ints("axes")] or [*range(min(c.rank(), len(wanted)))]
    axes = [axis for axis in axes if wanted[axis] != c.shape()[axis]]
    if not axes:
        return c.read()
    ends = c.builder.extents([wanted[axis] for axis in axes])
    return c.emit("Slice", c.read(), c.integers(*(0,) * len(axes)), ends, c.integers(*axes))


def _parts(c: Context, axis: int, sizes: Sequence[int], *, squeezed: bool) -> Result:
    x = c.read()
    if len(sizes) == 1:
        parts: tuple[str, ...] = (x,)
    else:
        parts = c.emit_many("Split", x, c.integers(*sizes), outputs=len(sizes), axis=axis)
    return tuple(c.emit("Squeeze", part, c.integers(axis)) for part in parts) if squeezed else parts


def slice_channel(c: Context) -> Result:
    axis, count = c.axis("axis", 1), c.node.integer("num_outputs", 1)
    return _parts(c, axis, [c.fixed(0, axis) // count] * count, squeezed=c.node.flag("squeeze_axis"))


def split(c: Context) -> Result:
    """``matrix_op-inl.h``, ``_split_v2``: at ``indices`` (the first is 0), or into equal ``sections``."""
    axis, sections = c.axis("axis", 1), c.node.integer("sections", 0)
    size = c.fixed(0, axis)
    starts = [*range(0, size, size // sections)] if sections else [*c.node.ints("indices")]
    ends = [*starts[1:], size]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    return _parts(c, axis, sizes, squeezed=c.node.flag("squeeze_axis"))


def reverse(c: Context) -> str:
    x = c.read()
    for axis in c.node.ints("axis"):
        x = c.sliced(x, axis % c.rank(), -1, None, -1)
    return x


# ---- together ------------------------------------------------------------------------------------------------


def concat(c: Context) -> str:
    return c.emit("Concat", *c.reads(), axis=c.axis("dim", 1))


def stack(c: Context) -> str:
    axis = c.node.integer("axis", 0) % (c.rank() + 1)
    return c.emit("Concat", *(c.emit("Unsqueeze", x, c.integers(axis)) for x in c.reads()), axis=axis)


# ---- copies --------------------------------------------------------------------------------------------------


def tile(c: Context) -> str:
    counts = list(c.node.ints("reps"))
    counts = [1] * (c.rank() - len(counts)) + counts
    x = c.reshape(c.read(), (*(1,) * (len(counts) - c.rank()), *c.shape()), c.shape())
    return c.emit("Tile", x, c.integers(*counts))


def repeat(c: Context) -> str:
    """Each value several times before the next."""
    count = c.node.integer("repeats", 1)
    flat = c.node.attrs.get("axis", "None") == "None"
    shape: Shape = (-1,) if flat else c.shape()
    axis = 0 if flat else c.axis("axis", 0)
    x = c.emit("Reshape", c.read(), c.integers(-1)) if flat else c.read()
    x = c.emit("Unsqueeze", x, c.integers(axis + 1))
    copies = c.emit("Tile", x, c.integers(*(count if i == axis + 1 else 1 for i in range(len(shape) + 1))))
    return c.reshape(copies, c.made.shape)


def broadcast(c: Context) -> str:
    """To the shape that MXNet infers, whichever way it was said."""
    return c.read() if c.shape() == c.made.shape else c.expand(c.read(), c.made.shape)


def pad(c: Context) -> str:
    mode, widths = c.node.attrs.get("mode", "constant"), c.node.ints("pad_width")
    pads = c.integers(*widths[::2], *widths[1::2])
    if mode == "constant":
        return c.emit("Pad", c.read(), pads, c.number(c.node.number("constant_value", 0.0)), mode=mode)
    return c.emit("Pad", c.read(), pads, mode=mode)


# ---- from shapes ---------------------------------------------------------------------------------------------


def shape_array(c: Context) -> str:
    return c.builder.extents(c.shape())


def size_array(c: Context) -> str:
    return c.emit("ReduceProd", c.builder.extents(c.shape()), keepdims=1)


def _filled(c: Context, value: float) -> str:
    dtype, shape = c.made.dtype, c.made.shape
    if all(isinstance(side, int) for side in shape):
        return c.builder.constant(np.full([s for s in shape if isinstance(s, int)], value, dtype), c.node.name)
    return c.expand(c.constant(value, dtype), shape)


def zeros(c: Context) -> str:
    return _filled(c, 0.0)


def ones(c: Context) -> str:
    return _filled(c, 1.0)


def full(c: Context) -> str:
    return _filled(c, c.node.number("value", 0.0))


def _numbers(c: Context, count: Side, start: float, step: float) -> str:
    """``count`` numbers from ``start`` on."""
    if isinstance(count, int):
        return c.builder.constant(np.asarray(start + step * np.arange(count), c.made.dtype), c.node.name)
    size = c.reshape(c.builder.extents([count]), ())
    found = c.cast(c.emit("Range", c.constant(0, np.int64), size, c.constant(1, np.int64)), c.made.dtype, "int64")
    return c.emit("Add", c.emit("Mul", found, c.constant(step, c.made.dtype)), c.constant(start, c.made.dtype))


def arange(c: Context) -> str:
    """``init_op.h``: each number ``repeat`` times; a start without a stop is the stop of numbers from 0."""
    start, step, each = c.node.number("start", 0.0), c.node.number("step", 1.0), c.node.integer("repeat", 1)
    if c.node.attrs.get("stop", "None") == "None" and not c.node.flag("infer_range"):
        start = 0.0
    count = whole(c.made.shape[0], "how many numbers it makes")
    values = np.repeat(start + step * np.arange(-(-count // each)), each)[:count]
    return c.builder.constant(np.asarray(values, c.made.dtype), c.node.name)


def arange_like(c: Context) -> str:
    """``contrib/...arange_like``: along one axis, or over all values."""
    start, step, each = c.node.number("start", 0.0), c.node.number("step", 1.0), c.node.integer("repeat", 1)
    if each != 1:
        raise Unfit(Why.ATTRIBUTE, f"repeat is {each}; allowed: 1")
    if c.node.attrs.get("axis", "None") != "None":
        return _numbers(c, c.made.shape[0], start, step)
    counts = [side for side in c.made.shape if isinstance(side, int)]
    if len(counts) < len(c.made.shape):
        raise Unfit(Why.BATCH, "it numbers the values of all examples")
    return c.reshape(_numbers(c, int(np.prod(counts)), start, step), c.made.shape)


def eye(c: Context) -> str:
    rows, columns = (side if isinstance(side, int) else 0 for side in c.made.shape)
    return c.builder.constant(np.eye(rows, columns, c.node.integer("k", 0), c.made.dtype), c.node.name)


ROWS: Final[Rows] = {
    **rows_of("Reshape _np_reshape _npx_reshape squeeze reshape_like", reshape),
    "Flatten": Row(flatten),
    "expand_dims": Row(expand_dims),
    "transpose": Row(transpose),
    "SwapAxis": Row(swap_axes),
    "depth_to_space": Row(depth_to_space),
    "space_to_depth": Row(space_to_depth),
    "slice": Row(slice_),
    "slice_axis": Row(slice_axis),
    "slice_like": Row(slice_like),
    "SliceChannel": Row(slice_channel, "not along the batch"),
    "_split_v2": Row(split, "not along the batch"),
    "reverse": Row(reverse),
    **rows_of("Concat _rnn_param_concat", concat),
    "stack": Row(stack),
    "tile": Row(tile),
    "repeat": Row(repeat),
    **rows_of("broadcast_axis broadcast_to broadcast_like", broadcast),
    "Pad": Row(pad),
    "shape_array": Row(shape_array),
    "size_array": Row(size_array),
    **rows_of("_zeros zeros_like", zeros),
    **rows_of("_ones ones_like", ones),
    "_full": Row(full),
    "_arange": Row(arange, "a length that does not follow the batch"),
    "_contrib_arange_like": Row(arange_like, "repeat 1"),
    "_eye": Row(eye),
}
