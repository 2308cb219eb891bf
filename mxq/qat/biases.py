"""Biases as kernels have them: whole units of sums of products, in training as well.

An integer kernel adds its bias to sums of products of codes, so it is rounded to their unit, which is the step of what
the layer reads times that of its weight::

    b' = rint(b s) / s, db'/db = 1          with s the product of the two scales, of each output channel

``b`` is the bias of the layer with BatchNorm folded in, ``beta + (b - mean) gamma / sqrt(var + eps)`` of moving
statistics; where BatchNorm stays, beta takes what rounding adds, and s is that of the folded weight, divided by
``|gamma| / sqrt(var + eps)``. Steps may be learned: no gradient reaches them from here. A bias beyond 2^22 units, as in
channels whose weights are all but zero, stays as it is.

Source: Jacob et al. (CVPR 2018), eq. 11; ``ConvertWeightBias2MKLDNN`` in ``mkldnn_base.cc`` of MXNet 1.9.1.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from mxq.errors import FormatError
from mxq.graph.ir import Node, Ref
from mxq.numerics import TO_WHOLE
from mxq.qat.folding import FoldedPair

_MOST: Final = 2.0**22
_LEAST: Final = 2.0**-60
"""Of a factor of BatchNorm that is divided by."""


@dataclass(frozen=True, slots=True)
class RoundedBias:
    """A layer whose kernel rounds its bias.

    Attributes:
        layer: its name.
        data, weight: names of the quantizers of what it reads and of its weight.
    """

    layer: str
    data: str
    weight: str

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> RoundedBias:
        """Reads what `to_json` wrote.

        Raises:
            FormatError: it did not.
        """
        try:
            return RoundedBias(str(data["layer"]), str(data["data"]), str(data["weight"]))
        except (KeyError, TypeError) as error:
            raise FormatError(f"a bias is {data!r:.200}; allowed: what mxq.qat.save wrote ({error})") from None


@dataclass
class BiasNodes:
    """Writes the operators of one layer's bias, named after ``name``.

    Attributes:
        data, weight: codes per unit of value of what the layer reads (1,), and of its weight, (C,) or (1,).
        taken: names that cannot be given.
    """

    name: str
    data: Ref
    weight: Ref
    taken: Container[str]
    made: list[Node] = field(default_factory=list)

    def rounded(self, bias: Ref) -> tuple[tuple[Node, ...], Ref]:
        """``bias`` (C,) in whole units."""
        found = self._moved(bias, bias, self._scale)
        return tuple(self.made), found

    def norm(self, pair: FoldedPair, node: Node, *, folded: bool) -> tuple[Node, ...]:
        """``node``, the BatchNorm of ``pair`` as it stands in the network, whose beta takes what rounding adds.

        Args:
            pair: the layer and the BatchNorm.
            node: the same BatchNorm, perhaps with another input.
            folded: whether the weight is quantized with BatchNorm's factor in it.
        """
        gamma, beta, mean, variance = node.inputs[1:5]
        gamma = self._op("ones_like", gamma) if pair.fixes_gamma else gamma
        inverse = self._op("rsqrt", self._op("_plus_scalar", variance, scalar=repr(pair.eps)))
        factor = self._op("elemwise_mul", gamma, inverse)
        below = mean if pair.own_bias is None else self._op("elemwise_sub", mean, pair.own_bias)
        bias = self._op("elemwise_sub", beta, self._op("elemwise_mul", below, factor))
        size = self._op("clip", self._op("abs", factor), a_min=repr(_LEAST), a_max=repr(1 / _LEAST))
        scale = self._scale if folded else self._op("broadcast_div", self._scale, size)
        moved = self._moved(beta, bias, scale)
        return (*self.made, replace(node, inputs=(*node.inputs[:2], moved, *node.inputs[3:])))

    @property
    def _scale(self) -> Ref:
        return self._op("broadcast_mul", self.weight, self.data)

    def _moved(self, ref: Ref, bias: Ref, scale: Ref) -> Ref:
        """``ref`` and what rounding to units of ``1 / scale`` adds to ``bias``; the gradient is that of ``ref``."""
        units = self._op("broadcast_mul", bias, scale)
        units = self._op("clip", units, a_min=repr(-_MOST), a_max=repr(_MOST))
        whole = self._op("_minus_scalar", self._op("_plus_scalar", units, scalar=repr(TO_WHOLE)), scalar=repr(TO_WHOLE))
        added = self._op("broadcast_div", self._op("elemwise_sub", whole, units), scale)
        return self._op("elemwise_add", ref, self._op("BlockGrad", added))

    def _op(self, op: str, *inputs: Ref, **attrs: str) -> Ref:
        name = f"{self.name}_rounded{len(self.made)}"
        while name in self.taken:
            name += "0"
        self.made.append(Node(name, op, attrs, inputs))
        return Ref(name)
