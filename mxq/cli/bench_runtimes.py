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
class Asked:
    """What a command asks for, beside networks and batch sizes.

    Attributes:
        epoch: which parameters of the first network.
        shape: as ``--shape`` has it.
        runtimes: those for ONNX files; all that are installed where None.
        repeats, warmup: how many rounds count, and how many come before.
        as_json: whether the result is shown so.
    """

    epoch: int | None
    shape: Sequence[str] | None
    runtimes: Sequence[str] | None
    repeats: int
    warmup: int
    as_json: bool

    @property
    def timing(self) -> dict[str, Any]:
        """What `mxq.workflow` is told of it."""
        return {
            "shapes": shapes_given(self.shape),
            "runtimes": self.runtimes,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "progress": progress,
        }


def race(networks: Sequence[Path], batches: Sequence[int], asked: Asked) -> None:
    """Times all of ``networks`` in all runtimes, and shows which is best."""
    from mxq.formats.onnx_file import is_onnx

    start_mxnet()
    from mxq import runtime, workflow

    nets: list[Any] = [path if is_onnx(path) else prefix_of(path) for path in networks]
    if asked.epoch is not None and not is_onnx(nets[0]):
        nets[0] = runtime.load_model(nets[0], asked.epoch)
    found = workflow.best_runtime(nets, batch_sizes=batches, **asked.timing)
    print_json(found.to_json()) if asked.as_json else show_result(found)


def beside(prefixes: tuple[Path, Path | None], files: Sequence[Path], batch: int, asked: Asked) -> None:
    """Times the float network, plain and fused, and the INT8 one in MXNet, and ``files`` in each runtime, in turn."""
    start_mxnet()
    from mxq import pipeline, runtime, workflow
    from mxq.bench.timing import FLOAT, FUSED, INT8
    from mxq.reporting import tables

    prefix, int8_prefix = prefixes
    pair = None if int8_prefix is None else workflow.pair_of(prefix, int8_prefix, epoch=asked.epoch)
    model = runtime.load_model(prefix, asked.epoch) if pair is None else pair.float
    nets: dict[str, Any] = {FLOAT: prefix if asked.epoch is None else model}
    nets[FUSED] = pipeline.fuse_float(model, runtime.MxnetRunner())
    nets |= {} if pair is None else {INT8: int8_prefix}
    nets |= {str(file): file for file in files}
    found, place = workflow.bench_files(nets, batch_size=batch, **asked.timing)
    if asked.as_json:
        print_json({"threads": place.threads, "cpus": list(place.cpus), **found.to_json()})
        return
    turns = f"{asked.repeats}, in turn, after {asked.warmup} to warm up; each in a process of its own"
    show(tables.benchmark(found), tables.facts([("threads", str(place.threads)), ("rounds", turns)]))
