"""``mxq train``: fine-tunes a float network, with quantization or without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mxq.cli.app import command
from mxq.cli.console import print_json, show_result
from mxq.cli.networks import start_mxnet, write_page
from mxq.cli.options import (
    DATA,
    Epoch,
    Json,
    Labels,
    PageFile,
    Pictures,
    Prefix,
    check_page,
    check_plot,
    given_of,
    option,
    output_of,
    prefix_of,
    written_prefix,
)
from mxq.errors import ConfigError
from mxq.logs import LOG

if TYPE_CHECKING:
    from mxq.qat.config import QatConfig

_SCHEDULE, _CODES = "Schedule", "Quantization in training"


@command
def train(
    prefix: Prefix,
    data: Annotated[Path, option(metavar="PATH", help=f"To train on, with labels. {DATA}")],
    workdir: Annotated[
        Path,
        option(
            metavar="DIR",
            help="Folder for the checkpoint, after every epoch, and the journal, which mxq plot draws. Run again after "
            "any end, it goes on.",
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            parser=written_prefix,
            metavar="PREFIX|FILE.onnx",
            help="Write the trained network: an INT8 pair for --bits 8 on onednn; FILE.onnx for W4A8 to W8A8 on onnx, "
            "onnxruntime or openvino; else a float pair that simulates it.",
        ),
    ] = None,
    labels: Labels = None,
    eval_data: Annotated[
        Path | None,
        option(
            metavar="PATH",
            help=f"To measure on, with labels; without it nothing is measured, and the last epoch is kept. {DATA}",
        ),
    ] = None,
    eval_labels: Labels = None,
    plot: Annotated[
        Path | None, option(metavar="FILE", help="Draw curves, ranges and noise into a .png, .svg or .pdf.")
    ] = None,
    recipe: Annotated[
        Path | None,
        option(
            metavar="FILE",
            help="YAML file with sections training (the schedule) and qat (quantization), see docs/qat.md; options "
            "override it.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, option(min=1, metavar="N", panel=_SCHEDULE, help="Passes over the data, 10 by default.")
    ] = None,
    lr: Annotated[
        float | None, option(metavar="RATE", panel=_SCHEDULE, help="The highest learning rate, 0.001 by default.")
    ] = None,
    batch_size: Annotated[
        int | None, option(min=1, metavar="N", panel=_SCHEDULE, help="Examples to a step; 64 by default.")
    ] = None,
    seed: Annotated[
        int | None, option(min=0, metavar="N", panel=_SCHEDULE, help="Of the order and of all that is random.")
    ] = None,
    bits: Annotated[
        str | None,
        option(
            metavar="N|WnAn",
            panel=_CODES,
            help="Bits of codes, 2 to 8; of weights and of all else: W4A8. 8 is the default.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        option(
            metavar="{algorithm}",
            panel=_CODES,
            help="How ranges are learned; lsq is the default. Settings follow a colon: dsq:alpha=0.3.",
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        option(
            metavar="{hardware}",
            panel=_CODES,
            help="Whose codes, and which tensors have them; onednn, the default, is what MXNet's kernels have.",
        ),
    ] = None,
    only_float: Annotated[bool, option("--float", panel=_CODES, help="Train without quantization.")] = False,
    baseline: Annotated[
        bool,
        option("--baseline/--no-baseline", panel=_CODES, help="Train the float network too, as a baseline, or not."),
    ] = True,
    *,
    pictures: Pictures,
    epoch: Epoch = None,
    report: PageFile = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a network with quantization and, as a baseline, in float by the same recipe."""
    from mxq.qat.schedule import TrainConfig
    from mxq.recipe import section

    prefix, out = prefix_of(prefix), None if out is None else output_of(out, prefix)
    schedule = TrainConfig() if recipe is None else section(recipe, "training", TrainConfig.from_json)
    given = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    schedule = replace(schedule, **given_of(given))
    check_plot(plot)
    check_page(report)
    if report is not None and only_float:
        raise ConfigError(f"--report is {str(report)!r} beside --float; allowed: of a network that is quantized")
    start_mxnet()
    from mxq import workflow
    from mxq.reporting import training
    from mxq.workflow.training import TrainRecipe, check_out, made, write
    from mxq.workflow.training import train as run

    asked = {"bits": bits, "algorithm": algorithm, "hardware": hardware}
    if only_float and given_of(asked):
        name = next(iter(given_of(asked)))
        raise ConfigError(f"--{name} is {asked[name]!r} beside --float, which trains without quantization")
    qat = None if only_float else _qat_config(recipe, asked)
    if out is not None:
        check_out(out, qat)
    preparation = pictures.preparation(prefix)
    found = run(
        prefix,
        workflow.Measured(data, labels),
        None if eval_data is None else workflow.Measured(eval_data, eval_labels),
        TrainRecipe(schedule, qat, baseline),
        preparation,
        workdir=workdir,
        epoch=epoch,
    )
    print_json(found.to_json()) if as_json else show_result(found)
    if out is not None:
        LOG.info("written: %s", ", ".join(map(str, write(found, out, preparation=preparation))))
    if report is not None:
        shown = workflow.Measured(data, labels) if eval_data is None else workflow.Measured(eval_data, eval_labels)
        write_page(report, prefix, epoch, made(found), shown, preparation, [workdir])
        LOG.info("written: %s", report)
    if plot is not None:
        LOG.info("drawn: %s", training.draw(workdir, plot))


def _qat_config(recipe: Path | None, asked: dict[str, Any]) -> QatConfig:
    """What the recipe says of quantization in training, with options on top."""
    from mxq.qat.config import QatConfig
    from mxq.quant.bits import Bits
    from mxq.recipe import section

    config = QatConfig() if recipe is None else section(recipe, "qat", QatConfig.from_json)
    changes = given_of(asked)
    if "bits" in changes:
        bits = Bits.parse(changes.pop("bits"), "--bits")
        changes |= {"bits_w": bits.weights, "bits_a": bits.activations}
    return replace(config, **changes)
