"""``mxq evaluate``: the accuracy of one network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import cluster, start_mxnet
from mxq.cli.options import (
    DATA,
    BatchSize,
    Epoch,
    Json,
    Labels,
    NumExamples,
    Pictures,
    Prefix,
    Scheduler,
    Workers,
    option,
    prefix_of,
)
from mxq.data.feeding import BATCH


@command
def evaluate(
    prefix: Prefix,
    data: Annotated[Path, option(metavar="PATH", help=DATA)],
    labels: Labels = None,
    num_examples: NumExamples = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    batch_size: BatchSize = BATCH,
    *,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a classifier, float or INT8, on labelled data."""
    prefix = prefix_of(prefix)
    preparation = pictures.preparation(prefix)
    start_mxnet()
    from mxq import workflow

    measured = workflow.Measured(data, labels, examples=num_examples)
    with cluster(workers, scheduler) as client:
        found = workflow.evaluate(prefix, measured, preparation, batch_size=batch_size, client=client, epoch=epoch)
    if as_json:
        print_json(found.to_json())
    else:
        show_result(found)
