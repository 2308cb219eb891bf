"""The "fixed" observer: a range given by hand, whatever the data.

Written ``fixed:MIN,MAX``, in activation units. What it observes serves the report alone: how far the data went.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mxq.errors import ConfigError
from mxq.observers.base import State
from mxq.observers.minmax import MinMaxObserver
from mxq.observers.registry import NeedsParams
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Range


@dataclass(frozen=True, slots=True)
class FixedParams:
    """``min`` and ``max``: the range, finite, around or at 0; NaN until it is given."""

    min: float = math.nan
    max: float = math.nan

    def __post_init__(self) -> None:
        given = not (math.isnan(self.min) and math.isnan(self.max))
        if given and not (-math.inf < self.min <= 0 <= self.max < math.inf and self.min < self.max):
            raise ConfigError(f"fixed range is [{self.min}, {self.max}]; allowed: finite, MIN <= 0 <= MAX, not empty")


@dataclass(frozen=True)
class FixedObserver(MinMaxObserver, NeedsParams):
    """What is known beforehand: [0, 6] after ReLU6, [0, 1] after a sigmoid."""

    name: ClassVar[str] = "fixed"
    needs: ClassVar[str] = "fixed:MIN,MAX"
    params: FixedParams = FixedParams()

    def range(self, state: State, spec: QuantSpec, scheme: Scheme = MXNET) -> Range:
        """The range given, whatever was observed.

        Raises:
            CalibrationError: no values were observed.
        """
        state.extent.usable  # noqa: B018  (an error where there are none)
        return Range(self.params.min, self.params.max)
