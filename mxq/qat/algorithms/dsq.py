"""DSQ: rounding as usual, with the gradient of a soft staircase that nears it.

Within the range, ``u = x / s`` in codes, ``f`` its fraction, ``1 - alpha = tanh(k / 2)``::

    soft(u) = u - f + (tanh(k (f - 1/2)) / tanh(k / 2) + 1) / 2
    y = s rint(u)
    dy/dx = soft'(u) = k (1 - tanh(k (f - 1/2))^2) / (2 tanh(k / 2)), 0 beyond the range

``alpha`` says how soft: from 0, hard rounding, to 1, none. The paper learns it. Here it is kept, as in MQBench
(arXiv:2111.03759, appendix F), whose published code has 0.4 and the same k, ``log((2 - alpha) / alpha)``. The range is
learned from values beyond it, see `mxq.qat.algorithms.clipped`. It starts from the calibrated one, of weights without a
zero point from ``|mean| + 2.6 deviations`` (MQBench, eq. 12 and 13).

Source: Gong et al., "Differentiable Soft Quantization: Bridging Full-Precision and Low-Bit Neural Networks"
(arXiv:1908.05033).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mxq.errors import ConfigError
from mxq.graph.ir import Ref
from mxq.qat.algorithms import kernels
from mxq.qat.algorithms.base import Parameters
from mxq.qat.algorithms.clipped import Clipped
from mxq.qat.algorithms.grid import spread
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site


@dataclass(frozen=True)
class Dsq(Clipped):
    """Rounding with a soft gradient, within a learned range.

    Attributes:
        alpha: how soft the gradient is, above 0 and below 1.

    Raises:
        ConfigError: ``alpha`` is not.
    """

    name: ClassVar[str] = "dsq"
    source: ClassVar[str] = "Gong et al. (arXiv:1908.05033)"
    alpha: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha of 'dsq' is {self.alpha!r}; allowed: above 0 and below 1")

    @property
    def sharpness(self) -> float:
        """How steep the staircase is, k."""
        return 2 * math.atanh(1 - self.alpha)

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        if site.role == "weight" and site.spec.symmetric and values is not None:
            high = spread(values, 2.6)
            low = -high
        return super().initial(site, low, high, values)

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        found, gradients = super().backward(site, x, grad, parameters, out)
        kernels.soften(x, self.grid(site, x, parameters).scale, self.sharpness, found)
        return found, gradients

    def rounding(self, plain: Plain, scale: Ref, low: Ref, high: Ref) -> Ref:
        code = plain.op("broadcast_mul", plain.x, scale)
        middle = plain.scalar("minus", plain.op("elemwise_sub", code, plain.op("floor", code)), 0.5)
        bent = plain.op("square", plain.op("tanh", plain.scalar("mul", middle, self.sharpness)))
        slope = plain.scalar("mul", plain.scalar("rminus", bent, 1.0), self.sharpness / (2 - 2 * self.alpha))
        return plain.fake(plain.straight(plain.x, (plain.x, slope)), scale, low, high)
