"""APoT: levels that are sums of powers of two, denser near 0. Of papers alone: no integer kernel has them.

With the range's top a, ``u = x / a`` clipped to -1 .. 1 (0 .. 1 of unsigned codes), P the nearest level, y = a P(u)::

    dy/dx = 1 within the range, else 0
    dy/da = P(u) - u within the range, else sign(x)                        ("reparameterized clipping function")

Levels of B bits, one fewer than the spec's where codes are signed, are those of the authors' published code: sums of
n = B // 2 terms of two bits, of which term i is 0 or one of ``2^-(j n + i)``, j = 0, 1, 2. An odd bit is a term 0 or
``2^-2n``, and the powers below it move by one. All are divided by the largest sum. The paper's normalization of weights
is left out: it is for training from the start, and a trained network would no longer be itself.

Source: Li et al., "Additive Powers-of-Two Quantization" (arXiv:1909.13144); MQBench, arXiv:2111.03759, appendix F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np

from mxq.graph.ir import Node, Ref
from mxq.qat.algorithms import kernels
from mxq.qat.algorithms.base import Parameters, refuse
from mxq.qat.algorithms.grid import alive, positive, width_of
from mxq.qat.algorithms.plain import Plain
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.quant import QParams


@cache
def levels(bits: int) -> Floats:
    """The magnitudes of ``bits`` bits, from 0 to 1, rising: (2^bits,) float32."""
    terms, odd = divmod(bits, 2)
    powers = [(0.0, *(2.0 ** -(j * terms + i + (odd if j == 2 else 0)) for j in range(3))) for i in range(terms)]
    sums = {sum(chosen) for chosen in product(*powers, *([(0.0, 2.0 ** -(2 * terms))] * odd))}
    found = np.array(sorted(sums)) / max(sums)
    return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Apot:
    """Sums of powers of two, with a learned range."""

    name: ClassVar[str] = "apot"
    source: ClassVar[str] = "Li et al. (arXiv:1909.13144)"

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("clip",)

    def learned(self, site: Site) -> tuple[str, ...]:
        return ("clip",)

    def check(self, site: Site) -> None:
        if not site.spec.symmetric or site.spec.scale != "float":
            raise refuse(self.name, site, "no zero point, and a scale that is no power of two")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        return {"clip": width_of(site.spec, *alive(site, low, high))}

    def forward(self, site: Site, x: Floats, parameters: Parameters, out: Floats | None = None) -> Floats:
        out = np.empty_like(x) if out is None else out
        kernels.to_levels(x, positive(parameters["clip"]), *_levels(site), out)
        return out

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        out, clip = np.empty_like(x) if out is None else out, parameters["clip"]
        found = kernels.level_gradients(x, grad, positive(clip), *_levels(site), out)
        return out, {"clip": np.where(clip < 0, -found, found).astype(np.float32)}

    def deployed(self, site: Site, values: Floats, parameters: Parameters) -> tuple[Floats, QParams]:
        """There is no such thing.

        Raises:
            ConfigError: always.
        """
        raise refuse(self.name, site, "training and simulation alone: its levels are no codes")

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        plain = Plain(name, site, x)
        clip = plain.positive(plain.beside(parameters[0]))
        part = plain.clip(
            plain.op("broadcast_mul", plain.x, plain.inverse(clip)), -1.0 if site.spec.signed else 0.0, 1.0
        )
        size, (known, middles, _) = plain.op("abs", part), _levels(site)
        rises = [
            plain.scalar("mul", plain.scalar("greater_equal", size, float(middle)), float(rise))
            for middle, rise in zip(middles, np.diff(known), strict=True)
        ]
        nearest = plain.op("elemwise_mul", plain.op("add_n", *rises, num_args=len(rises)), plain.op("sign", part))
        return plain.result(plain.op("broadcast_mul", plain.straight(nearest, (part, None)), clip))


def _levels(site: Site) -> tuple[Floats, Floats, bool]:
    """Magnitudes, and what lies half way between two of them, (2^B,) and (2^B - 1,)."""
    known = levels(site.spec.bits - bool(site.spec.signed))
    return known, (known[1:] + known[:-1]) / 2, bool(site.spec.signed)
