"""Normalizations, softmax and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Unfit, Why, whole
from mxq.backends.onnx.row import Row, Rows, rows_of
from mxq.graph.tensors import Side, size_of


def _along(c: Context, axis: int, place: int) -> str:
    """A vector of parameters, shaped so that it broadcasts along ``axis``."""
    shape = tuple(c.shape(place)[0] if i == axis else 1 for i in range(c.rank()))
    return c.reshape(c.weight(place), shape, c.shape(place))


def batch_norm(c: Context) -> str:
    """``batch_norm.cc`` in inference; ``fix_gamma``, which is the default, takes 1 in place of gamma."""
    axis, fixed = c.axis("axis", 1), c.node.flag("fix_gamma", True)
    x, axes = c.read(), [*range(c.rank())]
    if axis != 1:
        axes[1], axes[axis] = axes[axis], axes[1]
        x = c.emit("Transpose", x, perm=axes)
    gamma = c.constant(np.ones(c.fixed(1, 0))) if fixed else c.weight(1)
    y = c.emit("BatchNormalization", x, gamma, *(c.weight(i) for i in (2, 3, 4)), epsilon=c.node.number("eps", 1e-3))
    return y if axis == 1 else c.emit("Transpose", y, perm=axes)


def batch_norm_relu(c: Context) -> str:
    return c.emit("Relu", batch_norm(c))


def layer_norm(c: Context) -> str:
    axis, eps = c.axis("axis", -1), c.node.number("eps", 1e-5)
    if axis == c.rank() - 1:
        return c.emit("LayerNormalization", c.read(), c.weight(1), c.weight(2), axis=-1, epsilon=eps)
    x = c.read()
    centred = c.emit("Sub", x, c.emit("ReduceMean", x, axes=[axis], keepdims=1))
    variance = c.emit("ReduceMean", c.emit("Mul", centred, centred), axes=[axis], keepdims=1)
    normal = c.emit("Div", centred, c.emit("Sqrt", c.emit("Add", variance, c.number(eps))))
    return c.emit("Add", c.emit("Mul", normal, _along(c, axis, 1)), _along(c, axis, 2))


def instance_norm(c: Context) -> str:
    if c.rank() < 3:
        raise Unfit(Why.SHAPE, f"{c.rank()} axes; allowed: 3 or more")
    return c.emit("InstanceNormalization", c.read(), c.weight(1), c.weight(2), epsilon=c.node.number("eps", 1e-3))


def group_norm(c: Context) -> str:
    """``group_norm-inl.h`` of 1.9.1: gamma and beta are of groups, so a group is an instance's channel."""
    groups, eps = c.node.integer("num_groups", 1), c.node.number("eps", 1e-5)
    batch, *rest = c.shape()
    values = whole(size_of(rest), "the size of an example")
    flat = c.reshape(c.read(), (batch, groups, values // groups))
    y = c.emit("InstanceNormalization", flat, c.weight(1), c.weight(2), epsilon=eps)
    return c.reshape(y, c.made.shape)


def l2_normalization(c: Context) -> str:
    """``l2_normalization-inl.h``: x / sqrt(sum(x^2) + eps)."""
    mode, x = c.node.attrs.get("mode", "instance"), c.read()
    axes = {"instance": range(1, c.rank()), "channel": [1], "spatial": range(2, c.rank())}[mode]
    squares = c.emit("ReduceSum", c.emit("Mul", x, x), c.integers(*axes), keepdims=1)
    return c.emit("Div", x, c.emit("Sqrt", c.emit("Add", squares, c.number(c.node.number("eps", 1e-10)))))


def lrn(c: Context) -> str:
    return c.emit(
        "LRN",
        c.read(),
        size=c.node.integer("nsize", 0),
        alpha=c.node.number("alpha", 1e-4),
        beta=c.node.number("beta", 0.75),
        bias=c.node.number("knorm", 2.0),
    )


def _softmax(c: Context, kind: str, x: str) -> str:
    if c.node.flag("use_length"):
        raise Unfit(Why.ATTRIBUTE, "use_length; allowed: whole rows")
    temperature = c.node.number("temperature", 1.0) if c.node.attrs.get("temperature", "None") != "None" else 1.0
    scaled = x if temperature == 1.0 else c.emit("Div", x, c.number(temperature))
    return c.cast(c.emit(kind, scaled, axis=c.axis("axis", -1)), c.made.dtype, c.tensor().dtype)


def softmax(c: Context) -> str:
    return _softmax(c, "Softmax", c.read())


def log_softmax(c: Context) -> str:
    return _softmax(c, "LogSoftmax", c.read())


def softmin(c: Context) -> str:
    return _softmax(c, "Softmax", c.emit("Neg", c.read()))


def _softmax_of_rows(c: Context) -> str:
    """Over all axes but the first."""
    batch, *rest = c.shape()
    if len(rest) < 2:
        return c.emit("Softmax", c.read(), axis=-1)
    row: Sequence[Side] = (batch, whole(size_of(rest), "the size of an example"))
    return c.reshape(c.emit("Softmax", c.reshape(c.read(), row), axis=-1), c.made.shape)


def softmax_activation(c: Context) -> str:
    """``softmax_activation-inl.h``: of an instance's values those on the last axis, whatever its documentation says."""
    return c.emit("Softmax", c.read(), axis=1 if c.node.attrs.get("mode", "instance") == "channel" else -1)


def softmax_output(c: Context) -> str:
    """``softmax_output-inl.h``: its label counts in training alone."""
    if c.node.flag("multi_output"):
        return c.emit("Softmax", c.read(), axis=1)
    if c.node.flag("preserve_shape"):
        return c.emit("Softmax", c.read(), axis=-1)
    return _softmax_of_rows(c)


ROWS: Final[Rows] = {
    **rows_of("BatchNorm BatchNorm_v1 _contrib_SyncBatchNorm", batch_norm, "its first output"),
    "_contrib_BatchNormWithReLU": Row(batch_norm_relu, "its first output"),
    "LayerNorm": Row(layer_norm, "its first output"),
    "InstanceNorm": Row(instance_norm, "3 axes or more"),
    "GroupNorm": Row(group_norm, "its first output"),
    "L2Normalization": Row(l2_normalization),
    "LRN": Row(lrn, "its first output"),
    "softmax": Row(softmax, "whole rows (no use_length)"),
    "log_softmax": Row(log_softmax, "whole rows (no use_length)"),
    "softmin": Row(softmin, "whole rows (no use_length)"),
    "SoftmaxActivation": Row(softmax_activation),
    "SoftmaxOutput": Row(softmax_output),
}
