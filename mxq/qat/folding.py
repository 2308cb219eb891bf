"""What BatchNorm after a layer is while the layer trains with quantization: six strategies, as graph nodes.

Before:  x -> layer(w, b) -> BatchNorm(gamma, beta, mean, var) -> y
After:   x -> layer(q(w'), b') [...] -> y

with q the fake quantization of a weight, m_B, v_B mean and variance of the batch, m, v the moving ones, s = sqrt(v +
eps), s_B = sqrt(v_B + eps). In inference all of them give what the folded layer gives, but for -1 where scales of
channels are not free.

====  ===========  ===================================================================================================
      name         y in training
====  ===========  ===================================================================================================
 -1   "unfolded"   BN(layer(x, q(w)) + b)
  0   "merged"     layer(x, q(w')) + b', BatchNorm merged into w' and b' once and for all; no statistics
  1   "frozen"     layer(x, q(w gamma / s)) + beta + (b - m) gamma / s; gamma and beta learn, statistics stay
  2   "batch"      layer(x, q(w gamma / s_B)) + beta + (b - m_B) gamma / s_B; the layer is computed twice
  3   "corrected"  layer(x, q(w gamma / s)) s / s_B + beta + (b - m_B) gamma / s_B; computed twice as well
  4   "rescaled"   BN(layer(x, q(w gamma / s)) s / gamma + b)
====  ===========  ===================================================================================================

Moving statistics are updated in -1, 2, 3 and 4. Source: MQBench (arXiv:2111.03759), section 3.2 and figure 3; 2 is
Jacob et al. (CVPR 2018), section 3.2; 3 is Krishnamoorthi (arXiv:1806.08342), section 3.2.2; 4 is PyTorch's
``torch.nn.intrinsic.qat.ConvBn2d``.

MXNet's BatchNorm with ``output_mean_var`` gives mean and 1 / standard deviation of the batch in training, and the
moving ones in inference; no gradient flows through them, so that 2 and 3 take the batch's statistics as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np

from mxq.errors import GraphError, one_of
from mxq.graph.ir import Array, Model, Node, Ref
from mxq.passes.fold_bn import FOLD_BN, FoldBatchNorm
from mxq.rewrite import match, run_pass

Quantized: TypeAlias = Callable[[Ref], tuple[tuple[Node, ...], Ref]]
"""From a weight to the nodes that fake-quantize it, and what they make; or from a bias to those that round it."""


@dataclass(frozen=True, slots=True)
class Folding:
    """One strategy.

    Attributes:
        number: of MQBench.
        name: of the same.
        updates: whether moving statistics follow the batches.
    """

    number: int
    name: str
    updates: bool


FOLDINGS: Final = (
    Folding(-1, "unfolded", updates=True),
    Folding(0, "merged", updates=False),
    Folding(1, "frozen", updates=False),
    Folding(2, "batch", updates=True),
    Folding(3, "corrected", updates=True),
    Folding(4, "rescaled", updates=True),
)
UNFOLDED, MERGED, FROZEN, BATCH, CORRECTED, RESCALED = FOLDINGS
_BY_NAME: Final[Mapping[int | str, Folding]] = MappingProxyType(
    {**{f.number: f for f in FOLDINGS}, **{f.name: f for f in FOLDINGS}}
)


def folding_of(strategy: int | str) -> Folding:
    """The strategy of that number or name.

    Raises:
        ConfigError: there is none.
    """
    found = _BY_NAME.get(strategy) if isinstance(strategy, int | str) and not isinstance(strategy, bool) else None
    if found is None:
        raise one_of("bn_strategy", strategy, _BY_NAME)
    return found


@dataclass(frozen=True)
class FoldedPair:
    """A layer and the BatchNorm that alone reads it and can be folded into it."""

    layer: Node
    norm: Node

    @property
    def eps(self) -> float:
        """What is added to variances."""
        return self.norm.number("eps", 1e-3)

    @property
    def fixes_gamma(self) -> bool:
        """Whether gamma is 1 whatever it says."""
        return self.norm.flag("fix_gamma", default=True)

    def factor(self, model: Model) -> Array:
        """``gamma / s`` of the moving variance in ``model``: (C,) float64."""
        gamma, var = (model.param(ref.name) for ref in (self.norm.inputs[1], self.norm.inputs[4]))
        if gamma is None or var is None:
            raise GraphError(f"{self.norm.name!r} has parameters without values")
        ones = np.ones_like(gamma) if self.fixes_gamma else gamma
        return np.asarray(ones.astype(np.float64) / np.sqrt(var.astype(np.float64) + self.eps))

    @property
    def own_bias(self) -> Ref | None:
        """The bias of the layer itself."""
        return None if self.layer.flag("no_bias") else self.layer.inputs[2]

    @property
    def channels(self) -> str:
        """How (C,) goes with what the layer makes, as the attribute ``shape``."""
        return f"(1, -1{', 1' * len(self.layer.ints('kernel'))})"

    @property
    def rows(self) -> str:
        """How (C,) goes with the layer's weight (C, ...), as the attribute ``shape``."""
        return f"(-1, 1{', 1' * len(self.layer.ints('kernel'))})"


