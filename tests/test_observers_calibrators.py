"""What each calibrator finds on known distributions, against references that never see a histogram."""

from __future__ import annotations

import math
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
from mxq.errors import CalibrationError
from mxq.observers import (
    AutoObserver,
    FixedObserver,
    FixedParams,
    HistogramState,
    MovingObserver,
    MovingParams,
    MseObserver,
    MseParams,
    PercentileObserver,
    PercentileParams,
)
from mxq.quant import ANY8, INT8, MXNET, UINT8, QuantSpec
from mxq.quant.thresholds import Range
from mxq.weights.clip import channel_bounds

N: Final = 20_000
KINDS: Final = (ANY8, INT8, UINT8)

DISTRIBUTIONS: Final[dict[str, Callable[[np.random.Generator], Any]]] = {
    "normal": lambda rng: rng.standard_normal(N),
    "laplace": lambda rng: rng.laplace(size=N),
    "relu of normal": lambda rng: np.maximum(rng.standard_normal(N), 0),
    "relu6": lambda rng: np.clip(4 * rng.standard_normal(N), 0, 6),
    "uniform": lambda rng: rng.uniform(-1, 1, N),
    "exponential": lambda rng: rng.exponential(size=N),
    "student": lambda rng: rng.standard_t(3, size=N),
    "bimodal": lambda rng: np.concatenate([rng.normal(-3, 0.3, N // 2), rng.normal(5, 0.5, N // 2)]),
    "one outlier": lambda rng: np.append(rng.standard_normal(N - 1), 60),
    "a huge outlier": lambda rng: np.append(rng.standard_normal(N - 1), 1e4),
    "discrete": lambda rng: rng.choice([-2, -1, 0, 0, 1, 3], N),
    "mostly zero": lambda rng: np.where(rng.uniform(size=N) < 0.999, 0, rng.exponential(size=N)),
}
SPREAD: Final = tuple(d for d in DISTRIBUTIONS if d not in {"discrete", "mostly zero", "a huge outlier"})
"""Those that the bins resolve: 1/20 of a standard deviation or less, and values all over each bin."""

FROM_HISTOGRAMS: Final = ("auto", "entropy", "mean_std", "mse", "norm", "percentile", "percentile:99.9")
SEARCHING: Final = ("auto", "entropy", "mse")


@cache
def sample(distribution: str) -> np.ndarray:
    x = np.asarray(DISTRIBUTIONS[distribution](np.random.default_rng(11)), np.float32)
    x.flags.writeable = False
    return x


@cache
def histogram(distribution: str) -> HistogramState:
    return HistogramState().update(sample(distribution))


def state_of(x: Any) -> HistogramState:
    return HistogramState().update(np.ascontiguousarray(x, np.float32))


def cases(names: Any = tuple(DISTRIBUTIONS)) -> Any:
    """Each distribution as int8, and as uint8 where nothing is negative."""
    found = [(d, spec) for d in names for spec in (INT8, UINT8) if spec.signed or sample(d).min() >= 0]
    return pytest.mark.parametrize(("distribution", "kind"), found, ids=str)


def true_error(x: np.ndarray, threshold: float, kind: QuantSpec) -> float:
    """The mean squared error that the stock kernels make of these very values."""
    coded = MXNET.params(kind, -threshold, threshold).fake(x)
    return float(np.mean((x.astype(np.float64) - coded) ** 2))


def least_of(x: np.ndarray, kind: QuantSpec) -> float:
    """The least error, by trying 400 thresholds on all values."""
    top = float(np.abs(x).max())
    return min(true_error(x, threshold, kind) for threshold in np.linspace(top / 400, top, 400))


@cache
def least_error(distribution: str, kind: QuantSpec) -> float:
    return least_of(sample(distribution), kind)


def absmax_of(observer: Any, state: HistogramState, kind: QuantSpec) -> float:
    return float(observer.range(state, kind).absmax)


# ------------------------------------------------------------------------------------------------ what all obey


@cases()
@pytest.mark.parametrize("spec", FROM_HISTOGRAMS)
def test_ranges_are_around_zero_and_never_beyond_the_data(spec: str, distribution: str, kind: QuantSpec) -> None:
    found = observers.get(spec).range(histogram(distribution), kind)
    assert found.min == (-found.max if kind.signed else 0)
    assert 0 < found.max <= float(np.abs(sample(distribution)).max())


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if sample(d).min() < 0])
@pytest.mark.parametrize("spec", FROM_HISTOGRAMS)
def test_a_signed_tensor_has_one_range_whatever_is_asked(spec: str, distribution: str) -> None:
    found = [observers.get(spec).range(histogram(distribution), kind) for kind in KINDS]
    assert found[0] == found[1] == found[2]
    assert found[0].min < 0


@cases()
@pytest.mark.parametrize("spec", FROM_HISTOGRAMS)
@pytest.mark.parametrize("power", [-80, -3, 1, 100])
def test_twice_the_values_twice_the_range(spec: str, distribution: str, kind: QuantSpec, power: int) -> None:
    """To the bit: no constant of a calibrator is in activation units."""
    observer, factor = observers.get(spec), 2.0**power
    scaled = state_of(sample(distribution) * np.float32(factor))
    assert absmax_of(observer, scaled, kind) == factor * absmax_of(observer, histogram(distribution), kind)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("spec", [spec for spec in FROM_HISTOGRAMS if spec not in SEARCHING])
def test_the_sign_does_not_matter_to_a_signed_range(spec: str, distribution: str) -> None:
    observer, mirrored = observers.get(spec), state_of(-sample(distribution))
    found = absmax_of(observer, mirrored, INT8)
    assert_close(found, absmax_of(observer, histogram(distribution), INT8), rtol=1e-12, atol=0)  # sums run backwards


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("spec", SEARCHING)
def test_the_sign_costs_a_search_next_to_nothing(spec: str, distribution: str) -> None:
    """There is a code -128 and none for 128, and a last group of bins at one end: curves differ a little."""
    x, observer = -sample(distribution), observers.get(spec)
    mirrored = absmax_of(observer, state_of(x), INT8)
    assert_close(mirrored, absmax_of(observer, histogram(distribution), INT8), rtol=0.03, atol=0)
    if spec != "entropy":
        assert true_error(x, mirrored, INT8) <= 1.005 * least_of(x, INT8)


@pytest.mark.parametrize("spec", [*FROM_HISTOGRAMS, "naive", "ema_minmax"])
def test_channel_by_channel_is_each_channel_alone(spec: str) -> None:
    """A weight (O, I, kh, kw) with channels of very different sizes."""
    observer, rng = observers.get(spec), np.random.default_rng(1)
    weight = (
        rng.standard_t(4, size=(6, 5, 7, 7)).astype(np.float32)
        * np.float32(10.0) ** np.arange(-3, 3)[:, None, None, None]
    )
    weight = weight.astype(np.float32)
    alone = [observer.range(observer.update(observer.empty(), channel.copy()), INT8).absmax for channel in weight]
    np.testing.assert_array_equal(channel_bounds(observer, weight), np.float32(alone))
    transposed = np.moveaxis(weight, 0, 1)  # of a deconvolution: channels are strided
    again = [observer.range(observer.update(observer.empty(), transposed[:, i]), INT8).absmax for i in range(6)]
    assert again == alone


# ------------------------------------------------------------------------------------------------ expected errors


@cases(SPREAD)
def test_the_expected_error_is_the_true_one(distribution: str, kind: QuantSpec) -> None:
    x = sample(distribution)
    thresholds = float(np.abs(x).max()) * np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1])
    found = histogram(distribution).expected_errors(thresholds, kind)
    assert_close(found, [true_error(x, t, kind) for t in thresholds], rtol=1e-2, atol=0)


