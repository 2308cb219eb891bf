"""DoReFa-Net: weights are squeezed by tanh, activations clipped to 1.

Weights, in each channel where the spec has channels, see `mxq.qat.algorithms.transformed`::

    v = gain tanh(w) / max|tanh(w)|                                        (eq. 9; MQBench, eq. 14 and 15)

The gradient passes the largest value, too. Activations are of the fixed range 0 .. 1, or -1 .. 1 where codes are signed
or have a zero point (MQBench, arXiv:2111.03759, appendix F).

Source: Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients"
(arXiv:1606.06160), section 2.3 and 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.graph.ir import Ref
from mxq.qat.algorithms.base import ByRole, Parameters, Uniform, refuse
from mxq.qat.algorithms.fixed import Fixed
from mxq.qat.algorithms.grid import LEAST_STEP, positive
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.qat.algorithms.transformed import Transformed


@dataclass(frozen=True)
class TanhWeights(Transformed):
    """Weights through tanh."""

    name: ClassVar[str] = "dorefa"
    source: ClassVar[str] = "Zhou et al. (arXiv:1606.06160), eq. 9"

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("gain",)

    def learned(self, site: Site) -> tuple[str, ...]:
        return ()

    def check(self, site: Site) -> None:
        if not site.spec.signed and site.spec.symmetric:
            raise refuse(self.name, site, "signed codes, or a zero point")

    def transform(self, site: Site, x: Floats, parameters: Parameters) -> Floats:
        t = np.tanh(x)
        return t * _beside(positive(parameters["gain"]) / _largest(t))

    def back(self, site: Site, x: Floats, grad: Floats, parameters: Parameters) -> tuple[Floats, Mapping[str, Floats]]:
        t, gain = np.tanh(x), positive(parameters["gain"])
        largest = _largest(t)
        found = grad * _beside(gain / largest)
        by_largest = (found * t).sum(axis=(0, 2)) / -largest
        found += np.where(np.abs(t) == _beside(largest), np.sign(t) * _beside(by_largest), np.float32(0))
        found *= 1 - t * t
        return found, {}

    def transformed(self, plain: Plain, parameters: Sequence[Ref], gain: Ref) -> Ref:
        t = plain.op("tanh", plain.x)
        largest = plain.scalar("maximum", plain.over("max", plain.op("abs", t)), LEAST_STEP)
        return plain.op("broadcast_mul", t, plain.op("elemwise_div", gain, largest))


@dataclass(frozen=True)
class UnitRange(Fixed):
    """Activations to 1."""

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        one = np.ones_like(high)
        return super().initial(site, -one if site.spec.signed or not site.spec.symmetric else 0 * one, one)


@dataclass(frozen=True)
class DoReFa(ByRole):
    """Weights through tanh, activations to 1."""

    name: ClassVar[str] = "dorefa"
    source: ClassVar[str] = "Zhou et al. (arXiv:1606.06160), eq. 5 to 9"
    weight: ClassVar[Uniform] = TanhWeights()
    activation: ClassVar[Uniform] = UnitRange()


def _largest(t: Floats) -> Floats:
    """The largest absolute value of each channel, (C,)."""
    return np.asarray(np.maximum(np.abs(t).max(axis=(0, 2), initial=0), np.float32(LEAST_STEP)), np.float32)


def _beside(parameter: Floats) -> Floats:
    return parameter[:, None]
