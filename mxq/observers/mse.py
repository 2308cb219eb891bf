"""The "mse" observer: the threshold of the least expected squared quantization error.

Formula: ``argmin_t E[(x - Q_t(x))^2]`` with ``Q_t`` as a spec and scheme have it (`mxq.quant`), over the histogram,
values spread evenly in each bin (`mxq.observers.kernels.expected_errors`). Sources: "MSE" in "MQBench"
(arXiv:2111.03759), appendix C.1; Banner et al., "Post training 4-bit quantization" (arXiv:1810.05723), equation 5,
which this evaluates for the measured distribution instead of a Laplace or normal one; Nagel et al., "A white paper
on neural network quantization" (arXiv:2106.08295), equation 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from mxq.errors import ConfigError
from mxq.observers.histogram import HistogramObserver, HistogramState, Reals
from mxq.quant import MXNET, QuantSpec, Scheme

FINEST: Final = 1 / 256
"""The smallest threshold tried, as a share of the largest value: 16 bins."""


@dataclass(frozen=True, slots=True)
class MseParams:
    """``steps``: thresholds tried between the largest value and `FINEST` of it; a quarter as many around the best."""

    steps: int = 96

    def __post_init__(self) -> None:
        if not 8 <= self.steps <= 4096:
            raise ConfigError(f"steps is {self.steps!r}; allowed: 8 to 4096")


@dataclass(frozen=True)
class MseObserver(HistogramObserver):
    """Balances what is clipped against resolution for the rest, by their energy."""

    name: ClassVar[str] = "mse"
    in_auto: ClassVar[tuple[str, ...]] = ("mse",)
    in_tune: ClassVar[tuple[str, ...]] = ("mse",)
    clips_in_tune: ClassVar[tuple[str, ...]] = ("mse",)
    params: MseParams = MseParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        absmax = state.extent.absmax
        coarse: Reals = absmax * np.geomspace(FINEST, 1, self.params.steps)  # exact for absmax times a power of two
        best = int(np.argmin(state.expected_errors(coarse, spec, scheme)))
        around = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
        fine: Reals = np.append(np.linspace(*around, self.params.steps // 4), coarse[best])
        return float(fine[np.argmin(state.expected_errors(fine, spec, scheme))])
