"""Calibrators: each finds the range of a tensor from the batches it is shown. See `mxq.observers.base`."""

from __future__ import annotations

from typing import Any, Final

from mxq.observers.auto import AutoObserver, AutoParams
from mxq.observers.base import Arrays, Extent, Observer, State
from mxq.observers.entropy import EntropyObserver, EntropyParams
from mxq.observers.fixed import FixedObserver, FixedParams
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.observers.kernels import in_parallel
from mxq.observers.minmax import ExtentObserver, NaiveObserver, NaiveParams
from mxq.observers.moments import MeanStdObserver, MeanStdParams, NormObserver, NormParams
from mxq.observers.moving import MovingObserver, MovingParams, MovingState
from mxq.observers.mse import MseObserver, MseParams
from mxq.observers.percentile import PercentileObserver, PercentileParams
from mxq.observers.registry import ALIASES, get, names, register, spec_of

_ALL: Final[tuple[Observer[Any], ...]] = (
    NaiveObserver(),
    MovingObserver(),
    PercentileObserver(),
    EntropyObserver(),
    MseObserver(),
    NormObserver(),
    MeanStdObserver(),
    FixedObserver(),
    AutoObserver(),
)
for _observer in _ALL:
    register(_observer)

STATES: Final[dict[str, Any]] = {state.kind: state for state in (Extent, HistogramState, MovingState)}
"""Kind of state, as a file names it -> its class."""


_OF_HISTOGRAMS: Final[Observer[Any]] = MseObserver()


def collector(observer: Observer[Any]) -> Observer[Any]:
    """What to collect so that ``observer``, and others later, can be asked: a histogram, unless order matters."""
    return observer if observer.ordered else _OF_HISTOGRAMS


__all__ = [
    "ALIASES",
    "STATES",
    "Arrays",
    "AutoObserver",
    "AutoParams",
    "EntropyObserver",
    "EntropyParams",
    "Extent",
    "ExtentObserver",
    "FixedObserver",
    "FixedParams",
    "HistogramObserver",
    "HistogramState",
    "MeanStdObserver",
    "MeanStdParams",
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
    "register",
    "spec_of",
]
