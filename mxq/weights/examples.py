"""Whether the first axis of a network's inputs counts examples, so that part of a batch may be looked at.

It need not: recurrent networks may read (time, batch, features), begin states have another first axis, and a Reshape
may hold the batch's size. What counts is what the network does: the first axis counts examples where two of them at
once give what each of them gives alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.ir import Array, Model, Runner

Feed = Mapping[str, Array]
_APART: Final = 1e-3
"""How far a value may be off, in shares of the largest: kernels sum in an order that depends on the batch's size."""


def size_of(feed: Feed) -> int:
    """How many examples a batch counts as: the length of its first input."""
    return len(next(iter(feed.values())))


def part_of(feed: Feed, chosen: slice | Sequence[int]) -> dict[str, Array]:
    """The ``chosen`` examples of a batch."""
    return {name: value[chosen] for name, value in feed.items()}


def can_be_cut(runner: Runner, model: Model, feed: Feed) -> bool:
    """Whether the first axis of all inputs of ``feed`` counts examples; False where one alone is too few to tell."""
    sizes = {len(value) for value in feed.values()}
    if len(sizes) != 1 or (last := sizes.pop() - 1) < 1:
        return False
    try:
        call = runner.compile(model)
        both, one, other = ([np.array(v) for v in call(part_of(feed, at))] for at in ([0, last], [0], [last]))
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
