"""Ranges for codes of every kind: few bits, of either sign, with and without a zero point, by each scheme."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq import observers
from mxq.calibration.statistics import Statistics
from mxq.errors import ConfigError
from mxq.observers import EntropyParams, HistogramState, MseObserver
from mxq.observers.auto import specs as candidates_of_auto
from mxq.quant import AFFINE, ANY8, INT8, MXNET, SYMMETRIC, UINT8, QuantSpec, Scheme
from mxq.quant.thresholds import Range
from mxq.weights.clip import channel_bounds

BITS: Final = range(2, 9)
KINDS: Final[tuple[tuple[QuantSpec, Scheme], ...]] = tuple(
    (spec, scheme)
    for bits in BITS
    for spec, scheme in (
        (QuantSpec(bits, signed=None), MXNET),
        (QuantSpec(bits, signed=None), SYMMETRIC),
        (QuantSpec(bits, signed=None, narrow=True), MXNET),
        (QuantSpec(bits), SYMMETRIC),
        (QuantSpec(bits, signed=None, symmetric=False), AFFINE),
        (QuantSpec(bits, scale="power_of_two"), SYMMETRIC),
    )
)
EVERY_KIND: Final = pytest.mark.parametrize(("spec", "scheme"), KINDS, ids=lambda x: getattr(x, "name", str(x)))
DISTRIBUTIONS: Final[dict[str, Callable[[np.random.Generator], Any]]] = {
    "normal": lambda rng: rng.standard_normal(20_000),
    "laplace": lambda rng: rng.laplace(size=20_000),
    "relu of normal": lambda rng: np.maximum(rng.standard_normal(20_000), 0),
    "exponential": lambda rng: rng.exponential(size=20_000),
    "off centre": lambda rng: rng.normal(2, 1, 20_000),
}
VALUES: Final = arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=16))


@cache
def sample(name: str) -> np.ndarray:
    return np.asarray(DISTRIBUTIONS[name](np.random.default_rng(0)), np.float32)


def state_of(x: np.ndarray) -> HistogramState:
    return HistogramState().update(np.ascontiguousarray(x, np.float32))


@cache
def histogram(name: str) -> HistogramState:
    return state_of(sample(name))


def true_error(x: np.ndarray, found: Range, spec: QuantSpec, scheme: Scheme) -> float:
    """The mean squared error of these very values in a range."""
    return float(np.mean((scheme.params(spec, found.min, found.max).fake(x).astype(np.float64) - x) ** 2))


def clipped(x: np.ndarray, bound: float, spec: QuantSpec) -> Range:
    """The values' range without what is beyond ``bound``, as codes with or without a zero point cover it."""
    low, high = max(float(x.min()), -bound), min(float(x.max()), bound)
    if spec.symmetric:
        low, high = (0.0 if x.min() >= 0 and spec.signed is None else -bound), bound
    return Range(min(low, 0.0), max(high, 0.0))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@EVERY_KIND
