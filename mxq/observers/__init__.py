"""Calibrators: each finds the range of a tensor from the batches it is shown. See `mxq.observers.base`."""

from __future__ import annotations

from mxq.observers.base import Extent, Observer, get, names, register
from mxq.observers.entropy import EntropyObserver, EntropyParams
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.observers.minmax import NaiveObserver, NaiveParams

register(NaiveObserver())
register(EntropyObserver())

__all__ = [
    "EntropyObserver",
    "EntropyParams",
    "Extent",
    "HistogramObserver",
    "HistogramState",
    "NaiveObserver",
    "NaiveParams",
    "Observer",
    "get",
    "names",
    "register",
]
