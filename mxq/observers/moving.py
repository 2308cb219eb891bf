"""The "ema_minmax" observer: moving averages of each batch's minimum and maximum.

Formula: ``m_1 = x_1``, ``m_n = momentum m_(n-1) + (1 - momentum) x_n`` for the batch's minimum and its maximum.
Sources: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
(arXiv:1712.05877), section 3.1; "MQBench" (arXiv:2111.03759), appendix on PACT, whose momentum 0.9 is the default.

An average depends on the order of the batches and on how the data is cut into them. Unrolled it is
``m_n = momentum^n x_1 + sum_i (1 - momentum) momentum^(n - i) x_i``; the state keeps ``n``, ``x_1`` and the sum, so
that two stretches of data, the second right after the first, still merge: ``sum = momentum^(n_b) sum_a + sum_b``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError
from mxq.observers.base import Arrays, Layout, MinMax, StateObserver, damaged, flat
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Range

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class MovingState:
    """Of a stretch of ``batches``: the ``first`` batch's (min, max), their weighted ``sum``, and the plain extent."""

    kind: ClassVar[str] = "moving"
    layout: ClassVar[Layout] = MappingProxyType(
        {"momentum": ("float64", ()), "batches": ("int64", ()), "averages": ("float64", (4,)), **MinMax.layout}
    )
    momentum: float
    batches: int = 0
    first: Pair = (0.0, 0.0)
    sum: Pair = (0.0, 0.0)
    extent: MinMax = field(default_factory=MinMax)

    @property
    def statistic(self) -> str:
        return f"{self.kind}({self.momentum!r})"

    def merge(self, after: MovingState) -> MovingState:
        """The state of this stretch and the one ``after`` it."""
        if self.batches == 0:
            return after
        decay = self.momentum**after.batches
        low, high = (decay * a + b for a, b in zip(self.sum, after.sum, strict=True))
        extent = self.extent.merge(after.extent)
        return MovingState(self.momentum, self.batches + after.batches, self.first, (low, high), extent)

    @property
    def averages(self) -> Pair:
        """The moving averages of minimum and maximum, in activation units."""
        decay = self.momentum**self.batches
        low, high = (decay * a + b for a, b in zip(self.first, self.sum, strict=True))
        return low, high

    def to_arrays(self) -> Arrays:
        averages = np.array([*self.first, *self.sum], np.float64)
        return {
            "momentum": np.array(self.momentum),
            "batches": np.array(self.batches, np.int64),
            "averages": averages,
            **self.extent.to_arrays(),
        }

    @staticmethod
    def from_arrays(arrays: Arrays) -> MovingState:
        values: NDArray[np.float64] = np.asarray(arrays["averages"], np.float64)
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise damaged(f"moving averages {values}")
        first, total = (values[0].item(), values[1].item()), (values[2].item(), values[3].item())
        momentum, batches = float(arrays["momentum"]), int(arrays["batches"])
        if not (0 <= momentum < 1 and batches >= 0):
            raise damaged(f"moving averages of {batches} batches with momentum {momentum}")
        return MovingState(momentum, batches, first, total, MinMax.from_arrays(arrays))


@dataclass(frozen=True, slots=True)
class MovingParams:
    """``momentum``: the weight of the past, in [0, 1)."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum!r}; allowed: 0 <= momentum < 1")


@dataclass(frozen=True)
class MovingObserver(StateObserver):
    """Forgives single batches with outliers; the range is (average min, average max), cut to what was observed."""

    name: ClassVar[str] = "ema_minmax"
    ordered: ClassVar[bool] = True
    params: MovingParams = MovingParams()

    @property
    def statistic(self) -> str:
        return self.empty().statistic

    def reads(self, statistic: str) -> bool:
        return statistic == self.statistic

    def empty(self) -> MovingState:
        return MovingState(self.params.momentum)

    def update(self, state: MovingState, x: ArrayLike) -> MovingState:
        seen = MinMax().update(flat(x))
        if not seen.count:
            return state
        weight = 1 - self.params.momentum
        bounds = (seen.min, seen.max)
        batch = MovingState(self.params.momentum, 1, bounds, (weight * seen.min, weight * seen.max), seen)
        return state.merge(batch)

    def merge(self, a: MovingState, b: MovingState) -> MovingState:
        return a.merge(b)

    def range(self, state: MovingState, spec: QuantSpec, scheme: Scheme = MXNET) -> Range:
        """The minimum is >= 0 where no value was negative, and only there, whatever the averages."""
        seen = state.extent.usable
        low, high = (min(max(average, seen.min), seen.max) for average in state.averages)
        if low >= 0 > seen.min:
            low = max(seen.min, -high)
        found = Range(low, high)
        return found if found.absmax and math.isfinite(found.absmax) else seen
