"""A PReLU becomes the sum of two depthwise convolutions of 1x1, one of them with a ReLU.

Before:  x -> LeakyReLU(a, prelu) -> Convolution
After:   x -> Convolution(1x1, depthwise, a) -----------------+-> Convolution
         x -> Convolution(1x1, depthwise, 1 - a) -> relu -----/

Formula, per channel: a x + relu((1 - a) x), which is x above 0 and a x below, for slopes a <= 1.

ONNX Runtime has no PReLU on codes: it makes floats, multiplies, compares, and makes codes again. Four of them between
convolutions of 32 channels take 0.76 of the network's time there so, and 0.82 in OpenVINO, for a file that both run. A
file of OpenVINO's own takes 1.19: there a PReLU is part of the convolution before it (one thread, batch 1).

Conditions: slopes are a parameter, none above 1; the number of channels of x, an image, is known; an operator makes x,
and a layer reads the result, through operators that work channel by channel at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.backends import BackendSpec
from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref, origins
from mxq.passes.batch_norm_to_depthwise import DEPTHWISE, feeds_layer
from mxq.passes.shapes import image_channels
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_EVENTS, NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules

NAME: Final = "prelu_to_depthwise"


@dataclass(frozen=True)
class PreluAlone:
    """See the module."""

    name: str = NAME
    pattern: Op = Op(("LeakyReLU",), (Any_("x"), Any_("slope")))

    def check(self, model: Model, match: Match) -> Reject | None:
        prelu, x = match.root, match.refs["x"]
        if prelu.attrs.get("act_type") != "prelu" or model.graph[x.name].is_variable or not feeds_layer(model, prelu):
            return NO_MATCH
        slope, channels = model.param(match.refs["slope"].name), image_channels(model.graph, x)
        if slope is None or not (slope <= 1).all():
            return Reject("its slopes are no parameter, or above 1", (prelu.name,))
        if channels is None or slope.size not in (1, channels):
            return Reject(f"nothing shows how many channels {str(x)!r} has", (prelu.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        prelu, x = match.root, match.refs["x"]
        channels, slope = image_channels(model.graph, x), model.param(match.refs["slope"].name)
        if channels is None or slope is None:
            raise ValueError("build is called where check found slopes and channels")
        note = Annotation(origins(prelu), (Route.of(RouteKind.QUICKER, prelu.op),))
        nodes, args, parts = list[Node](), dict[str, Array](), list[Ref]()
        slopes = np.broadcast_to(slope.reshape(-1, 1, 1, 1), (channels, 1, 1, 1)).astype(np.float32)
        for what, value in (("below", slopes), ("above", 1 - slopes)):
            name = model.graph.unused(f"{prelu.name}_{what}")
            weight = model.graph.unused(f"{name}_weight")
            attrs = {**DEPTHWISE, "num_filter": str(channels), "num_group": str(channels), "no_bias": "True"}
            nodes += [Node(weight, VARIABLE), Node(name, "Convolution", attrs, (x, Ref(weight)), note=note)]
            args[weight], parts = np.ascontiguousarray(value), [*parts, Ref(name)]
        relu = model.graph.unused(f"{prelu.name}_relu")
        nodes.append(Node(relu, "Activation", {"act_type": "relu"}, (parts[1],), note=note))
        nodes.append(Node(prelu.name, "elemwise_add", {}, (parts[0], Ref(relu)), label=prelu.label, note=note))
        return Rewrite({prelu.name: nodes}, args=args)


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (PreluAlone(),), NAME)


def prelu_to_depthwise(spec: BackendSpec) -> Pass:
    """For kernels that ask for it."""
    run = _run if "LeakyReLU" in spec.as_depthwise else lambda model: (model, NO_EVENTS)
    return Pass(NAME, run, requires=(FLOAT,), ensures=(FLOAT,))
