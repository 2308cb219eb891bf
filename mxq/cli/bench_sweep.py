"""``mxq bench --sweep``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mxq.cli.app import INTERRUPTED
from mxq.cli.console import print_json, progress, show, tell
from mxq.cli.networks import start_mxnet
from mxq.cli.options import shapes_of
from mxq.errors import RuntimeFailure
from mxq.logs import LOG

if TYPE_CHECKING:
    from mxq.bench.processes import Job
    from mxq.bench.sweep_result import Sweep
    from mxq.host.machine import Machine

BATCHES = (1, 16)


def run(
    prefix: Path,
    int8_prefix: Path | None,
    epoch: int | None,
    batches: Sequence[int],
    shape: Sequence[str] | None,
    seconds: float,
    warmup: int,
    as_json: bool,
) -> None:
    """Sweeps the INT8 network where it is given, else the float one, and shows what is best."""
    from mxq.bench.sweep import setups, sweep
    from mxq.host import machine as machines

    machine = machines.detect()
    job = _job(prefix, int8_prefix, epoch, tuple(sorted(set(batches))), shape, seconds, warmup)
    tried = setups(machine)
    load, cores = os.getloadavg()[0], machine.cores
    if load > cores / 2:
        LOG.warning("others keep this machine busy (load %.1f, %d cores); sweep again when it is quiet", load, cores)
    LOG.info("timing %s: %d combinations of threads and processes", job.prefix.name, len(tried))
    with progress("timing", len(tried) * len(job.batches)) as step:
        found = sweep(tried, job.batches, job.run, memory=machine.memory, progress=step)
    if found.complete and found.throughput is None:
        raise RuntimeFailure(f"no combination could be timed: {found.rows[0].problem}")
    if as_json:
        shapes = {name: list(s) for name, s in job.shapes.items()}
        print_json({"network": str(job.prefix), "shapes": shapes, "seconds": seconds, **found.to_json(machine)})
    else:
        _show(found, machine)
    if not found.complete:
        LOG.warning("interrupted; this was measured before")
        raise typer.Exit(INTERRUPTED)


def _job(
    prefix: Path,
    int8_prefix: Path | None,
    epoch: int | None,
    batches: tuple[int, ...],
    shape: Sequence[str] | None,
    seconds: float,
    warmup: int,
) -> Job:
    """What to time; a network that does not load or run fails here, before there are processes."""
    start_mxnet(quiet=True)
    from mxq import runtime
    from mxq.bench.processes import Job
    from mxq.bench.timing import random_feeds

    timed = prefix if int8_prefix is None else int8_prefix
    model = runtime.load_model(timed, None if int8_prefix is not None else epoch)
    shapes = shapes_of(model, shape, prefix, int8_prefix)
    runtime.serve(model, random_feeds(model, shapes, batches[0]))()
    return Job(timed, shapes, batches, seconds, warmup, None if int8_prefix is not None else epoch)


def _show(found: Sweep, machine: Machine) -> None:
    from mxq.host.cores import launch_lines
    from mxq.reporting import tables

    show(tables.sweep(found))
    soonest, most = found.latency, found.throughput
    if soonest is None or most is None or soonest.reading is None or most.reading is None:
        return
    for row, what in (
        (soonest, f"least latency, {soonest.reading.median * 1e3:.2f} ms"),
        (most, f"most throughput, {most.reading.rate:,.1f} examples/s"),
    ):
        lines = [f"{what} at batch {row.batch}:", *launch_lines(row.setup.sets, machine)]
        tell("\n" + "\n  ".join(lines))
