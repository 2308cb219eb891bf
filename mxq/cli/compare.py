"""``mxq compare``: two networks that were made int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, progress, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import DATA, BatchSize, Json, Labels, NumExamples, Pictures, option, prefix_of
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError


@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Prefix of a quantized network.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Prefix of another.", show_default=False)],
    data: Annotated[Path | None, option(metavar="PATH", help=f"Run them, too. {DATA}")] = None,
    reference: Annotated[
        Path | None, option("--float", metavar="PREFIX", help="The float network, to compare both with on the data.")
    ] = None,
    num_examples: NumExamples = None,
    batch_size: BatchSize = BATCH,
    labels: Labels = None,
    *,
    pictures: Pictures,
    as_json: Json = False,
) -> None:
    """Show what differs between two INT8 networks: layers, ranges, weights, settings, and results on data."""
    first, second, base = prefix_of(a), prefix_of(b), None if reference is None else prefix_of(reference)
    if reference is not None and data is None:
        raise ConfigError(f"--float is {str(reference)!r} without --data; allowed: both, or neither")
    preparation = None if data is None else pictures.preparation(first if base is None else base)
    start_mxnet()
    from mxq import workflow

    measured = None if data is None else workflow.Measured(data, labels, examples=num_examples)
    found = workflow.compare(first, second, measured, base, preparation, batch_size=batch_size, progress=progress)
    print_json(found.to_json()) if as_json else show_result(found)
