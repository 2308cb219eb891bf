"""How good a network is: by labels, by the user's own function, or against the float network's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from mxq import distributed, runtime, verification
from mxq.data.feed import Feed
from mxq.data.feeding import feeds
from mxq.data.sources import Role
from mxq.distributed import Partitions
from mxq.errors import ConfigError, DataError
from mxq.evaluation import ALL, Function, Metric, metric_of
from mxq.graph.ir import Model, Runner
from mxq.tuning.kept_data import Remembered, WithLabels, as_numpy, data_digest, digest, has_labels, listed, sha256
from mxq.tuning.replay import Divergence, Replaying


class Judge(Protocol):
    """Measures networks, float and int8."""

    @property
    def about(self) -> Mapping[str, object]:
        """What its numbers depend on, JSON-ready."""
        ...

    @property
    def by(self) -> str:
        """How it judges, in words."""
        ...

    @property
    def share(self) -> bool:
        """Whether the score is a share of the examples, 0..1."""
        ...

    def measure(self, model: Model) -> Mapping[str, float]:
        """Numbers by name, of which more is better but for "kl"; the first is the score."""
        ...


@dataclass(frozen=True)
class Labelled:
    """A metric over labelled data; see `mxq.distributed.evaluate` for the fields."""

    data: Any
    inputs: tuple[str, ...]
    runner: Runner
    metric: Metric[Any] | Function | None = None
    labels: Any = None
    client: Any = None
    batch_size: int = 32

    @property
    def about(self) -> Mapping[str, object]:
        name = "accuracy" if self.metric is None else name_of(self.metric)
        truth = None if self.labels is None else sha256([as_numpy(self.labels)])
        return {"metric": name, "data": data_digest(self.data, self.inputs, self.batch_size), "labels": truth}

    @property
    def by(self) -> str:
        return f"{'accuracy' if self.metric is None else name_of(self.metric)} on labelled data"

    @property
    def share(self) -> bool:
        return self.metric is None

    @cached_property
    def _batches(self) -> Any:
        """What is evaluated on; partitions stay where they are."""
        if isinstance(self.data, Partitions):
            return self.data
        return Remembered(WithLabels(self.data, self.inputs, self.labels, self.batch_size))

    def measure(self, model: Model) -> Mapping[str, float]:
        parts = isinstance(self.data, Partitions)
        labels, client = (self.labels, self.client) if parts else (None, None)
        metric = metric_of(self.metric)
        found = distributed.evaluate(
            model, self._batches, self.runner, metric=metric, labels=labels, client=client, progress=False
        )
        return found.metrics


@dataclass(frozen=True)
class UserMetric:
    """The user's function of a network, as a Gluon block, to one number; more is better."""

    function: Callable[[Any], float]

    @property
    def about(self) -> Mapping[str, object]:
        return {"metric": f"eval_fn {name_of(self.function)}"}

    @property
    def by(self) -> str:
        return f"{name_of(self.function)}, as given"

    @property
    def share(self) -> bool:
        return False

    def measure(self, model: Model) -> Mapping[str, float]:
        found = self.function(runtime.to_block(model))
        try:
            score = float(found)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise DataError(f"eval_fn returned {found!r:.60}; allowed: one finite number, more being better")
        return {"score": score}


class FloatAgreement:
    """Without labels: how far the outputs are from the float network's.

    That is their SQNR in dB (of class scores, less their mean), the KL divergence of the softmax in nats, and the share
    of equal answers: of best classes, or of boxes that match.

    The float network runs once; its outputs are kept while they fit in memory.

    Args:
        reference: the float network.
        data: batches, iterated for every network.
        runner: what runs a network.
        answers: whether the score is the share of equal answers; else SQNR, where there is one.
    """

    def __init__(self, reference: Model, data: Iterable[Feed], runner: Runner, *, answers: bool = False) -> None:
        self._reference, self._answers = reference, answers
        self._data, self._batches = data, Remembered(data)
        self._replaying = Replaying(runner, reference)

    @property
    def about(self) -> Mapping[str, object]:
        return {"metric": "agreement" if self._answers else "SQNR", "data": digest(self._data)}

    @property
    def by(self) -> str:
        return "agreement with the float network" if self._answers else "noise against the float network"

    @property
    def share(self) -> bool:
        return self._answers

    def measure(self, model: Model) -> Mapping[str, float]:
        divergence = Divergence(self._reference.graph)
        runner = self._replaying.beside(divergence)
        found = verification.verify(runner, self._reference, model, self._batches)
        same = found.agreement if found.boxes is None else found.boxes.agreement
        numbers = {"sqnr": found.sqnr, "kl": divergence.mean, "agreement": same}
        if self._answers:
            if same is None:
                raise ConfigError(
                    "the outputs are neither class scores nor boxes that can be compared without labels; allowed: give "
                    "eval_fn, or eval_data with a metric"
                )
            numbers = {"agreement": same, **numbers}
        return {name: value for name, value in numbers.items() if value is not None}


def judge_of(
    reference: Model,
    batches: Iterable[Feed],
    runner: Runner,
    *,
    function: Callable[[Any], float] | None = None,
    data: Any = None,
    labels: Any = None,
    metric: Metric[Any] | Function | None = None,
    client: Any = None,
    batch_size: int = 32,
    answers: bool = False,
) -> Judge:
    """The user's function, else labels where there are any, else the float network's outputs.

    Args:
        reference: the float network.
        batches: of calibration, to look at where there is no ``data``.
        runner: what runs a network.
        function: the user's own, of a network as a Gluon block.
        data, labels, metric, client, batch_size: see `mxq.distributed.evaluate`. The client serves partitions only.
        answers: what counts without labels, see `FloatAgreement`.

    Raises:
        ConfigError: labels or a metric without data.
    """
    if function is not None:
        return UserMetric(function)
    if data is None:
        for name, given in (("metric", metric), ("labels", labels)):
            if given is not None:
                raise ConfigError(f"{name} is given without the data that it belongs to; allowed: both, or neither")
        return FloatAgreement(reference, batches, runner, answers=answers)
    data, inputs = listed(data), reference.arguments
    asked = metric is not None or labels is not None or isinstance(data, Partitions)
    if asked or has_labels(data, inputs, batch_size):
        return Labelled(data, inputs, runner, metric, labels, client, batch_size)
    batches = feeds(data, inputs, ALL, batch_size=batch_size, role=Role.EVALUATION)
    return FloatAgreement(reference, batches, runner, answers=answers)


def name_of(thing: Any) -> str:
    """What a function or a metric is called."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
