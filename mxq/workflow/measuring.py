"""The accuracy of one network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxq import distributed, runtime
from mxq.data import integers
from mxq.data.feeding import BATCH
from mxq.data.integers import IntegerTransform, feeding
from mxq.data.preparation import Preparation
from mxq.evaluation import Evaluation
from mxq.graph.ir import Array, Runner
from mxq.logs import LOG
from mxq.quant.plan import InputRecord
from mxq.workflow.opening import Measured, check_labelled, on_workers, open_labelled, preparation_of, report_in


def evaluate(
    net: runtime.Net,
    measured: Measured,
    preparation: Preparation | None = None,
    *,
    batch_size: int = BATCH,
    client: Any = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> Evaluation:
    """Accuracy, or another measure, of a network, float or int8; one that takes integers is fed them from a path.

    Raises:
        DataError: what a path names has no labels, and others as of `mxq.distributed.evaluate`.
    """
    model = runtime.load_model(net, epoch)
    runner: Runner = runtime.MxnetRunner()
    preparation = preparation or preparation_of(net)
    data, labels = open_labelled(measured, model, preparation, batch_size, logger)
    if data is not measured.data:
        if measured.metric is None:
            check_labelled(measured, data, labels)
        logger.info("evaluating on %d of %s", data.examples, data.description)
        fed = input_of(net)
        runner = feeding(runner, fed)
        if client is not None:
            data = on_workers(measured, data.examples, model, preparation, batch_size, client)
            data = data if fed is None else replace(data, load=AsIntegers(data.load, IntegerTransform(fed)))
    found = distributed.evaluate(
        model, data, runner, metric=measured.metric, labels=labels, client=client, batch_size=batch_size
    )
    for warning in found.warnings:
        logger.warning(warning)
    return found


@dataclass(frozen=True, slots=True)
class AsIntegers:
    """Reads a partition for a network that takes integers; pickled."""

    load: Callable[[Any], Any]
    transform: IntegerTransform

    def __call__(self, payload: Any) -> Iterator[list[Array]]:
        for floats, *labels in self.load(payload):
            yield [self.transform.from_floats(floats), *labels]


def input_of(net: runtime.Net) -> InputRecord | None:
    """What ``net`` is to be fed, by its record; None where it takes floats or nothing is known of it."""
    report = report_in(net)
    if isinstance(net, str | Path):
        return integers.input_of(net)
    return None if report is None else report.input
