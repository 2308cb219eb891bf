"""``mxq report``: a page about a quantized network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, progress, tell
from mxq.cli.networks import start_mxnet
from mxq.cli.options import DATA, Json, Labels, NumExamples, Pictures, check_page, option, prefix_of


@command
def report(
    float_prefix: Annotated[
        Path, typer.Argument(metavar="FLOAT", help="Prefix of the float network.", show_default=False)
    ],
    int8_prefix: Annotated[
        Path, typer.Argument(metavar="INT8", help="Prefix of what was made of it.", show_default=False)
    ],
    data: Annotated[Path, option(metavar="PATH", help=DATA)],
    out: Annotated[Path, option(metavar="FILE", help="Page to write, .html.")] = Path("report.html"),
    batch_size: Annotated[
        list[int] | None, option(min=1, metavar="N", help="Batch to time, 1 and 16 by default. May be repeated.")
    ] = None,
    onnx_file: Annotated[
        list[Path] | None,
        option(metavar="FILE", help="ONNX file of the network, to time beside it in each runtime. May be repeated."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        option(
            metavar="PATH",
            help="Show this, too: what mxq sensitivity, mxq tune or mxq bench --runtimes wrote with --json, or the "
            "workdir of mxq train. May be repeated.",
        ),
    ] = None,
    num_examples: NumExamples = None,
    labels: Labels = None,
    *,
    pictures: Pictures,
    as_json: Json = False,
) -> None:
    """Write a page about an INT8 network: accuracy, speed, both networks drawn, every layer (mxq[report])."""
    float_prefix, int8_prefix = prefix_of(float_prefix), prefix_of(int8_prefix)
    check_page(out)
    preparation = pictures.preparation(float_prefix)
    start_mxnet()
    from mxq import workflow

    measured = workflow.Measured(data, labels, examples=num_examples)
    written = workflow.report(
        float_prefix,
        int8_prefix,
        measured,
        out,
        preparation,
        batch_sizes=tuple(batch_size or (1, 16)),
        files=onnx_file or (),
        added=add or (),
        progress=progress,
    )
    print_json({"file": str(written)}) if as_json else tell(str(written))
