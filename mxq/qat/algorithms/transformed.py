"""What DoReFa and QIL share: values are transformed into a range that is known, and rounded there, straight through.

::

    v = T(x), |v| <= gain; y = v rounded to the grid that covers the gain; dy/dv = 1

The papers have a gain of 1 and train from the start, where the BatchNorm that follows makes good for it. Here the
parameter ``gain``, which is not learned, is the largest value at first, so that a trained network is still itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mxq.graph.ir import Node, Ref
from mxq.qat.algorithms.base import Parameters, Uniform
from mxq.qat.algorithms.grid import Grid, alive, covering, positive
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.quant import QParams


@dataclass(frozen=True)
class Transformed(Uniform):
    """Values are transformed before they are rounded."""

    @abstractmethod
    def transform(self, site: Site, x: Floats, parameters: Parameters) -> Floats:
        """T of (A, C, B)."""

    @abstractmethod
    def back(self, site: Site, x: Floats, grad: Floats, parameters: Parameters) -> tuple[Floats, Mapping[str, Floats]]:
        """The gradients of ``x`` and of what is learned, from that of T(x)."""

    @abstractmethod
    def transformed(self, plain: Plain, parameters: Sequence[Ref], gain: Ref) -> Ref:
        """T in plain operators; parameters stand beside the tensor."""

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        low, high = alive(site, low, high)
        signed = site.spec.signed or not site.spec.symmetric
        return {"gain": np.maximum(-low, high) if signed else high}

    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        gain = positive(parameters["gain"])
        return covering(site, -gain, gain)

    def forward(self, site: Site, x: Floats, parameters: Parameters, out: Floats | None = None) -> Floats:
        return self.grid(site, x, parameters).fake(self.transform(site, x, parameters), out)

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        found, gradients = self.back(site, x, grad, parameters)
        if out is not None:
            out[...] = found
        return found if out is None else out, dict(gradients)

    def deployed(self, site: Site, values: Floats, parameters: Parameters) -> tuple[Floats, QParams]:
        return self.transform(site, values, parameters), self.grid(site, values, parameters).params(site.spec)

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        plain = Plain(name, site, x)
        beside = [plain.beside(parameter) for parameter in parameters]
        gain = plain.size(beside[self.parameters(site).index("gain")])
        values = self.transformed(plain, beside, gain)
        scale, zero = plain.covering(plain.op("negative", gain), gain)
        return plain.result(plain.straight(plain.fake(values, scale, *plain.ends(zero)), (values, None)))