def test_the_expected_error_of_zeros_and_a_bound() -> None:
    """Both are known to be where they are: nothing is lost of the zeros, and of the bound what the last code misses."""
    x = np.repeat(np.float32([0, 6]), 500)
    found = state_of(x).expected_errors(np.array([6.0, 3.0]), UINT8)
    assert_close(found, [true_error(x, t, UINT8) for t in (6.0, 3.0)], rtol=1e-3, atol=0)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, st.integers(2, 60), elements=st.floats(-100, 100, width=32)), st.floats(0.01, 1))
def test_no_expected_error_is_negative(x: np.ndarray, share: float) -> None:
    top = float(np.abs(x).max())
    if top < 1e-20:
        return
    found = state_of(x).expected_errors(np.array([share, 1.0]) * top, INT8)
    assert np.all(found >= -1e-9 * top**2)


# ------------------------------------------------------------------------------------------------ mse


@cases()
def test_mse_is_as_good_as_trying_all(distribution: str, kind: QuantSpec) -> None:
    found = absmax_of(MseObserver(), histogram(distribution), kind)
    assert true_error(sample(distribution), found, kind) <= 1.005 * least_error(distribution, kind)


@pytest.mark.parametrize("distribution", ["normal", "laplace", "exponential", "student", "one outlier"])
def test_why_mse_is_worth_a_search(distribution: str) -> None:
    """Teeth: the plain maximum would fail the test above."""
    x = sample(distribution)
    assert true_error(x, float(np.abs(x).max()), INT8) > 1.03 * least_error(distribution, INT8)


