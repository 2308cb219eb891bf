"""Pool last: an average is taken of what a 1x1 convolution makes, where that is less than what it reads.

Before:  x -> Pooling(avg, k x k, stride 1) -> Convolution(1x1, w, b) -> y
After:   x -> Convolution(1x1, w) -> Convolution(k x k, depthwise, 1 / k^2, b) -> y

Formula: both are linear, one over positions and one over channels, so that they change places; what the average is
padded with is zero before and after. As a convolution the average takes in the bias and what is fused after it, and in
int8 is written in a range of its own, where int8 pooling keeps that of what it reads.

The pooled branches of Inception average 192 to 2048 channels, of which 32 to 192 are left: 1 to 2 % of its time.

Conditions: only the 1x1 convolution reads the average, which counts its padding, if it has any; the convolution makes
fewer channels than it reads; its weight is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import Model, origins
from mxq.graph.layers import without_bias
from mxq.passes.avgpool_to_depthwise import as_depthwise
from mxq.passes.shapes import is_global_pooling, is_of_images, is_pointwise, pads, stride_of
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules
from mxq.rewrite.rule import exchanged, single_consumer


@dataclass(frozen=True)
class AvgPoolAfterConv1x1:
    """See the module."""

    name: str = "avgpool_after_conv1x1"
    pattern: Op = Op(("Convolution",), (Op(("Pooling",), (Any_("x"),), bind="pool"),), bind="conv")

    def check(self, model: Model, match: Match) -> Reject | None:
        pool, conv = match["pool"], match["conv"]
        if pool.attrs.get("pool_type") != "avg" or is_global_pooling(pool) or not is_pointwise(conv):
            return NO_MATCH
        if not is_of_images(pool) or stride_of(pool) != (1, 1) or stride_of(conv) != (1, 1):
            return NO_MATCH
        if pads(pool) and not pool.flag("count_include_pad", default=True):
            return Reject("at its edges the pooling averages fewer values", (pool.name,))
        weight = model.args.get(conv.inputs[1].name)
        if weight is None:
            return Reject(f"the weight of {conv.name!r} is no parameter", (conv.name,))
        made, read = weight.shape[:2]
        if made >= read:
            return Reject(f"the convolution makes {made} channels of {read}", (conv.name,))
        return single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        pool, conv = match["pool"], match["conv"]
        convolution, average = exchanged(model, pool, conv)
        first = without_bias(convolution)
        attrs = {"kernel": pool.attrs["kernel"], "pad": pool.attrs.get("pad", "(0, 0)")}
        note = Annotation(origins(pool, conv), (Route.of(RouteKind.AVERAGE_LAST),))
        channels, name = conv.integer("num_filter", 0), model.graph.unused(f"{conv.name}_average")
        window, last, args = as_depthwise(average, name, channels, attrs, note, conv.inputs[2:])
        return Rewrite({pool.name: (), conv.name: (first, window, last)}, args=args)


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (AvgPoolAfterConv1x1(),), "avgpool_after_conv1x1")


AVGPOOL_AFTER_CONV1X1 = Pass("avgpool_after_conv1x1", _run, requires=(FLOAT,), ensures=(FLOAT,))
