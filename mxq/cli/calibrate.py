"""``mxq calibrate``: the ranges of a network's tensors, and statistics of them kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.networks import cluster, start_mxnet
from mxq.cli.options import (
    DATA,
    AllSettings,
    BatchSize,
    Effort,
    Epoch,
    Json,
    Pictures,
    Prefix,
    Scheduler,
    Stats,
    Workers,
    option,
    prefix_of,
)
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError


@command
def calibrate(
    prefix: Prefix,
    data: Annotated[
        Path | None, option(metavar="PATH", help=f"{DATA} Without it, the statistics are read as they are.")
    ] = None,
    stats: Stats = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    out: Annotated[
        Path | None, option(metavar="FILE", help="Write the ranges as JSON, for thresholds= in Python.")
    ] = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: AllSettings,
    effort: Effort = None,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Find the ranges of a network's tensors; with --stats, stop and go on at any time, and ask again later."""
    prefix = prefix_of(prefix)
    if data is None and stats is None:
        raise ConfigError("--data is missing; allowed: a folder of images, .npy or .npz, or --stats with a file")
    config = settings.config(effort)
    preparation = pictures.preparation(prefix, config)
    start_mxnet()
    from mxq import workflow
    from mxq.reporting import tables
    from mxq.storage.writing import write_json

    with cluster(workers, scheduler) as client:
        given = workflow.Given(data, stats=stats, preparation=preparation, batch_size=batch_size, client=client)
        found = workflow.calibrate(prefix, given, config, epoch=epoch)
    if out is not None:
        write_json(out, found.thresholds.to_json())
    if as_json:
        print_json({**found.thresholds.to_json(), "examples": found.statistics.examples, "warnings": found.warnings})
    else:
        show(tables.calibration(found.thresholds), tables.facts(tables.statistics_rows(found.statistics, stats)))
