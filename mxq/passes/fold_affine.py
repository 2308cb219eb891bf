"""Fold numbers that stand right after a layer, or right before layers, into weights and biases.

Before:  x -> Convolution(w, b) -> _mul_scalar(s) -> _plus_scalar(t) -> y
After:   x -> Convolution(s w, s b + t) -> y

Before:  x -> _plus_scalar(t) -> Convolution(w, b) -> y                   (without padding)
After:   x -> Convolution(w, b + t sum_i w_i) -> y

Before:  x -> _mul_scalar(s) -> _plus_scalar(t) -> Convolution(w, b)
After:   x -> _plus_scalar(t / s) -> _mul_scalar(s) -> Convolution(w, b)   (`mxq.passes.fold_scale` folds the factor)

Numbers may be one, or one for each channel where they follow a layer: parameters of ``broadcast_mul`` and
``broadcast_add``. Products are computed in float64.

A scale and an offset after each convolution and each activation, as in PP-LCNetV3, are four passes over memory, and
where they are codes (`mxq.backends.runtimes`) each rounds the tensor once more.

Conditions: nothing else reads what is in between; weights and biases are parameters of their layers alone. A number
that is added before a layer must be so at the edges, too: where that pads, it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref
from mxq.graph.traits import Arithmetic, Operand, traits_of
from mxq.passes.fold_scale import reader_refusal
from mxq.passes.shapes import pads
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Rule, Trace, apply_rules, exhaust_each
from mxq.rewrite.rule import exchanged, single_consumer

LAYERS: Final = ("Convolution", "FullyConnected")
_ADDED: Final = ("_plus_scalar", "_minus_scalar")
_AFFINE: Final = (*_ADDED, "_rminus_scalar", "_mul_scalar", "_div_scalar")
_OF_CHANNELS: Final = ("broadcast_add", "broadcast_sub", "broadcast_mul")


@dataclass(frozen=True)
class Affine:
    """y = ``factor`` x + ``shift``; each of them (C,) or () float64, finite."""

    factor: Array
    shift: Array

    @staticmethod
    def of(arithmetic: Arithmetic | None, number: Array, *, first: bool = False) -> Affine | None:
        """An operation on x and a number, which stands ``first`` or second; None where it is no such function."""
        one, none, number = np.array(1.0), np.array(0.0), number.astype(np.float64)
        found = {
            Arithmetic.ADD: Affine(one, number),
            Arithmetic.SUBTRACT: Affine(-one, number) if first else Affine(one, -number),
            Arithmetic.MULTIPLY: Affine(number, none),
        }
        if arithmetic is Arithmetic.DIVIDE and not first and number.all():
            found[Arithmetic.DIVIDE] = Affine(1 / number, none)
        made = None if arithmetic is None else found.get(arithmetic)
        return made if made is not None and np.isfinite([*made.factor.ravel(), *made.shift.ravel()]).all() else None


@dataclass(frozen=True)
class AfterLayer:
    """The first form of the module."""

    name: str
    pattern: Op

    def check(self, model: Model, match: Match) -> Reject | None:
        layer = match["layer"]
        if _affine(model, match) is None:
            return NO_MATCH
        if not layer.is_channels_first:
            return Reject(f"the convolution has layout {layer.attrs['layout']}, its channels are not axis 1")
        return single_consumer(model, match) or _owner_refusal(model, layer)

    def build(self, model: Model, match: Match) -> Rewrite:
        layer, root, affine = match["layer"], match.root, _affine(model, match)
        if affine is None:
            raise ValueError("build is called where check found an affine function")
        weight, name = layer.inputs[1].name, _bias_of(model, layer)
        value, factor = model.args[weight], affine.factor.reshape(-1, *[1] * (model.args[weight].ndim - 1))
        bias = affine.factor * model.args.get(name, np.zeros(len(value))).astype(np.float64) + affine.shift
        made = _with_bias(replace(layer, name=root.name, label=root.label), name).standing_for(layer, root)
        args = {weight: (value * factor).astype(np.float32), name: bias.astype(np.float32)}
        return Rewrite({layer.name: (), root.name: (*_new(model, name), made)}, args=args)


def _affine(model: Model, match: Match) -> Affine | None:
    """What follows the layer; None where that is no function of the channel's values alone."""
    root, layer, traits = match.root, match["layer"], traits_of(match.root)
    if traits.operand in (Operand.SCALAR, Operand.DIVIDEND):
        return Affine.of(traits.arithmetic, _number(root), first=traits.operand is Operand.DIVIDEND)
    place = 1 if root.inputs[0].name == layer.name else 0
    value, weight = model.args.get(root.inputs[place].name), model.args.get(layer.inputs[1].name)
    if value is None or weight is None or value.ndim != weight.ndim or value.size != value.shape[1]:
        return None
    kept = layer.op == "FullyConnected" and not layer.flag("flatten", default=True)  # channels are on the last axis
    if kept or value.size not in (1, len(weight)):
        return None
    return Affine.of(traits.arithmetic, value.ravel(), first=place == 0)


