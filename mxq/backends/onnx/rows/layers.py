"""Layers with weights: convolutions, fully connected layers, products of matrices, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Unfit, Why
from mxq.backends.onnx.row import Row, Rows

CHANNELS_FIRST: Final = "a layout with channels first (NCHW)"


def channels_first(c: Context) -> None:
    """Refuses layouts that ONNX has no operator for."""
    if not c.node.is_channels_first:
        raise Unfit(Why.ATTRIBUTE, f"layout is {c.node.attrs['layout']!r}; allowed: channels first")


def per_axis(c: Context, attr: str, default: int) -> list[int]:
    """A tuple attribute with one number for each axis of the kernel."""
    return list(c.node.ints(attr) or (default,) * len(c.node.ints("kernel")))


def _bias(c: Context, no_bias: bool) -> Sequence[str]:
    return [] if c.node.flag("no_bias", no_bias) or len(c.node.inputs) < 3 else [c.weight(2)]


def _sums(c: Context, kind: str, *, no_bias: bool, **more: Sequence[int]) -> str:
    """A layer of kernels; ``no_bias`` is what its attribute is where it is not there."""
    channels_first(c)
    pad = per_axis(c, "pad", 0)
    return c.emit(
        kind,
        c.read(),
        c.weight(1),
        *_bias(c, no_bias),
        kernel_shape=list(c.node.ints("kernel")),
        strides=per_axis(c, "stride", 1),
        dilations=per_axis(c, "dilate", 1),
        pads=[*pad, *pad],
        group=c.node.integer("num_group", 1),
        **more,
    )


def convolution(c: Context) -> str:
    """``mxnet/src/operator/nn/convolution.cc``: the same sums as ONNX's ``Conv``."""
    return _sums(c, "Conv", no_bias=False)


def deconvolution(c: Context) -> str:
    """``deconvolution-inl.h``: ``adj`` adds to the far end of each axis, as ``output_padding`` does."""
    if any(c.node.ints("target_shape")):
        raise Unfit(Why.ATTRIBUTE, f"target_shape is {c.node.attrs['target_shape']}; allowed: pad and adj")
    return _sums(c, "ConvTranspose", no_bias=True, output_padding=per_axis(c, "adj", 0))


def fully_connected(c: Context) -> str:
    """A matrix: ``Gemm``, which adds the bias itself; with ``flatten`` off and more axes of rows by the last one."""
    whole = c.node.flag("flatten", True)
    if c.rank() == 2:
        data = c.read()
    elif whole:
        data = c.read(0, lambda x: c.emit("Flatten", x, axis=1))
    else:
        data = c.read(0, lambda x: c.reshape(x, (-1, c.fixed(0, -1))))
    sums = c.emit("Gemm", data, c.weight(1), *_bias(c, no_bias=False), transB=1)
    return sums if c.rank() == 2 or whole else c.reshape(sums, c.made.shape)


def embedding(c: Context) -> str:
    """``indexing_op.h``: an index beyond the table is taken to its end."""
    rows = c.node.integer("input_dim", 0)
    index = c.emit("Clip", c.indices(0), c.constant(0, np.int64), c.constant(rows - 1, np.int64))
    return c.emit("Gather", c.weight(1), index, axis=0)


def _turned(c: Context, place: int, attr: str) -> str:
    """A matrix or a batch of them, its last two axes in the other order where ``attr`` says so."""
    if not c.node.flag(attr):
        return c.read(place)
    axes = [*range(c.rank(place))]
    axes[-2:] = axes[:-3:-1]
    return c.emit("Transpose", c.read(place), perm=axes)


def batch_dot(c: Context) -> str:
    return c.emit("MatMul", _turned(c, 0, "transpose_a"), _turned(c, 1, "transpose_b"))


def dot(c: Context) -> str:
    """``dot-inl.h``: the last axis of one by the first of the other; transposing turns all axes of vectors round."""
    if max(c.rank(0), c.rank(1)) > 2:
        raise Unfit(Why.SHAPE, f"a product of {c.rank(0)} and {c.rank(1)} axes; allowed: matrices and vectors")
    attrs = ("transpose_a", "transpose_b")
    parts = [_turned(c, i, attr) if c.rank(i) == 2 else c.read(i) for i, attr in enumerate(attrs)]
    return c.reshape(c.emit("MatMul", *parts), c.made.shape)


def gemm2(c: Context) -> str:
    """``la_op.h``: alpha * A * B."""
    if c.node.integer("axis", -2) not in (-2, c.rank() - 2):
        raise Unfit(Why.ATTRIBUTE, f"axis is {c.node.attrs['axis']}; allowed: -2")
    product, alpha = batch_dot(c), c.node.number("alpha", 1.0)
    return product if alpha == 1.0 else c.emit("Mul", product, c.number(alpha))


ROWS: Final[Rows] = {
    "Convolution": Row(convolution, CHANNELS_FIRST),
    "Convolution_v1": Row(convolution, CHANNELS_FIRST),
    "Deconvolution": Row(deconvolution, CHANNELS_FIRST),
    "FullyConnected": Row(fully_connected),
    "Embedding": Row(embedding),
    "_contrib_SparseEmbedding": Row(embedding),
    "batch_dot": Row(batch_dot),
    "dot": Row(dot, "matrices and vectors"),
    "_linalg_gemm2": Row(gemm2, "matrices on the last two axes"),
}
