"""Fold a factor of each channel into the weights of the convolutions that read the product.

Before:  x -> broadcast_mul(s) -> Convolution(w), Convolution(v), slice_like(anchors, .)
After:   x -> Convolution(w'), Convolution(v'), slice_like(anchors, .)

Formula, per input channel c: w'[:, c] = s_c w[:, c], computed in float64. What is padded with zeros is padded with the
same zeros before the product.

gluoncv's SSD scales what it normalizes (``NormScale``): 0.5 of 74 ms at batch 1, 7 of 590 at batch 8.

Conditions: s is a parameter (1, C, 1, 1), or a number; nothing but convolutions of images, whose weights are theirs
alone, reads the product, unless for its shape; x is known to have C channels, as one could be stretched to C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mxq.graph.ir import Array, Model, Node
from mxq.graph.layers import groups_of
from mxq.passes.shape_only import reads_shape_alone
from mxq.passes.shapes import image_channels, is_of_images
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Rule, Trace, apply_rules


@dataclass(frozen=True)
class FoldScale:
    """See the module."""

    name: str
    pattern: Op

    def check(self, model: Model, match: Match) -> Reject | None:
        product = match.root
        readers = model.graph.consumers[product.name]
        convs = [reader for reader in readers if reader.op == "Convolution"]
        if not convs:
            return NO_MATCH
        if product.name in model.graph.head_names:
            return Reject("it is an output of the network, whose values must stay", (product.name,))
        return self._factor_refusal(model, match) or next(
            (refusal for reader in readers if (refusal := reader_refusal(model, product, reader))), None
        )

    def _factor_refusal(self, model: Model, match: Match) -> Reject | None:
        factor = _factor(model, match)
        if factor is None:
            return NO_MATCH
        if factor.size > 1 and image_channels(model.graph, match.refs["x"]) != factor.size:
            return Reject(f"nothing shows that {str(match.refs['x'])!r} has {factor.size} channels", (match.root.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        factor, product = _factor(model, match), match.root
        if factor is None:
            raise ValueError("build is called where check found a factor")
        weights = {c.inputs[1].name: c for c in model.graph.consumers[product.name] if c.op == "Convolution"}
        args = {name: scaled(model.args[name], factor, conv) for name, conv in weights.items()}
        return Rewrite({product.name: ()}, {product.out: match.refs["x"]}, args)


def _factor(model: Model, match: Match) -> Array | None:
    """What ``match`` multiplies by, (C,) or (1,) float64; None where it is no factor of channels."""
    if "factor" not in match.refs:
        return np.array([match.root.number("scalar", 1.0)])
    value = model.args.get(match.refs["factor"].name)
    if value is None or value.ndim != 4 or value.size != value.shape[1]:
        return None
    return value.astype(np.float64).ravel()


def reader_refusal(model: Model, product: Node, reader: Node) -> Reject | None:
    """Why a factor of ``product`` cannot go into ``reader``; None where it can."""
    if reads_shape_alone(reader, product):
        return None
    if reader.op != "Convolution" or not is_of_images(reader) or product.name in [r.name for r in reader.inputs[1:]]:
        return Reject(f"{reader.name!r} ({reader.op}) reads it, which is no convolution of images", (reader.name,))
    if not model.is_own(reader.inputs[1].name):
        return Reject(f"the weight of {reader.name!r} is not a parameter of it alone", (reader.name,))
    return None


def scaled(weight: Array, factor: Array, conv: Node) -> Array:
    """The weights of a convolution of an image whose channels are multiplied by ``factor``.

    Args:
        weight: (O, I / groups, ...) float32.
        factor: (I,) float64, or (1,).
        conv: the convolution.

    Returns:
        an array like ``weight``.
    """
    groups = groups_of(conv)
    split = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).astype(np.float64)
    every = np.broadcast_to(factor, (groups * weight.shape[1],))
    made: Array = (split * every.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).astype(np.float32)
    return made.reshape(weight.shape)


RULES: tuple[Rule, ...] = (
    FoldScale("fold_channel_scale", Op(("broadcast_mul",), (Any_("x"), Any_("factor")), commutative=True)),
    FoldScale("fold_scalar", Op(("_mul_scalar",), (Any_("x"),))),
)


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, RULES, "fold_scale")


FOLD_SCALE = Pass("fold_scale", _run, requires=(FLOAT,), ensures=(FLOAT,))
