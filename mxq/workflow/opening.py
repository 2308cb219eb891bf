"""Calibration data and data to measure on, opened for a network: paths, and how pictures there are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from mxq import runtime
from mxq.artifacts import record
from mxq.calibration.statistics import Statistics
from mxq.config import QuantConfig, Shape
from mxq.data.examples import Source, open_source
from mxq.data.feeding import BATCH, peeked
from mxq.data.preparation import Preparation, beside, recorded
from mxq.data.preprocess import RAW
from mxq.distributed import Partitions
from mxq.errors import ConfigError, DataError
from mxq.evaluation import Function, Metric
from mxq.formats.reading import path_given
from mxq.graph.ir import Model
from mxq.logs import LOG
from mxq.quant.plan import Report
from mxq.quant.thresholds import Thresholds

PARTITION: Final = 1024
"""Examples to a partition that a worker gets of a folder or file, at most."""

Where: TypeAlias = str | Path


@dataclass(frozen=True, slots=True)
class Given:
    """What ranges are to come from, and what methods for weights look at.

    Attributes:
        data: examples in any form of `mxq.data`; `Partitions`; or the path of a folder of images, a .npy or .npz.
        thresholds: ranges found before; then nothing else is asked for them.
        statistics: a file of statistics, or what was read from it, that ranges are taken from instead of ``data``.
        stats: a file to keep the statistics of ``data`` in; without data it is read.
        preparation: how pictures are read; what is known of the network where None.
        batch_size: examples to a batch, of whole arrays and of files.
        client: of Dask, whose workers share ``data``, a path or `Partitions`.
    """

    data: object = None
    thresholds: Thresholds | None = None
    statistics: Statistics | Where | None = None
    stats: Path | None = None
    preparation: Preparation | None = None
    batch_size: int = BATCH
    client: Any = None

    def __post_init__(self) -> None:
        """Raises ConfigError for what are no ranges, and no statistics."""
        if not isinstance(self.thresholds, Thresholds | None):
            raise ConfigError(
                f"thresholds is {self.thresholds!r}; allowed: what mxq.calibrate returns, or Thresholds.from_json"
            )
        if not isinstance(self.statistics, Statistics | None):
            path_given("statistics", self.statistics)


@dataclass(frozen=True, slots=True)
class Measured:
    """What networks are to be scored by.

    Attributes:
        data: as of `Given`, with labels where there are any; None: that of `Given`, see `_judge`.
        labels: (examples, ...), or for a path a file like labels.csv.
        metric: see `mxq.evaluation`.
        function: from a network, as a Gluon block, to its score, instead of data.
        examples: so many of a path's, spread evenly; all where None.
        noise: whether to pay no attention to labels.
    """

    data: object = None
    labels: Any = None
    metric: Metric[Any] | Function | None = None
    function: Callable[[Any], float] | None = None
    examples: int | None = None
    noise: bool = False


def preparation_of(net: runtime.Net, config: QuantConfig | None = None) -> Preparation:
    """How pictures become inputs of ``net``: as ``config`` says, else its files, else the record that a block bears."""
    if config is not None and config.preprocess is not None:
        return Preparation.given(config.preprocess)
    if isinstance(net, str | Path):
        return beside(net)
    report = report_in(net)
    settings = None if report is None else recorded(report)
    return Preparation() if settings is None else Preparation.given(settings, "as the network's record says")


def settled(net: runtime.Net, given: Given, preparation: Preparation) -> Given:
    """``given``, of whose data a block that waits for shapes has seen the first batch, as if the user had run it once.

    Raises:
        DataError: the data has no batch for it.
        QuantizeError: the block does not run on the batch.
    """
    data = given.data
    if data is None or isinstance(data, Partitions) or not runtime.is_deferred(net):
        return given
    names = runtime.arguments(net)
    if isinstance(data, str | Path):
        source = open_source(data, names, preparation.settings, given.batch_size)
        runtime.settle(net, peeked(source, names, given.batch_size)[0])
        return given
    feed, data = peeked(data, names, given.batch_size)
    runtime.settle(net, feed)
    return replace(given, data=data)


def open_data(
    data: object,
    model: Model,
    preparation: Preparation,
    batch_size: int = BATCH,
    labels: Where | None = None,
    logger: logging.Logger | None = LOG,
) -> Any:
    """A path as the `Source` of what is there, other data as it is.

    Args:
        data: see `Given`.
        model: whose inputs are fed.
        preparation: how pictures are read.
        batch_size: examples to a batch.
        labels: a file like labels.csv, for a folder.
        logger: is told by what pictures are prepared, or warned that nothing says it; not where None.

    Raises:
        DataError: nothing there that can be used.
    """
    if not isinstance(data, str | Path):
        return data
    source = open_source(data, model.inputs, preparation.settings, batch_size, labels)
    if logger is not None and source.pictures and not preparation.normalized:
        logger.warning(RAW)
    elif logger is not None and source.pictures:
        logger.info("pictures are prepared %s", preparation.origin)
    return source


def open_labelled(
    measured: Measured, model: Model, preparation: Preparation, batch_size: int, logger: logging.Logger | None
) -> tuple[Any, Any]:
    """The data to measure on, opened by `open_data`, and the labels where they are not in it.

    Raises:
        ConfigError: labels are a path, but the data is none.
        DataError: nothing there that can be used.
    """
    data, labels = measured.data, measured.labels
    file = labels if isinstance(labels, str | Path) else None
    if file is not None and not isinstance(data, str | Path):
        raise ConfigError(f"labels is the path {str(file)!r} beside a {type(data).__name__}; allowed: an array")
    data = open_data(data, model, preparation, batch_size, file, logger)
    if isinstance(data, Source):
        data = data if measured.examples is None else data.take(measured.examples)
        data = replace(data, labels=None) if measured.noise else data
    return data, None if file is not None else labels


def check_labelled(measured: Measured, data: Any, labels: Any, what: str = "") -> None:
    """Whether data at a path has labels; for what is given in memory those say so who read it.

    Args:
        measured: as given.
        data, labels: what `open_labelled` made of it.
        what: it is, in the message.

    Raises:
        DataError: it has none.
    """
    if data is not measured.data and data.labels is None and labels is None:
        raise DataError(
            f"{f'{what} {measured.data}'.lstrip()} has no labels; allowed: a folder with labels.csv (or --labels), "
            "an .npz with labels"
        )


def partitions(
    data: Where,
    model: Model,
    preparation: Preparation,
    batch_size: int,
    count: int,
    client: Any,
    labels: Where | None = None,
) -> Partitions:
    """``count`` of the examples in parts of whole batches: several for each worker, so that all end together."""
    batches = -(-count // batch_size)
    each = max(1, min(PARTITION // batch_size, -(-batches // (4 * max(1, len(client.nthreads()))))))
    settings, size = preparation.settings, each * batch_size
    return Partitions.images(data, model.inputs, settings, batch_size, size, labels=labels, examples=count)


def on_workers(
    measured: Measured, count: int, model: Model, preparation: Preparation, batch_size: int, client: Any
) -> Partitions:
    """A path to measure on, in parts."""
    labels = measured.labels if isinstance(measured.labels, str | Path) else None
    return partitions(str(measured.data), model, preparation, batch_size, count, client, labels)


def report_in(net: runtime.Net) -> Report | None:
    """The report that a block bears, or what `mxq.quantize_model` returned."""
    report = getattr(net, "report", None) or getattr(net, runtime.BLOCK_ATTRIBUTE, None)
    return report if isinstance(report, Report) else None


def shapes_said(net: runtime.Net, model: Model) -> dict[str, Shape]:
    """Input -> shape of one example, as the network itself says, or the preprocess.json beside it; of those known."""
    noted = {name: model.graph[name].note.input_shape for name in model.inputs}
    alone = isinstance(net, str | os.PathLike) and len(model.inputs) == 1
    shape = beside(Path(net)).settings.shape if alone else None
    said = {} if shape is None else {model.inputs[0]: shape}
    own = report_of(net)
    seen = {} if own is None else {k: v for k, v in record.shapes_of(own).items() if k in model.inputs}
    return seen | said | {name: shape for name, shape in noted.items() if shape}


def report_of(net: runtime.Net) -> Report | None:
    """The report of a network: of a prefix the one beside it, where there is one."""
    if isinstance(net, str | Path):
        return record.read(net) if record.recorded(net) else None
    return report_in(net)