def test_more_steps_are_no_worse() -> None:
    state = histogram("laplace")
    coarse, fine = (absmax_of(MseObserver(MseParams(steps)), state, INT8) for steps in (8, 1000))
    errors = state.expected_errors(np.array([coarse, fine]), INT8)
    assert errors[1] <= errors[0]
    assert coarse != fine


# ------------------------------------------------------------------------------------------------ percentile


def order_statistics(x: np.ndarray, percentile: float) -> tuple[float, float]:
    """The absolute values between which the percentile lies; both, where rounding decides which."""
    exact, sizes = percentile / 100 * x.size, np.sort(np.abs(x.astype(np.float64)))
    ranks = [math.ceil(exact * (1 + sign * 1e-12)) for sign in (-1, 1)]
    return tuple(float(sizes[min(max(rank, 1), x.size) - 1]) for rank in ranks)


@cases()
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 99.99, 100])
def test_percentile_is_within_a_bin_of_the_exact_one(percentile: float, distribution: str, kind: QuantSpec) -> None:
    state = histogram(distribution)
    found = absmax_of(PercentileObserver(PercentileParams(percentile)), state, kind)
    low, high = order_statistics(sample(distribution), percentile)
    assert low - state.width <= found <= high + state.width


@cases(SPREAD)
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9])
def test_percentile_against_numpy(percentile: float, distribution: str, kind: QuantSpec) -> None:
    """Where values are dense it does not matter between which two of them numpy interpolates."""
    x, state = sample(distribution), histogram(distribution)
    found = absmax_of(PercentileObserver(PercentileParams(percentile)), state, kind)
    expected = float(np.percentile(np.abs(x), percentile))
    gap = np.percentile(np.abs(x), min(percentile + 0.01, 100)) - expected
    assert_close(found, expected, rtol=0, atol=state.width + gap)


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(2, 80), elements=st.floats(-1e6, 1e6, width=32)),
    st.one_of(st.floats(50, 100), st.sampled_from([50.0, 75.0, 90.0, 99.99])),
)
def test_percentile_of_anything(x: np.ndarray, percentile: float) -> None:
    if x.min() == x.max():
        return
    state = state_of(x)
    found = absmax_of(PercentileObserver(PercentileParams(percentile)), state, INT8)
    low, high = order_statistics(x, percentile)
    assert low - state.width <= found <= high + state.width


def test_the_hundredth_percentile_is_the_maximum() -> None:
    for distribution in DISTRIBUTIONS:
        found = absmax_of(PercentileObserver(PercentileParams(100)), histogram(distribution), INT8)
        assert found == np.abs(sample(distribution)).max()


def test_a_percentile_that_falls_between_two_values_is_the_lower() -> None:
    """Half of the values are no larger than 1, whatever lies between 1 and 100."""
    state = state_of([1, -1, 100, -100])
    assert absmax_of(PercentileObserver(PercentileParams(50)), state, INT8) == 1 + state.width
    assert absmax_of(PercentileObserver(PercentileParams(50.1)), state, INT8) > 99


def test_where_most_are_zero_the_range_is_not_empty() -> None:
    state = histogram("mostly zero")
    assert absmax_of(PercentileObserver(PercentileParams(99)), state, UINT8) == state.width


# ------------------------------------------------------------------------------------------------ norm, mean_std


@cases()
@pytest.mark.parametrize("p", [1, 2, 2.5, 3])
def test_norm_by_its_formula(p: float, distribution: str, kind: QuantSpec) -> None:
    """Norms of values and of middles differ by no more than the norm of the difference, here one bin."""
    x, state = sample(distribution).astype(np.float64), histogram(distribution)
    largest = 127 if kind.signed else 255
    expected = 2 * np.mean(np.abs(x) ** p) ** (1 / p) * math.sqrt(largest)
    observer = observers.get(f"norm:{p}")
    assert_close(observer.threshold(state, kind), expected, rtol=1e-9, atol=2 * math.sqrt(largest) * state.width)
    assert absmax_of(observer, state, kind) == min(observer.threshold(state, kind), np.abs(x).max())


@cases(SPREAD)
def test_norm_is_close_where_bins_are_fine(distribution: str, kind: QuantSpec) -> None:
    """Teeth: without the allowance of a bin."""
    x = sample(distribution).astype(np.float64)
    largest = 127 if kind.signed else 255
    for p in (1, 2, 3):
        expected = 2 * np.mean(np.abs(x) ** p) ** (1 / p) * math.sqrt(largest)
        assert_close(observers.get(f"norm:{p}").threshold(histogram(distribution), kind), expected, rtol=2e-3, atol=0)


