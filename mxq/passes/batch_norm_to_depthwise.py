"""A BatchNorm that no layer before it can take in becomes a depthwise convolution of 1x1.

Before:  Concat or sum -> BatchNorm(gamma, beta, mean, var) -> relu -> Convolution
After:   Concat or sum -> Convolution(1x1, depthwise, alpha, beta - alpha mean) -> relu -> Convolution

Formula, per channel: alpha = gamma / sqrt(var + eps), as `mxq.passes.fold_bn` has it.

ONNX Runtime has no BatchNorm on codes: it makes floats, transposes them, computes, and makes codes of the result. As a
convolution it reads and writes codes and takes ReLU in. A dense block of DenseNet takes 0.65 of its time in ONNX
Runtime and 0.85 in OpenVINO, and is 1.9 dB closer to float (one thread, batch 1; `benchmarks/compare.py` has networks).
MXNet has an int8 BatchNorm of its own.

Conditions: statistics are parameters, channels are axis 1 of an image whose number of channels is known; what it
normalizes was made by an operator, and a layer reads it, through activations and poolings at most. That of a network's
input stays: pictures would be rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.backends import BackendSpec
from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Model, Node, Ref, origins
from mxq.graph.traits import traits_of
from mxq.passes.fold_bn import batch_norm_refusal, fold
from mxq.passes.shapes import image_channels
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_EVENTS, NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules

NAME: Final = "batch_norm_to_depthwise"
_LAYERS: Final = ("Convolution", "FullyConnected")


@dataclass(frozen=True)
class BatchNormAlone:
    """See the module."""

    name: str = NAME
    pattern: Op = Op(("BatchNorm",), (Any_("x"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        norm, x = match.root, match.refs["x"]
        if model.graph[x.name].is_variable or not _feeds_layer(model, norm):
            return NO_MATCH
        values = [model.param(ref.name) for ref in norm.inputs[1:5]]
        if norm.attrs.get("axis", "1") != "1" or any(value is None for value in values):
            return Reject("it normalises another axis than 1, or by what is no parameter", (norm.name,))
        if values[0] is None or image_channels(model.graph, x) != values[0].size:
            return Reject(f"nothing shows how many channels {str(x)!r} has", (norm.name,))
        return batch_norm_refusal(model, norm)

    def build(self, model: Model, match: Match) -> Rewrite:
        norm = match.root
        gamma, beta, mean, var = (np.asarray(model.param(ref.name)) for ref in norm.inputs[1:5])
        fixed, eps = norm.flag("fix_gamma", default=True), norm.number("eps", 1e-3)
        ones = np.ones((len(gamma), 1, 1, 1), np.float32)
        weight, bias = fold(ones, None, gamma, beta, mean, var, eps=eps, fix_gamma=fixed)
        names = [model.graph.unused(f"{norm.name}_{what}") for what in ("weight", "bias")]
        attrs = {"kernel": "(1, 1)", "num_filter": str(len(gamma)), "num_group": str(len(gamma)), "no_bias": "False"}
        inputs = (match.refs["x"], *map(Ref, names))
        note = Annotation(origins(norm), (Route.of(RouteKind.QUICKER, norm.op),))
        made = Node(norm.name, "Convolution", attrs, inputs, label=norm.label, note=note)
        new = (*(Node(name, VARIABLE) for name in names), made)
        return Rewrite({norm.name: new}, args=dict(zip(names, (weight, bias), strict=True)))


def _feeds_layer(model: Model, node: Node) -> bool:
    """Whether a layer reads what ``node`` makes, through operators that work channel by channel or move values."""
    if node.name in model.graph.head_names:
        return False
    readers = [(reader, traits_of(reader)) for reader in model.graph.consumers[node.name]]
    return any(
        reader.op in _LAYERS or ((traits.per_channel or traits.moves) and _feeds_layer(model, reader))
        for reader, traits in readers
    )


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (BatchNormAlone(),), NAME)


def batch_norm_to_depthwise(spec: BackendSpec) -> Pass:
    """For kernels that ask for it."""
    run = _run if spec.norms_as_convolutions else lambda model: (model, NO_EVENTS)
    return Pass(NAME, run, requires=(FLOAT,), ensures=(FLOAT,))
