"""LSQ+: LSQ with an offset that is learned, for what is neither positive nor symmetric.

With ``u = (x - b) / s`` and ``r = clip(rint(u), n, p)``, ``y = r s + b``::

    dy/dx = 1 where n <= u <= p, else 0
    dy/ds = rint(u) - u where n <= u <= p, else the end, n or p
    dy/db = 0 where n <= u <= p, else 1

A kernel has whole zero points, so ``-b / s`` is rounded, straight through, to a code. Both gradients are multiplied by
LSQ's g. Without a zero point it is LSQ; the step of a signed weight starts at ``max(|m - 3 d|, |m + 3 d|) / 2^(bits -
1)``, with mean m and standard deviation d (as MQBench's "MeanStd", arXiv:2111.03759, eq. 11). That of an activation
starts from the calibrated range; the paper's is that of the ``mse`` calibrator (MQBench, appendix C.4).

Source: Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization"
(arXiv:2004.09576).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.graph.ir import Ref
from mxq.qat.algorithms.base import Parameters
from mxq.qat.algorithms.grid import Grid, Reals, Sums, rounded, scale_of, spread, used
from mxq.qat.algorithms.lsq import Lsq, rate_of
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site


@dataclass(frozen=True)
class LsqPlus(Lsq):
    """A learned step and offset."""

    name: ClassVar[str] = "lsq_plus"
    source: ClassVar[str] = "Bhalgat et al. (arXiv:2004.09576)"

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("step",) if site.spec.symmetric else ("step", "offset")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        spec = site.spec
        if site.role == "weight" and spec.symmetric and spec.signed and values is not None and self.start == "range":
            high = spread(values, 3) * np.float32(site.scheme.top(spec) / 2 ** (spec.bits - 1))
            low = -high
        found = super().initial(site, low, high, values)
        if "zero_point" in found:
            found["offset"] = -found.pop("zero_point") * found["step"]
        return found

    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        step, _ = used(site.spec, parameters["step"])
        scale = scale_of(site, step)
        if site.spec.symmetric:
            return Grid.of(site.spec, scale)
        with np.errstate(over="ignore"):  # a product beyond float32 is a code like any other
            return Grid.of(site.spec, scale, rounded(site.spec, -parameters["offset"] * scale))

    def chain(self, site: Site, x: Floats, parameters: Parameters, sums: Sums) -> dict[str, Reals]:
        if site.spec.symmetric:
            return super().chain(site, x, parameters, sums)
        (_, slope), rate = used(site.spec, parameters["step"]), rate_of(site, x.shape)
        step = sums.inside + site.spec.lowest * sums.below + site.spec.highest * sums.above
        return {"step": step * slope * rate, "offset": (sums.below + sums.above) * rate}

    def zero(self, plain: Plain, step: Ref, parameter: Ref, rate: Ref | None) -> Ref:
        scale = plain.inverse(step)
        zero = plain.code(plain.op("negative", plain.op("elemwise_mul", parameter, scale)))
        by_offset = plain.op("negative", scale if rate is None else plain.op("broadcast_mul", scale, rate))
        by_step = plain.op("negative", plain.op("elemwise_mul", zero, scale))
        return plain.straight(zero, (parameter, by_offset), (step, by_step))