@cases()
@pytest.mark.parametrize("k", [0.5, 2.6, 3])
def test_mean_std_by_its_formula(k: float, distribution: str, kind: QuantSpec) -> None:
    x, state = sample(distribution).astype(np.float64), histogram(distribution)
    expected = x.mean() + k * x.std()
    if kind.signed:
        expected = max(abs(expected), abs(x.mean() - k * x.std()))
    found = observers.get(f"mean_std:{k}").threshold(state, kind)
    assert_close(found, expected, rtol=1e-9, atol=(1 + k) * state.width)
    if distribution in SPREAD:
        assert_close(found, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("spec", ["norm:1", "norm:200", "mean_std:0.001", "mean_std:1e300", "norm:1e6"])
def test_moments_of_any_order_are_finite(spec: str) -> None:
    for x in ([1e-44, 3e-44], [-3e38, 3e38, 1], [0, 0, 0, 1e-30], sample("student")):
        found = absmax_of(observers.get(spec), state_of(x), INT8)
        assert 0 < found <= np.abs(np.float32(x)).max()


# ------------------------------------------------------------------------------------------------ ema_minmax


def averaged(batches: Any, momentum: float) -> tuple[float, float]:
    """The moving average as anyone writes it."""
    low = high = math.nan
    for number, x in enumerate(batches):
        least, most = float(np.min(x)), float(np.max(x))
        low = least if number == 0 else momentum * low + (1 - momentum) * least
        high = most if number == 0 else momentum * high + (1 - momentum) * most
    return low, high


numbers = st.floats(-1e3, 1e3, width=32)
some_batches = st.lists(arrays(np.float32, st.integers(1, 8), elements=numbers), min_size=1, max_size=12)


@settings(deadline=None)
@given(batches=some_batches, momentum=st.floats(0, 1, exclude_max=True), cut=st.integers(0, 12))
def test_ema_is_a_moving_average(batches: Any, momentum: float, cut: int) -> None:
    observer = MovingObserver(MovingParams(momentum))
    whole = first = second = observer.empty()
    for number, x in enumerate(batches):
        whole = observer.update(whole, x)
        first, second = (observer.update(first, x), second) if number < cut else (first, observer.update(second, x))
    expected = averaged(batches, momentum)
    for state in (whole, observer.merge(first, second)):  # stretch after stretch
        assert_close(state.averages, expected, rtol=1e-9, atol=1e-9)
        assert (state.batches, state.extent) == (len(batches), whole.extent)
    low, high = expected
    if max(abs(low), abs(high)) > 1e-6:
        signed = low >= 0 > whole.extent.min
        found = observer.range(whole, ANY8)
        wanted = [max(whole.extent.min, -high) if signed else low, high]
        assert_close([found.min, found.max], wanted, rtol=1e-9, atol=1e-9)
        assert whole.extent.min <= found.min <= found.max <= whole.extent.max


def test_ema_by_hand() -> None:
    observer = MovingObserver()
    state = observer.empty()
    for x in ([-1, 2], [-2, 4], [-11, 14]):
        state = observer.update(state, x)
    found = observer.range(state, ANY8)
    assert_close([found.min, found.max], [-1.1 * 0.9 - 1.1, 2.2 * 0.9 + 1.4], rtol=1e-12, atol=0)


def test_ema_depends_on_order_and_on_the_batches() -> None:
    observer = MovingObserver()
    ranges = []
    for batches in ([[1.0], [9.0]], [[9.0], [1.0]], [[1.0, 9.0]]):
        state = observer.empty()
        for x in batches:
            state = observer.update(state, x)
        ranges.append(observer.range(state, ANY8).max)
    assert_close(ranges, [1.8, 8.2, 9], rtol=1e-12, atol=0)
    assert observer.ordered
    assert not any(observers.get(spec).ordered for spec in FROM_HISTOGRAMS)


def test_ema_of_empty_batches_and_of_zeros_first() -> None:
    observer = MovingObserver()
    state = observer.update(observer.empty(), np.zeros((0, 3), np.float32))
    assert state == observer.empty()
    state = observer.update(observer.update(state, np.zeros(3)), [1.0])
    assert_close(observer.range(state, ANY8).max, 0.1, rtol=1e-12, atol=0)
    frozen = MovingObserver(MovingParams(0.0))
    assert frozen.range(frozen.update(frozen.update(frozen.empty(), [5.0]), [3.0, 7.0]), ANY8) == Range(3, 7)


def test_ema_never_calls_a_signed_tensor_unsigned() -> None:
    """The average of the minima -1 and 100 is positive; uint8 codes would lose every negative value."""
    observer = MovingObserver()
    state = observer.update(observer.update(observer.empty(), [-1.0, 2.0]), [100.0, 200.0])
    assert averaged([[-1.0, 2.0], [100.0, 200.0]], 0.9)[0] > 0
    found = observer.range(state, ANY8)
    assert found.min == -1
    assert_close(found.max, 21.8, rtol=1e-12, atol=0)
    halved = MovingObserver(MovingParams(0.5))
    state = halved.update(halved.update(halved.empty(), [-1.0, 2.0]), [1.0, 4.0])
    assert state.averages == (0.0, 3.0)
    assert halved.range(state, ANY8) == Range(-1, 3)


# ------------------------------------------------------------------------------------------------ naive, fixed


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_naive_is_minimum_and_maximum(distribution: str) -> None:
    x = sample(distribution)
    for kind in KINDS:
        expected = Range(float(x.min()), float(x.max()))
        assert observers.get("naive").range(histogram(distribution), kind) == expected


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_fixed_is_what_was_given(distribution: str) -> None:
    observer = FixedObserver(FixedParams(-0.5, 6))
    for kind in KINDS:
        assert observer.range(histogram(distribution), kind) == Range(-0.5, 6)
    assert observer.observed(histogram(distribution)) == Range(
        float(sample(distribution).min()), float(sample(distribution).max())
    )


def test_fixed_needs_data() -> None:
    observer = observers.get("fixed:0,6")
    assert observer.range(observer.update(observer.empty(), [0.0, 0.0]), ANY8) == Range(0, 6)  # also of zeros
    with pytest.raises(CalibrationError, match=r"^no values were observed, so there is no range"):
        observer.range(observer.empty(), ANY8)


# ------------------------------------------------------------------------------------------------ auto

CANDIDATES = (
    "entropy",
    "mean_std",
    "mse",
    "naive",
    "norm",
    "percentile",
    "percentile:99.9",
    "percentile:99.999",
    "percentile:99.9999",
)


@cases()
def test_auto_records_what_every_candidate_would_have_found(distribution: str, kind: QuantSpec) -> None:
    state = histogram(distribution)
    found = AutoObserver().candidates(state, kind)
    assert tuple(sorted(c.observer for c in found)) == CANDIDATES
    for candidate in found:
        bound = absmax_of(observers.get(candidate.observer), state, kind)
        assert candidate.range == Range(-bound if kind.signed else 0.0, bound)
        assert candidate.error == state.expected_errors(np.array([bound]), kind)[0]
    errors = [(c.error, -c.range.absmax) for c in found]
    assert errors == sorted(errors)
    assert AutoObserver().range(state, kind) == found[0].range


@cases()
def test_auto_is_never_worse_than_a_candidate(distribution: str, kind: QuantSpec) -> None:
    x, state = sample(distribution), histogram(distribution)
    chosen = true_error(x, absmax_of(AutoObserver(), state, kind), kind)
    assert chosen <= 1.01 * min(true_error(x, absmax_of(observers.get(c), state, kind), kind) for c in CANDIDATES)
    assert chosen <= 1.01 * least_error(distribution, kind)


def test_auto_does_choose() -> None:
    """Not one calibrator for all, nor the same range."""
    chosen = {AutoObserver().candidates(histogram(d), INT8)[0].observer for d in DISTRIBUTIONS}
    assert len(chosen) >= 2
    errors = [[c.error for c in AutoObserver().candidates(histogram(d), INT8)] for d in ("normal", "student")]
    assert all(e[-1] > 1.5 * e[0] for e in errors)


def test_of_equals_auto_takes_the_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is gained by clipping, nothing is clipped."""
    state = state_of(np.repeat(np.float32([0, 6]), 500))
    found = AutoObserver().candidates(state, ANY8)
    assert (found[0].range, found[0].observer) == (Range(0, 6), "naive")
    monkeypatch.setattr(HistogramState, "expected_errors", lambda self, thresholds, *_: np.ones(len(thresholds)))
    bounds = [c.range.absmax for c in AutoObserver().candidates(histogram("student"), INT8)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) > 3


def test_auto_has_nothing_to_choose_of_constants() -> None:
    for x in ([], [0.0, 0.0], [3.0, 3.0], [-1e-40]):
        assert AutoObserver().candidates(state_of(x), ANY8) == ()
    assert all(observers.get(spec).candidates(histogram("normal"), ANY8) == () for spec in FROM_HISTOGRAMS[1:])