def test_the_expected_error_is_the_true_one(spec: QuantSpec, scheme: Scheme, distribution: str) -> None:
    x, state = sample(distribution), histogram(distribution)
    bounds = np.abs(x).max() * np.array([1.0, 0.7, 0.4])
    found = state.expected_errors(bounds, state.extent.settled(spec), scheme)
    wanted = [true_error(x, clipped(x, float(b), spec), spec, scheme) for b in bounds]
    assert_close(found, wanted, rtol=0.02, atol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@EVERY_KIND
def test_mse_is_as_good_as_trying_all(spec: QuantSpec, scheme: Scheme, distribution: str) -> None:
    x = sample(distribution)
    top = float(np.abs(x).max())
    least = min(true_error(x, clipped(x, top * share, spec), spec, scheme) for share in np.linspace(1 / 200, 1, 200))
    found = MseObserver().range(histogram(distribution), spec, scheme)
    assert true_error(x, found, spec, scheme) <= (1.02 if spec.symmetric else 1.05) * least  # zero points are rounded


@pytest.mark.parametrize("observer", ["mse", "entropy", "auto"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_few_bits_are_worth_clipping_for(bits: int, distribution: str, observer: str) -> None:
    x, state, spec = sample(distribution), histogram(distribution), QuantSpec(bits, signed=None)
    naive, found = (observers.get(name).range(state, spec) for name in ("naive", observer))
    assert true_error(x, found, spec, MXNET) <= true_error(x, naive, spec, MXNET)
    if bits < 4:
        assert true_error(x, found, spec, MXNET) < 0.97 * true_error(x, naive, spec, MXNET)


@settings(deadline=None, max_examples=200)
@given(VALUES, st.sampled_from(KINDS))
def test_ranges_of_any_values_for_any_codes(x: np.ndarray, kind: tuple[QuantSpec, Scheme]) -> None:
    (spec, scheme), state = kind, state_of(x)
    settled = state.extent.settled(spec)
    for name in ("naive", "mse", "entropy", "percentile", "norm", "mean_std", "auto"):
        found = observers.get(name).range(state, spec, scheme)
        assert found.absmax > 0
        assert not x.any() or found.absmax <= np.abs(x).max()
        if name != "naive" and x.any():
            low = {True: 0.0 if not settled.signed else -found.max, False: max(-found.absmax, min(float(x.min()), 0.0))}
            assert found.min == low[spec.symmetric]
        scheme.params(spec, found.min, found.max)


@settings(deadline=None, max_examples=200)
@given(VALUES, st.sampled_from(KINDS))
def test_what_is_chosen_by_its_error_has_the_least(x: np.ndarray, kind: tuple[QuantSpec, Scheme]) -> None:
    (spec, scheme), state = kind, state_of(x)
    if x.min() == x.max():
        return
    known = candidates_of_auto()
    settled, asked = state.extent.settled(spec), ("mse", "auto", *known)
    bounds = np.array([min(observers.get(c).range(state, spec, scheme).absmax, state.extent.absmax) for c in asked])
    mse, auto, *others = state.expected_errors(bounds, settled, scheme)
    assert mse <= others[known.index("naive")] * (1 + 1e-12)
    assert auto <= min(others) * (1 + 1e-12)
    found = observers.get("auto").candidates(state, spec, scheme)
    assert found[0].range == observers.get("auto").range(state, spec, scheme)
    assert [c.error for c in found] == sorted(c.error for c in found)


@pytest.mark.parametrize("observer", ["mse", "entropy", "norm", "mean_std", "auto"])
@EVERY_KIND
def test_twice_the_values_twice_the_range(spec: QuantSpec, scheme: Scheme, observer: str) -> None:
    x = sample("off centre")
    one, two = (observers.get(observer).range(state_of(v), spec, scheme) for v in (x, 2 * x))
    assert two == one.times(2.0)


@pytest.mark.parametrize("observer", ["mse", "entropy", "norm", "auto"])
def test_a_zero_point_has_codes_for_each_side_as_signed_codes_do(observer: str) -> None:
    """Which of its codes are negative is the choice of who stores them."""
    state = histogram("normal")
    asked = (QuantSpec(4, signed=signed, symmetric=False) for signed in (True, False, None))
    assert len({observers.get(observer).range(state, spec, AFFINE) for spec in asked}) == 1


def test_groups_of_entropy() -> None:
    groups = {str(s): EntropyParams().groups(s) for s in (INT8, UINT8, QuantSpec(4), QuantSpec(2), QuantSpec(2, False))}
    assert groups == {"int8": 255, "uint8": 511, "int4": 15, "int2": 3, "uint2": 7}
    assert EntropyParams(levels=127).groups(UINT8) == 255
    assert EntropyParams(levels=3).groups(QuantSpec(3)) == 3
    every = [
        EntropyParams(levels).groups(QuantSpec(b, s)) for levels in (3, 129, 253) for b in BITS for s in (True, False)
    ]
    assert all(found % 2 and found >= 3 for found in every)


@pytest.mark.parametrize("bits", BITS)
def test_values_of_as_few_kinds_as_codes_are_not_clipped(bits: int) -> None:
    spec = QuantSpec(bits)
    state = state_of(np.repeat(np.arange(-spec.highest, spec.highest + 1), 20))
    assert observers.get("entropy").range(state, spec) == Range(-spec.highest, spec.highest)
    assert observers.get("entropy").note(state, spec) == "few distinct values, not clipped"


EIGHT_BITS: Final = {  # the largest value kept for int8 and, where nothing is negative, for uint8
    ("normal", "entropy"): ("0x1.017b6e0000000p+2",),
    ("normal", "mse"): ("0x1.e55c423bec51fp+1",),
    ("laplace", "auto"): ("0x1.5adc5bc756008p+3",),
    ("relu of normal", "entropy"): ("0x1.f7c0000000000p+1", "0x1.f860000000000p+1"),
    ("exponential", "mse"): ("0x1.1bd748ebd43d7p+3", "0x1.2675c061af5e3p+3"),
}


@pytest.mark.parametrize(("distribution", "observer"), EIGHT_BITS)
def test_eight_bits_are_what_they_were(distribution: str, observer: str) -> None:
    """Written before other numbers of bits were known; numpy's logarithms may differ in the last place."""
    for spec, wanted in zip((INT8, UINT8), EIGHT_BITS[distribution, observer], strict=False):
        found = observers.get(observer).range(histogram(distribution), spec)
        assert found.max == pytest.approx(float.fromhex(wanted), rel=1e-14)


def test_channels_of_a_weight_for_few_bits() -> None:
    weight = np.random.default_rng(1).laplace(size=(5, 3, 4, 4)).astype(np.float32)
    spec = QuantSpec(4, axis=0)
    found = channel_bounds(MseObserver(), weight, spec, SYMMETRIC)
    alone = [MseObserver().range(state_of(row.ravel()), QuantSpec(4), SYMMETRIC).max for row in weight]
    assert_close(found, alone, rtol=1e-6, atol=0)
    fine, coarse = (channel_bounds(MseObserver(), weight, QuantSpec(b, axis=0), SYMMETRIC) for b in (8, 3))
    assert (coarse < fine).all()


def test_thresholds_for_specs() -> None:
    """One pass over data serves codes of any kind."""
    seen = Statistics({name: histogram(name) for name in ("normal", "exponential")})
    wanted = dict.fromkeys(seen.states, observers.get("mse"))
    spec = QuantSpec(4, signed=None)
    eight, four = seen.thresholds(wanted), seen.thresholds(wanted, spec)
    assert all(four[name].range.max < 0.8 * eight[name].range.max for name in wanted)
    assert four["normal"].range == MseObserver().range(histogram("normal"), spec)
    mixed = seen.thresholds(wanted, {"normal": spec})
    assert (mixed["normal"], mixed["exponential"]) == (four["normal"], eight["exponential"])
    affine = seen.thresholds(wanted, QuantSpec(4, signed=None, symmetric=False), AFFINE)
    assert affine["exponential"].range.min == float(sample("exponential").min() < 0)
    with pytest.raises(ConfigError, match="the scheme 'mxnet' is for specs with no zero point"):
        seen.thresholds(wanted, QuantSpec(symmetric=False))
    assert seen.thresholds(wanted, ANY8) == eight
