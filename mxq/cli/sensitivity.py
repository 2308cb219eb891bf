"""``mxq sensitivity``: which layers suffer most from int8."""

from __future__ import annotations

from typing import Annotated

from mxq.cli.app import command, end_interrupted
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import (
    AllSettings,
    BatchSize,
    CalibData,
    Epoch,
    EvalData,
    EvalExamples,
    Json,
    Labels,
    Pictures,
    Plot,
    Prefix,
    Workdir,
    check_plot,
    option,
    prefix_of,
)
from mxq.data.feeding import BATCH
from mxq.logs import LOG


@command
def sensitivity(
    prefix: Prefix,
    data: CalibData,
    eval_data: EvalData = None,
    labels: Labels = None,
    num_examples: EvalExamples = None,
    mode: Annotated[
        str,
        option(
            metavar="both|one-int8|one-float",
            show=True,
            help="One layer in int8 while all others are float, one in float while all others are int8, or both.",
        ),
    ] = "both",
    noise: Annotated[
        bool, option("--noise", help="Hold the outputs against the float network's also where there are labels.")
    ] = False,
    workdir: Workdir = None,
    plot: Plot = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: AllSettings,
    effort: Annotated[
        str,
        option(
            metavar="fast|default|best",
            show=True,
            help="What is done for accuracy, also where a recipe says otherwise; all but fast is done anew for every "
            "layer, which takes long.",
        ),
    ] = "fast",
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Find the layers that suffer most from INT8: each alone in INT8, and each alone in float."""
    prefix = prefix_of(prefix)
    config = settings.config(effort)
    preparation = pictures.preparation(prefix, config)
    check_plot(plot)
    start_mxnet()
    from mxq import workflow
    from mxq.tuning import picture

    given = workflow.Given(data, preparation=preparation, batch_size=batch_size)
    measured = workflow.Measured(eval_data, labels, examples=num_examples, noise=noise)
    found = workflow.sensitivity(prefix, given, config, measured, mode=mode, workdir=workdir, epoch=epoch)
    print_json(found.to_json()) if as_json else show_result(found)
    if plot is not None:
        LOG.info("drawn: %s", picture.write(found, plot))
    if not found.complete:
        end_interrupted(workdir)
