"""The "percentile" observer: a threshold that a given share of the absolute values does not exceed.

Formula: the ``percentile``-th percentile of ``|x|``, linear between the edges of a bin of the histogram. Sources:
"percentile" in Wu et al. (arXiv:2004.09602), section 3.4, who compare 99.9, 99.99, 99.999 and 99.9999; McKinstry et
al. (arXiv:1809.04191); "Quantile" in "MQBench" (arXiv:2111.03759), appendix C.1, whose 0.9999 is the default here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.errors import ConfigError
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.quant import MXNET, QuantSpec, Scheme


@dataclass(frozen=True, slots=True)
class PercentileParams:
    """``percentile``: of the absolute values, in per cent, from 50 to 100."""

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 <= self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile!r}; allowed: 50 to 100, such as 99.99")


@dataclass(frozen=True)
class PercentileObserver(HistogramObserver):
    """Clips a fixed share of the values, however far out they lie; the result is within a bin of the exact one."""

    name: ClassVar[str] = "percentile"
    in_tune: ClassVar[tuple[str, ...]] = ("percentile:99.9", "percentile", "percentile:99.999")
    in_auto: ClassVar[tuple[str, ...]] = (*in_tune, "percentile:99.9999")
    params: PercentileParams = PercentileParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        below = np.cumsum(state.magnitudes())
        wanted = self.params.percentile / 100 * state.extent.count
        place = min(int(np.searchsorted(below, wanted)), len(below) - 1)
        before = int(below[place - 1]) if place else 0
        inside = max(int(below[place]) - before, 1)
        # More than the wanted share may be zeros (ReLU, dropout); a range must not be empty.
        return (place + min(max((wanted - before) / inside, 0.0), 1.0)) * state.width if place else state.width
