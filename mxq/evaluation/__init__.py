"""Accuracy, or any other measure, of one network over labelled data.

A metric is a pure fold, like an observer::

    state = metric.empty()
    for outputs, labels in batches:
        state = metric.update(state, outputs, labels)
    numbers = metric.result(state)

`merge` joins the states of two stretches of data, the first right before the second, so the same metric runs in one
process or on a cluster (`mxq.distributed`). What is provided here adds integers and exact fractions: the result does
not depend on how the data was divided among processes, bit for bit.

Labelled data is what `mxq.data` understands with labels in it: the array after the inputs in a tuple or list, the
entry "label" or "labels" of a dict, the ``label`` of a DataBatch, the labels of a `mxq.images.Source`.
"""

from __future__ import annotations

from mxq.data.feeding import ALL
from mxq.data.labelled import labelled
from mxq.evaluation.fold import Tally, evaluate
from mxq.evaluation.metrics import Averaged, Evaluation, Function, Metric, TopK, metric_of, metric_says

__all__ = [
    "ALL",
    "Averaged",
    "Evaluation",
    "Function",
    "Metric",
    "Tally",
    "TopK",
    "evaluate",
    "labelled",
    "metric_of",
    "metric_says",
]
