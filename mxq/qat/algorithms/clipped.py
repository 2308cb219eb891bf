"""What PACT and DSQ share: the range is learned, and no gradient reaches it from values within.

With ``k`` codes above 0 and the range's top ``c``, the step is ``s = c / k``; for values beyond the ends of the grid::

    dy/dc = 1 above, lowest / highest below

Where the spec has a zero point the range is ``l .. h``, the step ``(h - l) / (highest - lowest)``, and ``dy/dh = 1``
above, ``dy/dl = 1`` below; the zero point is rounded straight through. Value 0 is always in the range. Where a step is
rounded to a power of two, the range follows by the ratio of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mxq.graph.ir import Node, Ref
from mxq.qat.algorithms.base import Parameters, Uniform
from mxq.qat.algorithms.grid import Grid, Reals, Sums, alive, ends_of, scale_of, used, zero_of
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site


@dataclass(frozen=True)
class Clipped(Uniform):
    """The top of the range, ``clip``; where the spec has a zero point, both ends, ``low`` and ``high``."""

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("clip",) if site.spec.symmetric else ("low", "high")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        low, high = alive(site, low, high)
        if not site.spec.symmetric:
            return {"low": low, "high": high}
        width = np.maximum(-low, high) if site.spec.signed else high
        return {"clip": width * np.float32(site.spec.highest / site.scheme.top(site.spec))}

    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        scale = scale_of(site, self._step(site, parameters)[0])
        if site.spec.symmetric:
            return Grid.of(site.spec, scale)
        low = np.minimum(parameters["low"], np.float32(0))
        return Grid.of(site.spec, scale, zero_of(site.spec, low, scale))

    def chain(self, site: Site, x: Floats, parameters: Parameters, sums: Sums) -> dict[str, Reals]:
        _, slope = self._step(site, parameters)
        if not site.spec.symmetric:
            return {"low": slope * sums.below, "high": slope * sums.above}
        return {"clip": slope * (sums.above + site.spec.lowest / site.spec.highest * sums.below)}

    def _step(self, site: Site, parameters: Parameters) -> tuple[Floats, Floats]:
        """The step, and the derivative of what it spans by what is learned."""
        lowest, highest = ends_of(site.spec)
        if site.spec.symmetric:
            return used(site.spec, parameters["clip"] / np.float32(highest))
        zero = np.float32(0)
        width = np.maximum(parameters["high"], zero) - np.minimum(parameters["low"], zero)
        return used(site.spec, width / np.float32(highest - lowest))

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        plain = Plain(name, site, x)
        scale, low, high = self.ends(plain, [plain.beside(parameter) for parameter in parameters])
        return plain.result(self.rounding(plain, scale, low, high))

    def ends(self, plain: Plain, learned: Sequence[Ref]) -> tuple[Ref, Ref, Ref]:
        """The scale, and the lowest and highest code less that of 0, whose gradients reach what is learned."""
        lowest, highest = ends_of(plain.site.spec)
        if plain.site.spec.symmetric:
            step = plain.step(plain.scalar("div", learned[0], highest))
            scale = plain.constant(plain.scale_of(step))
            one = plain.op("elemwise_mul", step, scale)
            return scale, plain.scalar("mul", one, lowest), plain.scalar("mul", one, highest)
        low, high = plain.scalar("minimum", learned[0], 0.0), plain.scalar("maximum", learned[1], 0.0)
        step, slope = plain.used(plain.scalar("div", plain.op("elemwise_sub", high, low), highest - lowest))
        scale = plain.inverse(step)
        zero = plain.zero_of(low, scale)
        through = plain.op("elemwise_mul", slope, scale)
        ends = [
            plain.straight(end, (parameter, through))
            for end, parameter in zip(plain.ends(zero), learned, strict=True)
            if isinstance(end, Ref)
        ]
        return scale, ends[0], ends[1]

    def rounding(self, plain: Plain, scale: Ref, low: Ref, high: Ref) -> Ref:
        """The tensor on the grid in plain operators."""
        return plain.fake(plain.x, scale, low, high)
