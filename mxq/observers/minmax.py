"""The "naive" observer, also called "minmax": the smallest and the largest value seen.

Formula: ``[min(x), max(x)]``. Sources: ``calib_mode='naive'`` of MXNet (``_LayerOutputMinMaxCollector`` in
``python/mxnet/contrib/quantization.py``); "max" in Wu et al., "Integer quantization for deep learning inference"
(arXiv:2004.09602), section 3.4; "MinMax" in Li et al., "MQBench" (arXiv:2111.03759), appendix C.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike

from mxq.observers.base import MinMax, State, StateObserver, flat
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Range


@dataclass(frozen=True, slots=True)
class NaiveParams:
    """Minimum and maximum take no parameters."""


@dataclass(frozen=True)
class MinMaxObserver(StateObserver):
    """An observer whose state is a `MinMax`, which every other state holds too; a subclass writes `range`."""

    name: ClassVar[str]
    statistic: ClassVar[str] = MinMax.statistic

    def reads(self, statistic: str) -> bool:
        return True

    def empty(self) -> MinMax:
        return MinMax()

    def update(self, state: MinMax, x: ArrayLike) -> MinMax:
        return state.update(flat(x))

    def merge(self, a: MinMax, b: MinMax) -> MinMax:
        return a.merge(b)


@dataclass(frozen=True)
class NaiveObserver(MinMaxObserver):
    """Covers every value seen, so nothing of the calibration data saturates and outliers cost resolution.

    The range is the observed (min, max) as it is, for any spec: a non-negative tensor keeps its minimum >= 0, from
    which its codes are unsigned, a signed one both bounds, of which a scheme without zero point uses the larger.
    """

    name: ClassVar[str] = "naive"
    in_tune: ClassVar[tuple[str, ...]] = ("naive",)
    clips: ClassVar[bool] = False
    params: NaiveParams = NaiveParams()

    def range(self, state: State, spec: QuantSpec, scheme: Scheme = MXNET) -> Range:
        return state.extent.usable
