"""``mxq calibrate``, ``mxq merge-stats`` and ``mxq plot``: statistics of a network's tensors, kept in a file."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, show, tell
from mxq.cli.networks import cluster, start_mxnet
from mxq.cli.options import (
    DATA,
    BatchSize,
    CalibMode,
    Dtype,
    Epoch,
    Json,
    Layers,
    NumCalibExamples,
    Pictures,
    Prefix,
    Scheduler,
    Stats,
    Workers,
    option,
    prefix_of,
)
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError
from mxq.logs import LOG
from mxq.text import megabytes, one_line

if TYPE_CHECKING:
    from mxq.calibration.statistics import Statistics

STATS = "A file of statistics."


@command
def calibrate(
    prefix: Prefix,
    data: Annotated[
        Path | None, option(metavar="PATH", help=f"{DATA} Without it, the statistics are read as they are.")
    ] = None,
    stats: Stats = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    out: Annotated[
        Path | None, option(metavar="FILE", help="Write the ranges as JSON, for thresholds= in Python.")
    ] = None,
    calib_mode: CalibMode = None,
    dtype: Dtype = None,
    num_calib_examples: NumCalibExamples = None,
    batch_size: BatchSize = BATCH,
    *,
    layers: Layers,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Find the ranges of a network's tensors; with --stats, stop and go on at any time, and ask again later."""
    prefix = prefix_of(prefix)
    if data is None and stats is None:
        raise ConfigError("--data is missing; allowed: a folder of images, .npy or .npz, or --stats with a file")
    config = layers.config(calib_mode=calib_mode, dtype=dtype, num_calib_examples=num_calib_examples)
    preparation = pictures.preparation(prefix, config)
    start_mxnet()
    from mxq import workflow
    from mxq.report import tables
    from mxq.storage.writing import write_json

    with cluster(workers, scheduler) as client:
        given = workflow.Given(data, stats=stats, preparation=preparation, batch_size=batch_size, client=client)
        found = workflow.calibrate(prefix, given, config, epoch=epoch)
    if out is not None:
        write_json(out, found.thresholds.to_json())
    if as_json:
        print_json({**found.thresholds.to_json(), "examples": found.statistics.examples, "warnings": found.warnings})
    else:
        show(tables.calibration(found.thresholds), tables.facts(_data_rows(found.statistics, stats)))


@command
def merge_stats(
    parts: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of statistics, in the data's order.")],
    out: Annotated[Path, option(metavar="FILE", help="Where to write the statistics of all data.")],
    as_json: Json = False,
) -> None:
    """Merge statistics of one network that were collected on different data."""
    from mxq.calibration import statistics
    from mxq.calibration.collect import alone

    if len(parts) < 2:
        raise ConfigError(f"merge-stats got {len(parts)} file; allowed: two or more")
    repeated = next((p for p in parts if parts.count(p) > 1), None)
    if repeated is not None:
        raise ConfigError(f"merge-stats got {str(repeated)!r} twice; its data would count twice")
    loaded = {str(path): statistics.Statistics.load(path) for path in parts}
    total = statistics.merge(loaded)
    with alone(out):
        total.save(out)
    for name, part in loaded.items():
        if not part.complete:
            LOG.warning("%s is not complete: %d examples so far", name, part.examples)
    if as_json:
        stretches = [asdict(s) for s in total.stretches]
        print_json({"examples": total.examples, "batches": total.batches, "stretches": stretches})
    else:
        from mxq.report import tables

        show(tables.facts(_data_rows(total, out)))


@command
def plot(
    stats: Annotated[Path, typer.Argument(metavar="STATS", help=STATS, show_default=False)],
    tensor: Annotated[
        str | None, option("--tensor", metavar="NAME", help="Which tensor; without it, they are listed.")
    ] = None,
    out: Annotated[
        Path | None, option(metavar="FILE", help="Picture to write: .png, .svg or .pdf; NAME.png by default.")
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
    """Draw a tensor's histogram with the threshold of every calibrator on it."""
    from mxq.artifacts import record
    from mxq.calibration.statistics import Statistics
    from mxq.report import plots

    if network is not None and calib_mode is not None:
        raise ConfigError(f"--calib-mode is {calib_mode!r} beside --network {str(network)!r}; allowed: one of them")
    statistics = Statistics.load(stats)
    if tensor is None:
        print_json({"tensors": [*statistics.states]}) if as_json else tell("\n".join(map(one_line, statistics.states)))
        return
    used = None if network is None else plots.used_by(record.read(prefix_of(network)), statistics, tensor)
    lines = plots.compared(statistics, tensor, calib_mode, dtype or "auto", used)
    written = plots.draw(statistics, tensor, lines, out or Path(f"{one_line(tensor).replace('/', '_')}.png"))
    if as_json:
        found = {x.name: {**asdict(x.range), "mark": x.mark if x.chosen else None} for x in lines}
        print_json({"tensor": tensor, "file": str(written), "calibrators": found})
    else:
        tell(str(written))


def _data_rows(statistics: Statistics, path: Path | None) -> list[tuple[str, str]]:
    rows = [("examples", f"{statistics.examples:,} in {statistics.batches:,} batches")]
    if path is not None and path.is_file():
        rows.append(("statistics", f"{path} ({megabytes(path.stat().st_size)}, {len(statistics.states)} tensors)"))
    return rows
