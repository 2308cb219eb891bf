"""Max: the step of a weight follows its largest value, in every forward pass.

::

    s = max|w| / top, y = clip(rint(w / s), lowest, highest) s, dy/dw = 1

No value lies beyond the range, so the gradient passes everywhere. ``top`` is that of the site's scheme: 127.5 for
kernels of MXNet, which compute the step so from the weights that they are given (``GetQuantizeScale``), 127 for others.
What is trained with it is what they run. A largest weight below 0 is then -127.5 steps, of which the last bit of the
product makes -127 or -128; here it is always -128, the even one, by a scale that is one unit in the last place larger,
and `mxq.qat.converting` writes it so that kernels read that.

Source: Wu et al. (arXiv:2004.09602), eq. 6, 12 and 13, with max calibration of weights (section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from mxq.graph.ir import Node, Ref
from mxq.qat.algorithms.base import Parameters, Uniform, refuse
from mxq.qat.algorithms.grid import Grid, covering, extent
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site

_MORE: Final = 1 + 2.0**-23
"""Multiplied by it, any float32 is at least the next one."""


@dataclass(frozen=True)
class Max(Uniform):
    """The range of the values themselves."""

    name: ClassVar[str] = "max"
    source: ClassVar[str] = "Wu et al. (arXiv:2004.09602), eq. 6, 12 and 13"

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ()

    def check(self, site: Site) -> None:
        if site.role != "weight" or (not site.spec.signed and site.spec.symmetric):
            raise refuse(self.name, site, "weights, with signed codes or a zero point")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        return {}

    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        found = covering(site, *extent(x))
        return replace(found, scale=found.scale * np.float32(_MORE)) if _ends_between_codes(site) else found

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        out = np.empty_like(grad) if out is None else out
        out[...] = grad
        return out, {}

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        plain = Plain(name, site, x)
        scale, zero = plain.covering(*plain.extent(plain.x))
        scale = plain.scalar("mul", scale, _MORE) if _ends_between_codes(site) else scale
        return plain.result(plain.straight(plain.fake(plain.x, scale, *plain.ends(zero)), (plain.x, None)))


def _ends_between_codes(site: Site) -> bool:
    """Whether the largest value is in the middle of two codes."""
    return site.spec.symmetric and site.scheme.top(site.spec) % 1 != 0
