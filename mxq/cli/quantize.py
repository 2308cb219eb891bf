"""``mxq quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.networks import start_mxnet, write_page
from mxq.cli.options import (
    DATA,
    AllSettings,
    BatchSize,
    Effort,
    Epoch,
    Json,
    PageFile,
    Pictures,
    Prefix,
    Stats,
    check_page,
    option,
    output_of,
    prefix_of,
    read_thresholds,
    written_prefix,
)
from mxq.config import ONNX
from mxq.data.feeding import BATCH
from mxq.errors import ConfigError
from mxq.storage.checksums import sizes_of
from mxq.text import megabytes


@command
def quantize(
    prefix: Prefix,
    out: Annotated[
        Path,
        option(
            parser=written_prefix,
            metavar="PREFIX",
            help="Where to write: OUT-symbol.json, OUT-0000.params and OUT-mxq.json.",
        ),
    ],
    data: Annotated[Path | None, option(metavar="PATH", help=DATA)] = None,
    stats: Stats = None,
    thresholds: Annotated[
        Path | None,
        option(metavar="FILE", help="Ranges that mxq calibrate wrote; --data then serves methods for weights alone."),
    ] = None,
    batch_size: BatchSize = BATCH,
    *,
    settings: AllSettings,
    effort: Effort = None,
    pictures: Pictures,
    epoch: Epoch = None,
    report: PageFile = None,
    as_json: Json = False,
) -> None:
    """Calibrate a float network and write its INT8 form, or a simulation of other codes; stock MXNet loads either."""
    prefix, out = prefix_of(prefix), output_of(out, prefix)
    config = settings.config(effort)
    if config.backend == ONNX:
        raise ConfigError(
            "backend is 'onnx', whose networks are files; allowed: mxq export PREFIX --data ... --out FILE"
        )
    if thresholds is not None and stats is not None:
        raise ConfigError(f"--thresholds is {str(thresholds)!r} beside --stats {str(stats)!r}; allowed: one of them")
    if data is None and stats is None and thresholds is None and config.calib_mode != "none":
        raise ConfigError(
            "--data is missing; allowed: a folder of images, .npy or .npz (or --stats FILE, --thresholds FILE, or "
            "--calib-mode none)"
        )
    check_page(report)
    if report is not None and data is None:
        raise ConfigError(f"--report is {str(report)!r} without --data, on which both networks are run; give it, too")
    preparation = pictures.preparation(prefix, config)
    start_mxnet()
    from mxq import workflow
    from mxq.artifacts import pair, record
    from mxq.reporting import tables

    ranges = None if thresholds is None else read_thresholds(thresholds)
    given = workflow.Given(data, ranges, stats=stats, preparation=preparation, batch_size=batch_size)
    done = workflow.quantize(prefix, given, config, epoch=epoch)
    written = pair.write(done.model, done.report, out)
    files = (*written, *write_page(report, prefix, epoch, out, workflow.Measured(data), preparation))
    before, after = (sum(sizes_of(p).values()) for p in (prefix, out))
    if as_json:
        about = {"files": [str(f) for f in files], "bytes": {"float": before, "int8": after}}
        print_json({**record.to_json(done.report, {f.name: record.checksum(f) for f in written[:2]}), **about})
        return
    rows = [("operators", tables.tally(done.report)), *tables.simulation_rows(done.report)]
    rows += tables.input_rows(done.report)
    target = [] if config.simulate else [("target", done.report.target)]
    rows += [*target, ("size", f"{megabytes(before)} -> {megabytes(after)}")]
    show(tables.facts([*rows, *(("" if i else "written", str(f)) for i, f in enumerate(files))]))
