"""Runs a network over labelled data and folds a metric over its outputs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mxq.data.feed import examples_in, is_array
from mxq.data.labelled import is_whole, labelled
from mxq.errors import DataError
from mxq.evaluation.metrics import Evaluation, Metric, metric_says
from mxq.graph.ir import Array, Graph, Model, Runner


@dataclass(frozen=True)
class Tally:
    """The ``state`` of a metric after so many ``examples`` and ``batches``."""

    state: Any
    examples: int = 0
    batches: int = 0

    def result(self, metric: Metric[Any], warnings: tuple[str, ...] = ()) -> Evaluation:
        """The numbers.

        Raises:
            DataError: there were no examples.
        """
        if self.examples == 0:
            raise DataError("there is nothing to evaluate: the data has no examples")
        return Evaluation(self.examples, {k: float(v) for k, v in metric.result(self.state).items()}, warnings)


def evaluate(
    runner: Runner,
    model: Model,
    data: object,
    metric: Metric[Any],
    *,
    labels: Any = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Tally:
    """Runs ``model`` over labelled ``data`` and folds ``metric`` over the outputs.

    Args:
        runner: what runs the model.
        model: float or int8.
        data: labelled data, see `mxq.evaluation`.
        metric: see `metric_of`.
        labels: (examples, ...) in the order of the data, where they are not in it.
        batch_size: how whole arrays are cut.
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Raises:
        DataError: the data is empty or does not fit the network's inputs, labels do not fit the outputs, or an output
            holds NaN; the message names it.
    """
    batches, execute = labelled(data, model.arguments, labels, batch_size), runner.compile(model)
    tally = Tally(metric.empty())
    total, hidden = _length(data, batch_size), None if progress else True
    for feed, truth in tqdm(batches, "evaluate", total, leave=False, unit="batch", disable=hidden):
        outputs = list(execute(feed))
        size = examples_in(feed)
        _check_numbers(model.graph, outputs, tally.batches + 1)
        try:
            with metric_says():
                state = metric.update(tally.state, outputs, truth)
        except DataError as error:
            raise DataError(f"batch {tally.batches + 1}: {error}") from error
        tally = Tally(state, tally.examples + size, tally.batches + 1)
    return tally


def _check_numbers(graph: Graph, outputs: Sequence[Array], batch: int) -> None:
    """Refuses outputs that hold NaN: a metric would count them as anything."""
    for head, value in zip(graph.heads, outputs, strict=True):
        if value.dtype.kind == "f" and np.isnan(value).any():
            nans = int(np.isnan(value).sum())
            raise DataError(f"output {str(head)!r} of batch {batch} holds {nans} NaN among {value.size} values")


def _length(data: Any, batch_size: int) -> int | None:
    if is_array(data):
        return -(-len(data) // batch_size)
    return None if is_whole(data) else operator.length_hint(data) or None