@dataclass(frozen=True)
class BeforeLayers:
    """The second form of the module."""

    name: str = "shift_before_layers"
    pattern: Op = Op(_ADDED, (Any_("x"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        root = match.root
        readers = model.graph.consumers[root.name]
        if not readers or any(reader.op not in LAYERS for reader in readers):
            return NO_MATCH
        if root.name in model.graph.head_names:
            return Reject("it is an output of the network, whose values must stay", (root.name,))
        return next((found for reader in readers if (found := _refusal(model, reader))), None)

    def build(self, model: Model, match: Match) -> Rewrite:
        shift, changes, args = _shift(match.root), dict[str, tuple[Node, ...]](), dict[str, Array]()
        for layer in model.graph.consumers[match.root.name]:
            weight, name = model.args[layer.inputs[1].name].astype(np.float64), _bias_of(model, layer)
            sums = weight.sum(axis=tuple(range(1, weight.ndim)))
            args[name] = (model.args.get(name, np.zeros(len(weight))) + shift * sums).astype(np.float32)
            made = _with_bias(replace(layer, inputs=(match.refs["x"], *layer.inputs[1:])), name)
            changes[layer.name] = (*_new(model, name), made)
        return Rewrite({match.root.name: (), **changes}, args=args)


def _refusal(model: Model, layer: Node) -> Reject | None:
    if pads(layer):
        return Reject(f"{layer.name!r} pads it with zeros", (layer.name,))
    return _owner_refusal(model, layer)


def _owner_refusal(model: Model, layer: Node) -> Reject | None:
    """Whether weight and bias of ``layer`` are no parameters of it alone."""
    for ref in layer.inputs[1:]:
        if not model.is_own(ref.name) or ref.name in model.graph.head_names:
            return Reject(f"{ref.name!r} is not a parameter of {layer.name!r} alone", (ref.name,))
    return None


@dataclass(frozen=True)
class ShiftFirst:
    """The third form of the module."""

    name: str = "shift_before_scale"
    pattern: Op = Op(_ADDED, (Op(("_mul_scalar",), (Any_("x"),), bind="scale"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        root, scale = match.root, _number(match["scale"])
        readers = model.graph.consumers[root.name]
        if not any(reader.op == "Convolution" for reader in readers):
            return NO_MATCH
        if root.name in model.graph.head_names:
            return Reject("it is an output of the network, whose values must stay", (root.name,))
        if not scale or not np.isfinite(np.float32(_shift(root) / scale)):
            return Reject(f"{_shift(root):g} / {scale:g} is no number", (root.name,))
        readers_refuse = (found for reader in readers if (found := reader_refusal(model, root, reader)))
        return single_consumer(model, match) or next(readers_refuse, None)

    def build(self, model: Model, match: Match) -> Rewrite:
        scale, root = match["scale"], match.root
        shift = replace(root, op="_plus_scalar", attrs={"scalar": repr(float(_shift(root) / _number(scale)))})
        first, second = exchanged(model, scale, shift)
        return Rewrite({scale.name: (), root.name: (first, second)})


def _number(node: Node) -> Array:
    return np.array(node.number("scalar", 0.0))


def _shift(node: Node) -> Array:
    """What one of `_ADDED` adds."""
    return _number(node) if node.op == "_plus_scalar" else -_number(node)


def _bias_of(model: Model, layer: Node) -> str:
    """The name of the bias, or of the one that it is to have."""
    return layer.inputs[2].name if not layer.flag("no_bias") else model.graph.unused(f"{layer.name}_bias")


def _new(model: Model, bias: str) -> tuple[Node, ...]:
    return () if bias in model.graph else (Node(bias, VARIABLE),)


def _with_bias(layer: Node, bias: str) -> Node:
    return replace(layer, attrs={**layer.attrs, "no_bias": "False"}, inputs=(*layer.inputs[:2], Ref(bias)))


AFTER: Final[tuple[Rule, ...]] = (
    AfterLayer("number_after_layer", Op(_AFFINE, (Op(LAYERS, bind="layer"),))),
    AfterLayer("channels_after_layer", Op(_OF_CHANNELS, (Op(LAYERS, bind="layer"), Any_()), commutative=True)),
)
BEFORE: Final[tuple[Rule, ...]] = (BeforeLayers(), ShiftFirst())
NAME: Final = "fold_affine"


def _run(model: Model) -> tuple[Model, Trace]:
    """Each form for itself, as two may change one layer."""
    model, trace = apply_rules(model, AFTER, NAME)
    model, more = exhaust_each(model, BEFORE, NAME)
    return model, trace + more


FOLD_AFFINE = Pass(NAME, _run, requires=(FLOAT,), ensures=(FLOAT,))
