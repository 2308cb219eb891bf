"""``mxq evaluate``: the accuracy of one network."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, say, show
from mxq.cli.networks import cluster, open_data, partitions, start_mxnet
from mxq.cli.options import (
    BATCH,
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
from mxq.errors import DataError

if TYPE_CHECKING:
    from mxq.ir import Runner


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
    settings = pictures.settings(prefix)
    runner: Runner = start_mxnet()
    from mxq import distributed, runtime
    from mxq.data import feeding, input_of
    from mxq.report import tables

    runner = feeding(runner, input_of(prefix))
    model = runtime.load_model(prefix, epoch)
    source = open_data(data, model, settings, batch_size, labels)
    if source.labels is None:
        raise DataError(f"{data} has no labels; allowed: a folder with labels.csv (or --labels), an .npz with labels")
    count = min(num_examples or source.examples, source.examples)
    say(f"evaluating on {count} of {source.description}")
    with cluster(workers, scheduler) as client:
        parts = None if client is None else partitions(data, model, settings, batch_size, count, client, labels)
        found = distributed.evaluate(
            model, parts or source.take(count), runner, client=client, progress=sys.stderr.isatty()
        )
    for warning in found.warnings:
        say(f"mxq: {warning}")
    if as_json:
        print_json(found.to_json())
    else:
        rows = [(name, tables.percent(value)) for name, value in found.metrics.items()]
        show(tables.facts([("examples", f"{found.examples:,}"), *rows]))
