"""The "auto" observer: for each tensor the candidate of the least expected quantization error.

The candidates are the other observers that work from a histogram, so one pass answers for all. The error of a candidate
is the mean squared one of quantizing to its threshold (`HistogramState.expected_errors`). What each would have found is
kept with the choice, so that a report can say by how much the choice was better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from mxq.observers.entropy import EntropyObserver
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.observers.moments import MeanStdObserver, NormObserver
from mxq.observers.mse import MseObserver
from mxq.observers.percentile import PercentileObserver, PercentileParams
from mxq.observers.registry import spec_of
from mxq.quant.thresholds import Candidate, Range

CANDIDATES: Final[tuple[HistogramObserver, ...]] = (
    EntropyObserver(),
    MseObserver(),
    *(PercentileObserver(PercentileParams(p)) for p in (99.9, 99.99, 99.999, 99.9999)),
    NormObserver(),
    MeanStdObserver(),
)
SPECS: Final = ("naive", *map(spec_of, CANDIDATES))


@dataclass(frozen=True, slots=True)
class AutoParams:
    """The choice takes no parameters."""


@dataclass(frozen=True)
class AutoObserver(HistogramObserver):
    """Chooses for each tensor, and keeps what the others would have found."""

    name: ClassVar[str] = "auto"
    params: AutoParams = AutoParams()

    def threshold(self, state: HistogramState, dtype: str) -> float:
        return self._ranked(state, dtype)[0].range.absmax

    def candidates(self, state: HistogramState, dtype: str) -> tuple[Candidate, ...]:
        extent = state.extent
        if not extent.count or extent.usable(dtype).min == extent.max:
            return ()
        return self._ranked(state, "uint8" if extent.unsigned(dtype) else "int8")

    def _ranked(self, state: HistogramState, dtype: str) -> tuple[Candidate, ...]:
        """All candidates, the least error first; of equals the wider range."""
        absmax = state.extent.absmax
        bounds = np.array([absmax, *(min(c.threshold(state, dtype), absmax) for c in CANDIDATES)])
        errors = state.expected_errors(bounds, dtype)
        found = [
            Candidate(spec, Range(0.0 if dtype == "uint8" else -bound, bound), error)
            for spec, bound, error in zip(SPECS, bounds.tolist(), errors.tolist(), strict=True)
        ]
        return tuple(sorted(found, key=lambda c: (c.error, -c.range.absmax)))
