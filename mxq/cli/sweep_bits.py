"""``mxq sweep-bits``: the accuracy on all hardware, and at 8 to 2 bits."""

from __future__ import annotations

from typing import Annotated

from mxq.cli.app import command, end_interrupted
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import (
    BatchSize,
    CalibData,
    Effort,
    Epoch,
    EvalData,
    EvalExamples,
    Json,
    Labels,
    Pictures,
    Plot,
    Prefix,
    Settings,
    Workdir,
    check_plot,
    option,
    prefix_of,
    widths_of,
)
from mxq.data.feeding import BATCH
from mxq.logs import LOG


@command
def sweep_bits(
    prefix: Prefix,
    data: CalibData,
    hardware: Annotated[
        list[str] | None,
        option("--hardware", metavar="{hardware}", help="Only this hardware; may be repeated. All by default."),
    ] = None,
    bits: Annotated[
        str | None, option("--bits", metavar="N,WnAn,...", help="Only these bits, such as 8,4,W4A8; 8 to 2 by default.")
    ] = None,
    eval_data: EvalData = None,
    labels: Labels = None,
    num_examples: EvalExamples = None,
    workdir: Workdir = None,
    plot: Plot = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: Settings,
    effort: Effort = None,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Simulate a network on all hardware and at 8 to 2 bits, and show its accuracy there."""
    prefix = prefix_of(prefix)
    config = settings.config(effort)
    preparation = pictures.preparation(prefix, config)
    check_plot(plot)
    start_mxnet()
    from mxq import workflow
    from mxq.tuning import bit_pictures

    given = workflow.Given(data, preparation=preparation, batch_size=batch_size)
    measured = workflow.Measured(eval_data, labels, examples=num_examples)
    found = workflow.sweep_bits(
        prefix, given, config, measured, hardware=hardware or None, widths=widths_of(bits), workdir=workdir, epoch=epoch
    )
    print_json(found.to_json()) if as_json else show_result(found)
    if plot is not None:
        LOG.info("drawn: %s", bit_pictures.write(found, plot))
    if not found.complete:
        end_interrupted(workdir)
