"""The numpy oracle against the kernels it stands for, and the measures against hand-worked values."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq import numerics
from mxq.compat import prepare
from mxq.errors import ConfigError

DTYPES = ("int8", "uint8")


@pytest.fixture(scope="module")
def mx() -> Any:
    prepare()
    return importlib.import_module("mxnet")


def halves(scale: np.float32, shape: tuple[int, ...]) -> np.ndarray:
    """Normal values, among them exact halves of a step (both signs) and values far outside."""
    x = (np.random.default_rng(0).standard_normal(shape) * 2).astype(np.float32)
    special = np.concatenate([(np.arange(300) - 150 + 0.5) / scale, [1e3, -1e3, 1e10, -1e10, 3e38, -3e38, 1e-40, -0.0]])
    x.reshape(-1)[: len(special)] = special
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absmax", [3.0, 2.71, 1.0, 64.0])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 64, 9, 9), (64, 100), (5, 7, 11), (2000,)], ids=str)
def test_quantize_is_the_stock_kernel_code_for_code(mx: Any, shape: tuple[int, ...], absmax: float, dtype: str) -> None:
    scale = numerics.scale(absmax, dtype)
    x = halves(scale, shape)
    low = 0.0 if dtype == "uint8" else -absmax
    got, _, _ = mx.nd.contrib.quantize_v2(mx.nd.array(x), min_calib_range=low, max_calib_range=absmax, out_type=dtype)
    expected = numerics.quantize(x, scale, dtype)
    np.testing.assert_array_equal(got.asnumpy(), expected)
    assert expected.dtype == got.dtype
    low_code, high_code = numerics.CODES[dtype]
    assert expected.min() == low_code
    assert expected.max() == high_code


def test_rounding_differs_from_the_two_likely_mistakes() -> None:
    """The kernel test above can tell round-half-even from round-half-up and from truncation."""
    scale = numerics.scale(1.0, "int8")
    x = halves(scale, (2000,))
    expected = numerics.quantize(x, scale, "int8")
    scaled = np.clip(x.astype(np.float64) * scale, -200, 200)
    assert np.any(np.clip(np.floor(scaled + 0.5), -128, 127) != expected)
    assert np.any(np.clip(np.trunc(scaled), -128, 127) != expected)


def test_an_empty_range_is_a_trap_of_the_stock_kernel(mx: Any) -> None:
    """`quantize_v2` divides by zero and codes 0 as 127: observers must never report (0, 0)."""
    zero = mx.nd.zeros((2, 3))
    for dtype, code in (("int8", 127), ("uint8", 255)):
        got = mx.nd.contrib.quantize_v2(zero + 0.5, min_calib_range=0.0, max_calib_range=0.0, out_type=dtype)[0]
        assert np.all(got.asnumpy() == code)
    assert mx.nd.contrib.quantize_v2(zero, min_calib_range=0.0, max_calib_range=0.0)[0].asnumpy().max() == 127
    assert mx.nd.contrib.quantize_v2(zero, min_calib_range=0.0, max_calib_range=1.0)[0].asnumpy().max() == 0


def test_scale() -> None:
    assert numerics.scale(2.0, "int8") == np.float32(63.75)
    assert numerics.scale(2.0, "uint8") == np.float32(127.75)
    assert numerics.scale(0.0, "int8") == np.float32(2**31 - 1)
    per_channel = numerics.scale([1.0, 0.0, 0.5], "int8")
    assert per_channel.dtype == np.float32
    np.testing.assert_array_equal(per_channel, np.float32([127.5, 2**31 - 1, 255.0]))


@pytest.mark.parametrize("absmax", [-1.0, math.nan, math.inf])
def test_scale_refuses(absmax: float) -> None:
    with pytest.raises(ConfigError, match="absmax"):
        numerics.scale(absmax, "int8")


def test_unknown_dtype_lists_the_allowed() -> None:
    for call in (lambda: numerics.scale(1.0, "int4"), lambda: numerics.quantize([1.0], 1.0, "auto")):
        with pytest.raises(ConfigError, match="allowed: 'int8', 'uint8'"):
            call()


def test_quantize_per_channel_broadcasts() -> None:
    x = np.float32([[1.0, -1.0], [1.0, -1.0]])
    codes = numerics.quantize(x, numerics.scale([[1.0], [2.0]], "int8"), "int8")
    np.testing.assert_array_equal(codes, [[127, -128], [64, -64]])  # 63.75 rounds to 64


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(1, 50), elements=st.floats(-1, 1, width=32)),
    st.floats(2**-20, 2**20, width=32),
    st.sampled_from(DTYPES),
)
def test_error_is_at_most_half_a_step_within_the_range(x: np.ndarray, absmax: float, dtype: str) -> None:
    x = x * np.float32(absmax)
    if dtype == "uint8":
        x = np.abs(x)
    scale = numerics.scale(absmax, dtype)
    error = np.abs(np.float64(x) - numerics.fake_quantize(x, scale, dtype))
    # The top half step saturates at the last code, which is again half a step away; 1e-4 is float32 rounding.
    assert error.max() <= 0.5 / scale * (1 + 1e-4)


def test_codes_survive_the_round_trip() -> None:
    for dtype, (low, high) in numerics.CODES.items():
        codes = np.arange(low, high + 1).astype(dtype)
        scale = numerics.scale(0.37, dtype)
        np.testing.assert_array_equal(numerics.quantize(numerics.dequantize(codes, scale), scale, dtype), codes)


def test_sqnr_db() -> None:
    x = np.array([3.0, 4.0])
    assert numerics.sqnr_db(x, x) == math.inf
    assert numerics.sqnr_db(x, [3.3, 3.6]) == pytest.approx(20.0, abs=1e-9)
    assert numerics.sqnr_db(x, x * 0) == pytest.approx(0.0, abs=1e-12)
    assert numerics.sqnr_db(x * 0, x) == -math.inf
    assert numerics.sqnr_db(x * 0, x * 0) == math.inf
    assert math.isnan(numerics.sqnr_db(x, [math.nan, 0.0]))


def test_centred_sqnr_ignores_what_softmax_ignores() -> None:
    logits = np.random.default_rng(1).standard_normal((5, 10))
    noisy = logits + 0.1 * np.random.default_rng(2).standard_normal((5, 10))
    shifted = noisy + np.arange(5)[:, None]
    assert numerics.centred_sqnr_db(logits, shifted) == pytest.approx(numerics.centred_sqnr_db(logits, noisy), abs=1e-9)
    assert numerics.sqnr_db(logits, shifted) < numerics.centred_sqnr_db(logits, shifted) - 10
    centred = np.array([[1.0, -1.0]])
    assert numerics.centred_sqnr_db(centred + 7, centred * 0.9) == pytest.approx(20.0, abs=1e-9)
    with pytest.raises(ConfigError, match="rank 0"):
        numerics.centred_sqnr_db(1.0, 1.0)


def test_kl_divergence() -> None:
    assert numerics.kl_divergence([1, 1], [3, 3]) == 0
    assert numerics.kl_divergence([3, 1], [1, 1]) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-12
    )
    assert numerics.kl_divergence([1, 0], [1, 1]) == pytest.approx(math.log(2), abs=1e-12)
    assert numerics.kl_divergence([1, 1], [1, 0]) == math.inf
    for p, q in (([0, 0], [1, 1]), ([1, 1], [0, 0]), ([1, -1], [1, 1]), ([math.nan, 1], [1, 1])):
        with pytest.raises(ConfigError, match="positive sum"):
            numerics.kl_divergence(p, q)


def test_cosine() -> None:
    assert numerics.cosine([1, 0], [0, 2]) == 0
    assert numerics.cosine([[1, 2]], [[2, 4]]) == pytest.approx(1, abs=1e-12)
    assert numerics.cosine([1, 2], [-1, -2]) == pytest.approx(-1, abs=1e-12)
    assert numerics.cosine([0, 0], [0, 0]) == 1
    assert numerics.cosine([0, 0], [1, 0]) == 0


@pytest.mark.parametrize("measure", [numerics.sqnr_db, numerics.kl_divergence, numerics.cosine])
def test_shapes_must_agree(measure: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(2,\) and \(3,\)"):
        measure([1, 2], [1, 2, 3])
