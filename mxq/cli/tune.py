"""``mxq tune``: the fastest network that meets an accuracy bar."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mxq.cli.app import FAILED, INTERRUPTED, command
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import cluster, start_mxnet, write_page
from mxq.cli.options import (
    DATA,
    BatchSize,
    CalibData,
    Epoch,
    EvalData,
    EvalExamples,
    Json,
    Labels,
    PageFile,
    Pictures,
    Prefix,
    Scheduler,
    Settings,
    Workers,
    check_page,
    given_of,
    option,
    prefix_of,
)
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError
from mxq.logs import LOG

if TYPE_CHECKING:
    from mxq.workflow import TrainingData

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@command
def tune(
    prefix: Prefix,
    data: CalibData,
    workdir: Annotated[
        Path,
        option(
            metavar="DIR",
            help="Folder for the journal and the best network so far, best-symbol.json, ...; run again after any end, "
            "it goes on.",
        ),
    ],
    eval_data: EvalData = None,
    labels: Labels = None,
    num_examples: EvalExamples = None,
    max_drop: Annotated[
        float, option(min=0.0, metavar="SHARE", show=True, help="How much less than float: 0.005 is half a point.")
    ] = 0.005,
    time_budget: Annotated[
        str | None,
        option(metavar="TIME", help="Such as 90, 10m or 2h, for all runs in this folder; no limit by default."),
    ] = None,
    train_data: Annotated[
        Path | None,
        option(
            metavar="PATH",
            help=f"To train on, with labels, where nothing else meets the bar; what it takes is said first. {DATA}",
        ),
    ] = None,
    train_labels: Labels = None,
    epochs: Annotated[int | None, option(min=1, metavar="N", help="Of training; 10 by default.")] = None,
    lr: Annotated[float | None, option(metavar="RATE", help="Of training, the highest; 0.001 by default.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: Settings,
    pictures: Pictures,
    epoch: Epoch = None,
    report: PageFile = None,
    as_json: Json = False,
) -> None:
    """Find the fastest INT8 network that is nearly as accurate as float; exit code 1 where none is."""
    prefix = prefix_of(prefix)
    seconds = None if time_budget is None else seconds_of(time_budget)
    config = settings.config()
    check_page(report)
    preparation = pictures.preparation(prefix, config)
    start_mxnet()
    from mxq import workflow

    training = training_of(train_data, train_labels, {"epochs": epochs, "lr": lr}, settings.recipe)
    with cluster(workers, scheduler) as client:
        found = workflow.tune(
            prefix,
            workflow.Given(data, preparation=preparation, batch_size=batch_size, client=client),
            config,
            workflow.Measured(eval_data, labels, examples=num_examples),
            max_drop=max_drop,
            time_budget=seconds,
            workdir=workdir,
            training=training,
            epoch=epoch,
        )
    print_json(found.to_json()) if as_json else show_result(found)
    shown = workflow.Measured(eval_data or data, labels)
    for page in write_page(report, prefix, epoch, found.block, shown, preparation, [found]):
        LOG.info("written: %s", page)
    if found.interrupted:
        LOG.warning("interrupted; %s holds the best network so far, the same command goes on from there", workdir)
        raise typer.Exit(INTERRUPTED)
    if not found.met:
        raise typer.Exit(FAILED)


def training_of(
    data: Path | None, labels: Path | None, schedule: dict[str, Any], recipe: Path | None = None
) -> TrainingData | None:
    """What to train on, and how: as the section "training" of a recipe says, and options on top.

    Raises:
        ConfigError: there is a schedule, or labels, but no data.
    """
    from mxq.qat.schedule import TrainConfig
    from mxq.recipe import section
    from mxq.workflow import Measured, TrainingData

    given = given_of(schedule)
    if data is None:
        for name in (*given, *([] if labels is None else ["train-labels"])):
            raise ConfigError(f"--{name} is given without --train-data; allowed: both, or neither")
        return None
    config = TrainConfig() if recipe is None else section(recipe, "training", TrainConfig.from_json)
    return TrainingData(Measured(data, labels), replace(config, **given))


def seconds_of(text: str) -> float:
    """The seconds of "90", "1.5m" or "2h".

    Raises:
        ConfigError: another text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None:
        raise ConfigError(f"--time-budget is {text!r}; allowed: seconds, or minutes and hours such as 10m and 2h")
    return float(found[1]) * _UNITS[found[2]]
