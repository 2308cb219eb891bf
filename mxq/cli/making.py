"""``mxq quantize``."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mxq.cli.app import command
from mxq.cli.console import megabytes, print_json, say, show
from mxq.cli.networks import batches_of, calibrated_ranges, chosen_of, open_data, sizes_of
from mxq.cli.options import (
    BATCH,
    DATA,
    BatchSize,
    BiasCorrection,
    CalibMode,
    Dtype,
    Effort,
    Epoch,
    Equalize,
    InputDtype,
    InputShape,
    Json,
    Layers,
    NumCalibExamples,
    Pictures,
    Prefix,
    RangeChoice,
    Rounding,
    Stats,
    Stem,
    Target,
    WeightCalibMode,
    option,
    prefix_of,
)
from mxq.errors import ConfigError

if TYPE_CHECKING:
    from mxq.batches import Feeds
    from mxq.config import QuantConfig
    from mxq.images import Preprocess
    from mxq.pipeline import Prepared


@command
def quantize(
    prefix: Prefix,
    out: Annotated[
        Path, option(metavar="PREFIX", help="Where to write: OUT-symbol.json, OUT-0000.params and OUT-mxq.json.")
    ],
    data: Annotated[Path | None, option(metavar="PATH", help=DATA)] = None,
    stats: Stats = None,
    calib_mode: CalibMode = None,
    weight_calib_mode: WeightCalibMode = None,
    dtype: Dtype = None,
    input_dtype: InputDtype = None,
    input_shape: InputShape = None,
    num_calib_examples: NumCalibExamples = None,
    effort: Effort = None,
    target: Target = None,
    batch_size: BatchSize = BATCH,
    *,
    layers: Layers,
    rounding: Rounding = None,
    bias_correction: BiasCorrection = None,
    equalize: Equalize = None,
    range_choice: RangeChoice = None,
    stem: Stem = None,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Calibrate a float network and write its INT8 form, which stock MXNet loads."""
    prefix, out = prefix_of(prefix), prefix_of(out)
    if prefix.resolve() == out.resolve():
        raise ConfigError(f"--out is {str(out)!r}, the float network itself; choose another prefix")
    if not out.parent.is_dir():  # found out now, not after calibration
        raise ConfigError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    config = layers.config(
        calib_mode=calib_mode,
        weight_calib_mode=weight_calib_mode,
        dtype=dtype,
        input_dtype=input_dtype,
        input_shape=input_shape,
        num_calib_examples=num_calib_examples,
        effort=effort,
        target=target,
        rounding=rounding,
        bias_correction=bias_correction,
        equalize=equalize,
        range_choice=range_choice,
        stem=stem,
    )
    if data is None and stats is None and config.calib_mode != "none":
        raise ConfigError(
            "--data is missing; allowed: a folder of images, .npy or .npz (or --stats FILE, or --calib-mode none)"
        )
    settings = pictures.settings(prefix)
    config = _with_preprocess(config, settings)
    prepared, calibrated = calibrated_ranges(prefix, config, data, settings, batch_size, epoch, stats)
    from mxq import pipeline, runtime
    from mxq.report import pair, record, tables

    again = None if data is None else _seen_again(data, prepared, settings, batch_size)
    done = pipeline.quantize(prepared, calibrated, runtime.versions(), runner=runtime.MxnetRunner(), data=again)
    files = pair.write(done.model, done.report, out)
    before, after = (sum(sizes_of(p).values()) for p in (prefix, out))
    for warning in (*calibrated.warnings, *done.warnings):
        say(f"mxq: {warning}")
    if as_json:
        written = {"files": [str(f) for f in files], "bytes": {"float": before, "int8": after}}
        print_json({**record.to_json(done.report, {f.name: record.checksum(f) for f in files[:2]}), **written})
        return
    rows = [("operators", tables.tally(done.report)), *tables.input_rows(done.report)]
    rows += [("target", done.report.target), ("size", f"{megabytes(before)} -> {megabytes(after)}")]
    show(tables.facts([*rows, *(("" if i else "written", str(f)) for i, f in enumerate(files))]))


def _seen_again(data: Path, prepared: Prepared, settings: Preprocess, batch_size: int) -> Feeds:
    """Of the examples that were calibrated on, as many as are looked at again, spread evenly.

    `mxq.refine` would choose as many itself, but of pictures that are all read again.
    """
    from mxq.refine import EXAMPLES

    calibrated = chosen_of(open_data(data, prepared.source, settings, batch_size), prepared.config)
    return batches_of(calibrated.take(EXAMPLES[prepared.config.effort]), prepared.fused.inputs)


def _with_preprocess(config: QuantConfig, settings: Preprocess) -> QuantConfig:
    """The settings by which pictures are read go into the record of a network that takes integers.

    Raises:
        ConfigError: a recipe has others.
    """
    from mxq.images import Preprocess

    if config.input_dtype == "float32":
        return config
    if config.preprocess is not None and Preprocess.from_json(config.preprocess, "preprocess") != settings:
        raise ConfigError(
            f"preprocess is {config.preprocess} in the recipe, but pictures are read by {settings.to_json()}; allowed: "
            "the same (--preprocess FILE, or preprocess.json beside the network), or none in the recipe"
        )
    return replace(config, preprocess=settings.to_json())
