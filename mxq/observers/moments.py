"""The "norm" and "mean_std" observers: thresholds from moments of the distribution, without a search.

Both read the moments off the histogram, each value standing at the middle of its bin, so they are as mergeable as it is
and within half a bin's width of the exact ones. Neither exceeds the largest absolute value observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.errors import ConfigError
from mxq.observers.histogram import HistogramObserver, HistogramState
from mxq.quant import MXNET, QuantSpec, Scheme


@dataclass(frozen=True, slots=True)
class NormParams:
    """``p``: the order of the norm, 1 or more."""

    p: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.p < math.inf:
            raise ConfigError(f"p is {self.p!r}; allowed: 1 or more")


@dataclass(frozen=True)
class NormObserver(HistogramObserver):
    """In proportion to the p-norm.

    Formula: ``threshold = step q = 2 (E|x|^p)^(1/p) sqrt(q)`` with ``q`` the largest code. Sources: Esser et al.,
    "Learned step size quantization" (arXiv:1902.08153), section 2.1, with p = 1; "Norm" in "MQBench"
    (arXiv:2111.03759), appendix C.1, with p = 2 unless specified, the default here.
    """

    name: ClassVar[str] = "norm"
    in_auto: ClassVar[tuple[str, ...]] = ("norm",)
    params: NormParams = NormParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        sizes = np.abs(state.centres())
        top = sizes.max()
        mean = float(np.average((sizes / top) ** self.params.p, weights=state.counts))
        norm = float(top * mean ** (1 / self.params.p))
        return max(2 * norm * math.sqrt(spec.highest), state.width)


@dataclass(frozen=True, slots=True)
class MeanStdParams:
    """``k``: how many standard deviations from the mean are kept, more than 0."""

    k: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.k < math.inf:
            raise ConfigError(f"k is {self.k!r}; allowed: more than 0")


@dataclass(frozen=True)
class MeanStdObserver(HistogramObserver):
    """So many standard deviations about the mean.

    Formula: ``threshold = max(|mean - k std|, |mean + k std|)``, for unsigned codes ``mean + k std``. Sources:
    Bhalgat et al., "LSQ+" (arXiv:2004.09576), with k = 3, the default; Gong et al., "DSQ" (arXiv:1908.05033), with 2.6;
    "MeanStd" in "MQBench" (arXiv:2111.03759), appendix C.1.
    """

    name: ClassVar[str] = "mean_std"
    in_auto: ClassVar[tuple[str, ...]] = ("mean_std",)
    params: MeanStdParams = MeanStdParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        centres = state.centres()
        mean = float(np.average(centres, weights=state.counts))
        std = math.sqrt(float(np.average((centres - mean) ** 2, weights=state.counts)))
        reach = mean + self.params.k * std
        return max(reach if not spec.signed else max(reach, self.params.k * std - mean), state.width)
