"""Making one int8 network out of many possible ones, all from one calibration pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from mxq import pipeline
from mxq.calibration.statistics import Statistics
from mxq.config import QuantConfig
from mxq.data.feed import Feed
from mxq.graph.ir import Runner
from mxq.passes.partition import partition
from mxq.pipeline import Prepared, Quantized


@dataclass(frozen=True)
class Material:
    """What every network of one search is made from.

    Attributes:
        prepared: the plan of the user's settings, see `mxq.tuning.choices.observing_more`.
        calibrate: collects the statistics of all its tensors, or reads them; called once, when they are needed.
        data: the calibration batches, for methods that look at them again; may be iterated any number of times.
        runner: what runs a network.
        versions: for the records.
    """

    prepared: Prepared
    calibrate: Callable[[], Statistics]
    data: Iterable[Feed]
    runner: Runner
    versions: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def statistics(self) -> Statistics:
        return self.calibrate()


def make(material: Material, config: QuantConfig) -> Quantized:
    """The int8 network of ``config``. The one place where the search quantizes.

    Raises:
        MxqError: it cannot be made; see `mxq.pipeline.ranges` and `mxq.pipeline.quantize`.
    """
    prepared = planned(material.prepared, config)
    found = pipeline.ranges(prepared, material.statistics)
    return pipeline.quantize(prepared, found, material.versions, runner=material.runner, data=material.data)


def planned(prepared: Prepared, config: QuantConfig) -> Prepared:
    """The plan of other settings for the same network."""
    found = partition(prepared.fused, config, prepared.backend.spec, prepared.trace)
    return replace(prepared, plan=found, config=config)
