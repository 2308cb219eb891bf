"""Specs, parameters and schemes against formulas written out in plain Python, for every spec there is."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import kernel_params
from hypothesis import given
from hypothesis import strategies as st

from mxq.compat import prepare
from mxq.errors import ConfigError
from mxq.quant import AFFINE, BY_DTYPE, INT8, MXNET, SYMMETRIC, UINT8, WEIGHT, QParams, QuantSpec, Scheme, scheme_of

KINDS = [  # (symmetric, signed, narrow)
    (True, True, False),
    (True, True, True),
    (True, False, False),
    (False, True, False),
    (False, True, True),
    (False, False, False),
]
SPECS = [
    QuantSpec(bits, signed, symmetric, axis, scale, narrow)
    for bits, (symmetric, signed, narrow), axis, scale in itertools.product(
        range(2, 9), KINDS, (None, 0, 1), ("float", "power_of_two")
    )
]
BOUND = st.floats(-1e6, 1e6, width=32).filter(lambda x: abs(x) > 1e-30 or x == 0)
SIZES = (1e-3, 1.0, 7.3, 1e5)


def cases() -> Iterator[tuple[QParams, np.ndarray, np.ndarray, Scheme]]:
    """Every spec with each of its schemes, and ranges of several sizes: with the range's ends, in the scale's shape."""
    rng = np.random.default_rng(0)
    for spec, size in itertools.product(SPECS, SIZES):
        ends = np.sort(rng.uniform(-size, size, (2, *[3] * (spec.axis is not None))), axis=0).astype(np.float32)
        if spec.symmetric and not spec.signed:
            ends = np.abs(ends) * np.float32([0, 1]).reshape(2, *[1] * (ends.ndim - 1))
        for scheme in (MXNET, SYMMETRIC) if spec.symmetric else (AFFINE,):
            yield scheme.params(spec, *ends), *ends, scheme


def oracle(x: float, scale: float, zero: int, spec: QuantSpec) -> tuple[int, float]:
    """The code of ``x`` and its value, in Python's own numbers but for the product, which is a float32."""
    top = 2 ** (spec.bits - 1) - 1 if spec.signed else 2**spec.bits - 1
    bottom = -top - (0 if spec.narrow else 1) if spec.signed else 0
    code = min(max(round(float(np.float32(x) * np.float32(scale))) + zero, bottom), top)
    return code, (code - zero) / scale


def test_codes_and_values_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(1)
    for params, *_ in cases():
        spec, size = params.spec, 2 * float(np.max(params.high - params.low))
        x = rng.uniform(-size, size, (3, 3)).astype(np.float32)
        codes, values = params.quantize(x), params.fake(x)
        assert codes.dtype == ("int8" if spec.signed else "uint8")
        for place in np.ndindex(x.shape):
            channel = () if spec.axis is None else place[spec.axis]
            scale, zero = float(params.scale[channel]), int(params.zero_point[channel])
            code, value = oracle(float(x[place]), scale, zero, spec)
            assert codes[place] == code
            assert values[place] == pytest.approx(value, rel=1e-6)


def test_halves_go_to_the_even_code() -> None:
    np.testing.assert_array_equal(QParams(INT8, 1.0).quantize([0.5, 1.5, 2.5, -0.5, -1.5]), [0, 2, 2, 0, -2])


def test_what_every_scheme_promises() -> None:
    """Zero is exact, a code's value has that code, and values within are off by half a step at most."""
    for params, low, high, scheme in cases():
        spec, shares = params.spec, np.linspace(0, 1, 31, dtype=np.float32)
        for channel in np.ndindex(params.scale.shape):
            one = QParams(replace(spec, axis=None), params.scale[channel], params.zero_point[channel])
            every = np.arange(spec.lowest, spec.highest + 1)
            np.testing.assert_array_equal(one.quantize(one.dequantize(every)), every)
            assert one.fake(0.0) == 0
            x = low[channel] + shares * (high[channel] - low[channel])
            # The ends: MXNet's lie half a code beyond the last; so may a zero point that is rounded.
            ends = 1.0 if scheme is not SYMMETRIC else 0.5
            off = np.abs(one.fake(x).astype(np.float64) - x) * float(one.scale)
            assert off.max() <= ends + 1e-3
            inside = (one.low <= x) & (x <= one.high)
            assert off[inside].max(initial=0) <= 0.5 + 1e-3


