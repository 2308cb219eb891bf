"""The "naive" observer: the smallest and the largest value seen, as MXNet's ``calib_mode='naive'``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike

from mxq.observers.base import Extent, flat
from mxq.thresholds import Range


@dataclass(frozen=True, slots=True)
class NaiveParams:
    """Minimum and maximum take no parameters."""


@dataclass(frozen=True)
class NaiveObserver:
    """Covers every value seen, so nothing of the calibration data saturates and outliers cost resolution.

    The range is the observed (min, max) as it is, for any dtype: a non-negative tensor keeps its minimum >= 0
    (from which the kernel chooses uint8), a signed one both bounds (the kernel uses the larger).
    """

    name: ClassVar[str] = "naive"
    ordered: ClassVar[bool] = False
    params: NaiveParams = NaiveParams()

    def empty(self) -> Extent:
        return Extent()

    def update(self, state: Extent, x: ArrayLike) -> Extent:
        return state.update(flat(x))

    def merge(self, a: Extent, b: Extent) -> Extent:
        return a.merge(b)

    def range(self, state: Extent, dtype: str) -> Range:
        return state.usable(dtype)

    def observed(self, state: Extent) -> Range | None:
        return state.range

    def note(self, state: Extent) -> str:
        return state.note
