"""Networks and data, opened for a command; MXNet is imported no sooner."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mxq.cli.console import say
from mxq.errors import QuantizeError

if TYPE_CHECKING:
    from mxq.batches import Feeds
    from mxq.config import QuantConfig
    from mxq.images import Preprocess, Source
    from mxq.ir import Model
    from mxq.pipeline import Calibrated, Prepared
    from mxq.plan import Report
    from mxq.runtime import MxnetRunner


def start_mxnet(*, quiet: bool = False) -> MxnetRunner:
    """Settles the number of threads, then imports MXNet."""
    from mxq import machine

    machine.check_omp_num_threads(os.environ)
    best = machine.recommended_threads(machine.detect())
    if "mxnet" not in sys.modules and machine.apply_threads(os.environ, best) and not quiet:
        say(f"OMP_NUM_THREADS={best}: one thread a core; set it yourself to choose another number")
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    from mxq.runtime import MxnetRunner

    return MxnetRunner()


def open_data(path: Path, model: Model, settings: Preprocess, batch_size: int, labels: Path | None = None) -> Source:
    from mxq.images import open_source

    return open_source(path, model.inputs, settings, batch_size, labels)


def calibrated_ranges(
    prefix: Path,
    config: QuantConfig,
    data: Path | None,
    settings: Preprocess,
    batch_size: int,
    epoch: int | None,
    stats: Path | None,
) -> tuple[Prepared, Calibrated]:
    """Plans a network and finds its ranges: on ``data``, with its statistics kept in ``stats``, or from those alone."""
    runner = start_mxnet()
    from mxq import pipeline, runtime
    from mxq.collect import Checkpoint
    from mxq.statistics import Statistics

    prepared = pipeline.plan(runtime.load_model(prefix, epoch), config)
    if data is None and stats is not None:
        found = Statistics.load(stats)
        if not found.complete:
            say(f"mxq: {stats} is not complete: {found.examples} examples so far; give --data to go on")
        return prepared, pipeline.ranges(prepared, found)
    if data is None:
        return prepared, pipeline.calibrate(prepared, None, runner)
    batches, name = _calibration_data(data, prepared, settings, batch_size)
    kept = None if stats is None else Checkpoint(stats, pipeline.fingerprint(prepared.source), name)
    try:
        return prepared, pipeline.calibrate(
            prepared, batches, runner, progress=sys.stderr.isatty(), checkpoint=kept
        )
    except KeyboardInterrupt:
        if kept is not None and kept.path.exists():
            say(f"mxq: interrupted; {kept.path} holds what was seen, the same command goes on from there")
        raise


def _calibration_data(path: Path, prepared: Prepared, settings: Preprocess, batch_size: int) -> tuple[Feeds, str]:
    """As much of the data as the configuration asks for, spread evenly over it, and what it is called."""
    from mxq.batches import feeds
    from mxq.config import Budget

    everything = open_data(path, prepared.source, settings, batch_size)
    source = everything.take(prepared.config.budget.examples(everything.examples) or everything.examples)
    say(f"calibrating on {source.examples} of {source.description}")
    name = f"{source.examples} of {everything.examples} examples in {path.name}"
    return feeds(source, prepared.fused.inputs, Budget(count=source.examples)), name


def sizes_of(prefix: Path) -> dict[str, int]:
    """Bytes of the files of the pair ``prefix``, by name."""
    files = [prefix.with_name(f"{prefix.name}-symbol.json")]
    files += sorted(prefix.parent.glob(f"{prefix.name}-[0-9][0-9][0-9][0-9].params"))[-1:]
    return {f.name: f.stat().st_size for f in files if f.is_file()}


def report_of(prefix: Path, epoch: int | None, config: QuantConfig) -> tuple[Report, bool]:
    """What was decided for a quantized network, or would be for a float one, and which of the two it is."""
    from mxq.report import record

    if record.path_of(prefix).is_file():
        return record.read(prefix), True
    start_mxnet()
    from mxq import pipeline, runtime
    from mxq.plan import Report

    try:
        prepared = pipeline.plan(runtime.load_model(prefix, epoch), config)
    except QuantizeError as error:
        raise QuantizeError(f"{prefix} has no record {record.path_of(prefix).name} beside it, and {error}") from None
    return Report(prepared.plan, config=config.to_json(), trace=prepared.trace.to_json()), False
