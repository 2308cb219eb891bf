"""``mxq bench``: how long networks take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from mxq.cli import bench_runtimes, bench_sweep
from mxq.cli.app import command
from mxq.cli.console import print_json, progress, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Epoch, Json, PrefixOrFile, Runtimes, option, prefix_of, shapes_of
from mxq.errors import ConfigError

MOST_ROUNDS: Final = 1_000_000


@command
def bench(
    prefix: PrefixOrFile,
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INT8",
            help="Prefix of what was made of it; or ONNX files, which run in ONNX Runtime and OpenVINO.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        option(
            min=1,
            metavar="N",
            help="Examples to a batch; 1 by default, with --sweep 1 and 16. May be repeated with that and --runtimes.",
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
        int,
        option(min=1, max=MOST_ROUNDS, metavar="N", show=True, help="Rounds that count; each runs every network once."),
    ] = 50,
    warmup: Annotated[
        int, option(min=0, max=MOST_ROUNDS, metavar="N", show=True, help="Rounds before them that do not.")
    ] = 10,
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
        float, option(min=0.0, max=3600.0, metavar="S", show=True, help="How long --sweep times each combination.")
    ] = 2.0,
    runtimes: Annotated[
        bool,
        option(
            "--runtimes",
            help="Instead: which of the given is fastest, pairs in MXNet and ONNX files in each runtime, and how to "
            "start that.",
        ),
    ] = False,
    runtime_names: Runtimes = None,
    as_json: Json = False,
) -> None:
    """Time the float network, the same with fused kernels, the INT8 network, and ONNX files, in turn."""
    asked = bench_runtimes.Asked(epoch, shape, runtime_names, repeats, warmup, as_json)
    if runtimes:
        bench_runtimes.race((prefix, *(others or ())), batch_size or (1,), asked)
        return
    prefix, int8_prefix, files = _sorted(prefix, others or ())
    if sweep:
        if files:
            raise ConfigError(f"--sweep is given with {files[0]}; allowed: pairs, or ONNX files without --sweep")
        bench_sweep.run(prefix, int8_prefix, epoch, batch_size or bench_sweep.BATCHES, shape, seconds, warmup, as_json)
        return
    if batch_size is not None and len(batch_size) > 1:
        raise ConfigError(
            f"--batch-size is given {len(batch_size)} times; allowed: once, or with --sweep or --runtimes"
        )
    if runtime_names and not files:
        raise ConfigError(f"--runtime is {runtime_names[0]} without an ONNX file; allowed: with one")
    batch = batch_size[0] if batch_size else 1
    if files:
        bench_runtimes.beside((prefix, int8_prefix), files, batch, asked)
        return
    start_mxnet()
    from mxq import runtime, workflow
    from mxq.reporting import tables

    pair = None if int8_prefix is None else workflow.pair_of(prefix, int8_prefix, epoch=epoch)
    model = runtime.load_model(prefix, epoch) if pair is None else pair.float
    shapes = shapes_of(model, shape, prefix, int8_prefix)
    int8 = None if pair is None else pair.int8
    found = workflow.bench(model, int8, shapes, batch, repeats=repeats, warmup=warmup, progress=progress)
    fed = {name: (batch, *shapes[name]) for name in model.inputs}
    threads = os.environ.get("OMP_NUM_THREADS", "?")
    if as_json:
        print_json({"threads": threads, "shapes": {k: list(v) for k, v in fed.items()}, **found.to_json()})
        return
    show(tables.benchmark(found))
    inputs = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in fed.items())
    show(
        tables.facts(
            [("input", inputs), ("threads", threads), ("rounds", f"{repeats}, in turn, after {warmup} to warm up")]
        )
    )


def _sorted(first: Path, others: Sequence[Path]) -> tuple[Path, Path | None, tuple[Path, ...]]:
    """The float network, what was made of it, and the ONNX files.

    Raises:
        ConfigError: the first is an ONNX file, or there are several of the second.
    """
    from mxq.formats.onnx_file import is_onnx

    pairs, files = [p for p in others if not is_onnx(p)], tuple(p for p in others if is_onnx(p))
    if is_onnx(first):
        raise ConfigError(f"{first} is an ONNX file; allowed: a float network before it, or --runtimes")
    if len(pairs) > 1:
        raise ConfigError(f"{len(pairs)} pairs are given beside {first}; allowed: one, and ONNX files; or --runtimes")
    return prefix_of(first), prefix_of(pairs[0]) if pairs else None, files
