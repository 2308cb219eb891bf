"""Evaluation of a network, in this process or over partitions on a cluster."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from mxq import evaluation
from mxq.distributed.calibrating import check_partitions, progress_bar
from mxq.distributed.jobs import Run
from mxq.distributed.partitions import Partitions
from mxq.distributed.tasks import Evaluating, Job
from mxq.errors import ConfigError
from mxq.evaluation import Evaluation, Function, Metric, Tally, metric_of
from mxq.graph.ir import Model, Runner

if TYPE_CHECKING:
    from distributed import Client


def evaluate(
    model: Model,
    data: object,
    runner: Runner,
    *,
    metric: Metric[Any] | Function | None = None,
    labels: Any = None,
    client: Client | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Accuracy, or ``metric``, of a network over labelled data.

    Args:
        model: float or int8.
        data: what `mxq.data` understands, with labels (`mxq.evaluation`), or `Partitions` whose batches have them.
        runner: what runs the network where there is no client.
        metric: top-1 and top-5 of the first output where None; else see `mxq.evaluation`. Partitions merge in
            their order, so a client changes nothing in the result.
        labels: (examples, ...) in the order of the data, where they are not in it.
        client: where to run partitions; in this process where None.
        batch_size: how whole arrays are cut.
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Raises:
        DataError: there are no examples, or data, labels and outputs do not fit; the message names the partition.
        ConfigError: a metric that is none, labels beside partitions, or a client without partitions.
    """
    measure = metric_of(metric)
    if client is None and not isinstance(data, Partitions):
        tally = evaluation.evaluate(
            runner, model, data, measure, labels=labels, batch_size=batch_size, progress=progress
        )
        return tally.result(measure)
    partitions = check_partitions(data)
    if labels is not None:
        raise ConfigError("labels are given beside partitions; allowed: labels in their batches, after the inputs")
    run = Run(Job(model, Evaluating(measure), partitions.load), partitions, client)
    tally = Tally(measure.empty())
    with (
        progress_bar("evaluate", len(partitions), shown=progress) as bar,
        closing(run.results(partitions.keys, runner, ordered=True)) as results,
    ):
        for _, part in results:
            state = measure.merge(tally.state, part.state)
            tally = Tally(state, tally.examples + part.examples, tally.batches + part.batches)
            bar.update()
    return tally.result(measure, run.advice)
