"""``mxq verify``, ``mxq bench`` and ``mxq doctor``."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.cli import sweeping
from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, progress, say, show, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import (
    DATA,
    Epoch,
    Json,
    Labels,
    NumExamples,
    Pictures,
    Prefix,
    option,
    prefix_of,
    shapes_of,
)
from mxq.data.feeding import BATCH, LAYER_BATCH
from mxq.errors import ConfigError

TARGET_WORDS = {"avx512_vnni": "AVX-512 with VNNI", "avx512": "AVX-512 without VNNI", "avx2": "AVX2"}

if TYPE_CHECKING:
    from mxq.host.machine import Machine


@command
def verify(
    float_prefix: Annotated[
        Path, typer.Argument(metavar="FLOAT", help="Prefix of the float network.", show_default=False)
    ],
    int8_prefix: Annotated[
        Path, typer.Argument(metavar="INT8", help="Prefix of what was made of it.", show_default=False)
    ],
    data: Annotated[Path, option(metavar="PATH", help=DATA)],
    layers: Annotated[
        bool, option("--layers", help="Compare every layer, to find which ones introduce noise.")
    ] = False,
    min_agreement: Annotated[
        float | None,
        option(min=0, max=1, metavar="SHARE", help="Fail (exit code 1) below this share of equal answers, 0..1."),
    ] = None,
    min_sqnr: Annotated[
        float | None, option(metavar="DB", help="Fail (exit code 1) below this SQNR of the outputs.")
    ] = None,
    num_examples: NumExamples = None,
    batch_size: Annotated[
        int | None,
        option(min=1, metavar="N", help=f"Examples to a batch; {BATCH} by default, {LAYER_BATCH} with --layers."),
    ] = None,
    labels: Labels = None,
    *,
    pictures: Pictures,
    as_json: Json = False,
) -> None:
    """Compare the INT8 network with the float one: equal answers, noise, accuracy where labels are known."""
    float_prefix, int8_prefix = prefix_of(float_prefix), prefix_of(int8_prefix)
    preparation = pictures.preparation(float_prefix)
    start_mxnet()
    from mxq import workflow

    measured = workflow.Measured(data, labels, examples=num_examples)
    pair = float_prefix, int8_prefix
    found = workflow.verify(*pair, measured, preparation, layers=layers, batch_size=batch_size, progress=progress)
    failures = found.failures(min_agreement, min_sqnr)
    if as_json:
        print_json({**found.to_json(), "failures": list(failures)})
    else:
        show_result(found)
    for failure in failures:
        say(f"mxq: check failed: {failure}")
    if failures:
        raise typer.Exit(FAILED)


@command
def bench(
    prefix: Prefix,
    int8_prefix: Annotated[
        Path | None, typer.Argument(metavar="INT8", help="Prefix of what was made of it.", show_default=False)
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        option(
            min=1,
            metavar="N",
            help="Examples to a batch; 1 by default, with --sweep 1 and 16. May be repeated with --sweep.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        option(
            "--shape",
            metavar="[INPUT=]C,H,W",
            help="Shape of one example, without the batch. May be repeated, one for each input.",
        ),
    ] = None,
    repeats: Annotated[
        int, option(min=1, metavar="N", show=True, help="Rounds that count; each runs every network once.")
    ] = 50,
    warmup: Annotated[int, option(min=0, metavar="N", show=True, help="Rounds before them that do not.")] = 10,
    epoch: Epoch = None,
    sweep: Annotated[
        bool,
        option(
            "--sweep",
            help="Instead: try numbers of threads and of processes side by side, with the INT8 network where it is "
            "given, and say how to start the best.",
        ),
    ] = False,
    seconds: Annotated[
        float, option(min=0.0, metavar="S", show=True, help="How long --sweep times each combination.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Time the float network, the same with fused kernels, and the INT8 network, in turn."""
    prefix = prefix_of(prefix)
    int8_prefix = None if int8_prefix is None else prefix_of(int8_prefix)
    if sweep:
        sweeping.run(prefix, int8_prefix, epoch, batch_size or sweeping.BATCHES, shape, seconds, warmup, as_json)
        return
    if batch_size is not None and len(batch_size) > 1:
        raise ConfigError(f"--batch-size is given {len(batch_size)} times; allowed: once, or with --sweep")
    batch = batch_size[0] if batch_size else 1
    start_mxnet()
    from mxq import pipeline, runtime, workflow
    from mxq.bench import timing
    from mxq.report import tables

    pair = None if int8_prefix is None else workflow.pair_of(prefix, int8_prefix, epoch=epoch)
    model = runtime.load_model(prefix, epoch) if pair is None else pair.float
    models = {"fp32": model, "fp32 fused": pipeline.fuse_float(model, runtime.MxnetRunner())}
    if pair is not None:
        models["int8"] = pair.int8
    shapes = shapes_of(model, shape, prefix)
    given = {name: timing.random_feeds(m, shapes, batch) for name, m in models.items()}
    feeds = given["fp32"]
    candidates = {name: runtime.serve(m, given[name]) for name, m in models.items()}
    with progress("timing", warmup + repeats) as step:
        found = timing.bench(candidates, repeats=repeats, warmup=warmup, examples=batch, progress=step)
    threads = os.environ.get("OMP_NUM_THREADS", "?")
    if as_json:
        print_json({"threads": threads, "shapes": {k: list(v.shape) for k, v in feeds.items()}, **found.to_json()})
        return
    show(tables.benchmark(found))
    inputs = ", ".join(f"{k} {'x'.join(map(str, v.shape))}" for k, v in feeds.items())
    show(
        tables.facts(
            [("input", inputs), ("threads", threads), ("rounds", f"{repeats}, in turn, after {warmup} to warm up")]
        )
    )


