"""QIL: the interval of values that are worth a code is learned, by its center and half its width.

With the center c and the distance d, see `mxq.qat.algorithms.transformed`::

    T(x) = gain sign(x) clip(1/2 + (|x| - c) / (2 d), 0, 1)                (MQBench, eq. 16 and 17, gamma 1)
    dT/dx = gain / (2 d) where c - d <= |x| <= c + d, else 0
    dT/dc = -gain sign(x) / (2 d) there
    dT/dd = -gain sign(x) (|x| - c) / (2 d^2) there

Values nearer to 0 than ``c - d`` are pruned, those beyond ``c + d`` clipped. Gradients of c and d are multiplied by
LSQ's g, as in MQBench (arXiv:2111.03759, appendix F), which finds the paper's 0.01, and learned gamma, unstable. The
interval is the whole range at first. Unsigned codes prune negative values.

An activation is quantized to one grid and read as another, so that kernels cannot hold it: see `Qil.deployed`.

Source: Jung et al., "Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss"
(arXiv:1808.05779).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.graph.ir import Ref
from mxq.qat.algorithms import kernels
from mxq.qat.algorithms.base import Parameters, refuse
from mxq.qat.algorithms.grid import positive
from mxq.qat.algorithms.lsq import rate_node, rate_of
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.qat.algorithms.transformed import Transformed
from mxq.quant import QParams


@dataclass(frozen=True)
class Qil(Transformed):
    """A learned interval."""

    name: ClassVar[str] = "qil"
    source: ClassVar[str] = "Jung et al. (arXiv:1808.05779); MQBench (arXiv:2111.03759), eq. 16 and 17"

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("center", "distance", "gain")

    def learned(self, site: Site) -> tuple[str, ...]:
        return ("center", "distance")

    def check(self, site: Site) -> None:
        if not site.spec.symmetric:
            raise refuse(self.name, site, "no zero point")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        found = super().initial(site, low, high, values)
        return {"center": found["gain"] / 2, "distance": found["gain"] / 2, **found}

    def transform(self, site: Site, x: Floats, parameters: Parameters) -> Floats:
        out = np.empty_like(x)
        kernels.interval(x, *self._numbers(site, parameters), out)
        return out

    def back(self, site: Site, x: Floats, grad: Floats, parameters: Parameters) -> tuple[Floats, Mapping[str, Floats]]:
        out, numbers = np.empty_like(x), self._numbers(site, parameters)
        by_center, by_distance = kernels.interval_gradients(x, grad, *numbers, out)
        rate = rate_of(site, x.shape)
        by_distance *= np.where(parameters["distance"] < 0, -rate, rate)
        return out, {"center": (by_center * rate).astype(np.float32), "distance": by_distance.astype(np.float32)}

    def deployed(self, site: Site, values: Floats, parameters: Parameters) -> tuple[Floats, QParams]:
        """As `Transformed.deployed`.

        Raises:
            ConfigError: of an activation.
        """
        if site.role == "activation":
            raise refuse(self.name, site, "weights, where codes are to be made of it: an interval is no scale")
        return super().deployed(site, values, parameters)

    def _numbers(self, site: Site, parameters: Parameters) -> tuple[Floats, Floats, Floats, bool]:
        names = (parameters["center"], positive(parameters["distance"]), positive(parameters["gain"]))
        return (*names, bool(site.spec.signed))

    def transformed(self, plain: Plain, parameters: Sequence[Ref], gain: Ref) -> Ref:
        rate = rate_node(plain)
        center = plain.straight(parameters[0], (parameters[0], rate))
        distance = plain.positive(parameters[1], rate)
        sign = plain.op("sign", plain.x)
        size = plain.op("broadcast_sub", plain.op("abs", plain.x), center)
        place = plain.scalar("plus", plain.op("broadcast_div", plain.scalar("mul", size, 0.5), distance), 0.5)
        part = plain.clip(place, 0.0, 1.0)
        if not plain.site.spec.signed:
            sign = plain.scalar("maximum", sign, 0.0)
        return plain.op("broadcast_mul", plain.op("elemwise_mul", part, plain.constant(sign)), gain)
