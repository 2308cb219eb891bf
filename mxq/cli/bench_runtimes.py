"""``mxq bench`` with ONNX files, and ``mxq bench --runtimes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxq.cli.console import print_json, progress, show, show_result
from mxq.cli.networks import start_mxnet
from mxq.cli.options import prefix_of, shapes_given


@dataclass(frozen=True)
class Rounds:
    """How many count, and how many come before."""

    repeats: int
    warmup: int


def race(
    networks: Sequence[Path],
    epoch: int | None,
    batches: Sequence[int],
    shape: Sequence[str] | None,
    rounds: Rounds,
    runtimes: Sequence[str] | None,
    as_json: bool,
) -> None:
    """Times all of ``networks`` in all runtimes, and shows which is best."""
    from mxq.formats.onnx_file import is_onnx

    start_mxnet()
    from mxq import runtime, workflow

    nets: list[Any] = [path if is_onnx(path) else prefix_of(path) for path in networks]
    if epoch is not None and not is_onnx(nets[0]):
        nets[0] = runtime.load_model(nets[0], epoch)
    found = workflow.best_runtime(
        nets,
        batch_sizes=batches,
        shapes=shapes_given(shape),
        runtimes=runtimes,
        repeats=rounds.repeats,
        warmup=rounds.warmup,
        progress=progress,
    )
    print_json(found.to_json()) if as_json else show_result(found)


def beside(
    prefixes: tuple[Path, Path | None],
    files: Sequence[Path],
    epoch: int | None,
    batch: int,
    shape: Sequence[str] | None,
    rounds: Rounds,
    runtimes: Sequence[str] | None,
    as_json: bool,
) -> None:
    """Times the float network, plain and fused, and the INT8 one in MXNet, and ``files`` in each runtime, in turn."""
    start_mxnet()
    from mxq import pipeline, runtime, workflow
    from mxq.reporting import tables

    prefix, int8_prefix = prefixes
    pair = None if int8_prefix is None else workflow.pair_of(prefix, int8_prefix, epoch=epoch)
    model = runtime.load_model(prefix, epoch) if pair is None else pair.float
    nets: dict[str, Any] = {"fp32": prefix if epoch is None else model}
    nets["fp32 fused"] = pipeline.fuse_float(model, runtime.MxnetRunner())
    nets |= {} if pair is None else {"int8": int8_prefix}
    nets |= {str(file): file for file in files}
    found, place = workflow.bench_files(
        nets,
        batch_size=batch,
        shapes=shapes_given(shape),
        runtimes=runtimes,
        repeats=rounds.repeats,
        warmup=rounds.warmup,
        progress=progress,
    )
    if as_json:
        print_json({"threads": place.threads, "cpus": list(place.cpus), **found.to_json()})
        return
    turns = f"{rounds.repeats}, in turn, after {rounds.warmup} to warm up; each in a process of its own"
    show(tables.benchmark(found), tables.facts([("threads", str(place.threads)), ("rounds", turns)]))
