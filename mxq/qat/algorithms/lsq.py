"""LSQ: the step is learned.

With ``u = x / s`` and ``r = clip(rint(u), n, p)``, ``y = r s``::

    dy/dx = 1 where n <= u <= p, else 0                                    (eq. 5)
    dy/ds = rint(u) - u where n <= u <= p, else the end, n or p            (eq. 3)
    the gradient of s is multiplied by g = 1 / sqrt(N p)                   (section 2.2)

N is how many values share the step: of a weight all, of an activation those of one example, the batch's gradients being
summed. At the ends themselves both forms of the derivative are right; eq. 3 takes the other. A zero point ``z``, where
the spec has one, is learned as well (MQBench, arXiv:2111.03759, appendix F): ``n`` and ``p`` are less by it, so that
``dy/dz`` is ``-s`` beyond the ends, multiplied by g; within them 0.

The step starts from the calibrated range, or with ``start=mean`` at ``2 mean|x| / sqrt(p)`` (section 2.1). Below 0 it
would turn signs around: see `mxq.qat.algorithms.grid.used`.

Source: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from mxq.errors import one_of
from mxq.graph.ir import Ref
from mxq.qat.algorithms.base import Parameters, Stepped
from mxq.qat.algorithms.grid import Reals, Sums, used
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site

STARTS = ("range", "mean")


@dataclass(frozen=True)
class Lsq(Stepped):
    """A learned step.

    Attributes:
        start: from which the step starts: the calibrated "range", or the "mean" of absolute values.

    Raises:
        ConfigError: ``start`` is neither.
    """

    name: ClassVar[str] = "lsq"
    source: ClassVar[str] = "Esser et al. (arXiv:1902.08153), eq. 1 to 5"
    start: str = "range"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise one_of("start", self.start, STARTS)

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        found = super().initial(site, low, high, values)
        if self.start == "mean" and values is not None:
            mean = np.abs(values).mean(axis=(0, 2))
            found["step"] = np.where(mean > 0, 2 * mean / np.sqrt(site.spec.highest), found["step"]).astype(np.float32)
        return found

    def chain(self, site: Site, x: Floats, parameters: Parameters, sums: Sums) -> dict[str, Reals]:
        grid, (step, slope) = self.grid(site, x, parameters), used(site.spec, parameters["step"])
        rate = rate_of(site, x.shape)
        found: dict[str, Reals] = {"step": sums.inside + grid.low * sums.below + grid.high * sums.above}
        found["step"] *= slope * rate
        if not site.spec.symmetric:
            found["zero_point"] = -step * (sums.below + sums.above) * rate
        return found

    def rate(self, site: Site, plain: Plain) -> Ref | None:
        return rate_node(plain)


def rate_of(site: Site, shape: tuple[int, ...]) -> float:
    """What the gradients of steps are multiplied by, of an (A, C, B) tensor (section 2.2)."""
    return float(1 / np.sqrt(shared(site, shape) * site.spec.highest))


def rate_node(plain: Plain) -> Ref:
    """`rate_of` in plain operators."""
    return plain.scalar("power", plain.scalar("mul", plain.shared(), plain.site.spec.highest), -0.5)


def shared(site: Site, shape: tuple[int, ...]) -> int:
    """How many values of an (A, C, B) tensor share a step: those of one example, of an activation."""
    return max(1, shape[2] if site.role == "activation" else prod(shape) // max(1, shape[1]))
