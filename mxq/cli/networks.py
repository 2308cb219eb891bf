"""Networks and data, opened for a command; MXNet is imported no sooner."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxq.cli.console import say
from mxq.errors import ConfigError, QuantizeError
from mxq.files import epochs_of

if TYPE_CHECKING:
    from mxq.batches import Feeds
    from mxq.config import QuantConfig
    from mxq.distributed import Partitions
    from mxq.images import Preprocess, Source
    from mxq.ir import Model
    from mxq.pipeline import Calibrated, Prepared
    from mxq.plan import Report
    from mxq.runtime import MxnetRunner

PARTITION = 1024
"""Examples to a partition, at most."""


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


def chosen_of(source: Source, config: QuantConfig) -> Source:
    """The examples to calibrate on, spread evenly."""
    return source.take(config.budget.examples(source.examples) or source.examples)


def batches_of(source: Source, inputs: Sequence[str]) -> Feeds:
    """All of ``source``, as calibration data."""
    from mxq.batches import feeds
    from mxq.config import Budget

    return feeds(source, inputs, Budget(count=source.examples))


def calibrated_ranges(
    prefix: Path,
    config: QuantConfig,
    data: Path | None,
    settings: Preprocess,
    batch_size: int,
    epoch: int | None,
    stats: Path | None,
    client: Any = None,
) -> tuple[Prepared, Calibrated]:
    """Plans a network and finds its ranges: on ``data``, with its statistics kept in ``stats``, or from those alone.

    With a ``client`` of Dask, its workers share the data.
    """
    runner = start_mxnet()
    from mxq import distributed, pipeline, runtime
    from mxq.collect import Checkpoint
    from mxq.statistics import Statistics

    prepared = pipeline.plan(runtime.load_model(prefix, epoch), config, runner)
    if data is None and stats is not None:
        found = Statistics.load(stats)
        if not found.complete:
            say(f"mxq: {stats} is not complete: {found.examples} examples so far; give --data to go on")
        return prepared, pipeline.ranges(prepared, found)
    if data is None:
        return prepared, pipeline.calibrate(prepared, None, runner)
    everything = open_data(data, prepared.source, settings, batch_size)
    chosen = chosen_of(everything, config)
    count = chosen.examples
    say(f"calibrating on {count} of {everything.description}")
    shown = sys.stderr.isatty()
    try:
        if client is not None:
            parts = partitions(data, prepared.source, settings, batch_size, count, client)
            whole = replace(prepared, config=replace(config, num_calib_examples=None))  # the parts are what it allows
            return prepared, distributed.calibrate(whole, parts, runner, client, progress=shown, stats=stats)
        name = f"{count} of {everything.examples} examples in {data.name}"
        kept = None if stats is None else Checkpoint(stats, prepared.fingerprint, name)
        batches = batches_of(chosen, prepared.fused.inputs)
        return prepared, pipeline.calibrate(prepared, batches, runner, progress=shown, checkpoint=kept)
    except KeyboardInterrupt:
        if stats is not None and stats.exists():
            say(f"mxq: interrupted; {stats} holds what was seen, the same command goes on from there")
        raise


@contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """The Dask client that ``--workers`` or ``--scheduler`` asks for; None where neither does."""
    if workers is not None and scheduler is not None:
        raise ConfigError(f"--workers is {workers} beside --scheduler {scheduler!r}; allowed: one of them")
    if workers is None and scheduler is None:
        yield None
        return
    from mxq import distributed

    with distributed.local_client(workers) if workers else distributed.connect(str(scheduler)) as client:
        yield client


def partitions(
    data: Path,
    model: Model,
    settings: Preprocess,
    batch_size: int,
    count: int,
    client: Any,
    labels: Path | None = None,
) -> Partitions:
    """``count`` of the examples in parts of whole batches: several for each worker, so that all end together."""
    from mxq.distributed import Partitions

    batches = -(-count // batch_size)
    each = max(1, min(PARTITION // batch_size, -(-batches // (4 * max(1, len(client.nthreads()))))))
    size = each * batch_size
    return Partitions.images(data, model.inputs, settings, batch_size, size, labels=labels, examples=count)


def sizes_of(prefix: Path) -> dict[str, int]:
    """Bytes of the files of the pair ``prefix``, by name."""
    files = [prefix.with_name(f"{prefix.name}-symbol.json")]
    files += [path for _, path in sorted(epochs_of(prefix).items())[-1:]]
    return {f.name: f.stat().st_size for f in files if f.is_file()}


def report_of(prefix: Path, epoch: int | None, config: QuantConfig) -> tuple[Report, bool]:
    """What was decided for a quantized network, or would be for a float one, and which of the two it is."""
    from mxq.report import record

    if record.recorded(prefix):
        return record.read(prefix), True
    runner = start_mxnet()
    from mxq import pipeline, runtime
    from mxq.plan import Report

    try:
        prepared = pipeline.plan(runtime.load_model(prefix, epoch), config, runner)
    except QuantizeError as error:
        raise QuantizeError(f"{prefix} has no record {record.path_of(prefix).name} beside it, and {error}") from None
    return Report(prepared.plan, config=config.to_json(), trace=prepared.trace.to_json()), False
