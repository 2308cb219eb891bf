"""Fold BatchNorm into the weights of the convolution or fully connected layer before it.

Before:  x -> Convolution(w, b) -> BatchNorm(gamma, beta, mean, var) -> y
After:   x -> Convolution(w', b') -> y

Formula, per output channel c (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, eq. 14; ``UpdateConvWeightBias`` in ``mkldnn_conv.cc``):

    alpha_c = gamma_c / sqrt(var_c + eps)        gamma_c = 1 where fix_gamma
    w'_c = alpha_c * w_c                         b'_c = beta_c + alpha_c * (b_c - mean_c)

computed in float64. It is done offline, so the weights that ship are final and weight methods see them.

Conditions: only BatchNorm reads the layer's result; BatchNorm normalises axis 1 with moving statistics; weight,
bias and statistics are parameters; the weight (and bias) belong to this layer alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from mxq.errors import GraphError
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref
from mxq.passes.simplify import FLOAT
from mxq.rewrite import Match, Op, Pass, Reject, Rewrite, Trace, apply_rules
from mxq.rewrite.rule import single_consumer

FOLDABLE = ("Convolution", "FullyConnected")


@dataclass(frozen=True)
class FoldBatchNorm:
    """See the module."""

    name: str = "fold_bn"
    pattern: Op = Op(("BatchNorm",), (Op(FOLDABLE, bind="layer"),), bind="bn")

    def check(self, model: Model, match: Match) -> Reject | None:
        layer, bn = match["layer"], match["bn"]
        return (
            single_consumer(model, match)
            or batch_norm_refusal(model, bn)
            or _axis_refusal(layer, bn)
            or _parameter_refusal(model, layer, bn)
        )

    def build(self, model: Model, match: Match) -> Rewrite:
        layer, bn = match["layer"], match["bn"]
        weight_name = layer.inputs[1].name
        has_bias = not layer.flag("no_bias")
        bias_name = layer.inputs[2].name if has_bias else model.graph.unused(f"{layer.name}_bias")
        weight, bias = fold(
            model.args[weight_name],
            model.args[bias_name] if has_bias else None,
            *(_value(model, ref) for ref in bn.inputs[1:5]),
            eps=bn.number("eps", 1e-3),
            fix_gamma=bn.flag("fix_gamma", default=True),
        )
        # The folded layer takes BatchNorm's name, so that the tensor that readers and thresholds know keeps its name.
        folded = replace(
            layer,
            name=bn.name,
            label=bn.label,
            attrs={**layer.attrs, "no_bias": "False"},
            inputs=(layer.inputs[0], layer.inputs[1], Ref(bias_name)),
        ).standing_for(layer, bn)
        new = (folded,) if has_bias else (Node(bias_name, VARIABLE), folded)
        return Rewrite({layer.name: (), bn.name: new}, args={weight_name: weight, bias_name: bias})


def fold(
    weight: Array,
    bias: Array | None,
    gamma: Array,
    beta: Array,
    mean: Array,
    var: Array,
    *,
    eps: float,
    fix_gamma: bool,
) -> tuple[Array, Array]:
    """Folded weight and bias.

    Args:
        weight: (O, ...) float32.
        bias: (O,) float32, or None for zero.
        gamma, beta, mean, var: (O,) float32.

    Returns:
        weight of the same shape and bias (O,), both float32.
    """
    alpha = (np.ones_like(gamma) if fix_gamma else gamma).astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean
    scaled = weight.astype(np.float64) * alpha.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.astype(np.float32), (beta + alpha * shift).astype(np.float32)


def _value(model: Model, ref: Ref) -> Array:
    value = model.param(ref.name)
    if value is None:
        raise GraphError(f"{ref.name!r} is not a parameter of the network")
    return value


def batch_norm_refusal(model: Model, bn: Node) -> Reject | None:
    """Why it is not one function of each channel; None where it is."""
    if not bn.flag("use_global_stats"):
        return Reject("BatchNorm uses batch statistics", (bn.name,))
    if any(r.output for c in model.graph.consumers[bn.name] for r in c.inputs if r.name == bn.name):
        return Reject("the batch mean or variance of BatchNorm is read", (bn.name,))
    if any(h.output for h in model.graph.heads if h.name == bn.name):
        return Reject("the batch mean or variance of BatchNorm is an output of the network", (bn.name,))
    return None


def _axis_refusal(layer: Node, bn: Node) -> Reject | None:
    axis = bn.attrs.get("axis", "1")
    if axis != "1":
        return Reject(f"BatchNorm normalises axis {axis}, the layer's channels are axis 1", (bn.name,))
    if layer.op == "FullyConnected" and not layer.flag("flatten", default=True):
        return Reject("the fully connected layer keeps inner axes (flatten=False), its channels may not be axis 1")
    if not layer.is_channels_first:
        return Reject(f"the convolution has layout {layer.attrs['layout']}, its channels are not axis 1")
    return None


def _parameter_refusal(model: Model, layer: Node, bn: Node) -> Reject | None:
    names = [r.name for r in (*layer.inputs[1:], *bn.inputs[1:])]
    for name in names:
        if model.param(name) is None:
            return Reject(f"{name!r} is computed or fed, not a parameter", (name,))
    shared = _shared(model, (r.name for r in layer.inputs[1:]), layer)
    if shared is not None:
        return Reject(f"the parameter {shared[0]!r} is shared with {shared[1]!r}", (shared[0],))
    return None


def _shared(model: Model, names: Iterable[str], layer: Node) -> tuple[str, str] | None:
    for name in names:
        others = [c.name for c in model.graph.consumers[name] if c is not layer]
        if others:
            return name, others[0]
        if name in model.graph.head_names:
            return name, "the outputs"
    return None


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (FoldBatchNorm(),), "fold_bn")


FOLD_BN = Pass("fold_bn", _run, requires=(FLOAT,), ensures=(FLOAT,))
