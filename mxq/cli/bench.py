"""``mxq bench``: how long networks take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from mxq.cli import bench_sweep
from mxq.cli.app import command
from mxq.cli.console import print_json, progress, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Epoch, Json, Prefix, option, prefix_of, shapes_of
from mxq.errors import ConfigError

MOST_ROUNDS: Final = 1_000_000


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
    as_json: Json = False,
) -> None:
    """Time the float network, the same with fused kernels, and the INT8 network, in turn."""
    prefix = prefix_of(prefix)
    int8_prefix = None if int8_prefix is None else prefix_of(int8_prefix)
    if sweep:
        bench_sweep.run(prefix, int8_prefix, epoch, batch_size or bench_sweep.BATCHES, shape, seconds, warmup, as_json)
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
