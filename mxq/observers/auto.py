"""The "auto" observer: for each tensor the candidate of the least expected quantization error.

The candidates are the other observers that work from a histogram and ask for it (`HistogramObserver.in_auto`), so one
pass answers for all. The error of a candidate is the mean squared one of quantizing to its threshold
(`HistogramState.expected_errors`). What each would have found is kept with the choice, so that a report can say by how
much the choice was better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np

from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.observers.registry import OBSERVERS, get, spec_of
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Candidate, Range

NAIVE: Final = "naive"
"""The candidate that needs no search: the largest value."""


def specs() -> tuple[str, ...]:
    """The specs of all candidates."""
    return (NAIVE, *_finders())


def _finders() -> Mapping[str, HistogramObserver]:
    """The other candidates by their specs."""
    return _asked(tuple(o for o in OBSERVERS.values() if isinstance(o, HistogramObserver)))


@cache
def _asked(known: tuple[HistogramObserver, ...]) -> Mapping[str, HistogramObserver]:
    """Those of ``known`` that ask to be candidates."""
    found = (get(spec) for observer in known for spec in observer.in_auto)
    return {spec_of(observer): observer for observer in found if isinstance(observer, HistogramObserver)}


@dataclass(frozen=True, slots=True)
class AutoParams:
    """The choice takes no parameters."""


@dataclass(frozen=True)
class AutoObserver(HistogramObserver):
    """Chooses for each tensor, and keeps what the others would have found."""

    name: ClassVar[str] = "auto"
    in_tune: ClassVar[tuple[str, ...]] = ("auto",)
    params: AutoParams = AutoParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        return self._ranked(state, spec, scheme)[0].range.absmax

    def candidates(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> tuple[Candidate, ...]:
        extent = state.extent
        if not extent.count or extent.usable.min == extent.max:
            return ()
        return self._ranked(state, extent.settled(spec), scheme)

    def _ranked(self, state: HistogramState, spec: QuantSpec, scheme: Scheme) -> tuple[Candidate, ...]:
        """All candidates, the least error first; of equals the wider range."""
        absmax = state.extent.absmax
        finders = _finders()
        bounds = np.array([absmax, *(min(c.threshold(state, spec, scheme), absmax) for c in finders.values())])
        errors = state.expected_errors(bounds, spec, scheme)
        ranges = (Range(*map(float, ends)) for ends in zip(*state.extent.ends(bounds, spec), strict=True))
        found = [Candidate(*one) for one in zip((NAIVE, *finders), ranges, errors.tolist(), strict=True)]
        return tuple(sorted(found, key=lambda c: (c.error, -c.range.absmax)))
