"""From a network and what is given to its ranges, and to its int8 form."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mxq import distributed, pipeline, runtime, tuning
from mxq.calibration.collect import Checkpoint
from mxq.calibration.statistics import Statistics
from mxq.config import ONNX, QuantConfig
from mxq.data.examples import Source
from mxq.data.feeding import Feeds, feeds
from mxq.data.preparation import Preparation
from mxq.distributed import Partitions
from mxq.errors import DataError, QuantizeError
from mxq.graph.ir import Model, Runner
from mxq.logs import LOG
from mxq.passes.shapes import input_ranks
from mxq.pipeline import Calibrated, Prepared, Quantized
from mxq.quant.plan import Report
from mxq.tuning import Material
from mxq.workflow.opening import Given, Where, open_data, partitions, preparation_of, settled

FEW = 8
"""Examples; fewer are warned of."""


def quantize(
    net: runtime.Net, given: Given, config: QuantConfig, *, epoch: int | None = None, logger: logging.Logger = LOG
) -> Quantized:
    """The int8 network with its report.

    Args:
        net: see `mxq.runtime.load_model`.
        given: what its ranges are to come from.
        config: the settings.
        epoch: which parameters of a prefix.
        logger: receives what is said meanwhile.
    """
    return Opened.of(net, given, config, epoch, logger).quantized()


def calibrate(
    net: runtime.Net, given: Given, config: QuantConfig, *, epoch: int | None = None, logger: logging.Logger = LOG
) -> Calibrated:
    """The ranges that `quantize` would use, with statistics; arguments as there."""
    return Opened.of(net, given, config, epoch, logger, again=False).calibrated()


def planned(net: runtime.Net, config: QuantConfig, *, epoch: int | None = None, logger: logging.Logger = LOG) -> Report:
    """What would be decided for a float network; arguments as of `quantize`.

    Raises:
        QuantizeError: it is int8.
    """
    prepared = _planned(runtime.load_model(net, epoch), config, logger)
    return Report(
        prepared.plan,
        config=config.to_json(),
        trace=prepared.trace.to_json(),
        summary=pipeline.simulation(prepared),
    )


def _planned(model: Model, config: QuantConfig, logger: logging.Logger) -> Prepared:
    prepared = pipeline.plan(model, config, runtime.MxnetRunner())
    for warning in prepared.warnings:
        logger.warning(warning)
    return prepared


@dataclass(frozen=True)
class Opened:
    """A planned network with its calibration data.

    Attributes:
        prepared: the plan.
        given: with ``data`` opened.
        where: the path of the data, where it was one.
        batches: the examples to calibrate on; None where there is no data.
    """

    prepared: Prepared
    given: Given
    where: Where | None
    batches: Feeds | tuning.Loaded | None
    logger: logging.Logger
    runner: Runner = field(default_factory=runtime.MxnetRunner)

    @staticmethod
    def of(
        net: runtime.Net,
        given: Given,
        config: QuantConfig,
        epoch: int | None,
        logger: logging.Logger,
        *,
        again: bool | None = None,
        planned: Callable[[Prepared], Prepared] = lambda prepared: prepared,
    ) -> Opened:
        """Reads the network and opens the data.

        Args:
            net, given, config, epoch, logger: as of `quantize`.
            again: whether the data will be read more than once; where None, if ``config`` asks for it.
            planned: what becomes of the plan.
        """
        preparation = given.preparation or preparation_of(net, config)
        given = settled(net, given, preparation)
        model = runtime.load_model(net, epoch)
        if other := runtime.other_precision(net):
            logger.warning("the network is %s; what is made of it takes and gives float32", other)
        if left := runtime.left_out(net):
            logger.info(
                "%s is taken without its optional arguments (%s); to have them too, %s",
                type(net).__name__,
                ", ".join(left),
                runtime.REMEDY,
            )
        data = open_data(given.data, model, preparation, given.batch_size, logger=logger)
        config = _with_preparation(config, preparation, data)
        prepared = planned(_planned(model, config, logger))
        inputs, budget = prepared.fused.arguments, config.budget
        repeatedly = pipeline.looks_again(config) if again is None else again
        reader = tuning.repeatable if repeatedly or isinstance(data, Partitions) else feeds
        ranks = input_ranks(model)
        batches = None if data is None else reader(data, inputs, budget, batch_size=given.batch_size, ranks=ranks)
        where = given.data if isinstance(given.data, str | Path) else None
        opened = replace(given, data=data, preparation=preparation)
        return Opened(prepared, opened, where, batches, logger)

    def quantized(self) -> Quantized:
        """The int8 network with its report."""
        logger, config = self.logger, self.prepared.config
        calibrated = self.calibrated()
        made = pipeline.quantize(self.prepared, calibrated, runtime.versions(), runner=self.runner, data=self.batches)
        for warning in made.warnings:
            logger.warning(warning)
        file, simulation = f"on codes ({self.prepared.coding})", f"simulated as {self.prepared.coding}"
        kind = file if config.backend == ONNX else simulation if config.simulate else "int8"
        logger.info("%d of %d operators are %s", made.report.summary["int8"], len(made.report.plan.decisions), kind)
        return made

    def planned_for(self, config: QuantConfig) -> Opened:
        """The same network and data with other settings."""
        return replace(self, prepared=_planned(self.prepared.source, config, self.logger))

    def keeping(self, stats: Path) -> Opened:
        """The same with the statistics of its data in a file."""
        return replace(self, given=replace(self.given, stats=stats))

    def calibrated(self) -> Calibrated:
        """Ranges: as given, from statistics, or from the data, whose statistics are kept where that is asked for."""
        given, prepared = self.given, self.prepared
        if given.thresholds is not None:
            return Calibrated(given.thresholds)
        kept = given.statistics if given.data is not None or given.statistics is not None else given.stats
        if kept is not None:
            return pipeline.ranges(prepared, self._read(kept))
        calibrated = self._run()
        self._say(calibrated)
        return calibrated

    def _read(self, kept: Statistics | Where) -> Statistics:
        found = kept if isinstance(kept, Statistics) else Statistics.load(kept)
        if not found.complete:
            name = "what was given as statistics" if isinstance(kept, Statistics) else kept
            self.logger.warning("%s is not complete: %d examples so far; give data to go on", name, found.examples)
        return found

    def _run(self) -> Calibrated:
        given, prepared, stats = self.given, self.prepared, self.given.stats
        if isinstance(given.data, Source) and isinstance(self.batches, Feeds):
            self.logger.info("calibrating on %d of %s", self.batches.planned, given.data.description)
        try:
            if given.client is not None or isinstance(given.data, Partitions):
                return self._shared()
            kept = None if stats is None else Checkpoint(stats, prepared.fingerprint, self._name)
            return pipeline.calibrate(prepared, self.batches, self.runner, checkpoint=kept)
        except KeyboardInterrupt:
            if stats is not None and stats.exists():
                self.logger.warning("interrupted; %s holds what was seen, the same again goes on from there", stats)
            raise

    def _shared(self) -> Calibrated:
        """On workers, or one part after the other."""
        given, prepared, parts, config = self.given, self.prepared, self.given.data, self.prepared.config
        if self.where is not None and isinstance(self.batches, Feeds):
            count = self.batches.planned or 0
            model, preparation = prepared.source, given.preparation or Preparation()
            parts = partitions(self.where, model, preparation, given.batch_size, count, given.client)
            whole = replace(config, num_calib_examples=None)  # the parts are what it allows
            prepared = replace(prepared, config=whole)
        return distributed.calibrate(prepared, parts, self.runner, given.client, stats=given.stats)

    @property
    def _name(self) -> str:
        """What the data is called in a file of statistics."""
        if self.where is not None and isinstance(self.given.data, Source) and isinstance(self.batches, Feeds):
            return f"{self.batches.planned} of {self.given.data.examples} examples in {Path(self.where).name}"
        return f"calib_data, num_calib_examples {self.prepared.config.num_calib_examples or 'by default'}"

    def _say(self, calibrated: Calibrated) -> None:
        config, data = self.prepared.config, calibrated.statistics
        if data.examples:
            self.logger.info(
                "calibrated %d tensors (%s) on %d examples in %d batches (num_calib_examples: %s)",
                len(calibrated.thresholds),
                config.calib_mode,
                data.examples,
                data.batches,
                config.num_calib_examples or "the default, 5 % of the data and 32 to 1024",
            )
            if data.examples < FEW:
                self.logger.warning(
                    "%d examples are few to calibrate on: ranges miss what others would show; give %d or more",
                    data.examples,
                    FEW,
                )
        for warning in calibrated.warnings:
            self.logger.warning(warning)

    @property
    def material(self) -> Material:
        """What searches make their networks from.

        Raises:
            DataError: there is no data.
            QuantizeError: there is nothing to search, as no operator can be int8.
        """
        if self.batches is None:
            raise DataError("calib_data is None; allowed: data to calibrate on, see mxq.data")
        if not self.prepared.plan.quantized:
            raise QuantizeError(f"there is nothing to choose: {self.prepared.nothing_int8}")
        return Material(
            self.prepared, lambda: self.calibrated().statistics, self.batches, self.runner, runtime.versions()
        )


def _with_preparation(config: QuantConfig, preparation: Preparation, data: object) -> QuantConfig:
    """Settings by which pictures are read are recorded; and those of a network that is to take integers."""
    read = isinstance(data, Source) and data.pictures
    if read or (config.input_dtype != "float32" and preparation.origin):
        return replace(config, preprocess=preparation.settings.to_json())
    return config
