"""Fake quantization by its formulas, in float64 and in plain numpy: what `mxq.qat.algorithms` is held against.

Each algorithm is written twice: as it rounds, and as a *surrogate* in which what the straight-through estimator does
not see (the error of rounding) is a constant, taken at the point in question. Differences of the surrogate are the
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxq.qat.algorithms import Site

Table = Mapping[str, np.ndarray]
LEAST, MOST = 2.0**-31, 2.0**31


@dataclass
class Frozen:
    """Constants: computed the first time that they are asked for, by name, and kept."""

    known: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, value: Any) -> Any:
        if name not in self.known:
            self.known[name] = deepcopy(value)
        return self.known[name]


def beside(parameter: np.ndarray) -> np.ndarray:
    return np.asarray(parameter, np.float64)[:, None]


def step_of(site: Site, raw: np.ndarray, frozen: Frozen, name: str = "ratio") -> np.ndarray:
    """|raw| within bounds and, where it has to be, a power of two; straight through what is not |raw|."""
    size = np.clip(np.abs(raw), LEAST, MOST)
    used = 2.0 ** np.rint(np.log2(size)) if site.spec.scale == "power_of_two" else size
    sign = np.where(raw < 0, -1.0, 1.0)
    slope, at, start = frozen(name, (sign * used / size, used, raw))
    return at + slope * (raw - start)


def ends(site: Site) -> tuple[int, int]:
    spec = site.spec
    return (-(2 ** (spec.bits - 1)) + spec.narrow, 2 ** (spec.bits - 1) - 1) if spec.signed else (0, 2**spec.bits - 1)


def code_of(site: Site, zero: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(zero), *ends(site))


def quantized(x: np.ndarray, step: np.ndarray, low: Any, high: Any) -> np.ndarray:
    return np.clip(np.rint(x / step), low, high) * step


def lsq(site: Site, x: np.ndarray, p: Table, frozen: Frozen, zero: str = "zero_point") -> np.ndarray:
    """Surrogate of lsq, lsq_plus and fixed: s (clip(x / s + z) + e - z), the code z straight through."""
    low, high = ends(site)
    s = step_of(site, beside(p["step"]), frozen)
    if site.spec.symmetric:
        u = np.clip(x / s, low, high)
        return s * (u + frozen("e", np.rint(u) - u))
    if zero == "offset":  # the ends are n s + b and p s + b, and what lies between them is x + e s
        b = beside(p["offset"])
        z, s0 = frozen("z", (code_of(site, -b / s), s))[0], frozen("s0", s)
        u = x / s0 + z
        inside = (u >= low) & (u <= high)
        e = frozen("e", np.rint(u) - u)
        start = frozen("y", quantized(x, s, low - z, high - z))
        b0 = frozen("b", b)
        moved = np.where(inside, x - frozen("x", x) + e * (s - s0), np.where(u < low, low, high) * (s - s0) + b - b0)
        return start + moved
    z = beside(p["zero_point"])
    z = z + frozen("z", code_of(site, z) - z)
    u = np.clip(x / s, low - z, high - z)
    return s * (u + frozen("e", np.rint(u) - u))


def clipped(site: Site, x: np.ndarray, p: Table, frozen: Frozen, slope: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Surrogate of pact and dsq: values within move by ``slope`` of the code, the ends with the learned range."""
    low, high = ends(site)
    if site.spec.symmetric:
        raw = beside(p["clip"]) / high
        s = step_of(site, raw, frozen)
        z, bottom, top = 0.0, low * s, high * s
    else:
        least, most = np.minimum(beside(p["low"]), 0), np.maximum(beside(p["high"]), 0)
        raw = (most - least) / (high - low)
        s = step_of(site, raw, frozen)
        z = frozen("z", code_of(site, low - least / s))
        rate = frozen("ratio", None)[0]
        first = frozen("first", (beside(p["low"]), beside(p["high"])))
        s0 = frozen("s0", s)
        bottom = (low - z) * s0 + rate * (beside(p["low"]) - first[0])
        top = (high - z) * s0 + rate * (beside(p["high"]) - first[1])
    s, z = frozen("s", s), frozen("zero", z)
    x0, y0 = frozen("x", x), frozen("y", quantized(x, s, low - z, high - z))
    inside = (x0 / s >= low - z) & (x0 / s <= high - z)
    within = y0 + slope(x0 / s) * (x - x0)
    return np.where(inside, within, np.where(x0 < 0, bottom, top))


