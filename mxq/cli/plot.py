"""``mxq plot``: a tensor's histogram with the threshold of every calibrator on it, or the curves of a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, tell
from mxq.cli.options import Dtype, Json, option, prefix_of
from mxq.errors import ConfigError
from mxq.text import one_line

STATS = "A file of statistics, or the workdir of mxq train."


@command
def plot(
    stats: Annotated[Path, typer.Argument(metavar="STATS", help=STATS, show_default=False)],
    tensor: Annotated[
        str | None, option("--tensor", metavar="NAME", help="Which tensor; without it, they are listed.")
    ] = None,
    out: Annotated[
        Path | None,
        option(metavar="FILE", help="Picture to write: .png, .svg or .pdf; NAME.png or training.png by default."),
    ] = None,
    calib_mode: Annotated[
        str | None,
        option(metavar="MODE", help="Calibrator to mark as chosen; by default the least expected error is marked."),
    ] = None,
    network: Annotated[
        Path | None,
        option(metavar="PREFIX", help="The quantized network whose range to mark as used, from its record."),
    ] = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Draw a tensor's histogram with the threshold of every calibrator on it, or the curves of a training."""
    from mxq.artifacts import record
    from mxq.calibration.statistics import Statistics
    from mxq.config import quant_spec
    from mxq.reporting import plots, training

    if training.is_training(stats):
        written = training.draw(stats, out or Path("training.png"))
        print_json({"file": str(written)}) if as_json else tell(str(written))
        return
    if network is not None and calib_mode is not None:
        raise ConfigError(f"--calib-mode is {calib_mode!r} beside --network {str(network)!r}; allowed: one of them")
    statistics = Statistics.load(stats)
    if tensor is None:
        print_json({"tensors": [*statistics.states]}) if as_json else tell("\n".join(map(one_line, statistics.states)))
        return
    used = None if network is None else plots.used_by(record.read(prefix_of(network)), statistics, tensor)
    lines = plots.compared(statistics, tensor, calib_mode, quant_spec(dtype or "auto"), used)
    written = plots.draw(statistics, tensor, lines, out or Path(f"{one_line(tensor).replace('/', '_')}.png"))
    if as_json:
        found = {x.name: {**asdict(x.range), "mark": x.mark if x.chosen else None} for x in lines}
        print_json({"tensor": tensor, "file": str(written), "calibrators": found})
    else:
        tell(str(written))
