"""Pooling in MXNet's conventions, and averages to a given size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Unfit, Why, whole
from mxq.backends.onnx.row import Row, Rows
from mxq.backends.onnx.rows.layers import CHANNELS_FIRST, channels_first, per_axis
from mxq.graph.ir import Array
from mxq.graph.tensors import Open


def pooling(c: Context) -> str:
    """``pooling-inl.h``; the convention is in the size of what is made, which the shapes say."""
    channels_first(c)
    kind = c.node.attrs.get("pool_type", "max")
    if kind == "lp":
        return _lp(c)
    if c.node.flag("global_pool"):
        return _global(c, kind, c.read())
    return _max(c) if kind == "max" else _mean(c, kind, c.read())


def _global(c: Context, kind: str, x: str) -> str:
    if kind == "sum":
        return c.emit("ReduceSum", x, c.integers(*range(2, c.rank())), keepdims=1)
    return c.emit("GlobalMaxPool" if kind == "max" else "GlobalAveragePool", x)


def _lp(c: Context) -> str:
    """(sum of x^p)^(1/p), for p 1, 2 and 3: of x, not of its size."""
    p, x = c.node.integer("p_value", 2), c.read()
    powers = x if p == 1 else c.emit("Pow", x, c.number(p))
    found = _global(c, "sum", powers) if c.node.flag("global_pool") else _mean(c, "sum", powers)
    return found if p == 1 else c.emit("Pow", found, c.number(1 / p))


def _kernel_of_any_size(c: Context) -> dict[str, Sequence[int]] | None:
    """The attributes of windows where sides are open; None where none is."""
    if not any(isinstance(side, Open) for side in c.shape()[2:]):
        return None
    convention = c.node.attrs.get("pooling_convention", "valid")
    if convention != "valid" or c.node.op == "Pooling_v1":
        raise Unfit(Why.SIZE, f"pooling_convention {convention!r} pads by the size")
    pads = per_axis(c, "pad", 0)
    return {"kernel_shape": c.node.ints("kernel"), "strides": per_axis(c, "stride", 1), "pads": [*pads, *pads]}


def _windows(c: Context) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Along each axis: size, kernel, stride, the padding before and after, and how many windows there are."""
    parts = zip(c.node.ints("kernel"), per_axis(c, "stride", 1), per_axis(c, "pad", 0), strict=True)
    for axis, (kernel, stride, pad) in enumerate(parts, start=2):
        size, count = c.fixed(0, axis), whole(c.made.shape[axis], "a side of what it makes")
        after = max(pad, (count - 1) * stride + kernel - size - pad)  # the "full" convention looks beyond the padding
        yield size, kernel, stride, pad, after, count


def _attributes(c: Context) -> dict[str, Sequence[int]]:
    if (free := _kernel_of_any_size(c)) is not None:
        return free
    windows = [*_windows(c)]
    before, after = [w[3] for w in windows], [w[4] for w in windows]
    if any(pad >= w[1] for w, pad in zip([*windows, *windows], [*before, *after], strict=True)):
        raise Unfit(Why.SHAPE, "a window that sees padding alone")
    return {
        "kernel_shape": [w[1] for w in windows], "strides": [w[2] for w in windows], "pads": [*before, *after],
    }  # fmt: skip


def _max(c: Context) -> str:
    return c.emit("MaxPool", c.read(), **_attributes(c))


def _mean(c: Context, kind: str, x: str) -> str:
    """An average, or a sum. Padding beyond what was asked for does not count, which ``Mul`` makes up for.

    That of ``pooling_v1-inl.h`` divides by the whole kernel everywhere.
    """
    padded = kind == "sum" or c.node.flag("count_include_pad", True)
    y = c.emit("AveragePool", x, **_attributes(c), count_include_pad=int(padded))
    if kind == "sum":
        return c.emit("Mul", y, c.number(int(np.prod(c.node.ints("kernel")))))
    if (
        not padded
        or _kernel_of_any_size(c) is not None
        or c.node.op == "Pooling_v1"
        or all(w[3] == w[4] for w in _windows(c))
    ):
        return y
    factor: Array = np.ones((), np.float32)
    for window in _windows(c):
        factor = np.multiply.outer(factor, _shares(*window[:4], window[5]))
    return c.emit("Mul", y, c.constant(factor[None, None]))


def _shares(size: int, kernel: int, stride: int, pad: int, count: int) -> Array:
    """What part of each window is within the padding that was asked for, the other way up."""
    starts = np.arange(count) * stride - pad
    return np.asarray(kernel / (np.minimum(starts + kernel, size + pad) - starts), np.float32)


def adaptive_average(c: Context) -> str:
    """``adaptive_avg_pooling.cc``: pixel i is the mean of those from floor(i H / h) to ceil((i + 1) H / h)."""
    x = c.read()
    sides = [whole(side, "a side of what it makes") for side in c.made.shape[2:]]
    rows, columns = (_means(c.fixed(0, axis), side) for axis, side in zip((2, 3), sides, strict=True))
    return c.emit("MatMul", c.emit("MatMul", c.constant(rows), x), c.constant(columns.T))


def _means(size: int, count: int) -> Array:
    """(count, size); each row takes a mean."""
    found = np.zeros((count, size), np.float32)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        found[i, start:end] = 1 / (end - start)
    return found


ROWS: Final[Rows] = {
    "Pooling": Row(pooling, CHANNELS_FIRST),
    "Pooling_v1": Row(pooling, CHANNELS_FIRST),
    "_contrib_AdaptiveAvgPooling2D": Row(adaptive_average),
}
