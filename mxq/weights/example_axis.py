"""Whether an axis of a network's inputs counts examples, so that part of a batch may be looked at.

The first one need not: recurrent networks may read (time, batch, features), begin states have another first axis, and a
Reshape may hold the batch's size. Where the data says which axis does (`mxq.data.feed.example_axes`) it is that one.
What counts is what the network does: an axis counts examples where two of them at once give what each of them gives
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from mxq.data.feed import example_axes, examples_in, taken
from mxq.errors import RuntimeFailure
from mxq.graph.ir import Array, Model, Runner

_APART: Final = 1e-3
"""How far a value may be off, in shares of the largest: kernels sum in an order that depends on the batch's size."""


def can_be_cut(runner: Runner, model: Model, feed: Mapping[str, Array]) -> bool:
    """Whether the axes of ``feed`` that should count examples do; False where one alone is too few to tell."""
    last = examples_in(feed) - 1
    if example_axes(feed) is None or last < 1:
        return False
    try:
        call = runner.compile(model)
        both, one, other = ([np.array(v) for v in call(taken(feed, at))] for at in ([0, last], [0], [last]))
    except RuntimeFailure:
        return False
    return all(map(_joins, both, one, other))


def _joins(both: Array, one: Array, other: Array) -> bool:
    """Whether an output for two examples is that for each of them: the same, one after the other, or by turns."""
    if one.shape != other.shape or both.ndim != one.ndim:
        return False
    axes = [i for i, (two, single) in enumerate(zip(both.shape, one.shape, strict=True)) if two != single]
    if not axes:
        return _close(both, one) and _close(both, other)
    turns = np.stack([one, other], axis=axes[0] + 1).reshape(*one.shape[: axes[0]], -1, *one.shape[axes[0] + 1 :])
    return _close(both, np.concatenate([one, other], axis=axes[0])) or _close(both, turns)


def _close(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    largest = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted)))
    return np.allclose(found, wanted, rtol=0, atol=_APART * largest, equal_nan=True)
