"""Many networks from one calibration: the layers that suffer most, and the fastest network that is accurate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mxq import runtime, tuning
from mxq.config import QuantConfig
from mxq.data.examples import Source
from mxq.data.labelled import is_whole
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError, StorageError
from mxq.formats.reading import path_given
from mxq.logs import LOG
from mxq.qat.schedule import TrainConfig
from mxq.quant.bits import Width
from mxq.storage import locks
from mxq.workflow.making import Opened
from mxq.workflow.opening import Given, Measured, Where, check_labelled, on_workers, open_labelled


def sensitivity(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    measured: Measured | None = None,
    *,
    mode: str = tuning.BOTH,
    workdir: Where | None = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> tuning.Sensitivity:
    """Each layer alone in int8, or in float; see `mxq.tuning.layer_sensitivity`.

    Args:
        net, given, config, epoch, logger: as of `quantize`.
        measured: what to measure on.
        mode: "one-int8", "one-float", or "both".
        workdir: a folder for the journal and the statistics.
    """
    config = config if config.has_kernels else replace(config, simulate=True)
    with _folder(workdir) as folder:
        kept = None if workdir is None else folder
        opened = _searched(net, given, config, kept, epoch, logger)
        return tuning.sensitivity(opened.material, _judge(opened, measured or Measured()), mode, kept)


@dataclass(frozen=True)
class TrainingData:
    """Labelled data that a search may train on: ``data``, as of `Measured`, and how, ``config``."""

    data: Measured
    config: TrainConfig

    def opened(self, opened: Opened) -> tuning.Training:
        """As the search takes it.

        Raises:
            DataError: data at a path has no labels, or cannot be used.
        """
        given, model = opened.given, opened.prepared.source
        preparation = given.preparation or Preparation()
        data, labels = open_labelled(self.data, model, preparation, self.config.examples, opened.logger)
        check_labelled(self.data, data, labels, "training data")
        return tuning.Training(data, labels, self.config)


def tune(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    measured: Measured | None = None,
    *,
    max_drop: float = 0.005,
    time_budget: float | None = None,
    workdir: Where | None = None,
    training: TrainingData | None = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> tuning.Tuned:
    """The fastest network that is accurate enough; see `mxq.tuning.tune`.

    Args:
        net, given, config, epoch, logger: as of `quantize`.
        measured: what scores a network.
        max_drop: how much less than float is allowed.
        time_budget: seconds, over all runs in ``workdir``.
        workdir: a folder for the journals, the statistics and the best network so far.
        training: data to train on where nothing else meets the bar.
    """
    budget = tuning.Budget(time_budget)
    tuning.check(config, max_drop)
    with _folder(workdir) as folder:
        opened = _searched(net, given, config, folder, epoch, logger)
        judge = _judge(opened, measured or Measured(), answers=True)
        train = None if training is None else training.opened(opened)
        kept = None if workdir is None else folder
        found = tuning.tune(opened.material, judge, max_drop, budget, kept, training=train)
    logger.info(found.verdict)
    return found


def sweep_bits(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    measured: Measured | None = None,
    *,
    hardware: Sequence[str] | None = None,
    widths: Sequence[Width] | None = None,
    workdir: Where | None = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> tuning.BitSweep:
    """The accuracy on all hardware, at all widths, simulated; see `mxq.tuning.bit_sweep`.

    Args:
        net, given, config, epoch, logger: as of `quantize`.
        measured: what to measure on.
        hardware: which; all where None.
        widths: of codes; 8 to 2 where None.
        workdir: a folder for the journal and the statistics.
    """
    names, bits = tuning.asked(config, hardware, widths)
    config = replace(config, simulate=True)
    with _folder(workdir) as folder:
        first = Opened.of(net, given, replace(config, hardware=names[0]), epoch, logger, again=True)
        opened = {name: first.planned_for(replace(first.prepared.config, hardware=name)) for name in names}
        if workdir is not None:
            opened = {name: one.keeping(folder / f"{name}-{tuning.STATISTICS}") for name, one in opened.items()}
        judge = _judge(first, measured or Measured())
        return tuning.swept(
            {name: one.material for name, one in opened.items()}, bits, judge, None if workdir is None else folder
        )


def choose_bits(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    measured: Measured | None = None,
    *,
    mean_bits: float = 4.0,
    choices: Sequence[Width] | None = None,
    workdir: Where | None = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> tuning.MixedBits:
    """Bits for each layer, under a budget; see `mxq.tuning.mixed_bits`.

    Args:
        net, given, config, epoch, logger: as of `quantize`.
        measured: what to measure whole networks on; single layers are held against float on the calibration data.
        mean_bits: the most that weights may have in the mean.
        choices: widths to choose from; 2, 3, 4, 5, 6 and 8 where None.
        workdir: a folder for the journal and the statistics.
    """
    widths = tuning.choices_of(mean_bits, choices)
    if config.bits is not None:
        raise ConfigError(f"bits is {config.bits!r} beside mean_bits; allowed: widths among choices")
    with _folder(workdir) as folder:
        kept = None if workdir is None else folder
        opened = _searched(net, given, replace(config, simulate=True), kept, epoch, logger)
        material, judge = opened.material, _judge(opened, measured or Measured())
        noise = tuning.FloatAgreement(opened.prepared.source, material.data, opened.runner)
        return tuning.choose_bits(material, judge, noise, mean_bits, widths, kept)


def _searched(
    net: runtime.Net, given: Given, config: QuantConfig, folder: Path | None, epoch: int | None, logger: logging.Logger
) -> Opened:
    """What `tune` and `sensitivity` make their networks from; statistics are kept in ``folder``."""
    kept = replace(given, stats=None if folder is None else folder / tuning.STATISTICS)
    config = tuning.wholly_int8(config)
    return Opened.of(net, kept, config, epoch, logger, again=True, planned=tuning.observing_more)


def _judge(opened: Opened, measured: Measured, *, answers: bool = False) -> tuning.Judge:
    """What scores networks.

    Without data of its own it measures on all of the calibration data, with its labels, where that is whole arrays or
    a path; else on the batches that were calibrated on.
    """
    given, model = opened.given, opened.prepared.source
    said = isinstance(given.data, Source) and given.data.pictures  # by what pictures are prepared
    if measured.data is None and measured.function is None and (isinstance(given.data, Source) or is_whole(given.data)):
        measured = replace(measured, data=opened.where or given.data)
    preparation = given.preparation or Preparation()
    logger = None if said else opened.logger
    data, labels = open_labelled(measured, model, preparation, given.batch_size, logger)
    if isinstance(data, Source):
        opened.logger.info("measuring on %d of %s", data.examples, data.description)
        if given.client is not None and data.labels is not None and data is not measured.data:
            data = on_workers(measured, data.examples, model, preparation, given.batch_size, given.client)
    return tuning.judge_of(
        model,
        opened.material.data,
        opened.runner,
        function=measured.function,
        data=data,
        labels=labels,
        metric=measured.metric,
        client=given.client,
        batch_size=given.batch_size,
        answers=answers,
    )


@contextmanager
def _folder(workdir: Where | None) -> Iterator[Path]:
    """The folder ``workdir``, made where it is missing; or one that goes afterwards."""
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="mxq-") as folder:
            yield Path(folder)
        return
    where = path_given("workdir", workdir)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"workdir {str(workdir)!r} cannot be made: {why}") from error
    with locks.alone(where, "wait for its end, or give another workdir"):
        yield where
