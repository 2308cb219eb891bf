"""Choose a bias so that a layer's output, after its activation, comes closest to the float layer's.

Formula. With T the float layer's result before its activation f, Y the quantized one's and d what is added to the bias,
both (N, O) over calibration data, minimise for each channel

    sum_n ( f(T_n) - f(Y_n + d) )^2                                                                       (1)

by Newton steps ``d += sum f'(Y + d) (f(T) - f(Y + d)) / sum f'(Y + d)``. Without an activation this is the mean of
T - Y: empirical bias correction, Nagel et al., arXiv:1906.04721, appendix D. With one, what lies where f is flat says
nothing: before a ReLU6 that is often most of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mxq.backends import result_of
from mxq.graph.ir import Array, Node
from mxq.weights.methods import Rounded

STEPS = 4
FEW = 8.0
"""A channel that is active in fewer examples keeps its bias."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What a fused layer applies to its sum: a clip to [low, high]; infinite where it does not end."""

    low: float = -np.inf
    high: float = np.inf

    @staticmethod
    def of(node: Node) -> Activation:
        """Of a fused node. What is no clip counts as none: its derivative is not far from constant.

        Nor does the ReLU of a shifted sum (`mxq.passes.shift_streams`): what it takes is beyond the calibrated
        range.
        """
        if node.flag("with_sum") and node.note.offset:
            return Activation()
        inner = result_of(node)
        if inner.op == "Activation" and inner.attrs.get("act_type") == "relu":
            return Activation(0.0)
        if inner.op == "clip":
            return Activation(inner.number("a_min", -np.inf), inner.number("a_max", np.inf))
        return Activation()

    def __call__(self, x: Array) -> Array:
        clipped: Array = np.clip(x, self.low, self.high)
        return clipped

    def active(self, x: Array) -> Array:
        """Where the derivative is 1."""
        return (x > self.low) & (x < self.high)


def correction(target: Array, made: Array, activation: Activation) -> Array:
    """What to add to the bias.

    Args:
        target: (G, N, O) float32, T.
        made: (G, N, O) float32, Y.
        activation: f.

    Returns:
        (G, O) float64.
    """
    if activation == Activation():
        mean: Array = (target - made).mean(axis=1, dtype=np.float64)
        return mean
    wanted, ones = activation(target), np.ones((1, target.shape[1]), np.float32)
    found = np.zeros((target.shape[0], target.shape[2]))
    for _ in range(STEPS):
        off: Array = made + found[:, None].astype(np.float32)
        active = activation.active(off).astype(np.float32)
        np.subtract(wanted, off, out=off)  # where it is active, f(x) is x
        off *= active
        count, total = ((ones @ part)[:, 0] for part in (active, off))
        found = found + np.where(count >= FEW, total / np.maximum(count, 1), 0.0)
    return found


@dataclass(frozen=True)
class Empirical:
    """See the module."""

    name: ClassVar[str] = "empirical"
    needs: ClassVar[Literal["nothing", "data", "batch_norm"]] = "data"
    in_tune: ClassVar[bool] = False  # the effort "default" has it

    def correction(self, layer: Rounded) -> Array | None:
        if layer.seen is None:
            return None
        made = layer.seen.inputs @ np.swapaxes(layer.values, 1, 2)
        offset = layer.bias.reshape(layer.geometry.groups, 1, -1)
        return correction(layer.seen.target + offset, made + offset, Activation.of(layer.node)).ravel()


@dataclass(frozen=True)
class Kept:
    """No correction: biases stay as they are."""

    name: ClassVar[str] = "none"
    needs: ClassVar[Literal["nothing", "data", "batch_norm"]] = "nothing"
    in_tune: ClassVar[bool] = False

    def correction(self, layer: Rounded) -> Array | None:
        return None
