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
    from mxq.config import QuantConfig
    from mxq.images import Preprocess, Source
    from mxq.ir import Model
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
