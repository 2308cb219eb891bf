"""Parameters that no network can be run with: NaN, infinite weights, variances that have no root."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mxq.errors import QuantizeError
from mxq.graph.ir import Array, Model, Node, Ref
from mxq.graph.traits import traits_of

_EPS = 1e-3
"""What is added to a variance where the operator does not say."""
REMEDY = "training diverged, or the file is damaged: give parameters of an earlier epoch, or set the values"


def check_values(model: Model) -> None:
    """Refuses parameters that make a network's results meaningless. What no operator reads is not looked at.

    Raises:
        QuantizeError: NaN, an infinity in a layer's parameters, or a variance with ``variance + eps <= 0``.
    """
    read = {ref.name for node in model.graph.operators for ref in _read(node)}
    learned = {ref.name for node in model.graph.operators for ref in _read(node) if traits_of(node).learned}
    for name, value in {**model.args, **model.auxs}.items():
        if value.dtype.kind == "f" and name in read and (said := _not_finite(value, learned=name in learned)):
            raise QuantizeError(f"parameter {name!r}: {said}; {REMEDY}")
    for node, name, variance in _variances(model):
        eps = node.number("eps", _EPS)
        wrong = np.flatnonzero(variance + eps <= 0)
        if wrong.size:
            raise QuantizeError(
                f"parameter {name!r}: {wrong.size} of {variance.size} variances have no root, such as "
                f"{variance[wrong[0]]:.6g} with eps {eps:g}; {REMEDY}"
            )


def _read(node: Node) -> tuple[Ref, ...]:
    """What an operator reads of its inputs: a BatchNorm with fix_gamma, which is the default, no gamma."""
    fixed = traits_of(node).variance_input is not None and node.flag("fix_gamma", default=True)
    return (*node.inputs[:1], *node.inputs[2:]) if fixed else node.inputs


def _not_finite(value: Array, *, learned: bool) -> str:
    """What is wrong with ``value``, in words; "" where nothing is."""
    if np.isfinite(value).all():
        return ""
    nans, infinite = int(np.isnan(value).sum()), int(np.isinf(value).sum())
    counted = f"{nans + infinite} of {value.size} values are not finite ({nans} NaN, {infinite} Inf)"
    return counted if nans or learned else ""


def _variances(model: Model) -> Iterator[tuple[Node, str, Array]]:
    """The variances that operators read, operator, parameter, (channels,)."""
    for node in model.graph.operators:
        place = traits_of(node).variance_input
        if place is not None and place < len(node.inputs):
            name = node.inputs[place].name
            if (value := model.param(name)) is not None:
                yield node, name, value.reshape(-1)
