"""``mxq quantize``."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mxq.cli.app import command
from mxq.cli.console import megabytes, print_json, say, show
from mxq.cli.networks import open_data, sizes_of, start_mxnet
from mxq.cli.options import (
    DATA,
    BatchSize,
    Color,
    Crop,
    Epoch,
    Exclude,
    ExcludeOp,
    Include,
    Json,
    Mean,
    Prefix,
    PreprocessFile,
    QuantizeMode,
    Resize,
    Scale,
    ShortSide,
    Std,
    config_of,
    option,
    prefix_of,
    preprocess_of,
)
from mxq.errors import ConfigError

if TYPE_CHECKING:
    from mxq.batches import Feeds
    from mxq.images import Preprocess
    from mxq.pipeline import Prepared

BATCH = 16


@command
def quantize(
    prefix: Prefix,
    out: Annotated[
        Path, option(metavar="PREFIX", help="Where to write: OUT-symbol.json, OUT-0000.params and OUT-mxq.json.")
    ],
    data: Annotated[Path | None, option(metavar="PATH", help=DATA)] = None,
    calib_mode: Annotated[
        str,
        option(
            metavar="MODE",
            show=True,
            help="How ranges are chosen: naive, entropy, ..., or none: at run time, without data.",
        ),
    ] = "naive",
    dtype: Annotated[
        str,
        option(
            metavar="auto|int8|uint8", show=True, help="Type of activations; auto: unsigned where nothing is negative."
        ),
    ] = "auto",
    num_calib_examples: Annotated[
        str | None,
        option(
            metavar="N|P%",
            help="How much of the data to calibrate on, spread evenly over it; by default 5%, at least 32 examples.",
        ),
    ] = None,
    batch_size: BatchSize = BATCH,
    exclude: Exclude = None,
    include: Include = None,
    exclude_op: ExcludeOp = None,
    quantize_mode: QuantizeMode = "smart",
    preprocess: PreprocessFile = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    short_side: ShortSide = None,
    crop: Crop = None,
    resize: Resize = None,
    color: Color = None,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Calibrate a float network and write its INT8 form, which stock MXNet loads."""
    prefix, out = prefix_of(prefix), prefix_of(out)
    if prefix.resolve() == out.resolve():
        raise ConfigError(f"--out is {str(out)!r}, the float network itself; choose another prefix")
    if not out.parent.is_dir():  # found out now, not after calibration
        raise ConfigError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    if data is None and calib_mode != "none":
        raise ConfigError("--data is missing; allowed: a folder of images, .npy or .npz (or --calib-mode none)")
    config = config_of(exclude, include, exclude_op, quantize_mode, calib_mode, dtype, num_calib_examples)
    settings = preprocess_of(
        prefix,
        preprocess,
        mean=mean,
        std=std,
        scale=scale,
        color=color,
        short_side=short_side,
        crop=crop,
        resize=resize,
    )
    runner = start_mxnet()
    from mxq import pipeline, runtime
    from mxq.report import record, tables

    prepared = pipeline.plan(runtime.load_model(prefix, epoch), config)
    batches = None if data is None else calibration_data(data, prepared, settings, batch_size)
    calibrated = pipeline.calibrate(prepared, batches, runner, progress=sys.stderr.isatty())
    done = pipeline.quantize(prepared, calibrated, runtime.versions())
    pair = runtime.write_pair(done.model, out)
    files = (*pair, record.write(out, done.report, pair))
    before, after = (sum(sizes_of(p).values()) for p in (prefix, out))
    if as_json:
        written = {"files": [str(f) for f in files], "bytes": {"float": before, "int8": after}}
        print_json({**record.to_json(done.report, {f.name: record.checksum(f) for f in pair}), **written})
        return
    rows = [("operators", tables.tally(done.report)), ("size", f"{megabytes(before)} -> {megabytes(after)}")]
    show(tables.facts([*rows, *(("" if i else "written", str(f)) for i, f in enumerate(files))]))
    for warning in calibrated.warnings:
        say(f"mxq: {warning}")


def calibration_data(path: Path, prepared: Prepared, settings: Preprocess, batch_size: int) -> Feeds:
    """As much of the data as the configuration asks for, spread evenly over it."""
    from mxq.batches import feeds
    from mxq.config import Budget

    everything = open_data(path, prepared.source, settings, batch_size)
    source = everything.take(prepared.config.budget.examples(everything.examples) or everything.examples)
    say(f"calibrating on {source.examples} of {source.description}")
    return feeds(source, prepared.fused.inputs, Budget(count=source.examples))
