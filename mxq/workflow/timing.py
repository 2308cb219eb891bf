"""How long the forms of a network take, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mxq import pipeline, runtime
from mxq.bench import timing
from mxq.bench.timing import FLOAT, FUSED, INT8, Benchmark
from mxq.graph.ir import Model
from mxq.workflow.comparing import Progress, silent


def bench(
    net: Model,
    int8: Model | None,
    shapes: Mapping[str, Sequence[int]],
    batch_size: int,
    *,
    repeats: int,
    warmup: int,
    progress: Progress = silent,
) -> Benchmark:
    """Times a float network, the same with fused kernels, and what was made of it, on noise.

    Args:
        net: the float network.
        int8: what was made of it, if anything.
        shapes: input -> shape of one example, without the batch.
        batch_size: examples to a batch.
        repeats, warmup: rounds that count, and rounds before them; each runs every network once.
        progress: shows how far it is.

    Raises:
        ConfigError: a batch would be too large, or a count is none.
    """
    models = {FLOAT: net, FUSED: pipeline.fuse_float(net, runtime.MxnetRunner())}
    if int8 is not None:
        models[INT8] = int8
    given = {name: timing.random_feeds(model, shapes, batch_size) for name, model in models.items()}
    candidates = {name: runtime.serve(model, given[name]) for name, model in models.items()}
    with progress("timing", warmup + repeats) as step:
        return timing.bench(candidates, repeats=repeats, warmup=warmup, examples=batch_size, progress=step)