@command
def doctor(
    prefix: Annotated[
        Path | None,
        typer.Argument(metavar="PREFIX", help="A quantized network, to check its files too.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe the machine, the threads MXNet uses, and what to set before measuring or serving."""
    from mxq.artifacts import record
    from mxq.host import machine as machines
    from mxq.report import tables

    machine, environ = machines.detect(), dict(os.environ)
    report = None if prefix is None else record.read(prefix_of(prefix))
    hints = machines.advice(machine, environ, None if report is None else report.target)
    picked = machines.threads_mxnet_would_pick(machine, environ)
    best = machines.recommended_threads(machine)
    start_mxnet(quiet=True)
    from mxq import runtime

    versions, onednn = runtime.versions(), runtime.features()["MKLDNN"]
    if not onednn:
        hints.append(
            "this MXNet was built without oneDNN (MKLDNN), which has the int8 kernels: pip install mxnet==1.9.1"
        )
    broken = () if prefix is None else record.check(prefix_of(prefix))
    if report is not None:
        hints += map(str, broken)
        hints += [
            f"{prefix} was made with {k} {v}, here is {versions[k]}"
            for k, v in report.versions.items()
            if versions.get(k, v) != v
        ]
    if as_json:
        facts = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(machine).items()}
        facts |= {"cpus": machine.cpus, "target": machine.target, "saturates": machine.saturates}
        threads: dict[str, object] = {"mxnet": picked, "recommended": best}
        threads["variables"] = {name: environ.get(name) for name in ("OMP_NUM_THREADS", machines.COPY_SIZE)}
        print_json({"machine": facts, "versions": versions, "onednn": onednn, "threads": threads, "advice": hints})
    else:
        listed = "\n".join(f"- {hint}" for hint in hints) or "Nothing needs to be set."
        show(tables.facts(_found(machine, environ, picked, best, versions, onednn)), listed)
    for mismatch in broken:
        say(f"mxq: check failed: {mismatch}")
    if broken:
        raise typer.Exit(FAILED)


def _found(
    machine: Machine, environ: Mapping[str, str], picked: int, best: int, versions: Mapping[str, str], onednn: bool
) -> list[tuple[str, str]]:
    """What there is, in rows of a table."""
    from mxq.host import machine as machines

    asked = environ.get("OMP_NUM_THREADS", "")
    return [
        ("CPU", machine.model),
        ("int8 kernels", _kernels(machine)),
        ("cores", _cores(machine)),
        ("OMP_NUM_THREADS", f"{asked or 'not set'}: MXNet runs on {picked}; {best} would be best"),
        (machines.COPY_SIZE, _copies(environ[machines.COPY_SIZE])),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("oneDNN", "inside MXNet" if onednn else "missing"),
    ]


def _copies(size: str) -> str:
    from mxq.host import machine as machines

    if size == machines.NEVER:
        return f"{size}: no second team of threads; set it too where MXNet serves without mxq"
    return f"{size}: copies of as many values start a second team of threads; {machines.NEVER} would be best"


def _kernels(machine: Machine) -> str:
    exact = "sums of two products may saturate" if machine.saturates else "exact"
    return f"{TARGET_WORDS[machine.target]}, {exact}" if machine.target != "unsupported" else "none worth using"


def _cores(machine: Machine) -> str:
    threads = f", {machine.threads_per_core:g} hardware threads each" if machine.cpus != machine.cores else ""
    quota = "" if machine.quota is None else f"; {machine.quota:g} CPUs' time granted"
    nodes = len({core.node for core in machine.topology})
    return f"{machine.cores}{threads}{f' on {nodes} NUMA nodes' if nodes > 1 else ''}{quota}"
