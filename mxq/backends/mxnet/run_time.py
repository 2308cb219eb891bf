"""Run time: what makes int8 convolutions right whose inputs' ranges are found at run time (``calib_mode="none"``).

Before:  x -> _contrib_quantize_v2 (values, min, max) ------------------> _sg_mkldnn_conv(values, w, b, min, max)
After:   x -> _contrib_quantize_v2 (values, min, max) -> maximum(max, l) -> _sg_mkldnn_conv(values, w, b, min, ...)

The kernel adds the bias in 32 bits, in units of the product of both scales: b * 127.5 / max|w| * span / max|x|
(``ConvertWeightBias2MKLDNN`` in ``mkldnn_common.h``; span 127.5 of s8, 255.5 of u8). Where x or w is small, or x is all
zero, that is more than 32 bits hold, and the bias is lost. With calibrated ranges the kernel itself makes room, at the
cost of its weights' scale. Here the range of x is kept from being less than

    l = max|b| * 127.5 / max|w| * span / B        with B = min(2^30, 0.98 * 2^31 - 128 * 255 * K)

for K products in a sum, so that all of it fits. x has less than that only where its part of the result is a K * 2^-16th
of the bias, or less. What codes such an x may have does not matter.

Conditions: weights that are not all zero (the kernel gives zeros then, whatever the bias), and K small enough.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mxq.graph.ir import Array, Model, Node, Ref
from mxq.passes.biases import has_bias
from mxq.quant import BY_DTYPE, INT8, MXNET, UINT8, WEIGHT

NO_RANGES: Final = "(calib_mode is 'none')"
"""Ends each reason for which an operator is not int8 where ranges are found at run time."""
_ALL: Final = 0.98 * 2**31
"""Of 32 bits, what is used: ``_contrib_requantize`` negates its result where a sum reaches the very end of them."""
_HALF: Final = 2.0**30
_LEAST_ROOM: Final = 2.0**24
_LEAST_WEIGHT, _LEAST_BIAS = 1e-30, 1e-20
"""Below these, scales would leave float32."""


def refusal(model: Model, conv: Node) -> str:
    """Why a fused convolution cannot be int8 with ranges found at run time; empty where it can."""
    weight = model.args[conv.inputs[1].name]
    if not np.abs(weight).max(initial=0.0) > _LEAST_WEIGHT:
        return f"its weights are all zero, with which the int8 kernel loses the bias {NO_RANGES}"
    if _room(weight) < _LEAST_ROOM:
        return f"the sums of {weight[0].size} products and a bias do not fit in 32 bits {NO_RANGES}"
    return ""


def _room(weight: Array) -> float:
    """What of 32 bits the sum of products leaves to the bias."""
    return min(_HALF, _ALL + INT8.lowest * UINT8.highest * int(weight[0].size))


def least_range(model: Model, conv: Node, dtype: str) -> float | None:
    """``l`` of the module, in units of the convolution's input; None for one without a bias.

    Args:
        model: holds its parameters.
        conv: a fused convolution for which `refusal` has nothing to say.
        dtype: of the codes that it reads.
    """
    if not has_bias(conv):
        return None
    weight, bias = (model.args[conv.inputs[i].name].astype(np.float64) for i in (1, 2))
    most = max(float(np.abs(bias).max()), _LEAST_BIAS)
    return most * MXNET.top(WEIGHT) / float(np.abs(weight).max()) * MXNET.top(BY_DTYPE[dtype]) / _room(weight)


def widened(name: str, maximum: Ref, least: float) -> Node:
    """The node that keeps the maximum of a range from being less than ``least``."""
    return Node(name, "_maximum_scalar", {"scalar": repr(float(np.float32(least)))}, (maximum,))
