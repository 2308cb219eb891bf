"""Signs: a network whose BatchNorms have factors above 0, so that folding turns no code of a weight around.

Before:  x -> layer(w, b) -> BatchNorm(gamma, beta, mean, var)
After:   x -> layer(-w, -b) -> BatchNorm(-gamma, beta, -mean, var), in channels where gamma < 0

Both compute the same, bit for bit, and learn the same. The largest weight of a channel is coded as 127, or as -128 if
it is below 0 (`mxq.qat.algorithms.maximum`). Turned around by folding, -128 would be 128, which no kernel holds.

Conditions: those of `mxq.qat.folding.pairs`; gamma and mean belong to this BatchNorm alone.
"""

from __future__ import annotations

import numpy as np

from mxq.graph.ir import Array, Model
from mxq.qat.folding import FoldedPair, pairs


def with_positive_factors(model: Model) -> Model:
    """``model`` with the signs of parameters moved into weights."""
    args, auxs = dict(model.args), dict(model.auxs)
    for pair in pairs(model).values():
        turned = _turned(model, pair)
        for ref in (*pair.layer.inputs[1:], pair.norm.inputs[1], pair.norm.inputs[3]) if turned.any() else ():
            table = auxs if ref.name in auxs else args
            table[ref.name] = _with_signs(table[ref.name], turned)
    return Model(model.graph, args, auxs)


def _turned(model: Model, pair: FoldedPair) -> Array:
    """In which channels the factor is below 0 and can be turned around: (C,) bool."""
    gamma, mean = pair.norm.inputs[1], pair.norm.inputs[3]
    own = all(model.graph.consumers[ref.name] == (pair.norm,) for ref in (gamma, mean))
    factors = pair.factor(model)
    return factors < 0 if own else np.zeros(factors.shape, bool)


def _with_signs(values: Array, turned: Array) -> Array:
    """``values`` (C, ...), those of channels that are ``turned`` negated."""
    return np.where(turned.reshape(-1, *[1] * (values.ndim - 1)), -values, values)
