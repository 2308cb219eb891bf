"""A page about a quantized network: both networks run on data, timed, drawn, and what was decided for each operator."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mxq import runtime
from mxq.data.feeding import LAYER_BATCH
from mxq.data.preparation import Preparation
from mxq.drawing import scene_of
from mxq.host import machine
from mxq.logs import LOG
from mxq.reporting.page import Findings, page
from mxq.storage.checksums import sizes_of
from mxq.storage.writing import check_suffix, write_text
from mxq.workflow.comparing import Progress, examples_of, pair_of, recorded_of, run, short_name, silent
from mxq.workflow.opening import Measured, preparation_of
from mxq.workflow.timing import bench

SUFFIXES = (".html", ".htm")
REPEATS, WARMUP = 20, 3
"""Rounds of a timing."""


def report(
    float_net: runtime.Net,
    int8_net: runtime.Net,
    measured: Measured,
    path: Path,
    preparation: Preparation | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> Path:
    """Writes one HTML page, which needs no other file and no network access.

    Args:
        float_net, int8_net: see `mxq.workflow.comparing.pair_of`.
        measured: the data that both run on, with labels where accuracy is asked for.
        path: the page, .html.
        preparation: how pictures are read; where None, as is known of the float network.
        batch_sizes: which batches are timed; none where empty.
        logger: receives what is said meanwhile.
        progress: shows how far it is.

    Raises:
        ConfigError: another suffix, a batch size below 1, or a library that draws is missing.
        DataError, FormatError, StorageError: data or a file cannot be read, or the page not written.
    """
    check_suffix(path, "page", SUFFIXES)
    pair = pair_of(float_net, int8_net, logger=logger)
    prepared = preparation or preparation_of(float_net)
    examples = examples_of(measured, pair.float, prepared, LAYER_BATCH, logger).held()
    verified = run(pair, int8_net, examples, layers=True, progress=progress)
    feed = next(iter(examples.read()[0]))
    shapes = {name: np.asarray(value).shape[1:] for name, value in feed.items()}
    timed = {
        size: bench(pair.float, pair.int8, shapes, size, repeats=REPEATS, warmup=WARMUP, progress=progress)
        for size in batch_sizes
    }
    found = Findings(
        pair.float,
        pair.int8,
        (scene_of(pair.float, "FP32"), scene_of(pair.int8, "INT8")),
        recorded_of(int8_net),
        verified,
        timed,
        _bytes(float_net, int8_net),
        f"{short_name(int8_net)}: INT8 beside float32",
        _made(),
    )
    return write_text(path, page(found))


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
