"""``mxq choose-bits``: how many bits each layer is to have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import (
    BatchSize,
    CalibData,
    Epoch,
    EvalData,
    EvalExamples,
    HardwareName,
    Json,
    Labels,
    Pictures,
    Plot,
    Prefix,
    Settings,
    Workdir,
    check_plot,
    option,
    output_of,
    prefix_of,
    widths_of,
    written_prefix,
)
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError
from mxq.logs import LOG


@command
def choose_bits(
    prefix: Prefix,
    data: CalibData,
    mean_bits: Annotated[
        float, option(metavar="N", show=True, help="The most bits that weights may have in the mean of all.")
    ] = 4.0,
    choices: Annotated[
        str | None,
        option(metavar="N,WnAn,...", help="Bits to choose from, such as 2,4,W4A8; 2,3,4,5,6,8 by default."),
    ] = None,
    out: Annotated[
        Path | None,
        option(parser=written_prefix, metavar="PREFIX", help="Write the simulated network, as mxq quantize does."),
    ] = None,
    recipe_out: Annotated[
        Path | None, option(metavar="FILE", help="Write the bits of all layers as a recipe, for mxq quantize --recipe.")
    ] = None,
    hardware: HardwareName = None,
    eval_data: EvalData = None,
    labels: Labels = None,
    num_examples: EvalExamples = None,
    workdir: Workdir = None,
    plot: Plot = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: Settings,
    effort: Annotated[
        str, option(metavar="fast|default|best", show=True, help="What is done for accuracy, anew for every layer.")
    ] = "fast",
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Choose how many bits each layer has, under a budget of mean bits; simulated."""
    prefix, out = prefix_of(prefix), None if out is None else output_of(out, prefix)
    if recipe_out is not None and not recipe_out.parent.is_dir():  # found out now, not after the search
        raise ConfigError(f"--recipe-out is {str(recipe_out)!r}, but there is no folder {str(recipe_out.parent)!r}")
    config = settings.config(effort)
    config = config if hardware is None else replace(config, hardware=hardware)
    preparation = pictures.preparation(prefix, config)
    check_plot(plot)
    start_mxnet()
    from mxq import recipe, workflow
    from mxq.artifacts import pair
    from mxq.tuning import bit_pictures

    given = workflow.Given(data, preparation=preparation, batch_size=batch_size)
    measured = workflow.Measured(eval_data, labels, examples=num_examples)
    found = workflow.choose_bits(
        prefix, given, config, measured, mean_bits=mean_bits, choices=widths_of(choices), workdir=workdir, epoch=epoch
    )
    files = [] if out is None else [*pair.write(found.model, found.record, out)]
    files += [] if recipe_out is None else [recipe.write(found.config, recipe_out)]
    files += [] if plot is None else [bit_pictures.write(found, plot)]
    print_json(found.to_json()) if as_json else show_result(found)
    for path in files:
        LOG.info("written: %s", path)
