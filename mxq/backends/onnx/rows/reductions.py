"""Reductions, order, and picking by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Result, Unfit, Why
from mxq.backends.onnx.row import Row, Rows


def axes_of(c: Context) -> list[int]:
    """The axes that are reduced: those named, all others with ``exclude``, all where none is."""
    text = c.node.attrs.get("axis", "None")
    named = {axis % c.rank() for axis in c.node.ints("axis")} if text not in ("None", "()", "[]") else set()
    if c.node.flag("exclude"):
        return [axis for axis in range(c.rank()) if axis not in named]
    return sorted(named) or [*range(c.rank())]


def _reduced(c: Context, kind: str, x: str) -> str:
    """Without axes that are not kept; of a single number MXNet keeps one."""
    axes = axes_of(c)
    if not axes:  # ``exclude`` of all; to ONNX no axes are all of them
        return x
    keeps = int(len(c.made.shape) == c.rank())
    if kind == "ReduceSum":  # its axes are an input since opset 13
        y = c.emit(kind, x, c.integers(*axes), keepdims=keeps)
    else:
        y = c.emit(kind, x, axes=axes, keepdims=keeps)
    return c.reshape(y, (1,)) if c.made.shape == (1,) and not keeps else y


def _reduction(kind: str) -> Callable[[Context], str]:
    return lambda c: _reduced(c, kind, c.read())


def norm(c: Context) -> str:
    kind = {1: "ReduceL1", 2: "ReduceL2"}.get(c.node.integer("ord", 2))
    if kind is None:
        raise Unfit(Why.ATTRIBUTE, f"ord is {c.node.attrs['ord']}; allowed: 1 or 2")
    return _reduced(c, kind, c.read())


def _arg(kind: str) -> Callable[[Context], str]:
    def lower(c: Context) -> str:
        x, whole = c.read(), c.node.attrs.get("axis", "None") == "None"
        axis = 0 if whole else c.axis("axis", 0)
        x = c.emit("Reshape", x, c.integers(-1)) if whole else x
        y = c.emit(kind, x, axis=axis, keepdims=int(c.node.flag("keepdims")))
        return c.reshape(c.cast(y, c.made.dtype, "int64"), c.made.shape)

    return lower


def argmax_channel(c: Context) -> str:
    return c.cast(c.emit("ArgMax", c.read(), axis=1, keepdims=0), c.made.dtype, "int64")


def topk(c: Context) -> Result:
    """``ordering_op-inl.h``; equal values may come in another order."""
    axis, k = c.axis("axis", -1), c.node.integer("k", 1)
    wanted = c.node.attrs.get("ret_typ", "indices")
    if wanted == "mask" or c.node.attrs.get("axis", "-1") == "None":
        raise Unfit(Why.ATTRIBUTE, "ret_typ mask, or no axis; allowed: indices, value, both, along an axis")
    count = k if k > 0 else c.fixed(0, axis)
    values, indices = c.emit_many(
        "TopK", c.read(), c.integers(count), outputs=2, axis=axis, largest=int(not c.node.flag("is_ascend"))
    )
    if wanted == "value":
        return values
    places = c.cast(indices, c.node.attrs.get("dtype", "float32"), "int64")
    return places if wanted == "indices" else (values, places)


def _sorted(output: int) -> Callable[[Context], str]:
    def lower(c: Context) -> str:
        axis, upwards = c.axis("axis", -1), c.node.flag("is_ascend", True)
        if c.node.attrs.get("axis", "-1") == "None":
            raise Unfit(Why.ATTRIBUTE, "no axis; allowed: along an axis")
        size = c.integers(c.fixed(0, axis))
        found = c.emit_many("TopK", c.read(), size, outputs=2, axis=axis, largest=int(not upwards))[output]
        return c.cast(found, c.made.dtype, "int64") if output else found

    return lower


# ---- by index ------------------------------------------------------------------------------------------------


def take(c: Context) -> str:
    """``indexing_op.h``: an index beyond the end is the last, or goes round."""
    axis, mode = c.axis("axis", 0), c.node.attrs.get("mode", "clip")
    size, index = c.constant(c.fixed(0, axis), np.int64), c.indices(1)
    if mode == "clip":
        index = c.emit("Clip", index, c.constant(0, np.int64), c.constant(c.fixed(0, axis) - 1, np.int64))
    elif mode == "wrap":
        index = c.emit("Mod", index, size)
    else:
        raise Unfit(Why.ATTRIBUTE, f"mode is {mode!r}; allowed: clip, wrap")
    return c.emit("Gather", c.read(), index, axis=axis)


def pick(c: Context) -> str:
    """``broadcast_reduce_op.h``: one value along an axis, at an index that is cut to it."""
    if c.node.attrs.get("mode", "clip") != "clip":
        raise Unfit(Why.ATTRIBUTE, "mode is 'wrap'; allowed: clip")
    axis, keeps = c.axis("axis", -1), c.node.flag("keepdims")
    index = c.emit("Clip", c.indices(1), c.constant(0, np.int64), c.constant(c.fixed(0, axis) - 1, np.int64))
    if c.rank(1) < c.rank():
        index = c.emit("Unsqueeze", index, c.integers(axis))
    y = c.emit("GatherElements", c.read(), index, axis=axis)
    return y if keeps else c.emit("Squeeze", y, c.integers(axis))


def gather_nd(c: Context) -> str:
    """MXNet's indices are (axes, ...), ONNX's (..., axes)."""
    order = [*range(1, c.rank(1)), 0]
    return c.emit("GatherND", c.read(), c.emit("Transpose", c.indices(1), perm=order))


def one_hot(c: Context) -> str:
    values = [c.node.number("off_value", 0.0), c.node.number("on_value", 1.0)]
    depth = c.node.integer("depth", 0)
    index = c.indices(0)
    inside = c.emit("And", c.emit("GreaterOrEqual", index, c.constant(0, np.int64)),
                    c.emit("Less", index, c.constant(depth, np.int64)))  # fmt: skip
    safe = c.emit("Where", inside, index, c.constant(depth, np.int64))
    found = c.emit("OneHot", safe, c.constant(depth + 1, np.int64), c.constant(values, c.made.dtype), axis=-1)
    return c.sliced(found, c.rank(), 0, depth)


ROWS: Final[Rows] = {
    "sum": Row(_reduction("ReduceSum")),
    "mean": Row(_reduction("ReduceMean")),
    "max": Row(_reduction("ReduceMax")),
    "min": Row(_reduction("ReduceMin")),
    "prod": Row(_reduction("ReduceProd")),
    "norm": Row(norm, "ord 1 and 2"),
    "argmax": Row(_arg("ArgMax")),
    "argmin": Row(_arg("ArgMin")),
    "argmax_channel": Row(argmax_channel),
    "topk": Row(topk, "along an axis, without masks"),
    "sort": Row(_sorted(0), "along an axis"),
    "argsort": Row(_sorted(1), "along an axis"),
    "take": Row(take, "modes clip and wrap, not along the batch"),
    "pick": Row(pick, "mode clip"),
    "gather_nd": Row(gather_nd),
    "one_hot": Row(one_hot),
}