def pairs(model: Model) -> dict[str, FoldedPair]:
    """Name of each layer that a BatchNorm can be folded into -> the two; see `mxq.passes.fold_bn` for the conditions.

    Args:
        model: float; whether its BatchNorms use moving statistics in training as well does not matter.
    """
    rule, inference = FoldBatchNorm(), in_inference(model)
    norms = [node for node in inference.graph.operators if node.op == "BatchNorm"]
    hits = [hit for norm in norms for hit in match(inference.graph, norm, rule.pattern)]
    fitting = [(hit["layer"].name, hit.root.name) for hit in hits if rule.check(inference, hit) is None]
    return {layer: FoldedPair(model.graph[layer], model.graph[norm]) for layer, norm in fitting}


def in_inference(model: Model) -> Model:
    """``model`` whose BatchNorms say that they use moving statistics."""
    return _with_norms(model, "True")


def in_training(model: Model) -> Model:
    """``model`` whose BatchNorms use the batch's statistics while they train, also where it was exported without."""
    return _with_norms(model, "False")


def _with_norms(model: Model, flag: str) -> Model:
    norms = [node for node in model.graph.operators if node.op == "BatchNorm"]
    changes = {node.name: (node.with_attrs(use_global_stats=flag),) for node in norms}
    return model.with_graph(model.graph.replace(changes)) if changes else model


def merged(model: Model) -> Model:
    """``model`` with every BatchNorm of `pairs` merged into its layer's parameters."""
    return in_training(run_pass(FOLD_BN, in_inference(model))[0])


def folded_weight(model: Model, pair: FoldedPair) -> Array:
    """The weight that strategies 1 to 4 quantize in inference, ``w gamma / s``: (O, ...) float32."""
    weight = model.args[pair.layer.inputs[1].name]
    factor = pair.factor(model).reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(weight.astype(np.float64) * factor, np.float32)


def as_it_is(ref: Ref) -> tuple[tuple[Node, ...], Ref]:
    """Of a bias that is not rounded."""
    return (), ref


def nodes(
    pair: FoldedPair, folding: Folding, quantized: Quantized, taken: Container[str], rounded: Quantized = as_it_is
) -> tuple[Node, ...]:
    """What stands for the two while they train; the last of them has the name of the BatchNorm.

    Args:
        pair: of a model in which BatchNorms use batch statistics in training.
        folding: 1 to 4; others leave layer and BatchNorm as they are.
        quantized: fake-quantizes a weight.
        taken: names that cannot be given.
        rounded: rounds the bias that is beside the folded weight; 4 has none.
    """
    built = _Built(pair, quantized, taken, rounded)
    {1: built.frozen, 2: built.batch, 3: built.corrected, 4: built.rescaled}[folding.number]()
    return tuple(built.made)


