"""Values of tensors and codes of weights as bars, small enough for a page that has those of a whole network.

After figure 2 of H. Wu et al., "Integer quantization for deep learning inference: principles and empirical evaluation"
(2020): the histogram of a tensor, and where each calibrator would end its range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from mxq import observers
from mxq.backends import layer_of
from mxq.backends.mxnet.written import is_int8, plain_name
from mxq.calibration.statistics import Statistics
from mxq.graph.ir import Model
from mxq.observers.histogram import HistogramState
from mxq.quant import MXNET, WEIGHT
from mxq.quant.plan import Report
from mxq.quant.thresholds import RangeKind, Threshold, Thresholds
from mxq.reporting.plots import USED, coarse, covered

BARS: Final = 80
"""To a tensor, about."""
CODES: Final = 256
JOINED: Final = 4
"""Codes of a weight to a bar."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a calibrator ends the range, in activation units; ``name`` is "used" for the network's own."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Bars of equal width, and the ends of ranges.

    Attributes:
        low, high: ends of the axis that the bars fill, in activation units; of codes, in codes.
        counts: values to a bar.
        observed: the smallest and the largest value.
        limits: of each calibrator.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    observed: tuple[float, float]
    limits: tuple[Limit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def of_tensors(statistics: Statistics, report: Report | None) -> dict[str, Distribution]:
    """Each tensor of ``statistics`` that has a histogram with values, by name.

    Args:
        statistics: of the float network.
        report: that of the int8 network, whose ranges are marked; those of other values than were seen are not.
    """
    states = {n: s for n, s in statistics.states.items() if isinstance(s, HistogramState) and s.extent.count}
    found = statistics.thresholds(dict.fromkeys(states, observers.get("auto")))
    used = _used(report)
    return {name: _of_tensor(state, found[name], used.get(name)) for name, state in states.items()}


def _used(report: Report | None) -> Mapping[str, Threshold]:
    ranges = Thresholds() if report is None or not report.thresholds else Thresholds.from_json(report.thresholds)
    return {name: one for name, one in ranges.items() if one.kind is not RangeKind.DERIVED}


def _of_tensor(state: HistogramState, found: Threshold, used: Threshold | None) -> Distribution:
    signed = state.extent.min < 0
    ranges = {candidate.observer: candidate.range for candidate in found.candidates}
    ranges |= {} if used is None else {USED: used.range}
    limits = tuple(Limit(name, *covered(interval, signed)) for name, interval in ranges.items())
    span = state.extent.absmax or 1.0
    edges, counts = coarse(state, 2 * span if signed else span, BARS)
    observed = (float(state.extent.min), float(state.extent.max))
    return Distribution(float(edges[0]), float(edges[-1]), tuple(counts.tolist()), observed, limits)


def of_weights(model: Model) -> dict[str, Distribution]:
    """The codes that MXNet's kernels give the weights of each int8 layer of ``model``, by the layer's name in float."""
    return dict(_of_weights(model))


def _of_weights(model: Model) -> Iterator[tuple[str, Distribution]]:
    for node in model.graph.operators:
        layer = layer_of(node)
        if layer is not None and is_int8(node) and node.inputs[1].name in model.args:
            weight = model.args[node.inputs[1].name]
            codes = MXNET.covering(WEIGHT, weight).quantize(weight)
            counts = np.bincount(codes.ravel().astype(np.int64) + CODES // 2, minlength=CODES)
            bars = counts.reshape(-1, JOINED).sum(axis=1)
            yield (
                plain_name(node),
                Distribution(-CODES / 2, CODES / 2, tuple(bars.tolist()), (float(codes.min()), float(codes.max()))),
            )
