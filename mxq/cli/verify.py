"""``mxq verify``: an INT8 network against the float one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, progress, say, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import DATA, Json, Labels, NumExamples, Pictures, Runtimes, option, prefix_of
from mxq.data.feeding import BATCH, LAYER_BATCH


@command
def verify(
    float_prefix: Annotated[
        Path,
        typer.Argument(
            metavar="FLOAT", help="Prefix of the float network; a float ONNX file beside another.", show_default=False
        ),
    ],
    int8_prefix: Annotated[
        Path,
        typer.Argument(metavar="INT8", help="Prefix of what was made of it, or an ONNX file.", show_default=False),
    ],
    data: Annotated[Path, option(metavar="PATH", help=DATA)],
    layers: Annotated[
        bool, option("--layers", help="Compare every layer, to find which ones introduce noise.")
    ] = False,
    min_agreement: Annotated[
        float | None,
        option(min=0, max=1, metavar="SHARE", help="Fail (exit code 1) below this share of equal answers, 0..1."),
    ] = None,
    min_sqnr: Annotated[
        float | None, option(metavar="DB", help="Fail (exit code 1) below this SQNR of the outputs.")
    ] = None,
    num_examples: NumExamples = None,
    batch_size: Annotated[
        int | None,
        option(min=1, metavar="N", help=f"Examples to a batch; {BATCH} by default, {LAYER_BATCH} with --layers."),
    ] = None,
    labels: Labels = None,
    runtimes: Runtimes = None,
    *,
    pictures: Pictures,
    as_json: Json = False,
) -> None:
    """Compare the INT8 network with the float one: equal answers, noise, accuracy where labels are known."""
    float_prefix, int8_prefix = prefix_of(float_prefix), prefix_of(int8_prefix)
    preparation = pictures.preparation(float_prefix)
    start_mxnet()
    from mxq import workflow

    measured = workflow.Measured(data, labels, examples=num_examples)
    found = workflow.verify_any(
        float_prefix,
        int8_prefix,
        measured,
        preparation,
        runtimes=runtimes,
        layers=layers,
        batch_size=batch_size,
        progress=progress,
    )
    failures = found.failures(min_agreement, min_sqnr)
    if as_json:
        print_json({**found.to_json(), "failures": list(failures)})
    else:
        show_result(found)
    for failure in failures:
        say(f"mxq: check failed: {failure}")
    if failures:
        raise typer.Exit(FAILED)
