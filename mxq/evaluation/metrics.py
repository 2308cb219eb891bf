"""Metrics: folds over outputs and labels, and what they find."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np

from mxq.errors import ConfigError, DataError, MxqError
from mxq.graph.ir import Array
from mxq.text import Shown

S = TypeVar("S")

TOP: Final = 5
METHODS: Final = ("empty", "update", "merge", "result")

Function: TypeAlias = Callable[[Sequence[Array], Any], Mapping[str, float]]
"""From a batch's outputs, (n, ...) each, and its labels to numbers that can be averaged over examples."""


class Metric(Protocol[S]):
    """A measure of outputs against labels; ``S`` is its state. To run on a cluster, both must pickle."""

    def empty(self) -> S:
        """The state before any data."""
        ...

    def update(self, state: S, outputs: Sequence[Array], labels: Any) -> S:
        """The state after one more batch.

        Args:
            state: unchanged by the call.
            outputs: the network's, (n, ...) each.
            labels: (n, ...) as the data has them; None where it has none.
        """
        ...

    def merge(self, a: S, b: S) -> S:
        """The state of the data of both, that of ``b`` coming after that of ``a``."""
        ...

    def result(self, state: S) -> Mapping[str, float]:
        """Numbers by name."""
        ...


@dataclass(frozen=True)
class Evaluation(Shown):
    """What `evaluate` found: the number of ``examples``, and the ``metrics`` by name (shares are in 0..1)."""

    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary. A number that JSON cannot say is a text such as "inf"."""
        numbers = {k: v if math.isfinite(v) else str(v) for k, v in self.metrics.items()}
        return {"examples": self.examples, "metrics": numbers}


@dataclass(frozen=True, slots=True)
class Hits:
    """Of how many ``examples`` the label was the best class, or among the best five, of ``classes``."""

    examples: int = 0
    top1: int = 0
    top5: int = 0
    classes: int = 0


@dataclass(frozen=True)
class TopK:
    """Shares of examples whose label is the best class, "top1", or among the best five, "top5" (from six classes on).

    Of classes with equal scores the lower number comes first.
    """

    def empty(self) -> Hits:
        return Hits()

    def update(self, state: Hits, outputs: Sequence[Array], labels: Any) -> Hits:
        """Counts a batch; the scores are the first output, (n, classes)."""
        scores = outputs[0]
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise DataError(f"the first output has shape {scores.shape}; top-1 needs (examples, classes)")
        classes = scores.shape[1]
        wanted = _class_numbers(labels, len(scores), classes)
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :TOP] == wanted[:, None]
        return self.merge(state, Hits(len(scores), int(ranked[:, 0].sum()), int(ranked.any(axis=1).sum()), classes))

    def merge(self, a: Hits, b: Hits) -> Hits:
        return Hits(a.examples + b.examples, a.top1 + b.top1, a.top5 + b.top5, max(a.classes, b.classes))

    def result(self, state: Hits) -> Mapping[str, float]:
        found = {"top1": state.top1 / state.examples}
        return {**found, "top5": state.top5 / state.examples} if state.classes > TOP else found


@dataclass(frozen=True, slots=True)
class Sums:
    """Exact sums of numbers by name, each number times its batch's examples."""

    examples: int = 0
    totals: Mapping[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True)
class Averaged:
    """The average over examples of what ``function`` says of each batch."""

    function: Function

    def empty(self) -> Sums:
        return Sums()

    def update(self, state: Sums, outputs: Sequence[Array], labels: Any) -> Sums:
        found = self.function(outputs, labels)
        if not isinstance(found, Mapping):
            raise DataError(f"the metric returned {found!r:.60}; allowed: a mapping of names to numbers")
        size = len(outputs[0])
        for name, value in found.items():
            if not _is_finite(value):
                raise DataError(
                    f"metric {name!r} is {value!r:.60} for a batch of {size} examples; allowed: a finite number"
                )
        return self.merge(state, Sums(size, {name: Fraction(float(value)) * size for name, value in found.items()}))

    def merge(self, a: Sums, b: Sums) -> Sums:
        if a.examples and b.examples and a.totals.keys() != b.totals.keys():
            odd = min(a.totals.keys() ^ b.totals.keys())
            raise DataError(f"metric {odd!r} is there for some batches and missing for others")
        totals = {
            name: a.totals.get(name, Fraction()) + b.totals.get(name, Fraction()) for name in {**a.totals, **b.totals}
        }
        return Sums(a.examples + b.examples, totals)

    def result(self, state: Sums) -> Mapping[str, float]:
        return {name: float(total / state.examples) for name, total in state.totals.items()}


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


@contextmanager
def metric_says() -> Iterator[None]:
    """What a metric raises inside, as one of our errors."""
    try:
        yield
    except MxqError:
        raise
    except Exception as error:  # it is the user's code that runs
        raise DataError(f"the metric raised {type(error).__name__}: {error}") from error


def metric_of(metric: Any) -> Metric[Any]:
    """The metric that a user means: None, one with the methods of `Metric`, or a function.

    Raises:
        ConfigError: anything else.
    """
    if metric is None:
        return TopK()
    if all(callable(getattr(metric, name, None)) for name in METHODS) and not isinstance(metric, type):
        found: Metric[Any] = metric
        return found
    if callable(metric) and not isinstance(metric, type):
        return Averaged(metric)
    listed = ", ".join(METHODS)
    raise ConfigError(f"metric is {metric!r:.60}; allowed: a function of outputs and labels, or what has {listed}")


def _class_numbers(labels: Any, examples: int, classes: int) -> Array:
    """Labels (n,) or (n, 1), numbers of any type, as (n,) int64."""
    if labels is None:
        raise DataError("there are no labels in the data; give labels, or batches of inputs and labels")
    given = np.asarray(labels)
    if given.shape not in ((examples,), (examples, 1)) or given.dtype.kind not in "fiub":
        raise DataError(f"labels are {given.dtype} of shape {given.shape}; top-1 needs a class for each of {examples}")
    flat = given.reshape(-1)
    whole = flat.astype(np.int64)
    bad = (whole != flat) | (whole < 0) | (whole >= classes)
    if bad.any():
        raise DataError(f"label {flat[bad][0]} in a network of {classes} classes; allowed: 0 to {classes - 1}")
    return whole
