"""``mxq draw``: networks as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, tell
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Epoch, Json, option, prefix_of


@command
def draw(
    prefixes: Annotated[
        list[Path],
        typer.Argument(metavar="PREFIX...", help="Networks, float or INT8, from left to right.", show_default=False),
    ],
    out: Annotated[Path, option(metavar="FILE", help="Picture to write, .svg or .png.")],
    zoom: Annotated[
        float, option(min=0.1, max=8.0, metavar="X", show=True, help="Size of a .png, in shares of the .svg's.")
    ] = 1.0,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Draw networks side by side: operators as boxes, tensors as arrows, what is INT8 in blue (mxq[report])."""
    start_mxnet()
    from mxq import workflow

    written = workflow.draw([prefix_of(prefix) for prefix in prefixes], out, epoch=epoch, zoom=zoom)
    print_json({"file": str(written)}) if as_json else tell(str(written))