def staircase(alpha: float) -> Callable[[np.ndarray], np.ndarray]:
    """The slope of dsq's staircase, by differences of it."""
    k = np.log(2 / alpha - 1)

    def soft(u: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return whole + (np.tanh(k * (u - whole - 0.5)) / np.tanh(k / 2) + 1) / 2

    def slope(u: np.ndarray) -> np.ndarray:
        whole = np.floor(u)
        return (soft(u + 1e-5, whole) - soft(u - 1e-5, whole)) / 2e-5

    return slope


def covering(site: Site, gain: np.ndarray) -> tuple[np.ndarray, Any]:
    """Step and zero point of -gain .. gain, or 0 .. gain."""
    low, high = ends(site)
    codes = high + (0.5 if site.rule == "mxnet" else 0) if site.spec.symmetric else (high - low) / 2
    step = gain / codes
    step = 2 ** np.ceil(np.log2(step)) if site.spec.scale == "power_of_two" else step
    if site.spec.symmetric:
        return step, 0.0
    # -gain lies half way between two codes, so that the last bit of float32 decides
    scale = np.float32(high - low) / (2 * gain.astype(np.float32))
    scale = 2 ** np.floor(np.log2(scale)) if site.spec.scale == "power_of_two" else scale
    return step, code_of(site, low + np.rint(gain.astype(np.float32) * scale))


def transformed(site: Site, v: np.ndarray, gain: np.ndarray, frozen: Frozen) -> np.ndarray:
    low, high = ends(site)
    step, z = covering(site, gain)
    return v + frozen("e", quantized(v, step, low - z, high - z) - v)


def tanh_weights(site: Site, x: np.ndarray, p: Table, frozen: Frozen) -> np.ndarray:
    t, gain = np.tanh(x), np.abs(beside(p["gain"]))
    largest = np.maximum(np.abs(t).max(axis=(0, 2)), 2.0**-120)
    return transformed(site, gain * t / beside(largest), gain, frozen)


def qil(site: Site, x: np.ndarray, p: Table, frozen: Frozen) -> np.ndarray:
    gain = np.abs(beside(p["gain"]))
    d = np.abs(beside(p["distance"]))
    part = np.clip(0.5 + 0.5 * (np.abs(x) - beside(p["center"])) / d, 0, 1)
    sign = np.sign(x) if site.spec.signed else np.maximum(np.sign(x), 0)
    return transformed(site, gain * sign * part, gain, frozen)


LEVELS = {
    1: [0, 1],
    2: [0, 1 / 4, 1 / 2, 1],
    3: [0, 1, 2, 3, 4, 6, 8, 10],
    4: [a + b for a in (0, 1, 2**-2, 2**-4) for b in (0, 2**-1, 2**-3, 2**-5)],
    5: [a + b + c for a in (0, 2**-1, 2**-3, 2**-6) for b in (0, 2**-2, 2**-4, 2**-7) for c in (0, 2**-5)],
    6: [
        a + b + c for a in (0, 2**-1, 2**-4, 2**-7) for b in (0, 2**-2, 2**-5, 2**-8) for c in (0, 2**-3, 2**-6, 2**-9)
    ],
}
"""Magnitudes of so many bits, as the authors' program lists them, to be divided by the largest."""


def apot(site: Site, x: np.ndarray, p: Table, frozen: Frozen) -> np.ndarray:
    clip = step_of(site, beside(p["clip"]), frozen)
    levels = np.unique(LEVELS[site.spec.bits - site.spec.signed]) / max(LEVELS[site.spec.bits - site.spec.signed])
    u = np.clip(x / clip, -1 if site.spec.signed else 0, 1)
    nearest = levels[np.abs(np.abs(u)[..., None] - levels).argmin(axis=-1)] * np.sign(u)
    return clip * (u + frozen("e", nearest - u))


def largest(site: Site, x: np.ndarray, p: Table, frozen: Frozen) -> np.ndarray:
    """Max, whose range is that of the values."""
    low, high = ends(site)
    least, most = np.minimum(x.min(axis=(0, 2)), 0), np.maximum(x.max(axis=(0, 2)), 0)
    if site.spec.symmetric:
        step, z = covering(site, beside(np.maximum(-least, most)))
    else:
        step = beside(most - least) / (high - low)
        step = 2 ** np.ceil(np.log2(step)) if site.spec.scale == "power_of_two" else step
        z = code_of(site, low - beside(least) / step)
    return x + frozen("e", quantized(x, step, low - z, high - z) - x)


def surrogate(name: str, site: Site, x: np.ndarray, p: Table, frozen: Frozen) -> np.ndarray:
    if name == "max":
        return largest(site, x, p, frozen)
    if name in ("dorefa", "pact") and site.role == "weight":
        return tanh_weights(site, x, p, frozen)
    if name in ("pact", "dsq"):
        return clipped(site, x, p, frozen, staircase(0.4) if name == "dsq" else np.ones_like)
    if name in ("qil", "apot"):
        return {"qil": qil, "apot": apot}[name](site, x, p, frozen)
    return lsq(site, x, p, frozen, "offset" if name == "lsq_plus" else "zero_point")


def rate(name: str, site: Site, shape: tuple[int, int, int]) -> float:
    """What gradients of parameters are multiplied by."""
    if name not in ("lsq", "lsq_plus", "qil"):
        return 1.0
    count = shape[2] if site.role == "activation" else shape[0] * shape[2]
    return 1 / np.sqrt(count * ends(site)[1])


def gradients(name: str, site: Site, x: np.ndarray, grad: np.ndarray, p: Table) -> tuple[np.ndarray, dict[str, Any]]:
    """Of x and of each parameter, by central differences of the surrogate."""
    frozen = Frozen()
    x, p = x.astype(np.float64), {key: value.astype(np.float64) for key, value in p.items()}
    surrogate(name, site, x, p, frozen)

    def difference(array: np.ndarray, place: Any) -> float:
        kept, found = array[place], []
        size = 1e-6 * max(1.0, abs(kept))
        for moved in (kept + size, kept - size):
            array[place] = moved
            found.append(np.sum(grad * surrogate(name, site, x, p, frozen)))
        array[place] = kept
        return (found[0] - found[1]) / (2 * size)

    if name in ("dorefa", "pact") and site.role == "weight":  # the largest value has to do with all
        by_x = np.array([difference(x, place) for place in np.ndindex(x.shape)]).reshape(x.shape)
    else:
        by_x = grad * (surrogate(name, site, x + 1e-6, p, frozen) - surrogate(name, site, x - 1e-6, p, frozen)) / 2e-6
    factor = rate(name, site, x.shape)
    return by_x, {key: factor * np.array([difference(p[key], i) for i in range(len(p[key]))]) for key in p}
