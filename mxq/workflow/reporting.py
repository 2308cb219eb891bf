"""A page about a quantized network: both networks run on data, timed, drawn, and what was decided for each operator."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mxq import pipeline, runtime
from mxq.bench.timing import FLOAT, FUSED, INT8, Benchmark
from mxq.calibration.collect import collect
from mxq.config import QuantConfig, Shape
from mxq.data.feeding import LAYER_BATCH, feeds
from mxq.data.preparation import Preparation
from mxq.drawing import scene_of
from mxq.drawing.libraries import check_page
from mxq.errors import ConfigError
from mxq.graph.ir import Model
from mxq.host import machine
from mxq.logs import LOG
from mxq.quant.plan import Report
from mxq.reporting.additions import Additions
from mxq.reporting.distributions import Distribution, of_tensors, of_weights
from mxq.reporting.page import Findings, page
from mxq.storage.checksums import sizes_of
from mxq.storage.writing import write_text
from mxq.workflow.comparing import Examples, Pair, Progress, examples_of, pair_of, run, short_name, silent
from mxq.workflow.opening import Measured, preparation_of, report_of
from mxq.workflow.racing import bench_files
from mxq.workflow.timing import bench

REPEATS, WARMUP = 20, 3
"""Rounds of a timing."""
PAGE_EXAMPLES = 64
"""Examples of a page that is written on the way, as by ``mxq quantize --report``."""


def report(
    float_net: runtime.Net,
    int8_net: runtime.Net,
    measured: Measured,
    path: Path,
    preparation: Preparation | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    files: Sequence[Path] = (),
    added: Iterable[Any] = (),
    most: int | None = None,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> Path:
    """Writes one HTML page, which needs no other file and no network access.

    Args:
        float_net, int8_net: see `mxq.workflow.comparing.pair_of`.
        measured: the data that both run on, with labels where accuracy is asked for.
        path: the page, .html.
        preparation: how pictures are read; where None, as is known of the float network, or recorded of the other.
        batch_sizes: which batches are timed; none where empty.
        files: ONNX files of the network, which are timed beside it in each runtime that is installed.
        added: what else is shown, see `mxq.reporting.additions`.
        most: of the examples; all where None.
        logger: receives what is said meanwhile.
        progress: shows how far it is.

    Raises:
        ConfigError: another suffix, a batch size below 1, or a library that draws is missing.
        DataError, FormatError, StorageError: data or a file cannot be read, or the page not written.
    """
    check_page(path)
    extra = Additions.of(added)
    pair = pair_of(float_net, int8_net, logger=logger)
    prepared = preparation or preparation_of(float_net)
    prepared = prepared if prepared.origin else preparation_of(int8_net)
    examples = examples_of(measured, pair.float, prepared, LAYER_BATCH, logger)
    examples = examples.held() if most is None else examples.first(most)
    verified = run(pair, int8_net, examples, layers=True, progress=progress)
    feed = next(iter(examples.read()[0]))
    shapes = {name: np.asarray(value).shape[1:] for name, value in feed.items()}
    timed = {size: _timed(pair, float_net, int8_net, files, shapes, size, progress) for size in batch_sizes}
    known = report_of(int8_net)
    found = Findings(
        pair.float,
        pair.int8,
        (scene_of(pair.float, "FP32"), scene_of(pair.int8, "INT8")),
        known,
        verified,
        timed,
        _bytes(float_net, int8_net),
        f"{short_name(int8_net)}: INT8 beside float32",
        _made(),
        _tensors(pair.float, examples, known),
        of_weights(pair.int8),
        extra,
    )
    return write_text(path, page(found))


def check_rereadable(argument: str, data: object) -> None:
    """Whether the data that is an ``argument`` of the caller can be read again for a page.

    Raises:
        ConfigError: there is none, or it is a generator.
    """
    if data is None or (isinstance(data, Iterator) and not hasattr(data, "reset")):
        found = "None" if data is None else f"a {type(data).__name__}, which can be read once"
        raise ConfigError(f"report is given, but {argument} is {found}; allowed: data that can be read again")


def _timed(
    pair: Pair,
    float_net: runtime.Net,
    int8_net: runtime.Net,
    files: Sequence[Path],
    shapes: Mapping[str, Shape],
    size: int,
    progress: Progress,
) -> Benchmark:
    """At one batch size: both networks, the float one with fused kernels, and the files."""
    if not files:
        return bench(pair.float, pair.int8, shapes, size, repeats=REPEATS, warmup=WARMUP, progress=progress)
    fused = pipeline.fuse_float(pair.float, runtime.MxnetRunner())
    nets = {FLOAT: float_net, FUSED: fused, INT8: int8_net, **{file.name: file for file in files}}
    return bench_files(nets, batch_size=size, shapes=shapes, repeats=REPEATS, warmup=WARMUP, progress=progress)[0]


def _tensors(model: Model, examples: Examples, known: Report | None) -> dict[str, Distribution]:
    """The values of each tensor of the float network that INT8 could have codes for, over a part of the examples."""
    config = QuantConfig(calib_mode="auto", effort="fast")
    prepared = pipeline.plan(model, config, runtime.MxnetRunner())
    wanted = pipeline.wanted(prepared)
    if not wanted:
        return {}
    batches = feeds(examples.data, prepared.fused.arguments, config.budget, batch_size=examples.batch_size)
    seen = collect(runtime.MxnetRunner(), prepared.fused, batches, wanted, progress=False)
    return of_tensors(seen, known)


def _bytes(*nets: runtime.Net) -> tuple[int, ...]:
    """What the files of each take; empty where one is in memory."""
    prefixes = [Path(net) for net in nets if isinstance(net, str | Path)]
    return tuple(sum(sizes_of(prefix).values()) for prefix in prefixes) if len(prefixes) == len(nets) else ()


def _made() -> list[tuple[str, str]]:
    """Where the figures were taken."""
    versions = ", ".join(f"{name} {version}" for name, version in runtime.versions().items())
    found = machine.detect()
    threads = os.environ.get("OMP_NUM_THREADS", "?")
    return [("CPU", f"{found.model} ({found.target})"), ("threads", threads), ("versions", versions)]
