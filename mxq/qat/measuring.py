"""What is measured of a block while it trains: a metric, or the loss, over labelled data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mxq.data.feed import Feed, check_finite
from mxq.data.labelled import labelled
from mxq.errors import DataError, TrainingError
from mxq.evaluation import Function, Metric, metric_of, metric_says
from mxq.graph.ir import Array
from mxq.qat.epochs import Epochs, numbers
from mxq.qat.result import Numbers
from mxq.runtime.training import Loss, Trainee


@dataclass(frozen=True)
class Evaluator:
    """Measures a block: ``metric`` over ``data``; the loss where that is None."""

    data: Any
    labels: Any
    metric: Metric[Any] | None

    @staticmethod
    def of(data: object, labels: Any, metric: Metric[Any] | Function | None, loss: Loss | None) -> Evaluator:
        """From the arguments of `mxq.qat.fit`.

        Raises:
            ConfigError: it is no metric.
            DataError: the data can be read only once.
        """
        if isinstance(data, Iterator) and not hasattr(data, "provide_data"):
            raise DataError(
                f"eval_data is a {type(data).__name__}, which can be read only once; allowed: what can be read after "
                "every epoch, see train_data"
            )
        return Evaluator(data, labels, None if metric is None and loss is not None else metric_of(metric))

    def numbers(self, trainee: Trainee, batch_size: int) -> dict[str, float]:
        """Of the block as it is; empty where there is no data.

        Raises:
            DataError: the data or its labels do not fit, or the metric fails.
            TrainingError: the first number is not finite.
        """
        if self.data is None:
            return {}
        tally = EpochTally(self.metric)
        for batch, (feed, given) in enumerate(self._batches(trainee.inputs, batch_size), start=1):
            check_finite(feed, f"eval_data, batch {batch}")
            truth = given if self.metric else numbers(given, f"eval_data, batch {batch}")
            tally.add(trainee.outputs(feed), truth, math.nan if self.metric else trainee.loss(feed, truth))
        return _comparable(tally.result())

    def fingerprint(self, inputs: Sequence[str], batch_size: int) -> dict[str, Any] | None:
        """What tells the data from other data: see `Epochs.fingerprint`; None where there is none."""
        if self.data is None:
            return None
        found = next(self._batches(inputs, batch_size), None)
        return None if found is None else Epochs(self.data, inputs, self.labels).fingerprint(*found)

    def _batches(self, inputs: Sequence[str], batch_size: int) -> Iterator[tuple[Feed, Array]]:
        for feed, given in labelled(self.data, inputs, self.labels, batch_size):
            if given is None:
                raise DataError("eval_data has no labels; allowed: batches of inputs and labels, or eval_labels=")
            yield feed, given


def _comparable(numbers: dict[str, float]) -> dict[str, float]:
    """``numbers``, the first of which says which epoch is best."""
    if not numbers:
        raise DataError("the metric gives no number of eval_data; allowed: one or more, by name")
    name, value = next(iter(numbers.items()))
    if not math.isfinite(value):
        raise TrainingError(
            f"{name!r} of eval_data is {value}, which cannot say which epoch is best; allowed: a finite number"
        )
    return numbers


@dataclass
class EpochTally:
    """Numbers of batches so far."""

    metric: Metric[Any] | None
    state: Any = None
    loss: float = 0.0
    examples: int = 0

    def add(self, outputs: list[Array], labels: Array, loss: float) -> None:
        """One more batch."""
        if self.metric is not None:
            with metric_says():
                state = self.metric.empty() if self.state is None else self.state
                self.state = self.metric.update(state, outputs, labels)
        self.loss += loss * len(labels)
        self.examples += len(labels)

    @property
    def mean_loss(self) -> float:
        """Over examples; 0 without any."""
        return self.loss / max(self.examples, 1)

    def result(self) -> dict[str, float]:
        """Numbers by name; empty where there was no batch."""
        if self.metric is None:
            return {"loss": self.mean_loss}
        if self.state is None:
            return {}
        with metric_says():
            return {k: float(v) for k, v in self.metric.result(self.state).items()}


def score(numbers: Numbers) -> float:
    """More is better."""
    name, value = next(iter(numbers.items()))
    return -value if name == "loss" else value