@pytest.fixture(scope="module")
def mx() -> Any:
    prepare()
    return importlib.import_module("mxnet")


def halves(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Normal values, among them exact halves of a step (both signs) and values far outside."""
    x = (np.random.default_rng(0).standard_normal(shape) * 2).astype(np.float32)
    special = np.concatenate([(np.arange(300) - 150 + 0.5) / scale, [1e3, -1e3, 1e10, -1e10, 3e38, -3e38, 1e-40, -0.0]])
    x.reshape(-1)[: len(special)] = special
    return x


class TestMxnetsKernels:
    """The scheme "mxnet" is what the stock kernels compute."""

    @pytest.mark.parametrize("spec", [INT8, UINT8], ids=str)
    @pytest.mark.parametrize("absmax", [3.0, 2.71, 1.0, 64.0])
    @pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 64, 9, 9), (64, 100), (5, 7, 11), (2000,)], ids=str)
    def test_code_for_code(self, mx: Any, shape: tuple[int, ...], absmax: float, spec: QuantSpec) -> None:
        low = -absmax if spec.signed else 0.0
        params = MXNET.params(spec, low, absmax)
        x = halves(params.scale, shape)
        asked = {"min_calib_range": low, "max_calib_range": absmax, "out_type": spec.dtype}
        got, _, _ = mx.nd.contrib.quantize_v2(mx.nd.array(x), **asked)
        expected = params.quantize(x)
        np.testing.assert_array_equal(got.asnumpy(), expected)
        assert expected.dtype == got.dtype
        assert (expected.min(), expected.max()) == (spec.lowest, spec.highest)

    def test_rounding_differs_from_the_two_likely_mistakes(self) -> None:
        """The test above can tell round-half-even from round-half-up and from truncation."""
        params = MXNET.params(INT8, -1.0, 1.0)
        x = halves(params.scale, (2000,))
        expected = params.quantize(x)
        scaled = np.clip(x.astype(np.float64) * params.scale, -200, 200)
        assert np.any(np.clip(np.floor(scaled + 0.5), -128, 127) != expected)
        assert np.any(np.clip(np.trunc(scaled), -128, 127) != expected)

    def test_an_empty_range_is_a_trap(self, mx: Any) -> None:
        """`quantize_v2` divides by zero and codes 0 as 127: observers must never report (0, 0)."""
        zero = mx.nd.zeros((2, 3))
        for dtype, code in (("int8", 127), ("uint8", 255)):
            empty = {"min_calib_range": 0.0, "max_calib_range": 0.0, "out_type": dtype}
            assert np.all(mx.nd.contrib.quantize_v2(zero + 0.5, **empty)[0].asnumpy() == code)
        assert mx.nd.contrib.quantize_v2(zero, min_calib_range=0.0, max_calib_range=0.0)[0].asnumpy().max() == 127
        assert mx.nd.contrib.quantize_v2(zero, min_calib_range=0.0, max_calib_range=1.0)[0].asnumpy().max() == 0

    def test_scale(self) -> None:
        assert kernel_params(2.0, "int8").scale == np.float32(63.75)
        assert kernel_params(2.0, "uint8").scale == np.float32(127.75)
        per_channel = MXNET.params(WEIGHT, [-1.0, 0.0, -0.25], [0.5, 0.0, 0.5]).scale
        np.testing.assert_array_equal(per_channel, np.float32([127.5, 2**31 - 1, 255.0]))

    @given(BOUND, st.lists(BOUND, min_size=1, max_size=30), st.sampled_from([INT8, UINT8]))
    def test_error_is_at_most_half_a_step_within_the_range(self, size: float, x: list[float], spec: QuantSpec) -> None:
        size = abs(size) or 1.0
        values = np.clip(np.float32(x), -size if spec.signed else 0, size)
        params = MXNET.params(spec, -size, size)
        error = np.abs(np.float64(values) - params.fake(values))
        # The top half step saturates at the last code, which is again half a step away; 1e-4 is float32 rounding.
        assert error.max() <= 0.5 / params.scale * (1 + 1e-4)


def test_a_fake_value_is_that_of_its_code() -> None:
    for params, *_ in cases():
        x = np.linspace(-1.5, 1.5, 27, dtype=np.float32).reshape(3, 3, 3) * np.float32(np.max(params.high))
        np.testing.assert_array_equal(params.fake(x), params.dequantize(params.quantize(x)))


def test_what_is_given_stays_as_it_is() -> None:
    x, codes = np.float32([-1.0, 0.3]), np.float32([3, 5])
    for params in (QParams(INT8, 10.0), QParams(QuantSpec(symmetric=False), 10.0, 3)):
        params.quantize(x), params.fake(x), params.dequantize(codes)
    assert x.tolist() == np.float32([-1.0, 0.3]).tolist()
    assert codes.tolist() == [3, 5]


@pytest.mark.parametrize("spec", [s for s in SPECS if s.scale == "float"], ids=str)
def test_covering_is_the_range_of_the_values(spec: QuantSpec) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 5)).astype(np.float32)
    others = {None: None, 0: (1, 2), 1: (0, 2)}[spec.axis]
    size = np.abs(x).max(axis=others)
    low, high = (-size, size) if spec.symmetric else (x.min(axis=others), x.max(axis=others))
    scheme = scheme_of(spec)
    assert scheme.covering(spec, x) == scheme.params(spec, low, high)


def test_types_of_memory_have_their_specs() -> None:
    assert {name: spec.dtype for name, spec in BY_DTYPE.items()} == {"int8": "int8", "uint8": "uint8"}


def test_the_papers_example() -> None:
    """arXiv:2004.09602, section 3.1.1: s = 255 / (alpha - beta), z = -round(beta s) - 128."""
    params = AFFINE.params(QuantSpec(symmetric=False), -1.0, 3.0)
    assert params.scale == np.float32(63.75)
    assert params.zero_point == -round(-1.0 * 63.75) - 128 == -64
    np.testing.assert_array_equal(params.quantize([-1.0, 0.0, 3.0, 9.0]), [-128, -64, 127, 127])


@given(st.floats(1e-6, 1e6))
def test_a_scale_that_is_a_power_of_two_is_the_largest_that_covers(size: float) -> None:
    params = SYMMETRIC.params(QuantSpec(scale="power_of_two"), -size, size)
    fine = SYMMETRIC.params(INT8, -size, size).scale
    assert math.log2(float(params.scale)).is_integer()
    assert params.scale <= fine < 2 * params.scale


def test_a_search_through_ranges_has_the_steps_of_their_parameters() -> None:
    """Of one range after the other; but for float32, in which parameters are."""
    lows, highs = -np.float32([0, 0.5, 3, 0.7]), np.float32([1, 2, 0.1, 900])
    for spec in (s for s in SPECS if s.axis is None):
        for scheme in (MXNET, SYMMETRIC) if spec.symmetric else (AFFINE,):
            steps, zeros = scheme.steps(spec, lows, highs)
            alone = [scheme.params(spec, *ends) for ends in zip(lows, highs, strict=True)]
            np.testing.assert_allclose(steps, [1 / float(p.scale) for p in alone], rtol=1e-6)
            np.testing.assert_array_equal(zeros, [p.zero_point for p in alone])


def test_the_range_settles_the_sign() -> None:
    spec = QuantSpec(signed=None)
    assert MXNET.params(spec, 0, 1).spec == UINT8
    assert MXNET.params(spec, -1, 1).spec == INT8
    assert MXNET.params(QuantSpec(signed=None, narrow=True), 0, 1).spec == UINT8
    assert scheme_of(QuantSpec(signed=None, symmetric=False)).params(
        QuantSpec(signed=None, symmetric=False), -1, 1
    ).spec == QuantSpec(signed=False, symmetric=False)
    with pytest.raises(ConfigError, match="nothing says whether codes of int or uint8 are signed"):
        _ = spec.highest


def test_channels_have_scales_of_their_own() -> None:
    spec = QuantSpec(axis=1)
    params = SYMMETRIC.params(spec, [-1, -2], [1, 2])
    x = np.array([[[1.0], [1.0]]], np.float32)  # (1, 2, 1)
    np.testing.assert_array_equal(params.quantize(x).ravel(), [127, 64])
    with pytest.raises(ConfigError, match=r"the tensor is \[1, 3\]; allowed: 2 channels on axis 1"):
        params.quantize(np.zeros((1, 3)))
    with pytest.raises(ConfigError, match=r"the tensor is \[2\]; allowed: 2 channels on axis 1"):
        params.dequantize(np.zeros(2))


def test_an_empty_range() -> None:
    params = MXNET.params(INT8, 0.0, 0.0)
    assert params.scale == np.float32(2**31 - 1)
    assert params.quantize(0.0) == 0


def test_parameters_are_values() -> None:
    one, same, other = (MXNET.params(INT8, -size, size) for size in (1.0, 1.0, 2.0))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != 3
    with pytest.raises(ValueError, match="read-only"):
        one.scale[...] = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits is 1; allowed: 2 to 8"),
        ({"bits": 9}, "bits is 9; allowed: 2 to 8"),
        ({"bits": True}, "bits is True; allowed: 2 to 8"),
        ({"signed": 1}, "signed is 1; allowed: True, False, None"),
        ({"symmetric": None}, "symmetric is None; allowed: True, False"),
        ({"axis": -1}, "axis is -1; allowed: an axis counted from the front, or None"),
        ({"scale": "int"}, "scale is 'int'; allowed: 'float', 'power_of_two'"),
        ({"signed": False, "narrow": True}, "narrow is True for unsigned codes"),
    ],
)
def test_specs_that_there_are_not(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantSpec(**fields)


@pytest.mark.parametrize(
    ("spec", "scale", "zero", "message"),
    [
        (INT8, 0.0, 0, "a scale is 0.0; allowed: finite, above 0"),
        (INT8, np.nan, 0, "a scale is nan; allowed"),
        (INT8, [1.0], 0, r"the scale of int8 has shape \(1,\); allowed: one number"),
        (QuantSpec(axis=0), 1.0, 0, r"per channel on axis 0 has shape \(\); allowed: \(C,\), one for each channel"),
        (INT8, 1.0, 3, "a zero point of int8 is 3; allowed: 0"),
        (QuantSpec(symmetric=False), 1.0, 128, r"is 128; allowed: -128 \.\. 127"),
        (QuantSpec(symmetric=False), 1.0, 0.5, "zero_point is float64; allowed: integers"),
        (
            QuantSpec(scale="power_of_two"),
            3.0,
            0,
            "a scale is 3.0; allowed for int8, power-of-two scale: a power of two",
        ),
    ],
)
def test_parameters_that_there_are_not(spec: QuantSpec, scale: Any, zero: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QParams(spec, scale, zero)


@pytest.mark.parametrize(
    ("scheme", "spec", "low", "high", "message"),
    [
        (MXNET, INT8, 1.0, -1.0, "minimum above its maximum"),
        (MXNET, INT8, -np.inf, 1.0, "a range ends at -inf; allowed: float32"),
        (MXNET, INT8, [0.0], 1.0, "two equal shapes"),
        (AFFINE, INT8, -1.0, 1.0, "'affine' is for specs with a zero point; found: int8"),
        (MXNET, QuantSpec(symmetric=False), -1.0, 1.0, "'mxnet' is for specs with no zero point; found: int8, zero"),
    ],
)
def test_ranges_that_there_are_not(scheme: Scheme, spec: QuantSpec, low: Any, high: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scheme.params(spec, low, high)