@dataclass
class _Built:
    """Nodes of one pair, under construction. Methods `frozen` to `rescaled` are the strategies."""

    pair: FoldedPair
    quantized: Quantized
    taken: Container[str]
    rounded: Quantized = as_it_is
    made: list[Node] = field(default_factory=list)

    def frozen(self) -> None:
        factor = self._node("factor", "elemwise_mul", self._gamma, self._inverse)
        bias = self._shift(self._mean, factor)
        self._layer(self.pair.norm.name, self._scaled_weight(factor), bias)

    def batch(self) -> None:
        mean, inverse = self._statistics()
        factor = self._node("factor", "elemwise_mul", self._gamma, inverse)
        self._layer(self.pair.norm.name, self._scaled_weight(factor), self._shift(mean, factor))

    def corrected(self) -> None:
        mean, inverse = self._statistics()
        factor = self._node("factor", "elemwise_mul", self._gamma, self._inverse)
        made = self._layer(self._name("layer"), self._scaled_weight(factor), None)
        ratio = self._node("ratio", "elemwise_mul", self._deviation, inverse)
        shift = self._shift(mean, self._node("batch_factor", "elemwise_mul", self._gamma, inverse))
        corrected = self._node("corrected", "broadcast_mul", made, self._beside(ratio, "ratio"))
        self._last("broadcast_add", corrected, self._beside(shift, "shift"))

    def rescaled(self) -> None:
        factor = self._nonzero(self._node("factor", "elemwise_mul", self._gamma, self._inverse))
        made = self._layer(self._name("layer"), self._scaled_weight(factor), None)
        made = self._node("rescaled", "broadcast_div", made, self._beside(factor, "factor"))
        if self.pair.own_bias is not None:
            made = self._node("biased", "broadcast_add", made, self._beside(self.pair.own_bias, "bias"))
        self.made.append(replace(self.pair.norm, inputs=(made, *self.pair.norm.inputs[1:])))

    # ---- parts ----

    @cached_property
    def _gamma(self) -> Ref:
        gamma = self.pair.norm.inputs[1]
        return self._node("gamma", "ones_like", gamma) if self.pair.fixes_gamma else gamma

    @property
    def _mean(self) -> Ref:
        return self.pair.norm.inputs[3]

    @cached_property
    def _variance(self) -> Ref:
        return self._node("variance", "_plus_scalar", self.pair.norm.inputs[4], scalar=repr(self.pair.eps))

    @cached_property
    def _deviation(self) -> Ref:
        return self._node("deviation", "sqrt", self._variance)

    @cached_property
    def _inverse(self) -> Ref:
        return self._node("inverse", "rsqrt", self._variance)

    def _statistics(self) -> tuple[Ref, Ref]:
        """Mean and 1 / standard deviation of what the layer makes in float: of the batch, or the moving ones."""
        layer, norm = self.pair.layer, self.pair.norm
        self.made.append(replace(layer, name=self._name("float"), label=""))
        alone = self._node("constant", "BlockGrad", self.made[-1].out)
        name = self._name("statistics")
        seen = replace(norm.with_attrs(output_mean_var="True"), name=name, label="", inputs=(alone, *norm.inputs[1:]))
        self.made.append(seen)
        return Ref(name, 1), Ref(name, 2)

    def _shift(self, mean: Ref, factor: Ref) -> Ref:
        """``beta + (b - mean) factor``, rounded."""
        own = self.pair.own_bias
        below = mean if own is None else self._node("below", "elemwise_sub", mean, own)
        product = self._node("lowered", "elemwise_mul", below, factor)
        made, bias = self.rounded(self._node("bias", "elemwise_sub", self.pair.norm.inputs[2], product))
        self.made += made
        return bias

    def _scaled_weight(self, factor: Ref) -> Ref:
        column = self._node("factor_rows", "Reshape", factor, shape=self.pair.rows)
        return self._node("weight", "broadcast_mul", self.pair.layer.inputs[1], column)

    def _nonzero(self, factor: Ref) -> Ref:
        """1 for a factor of 0, which is divided by: such a channel is constant."""
        zero = self._node("is_zero", "_equal_scalar", factor, scalar="0")
        return self._node("factor_nonzero", "elemwise_add", factor, zero)

    def _beside(self, numbers: Ref, what: str) -> Ref:
        """(C,) in a shape that goes with what the layer makes."""
        return self._node(f"{what}_beside", "Reshape", numbers, shape=self.pair.channels)

    def _layer(self, name: str, weight: Ref, bias: Ref | None) -> Ref:
        """The layer with another weight, fake-quantized, and another bias."""
        made, coded = self.quantized(weight)
        self.made += made
        layer = self.pair.layer
        inputs = (layer.inputs[0], coded, *([] if bias is None else [bias]))
        layer = layer.with_attrs(no_bias=str(bias is None))
        last = self.pair.norm if name == self.pair.norm.name else layer
        self.made.append(replace(layer, name=name, label=last.label if name == last.name else "", inputs=inputs))
        return Ref(name)

    def _last(self, op: str, *inputs: Ref) -> None:
        self.made.append(Node(self.pair.norm.name, op, {}, inputs, label=self.pair.norm.label))

    def _node(self, what: str, op: str, *inputs: Ref, **attrs: str) -> Ref:
        self.made.append(Node(self._name(what), op, attrs, inputs))
        return self.made[-1].out

    def _name(self, what: str) -> str:
        name = f"{self.pair.norm.name}_{what}"
        while name in self.taken:
            name += "0"
        return name
