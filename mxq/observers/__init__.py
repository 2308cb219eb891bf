"""Calibrators: each finds the range of a tensor from the batches it is shown. See `mxq.observers.base`."""

from __future__ import annotations

from typing import Any, Final

from mxq.host.parallel import in_parallel
from mxq.observers.auto import AutoObserver, AutoParams
from mxq.observers.base import Arrays, MinMax, Observer, State
from mxq.observers.entropy import EntropyObserver, EntropyParams
from mxq.observers.fixed import FixedObserver, FixedParams
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.observers.minmax import MinMaxObserver, NaiveObserver, NaiveParams
from mxq.observers.moments import MeanStdObserver, MeanStdParams, NormObserver, NormParams
from mxq.observers.moving import MovingObserver, MovingParams, MovingState
from mxq.observers.mse import MseObserver, MseParams
from mxq.observers.percentile import PercentileObserver, PercentileParams
from mxq.observers.registry import OBSERVERS, get, names, register, spec_of

_ALL: Final[tuple[Observer[Any], ...]] = (
    NaiveObserver(),
    MovingObserver(),
    EntropyObserver(),
    PercentileObserver(),
    MseObserver(),
    NormObserver(),
    MeanStdObserver(),
    FixedObserver(),
    AutoObserver(),
)
for _observer in _ALL:
    register(_observer)

STATES: Final[dict[str, Any]] = {state.kind: state for state in (MinMax, HistogramState, MovingState)}
"""Kind of state, as a file names it -> its class; see `state_class` for those of other packages."""


def state_class(kind: str) -> Any:
    """The class of the states that a file calls ``kind``; None where no observer has such."""
    if kind in STATES:
        return STATES[kind]
    return next((type(state) for o in OBSERVERS.values() if (state := o.empty()).kind == kind), None)


_OF_HISTOGRAMS: Final[Observer[Any]] = MseObserver()


def collector(observer: Observer[Any]) -> Observer[Any]:
    """What to collect so that ``observer``, and others later, can be asked: a histogram, where that serves it."""
    return _OF_HISTOGRAMS if reads_histograms(observer) else observer


def reads_histograms(observer: Observer[Any]) -> bool:
    """Whether statistics that serve most others serve ``observer``, too."""
    return observer.reads(HistogramState.statistic)


__all__ = [
    "OBSERVERS",
    "STATES",
    "Arrays",
    "AutoObserver",
    "AutoParams",
    "EntropyObserver",
    "EntropyParams",
    "FixedObserver",
    "FixedParams",
    "HistogramObserver",
    "HistogramState",
    "MeanStdObserver",
    "MeanStdParams",
    "MinMax",
    "MinMaxObserver",
    "MovingObserver",
    "MovingParams",
    "MovingState",
    "MseObserver",
    "MseParams",
    "NaiveObserver",
    "NaiveParams",
    "NormObserver",
    "NormParams",
    "Observer",
    "PercentileObserver",
    "PercentileParams",
    "State",
    "collector",
    "get",
    "in_parallel",
    "names",
    "reads_histograms",
    "register",
    "spec_of",
    "state_class",
]
