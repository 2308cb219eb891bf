"""Observers: folds that keep their laws, and the entropy search against two independent oracles."""

from __future__ import annotations

import importlib
import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq import observers
from mxq.compat import prepare
from mxq.errors import CalibrationError, ConfigError, DataError
from mxq.observers import EntropyObserver, EntropyParams, HistogramState, NaiveObserver, base
from mxq.observers.entropy import EPSILON, divergences
from mxq.observers.histogram import CHUNK, HALF, MIN_EXPONENT
from mxq.thresholds import Range

NAMES = ("entropy", "naive")
DTYPES = ("auto", "int8", "uint8")

floats = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),  # of any magnitude, with denormals and -0.0
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 4.0, -4.0, 2.0**-110, 2.0**-149, -(2.0**-149), 2.0**127, -(2.0**127)]),
)
batches = st.lists(arrays(np.float32, st.integers(0, 20), elements=floats), min_size=1, max_size=6)


def fold(observer: Any, data: Any) -> Any:
    state = observer.empty()
    for x in data:
        state = observer.update(state, x)
    return state


def bits(state: Any) -> tuple[Any, ...]:
    """Everything in a state, comparable bit for bit (min and max as text, to tell -0.0 from 0.0)."""
    if isinstance(state, HistogramState):
        return (state.exponent, state.counts.tobytes(), *bits(state.extent))
    return (state.count, repr(state.min), repr(state.max))


# ------------------------------------------------------------------------------------------------ all observers


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=batches, cut=st.integers(0, 6), seed=st.integers(0, 100))
def test_any_split_order_and_merge_give_the_same_bits(name: str, data: list[Any], cut: int, seed: int) -> None:
    observer = observers.get(name)
    once = bits(fold(observer, [np.concatenate(data)]))
    assert bits(fold(observer, data)) == once
    order = np.random.default_rng(seed).permutation(len(data))
    assert bits(fold(observer, [data[i] for i in order])) == once
    left, right = fold(observer, data[:cut]), fold(observer, data[cut:])
    assert bits(observer.merge(left, right)) == once
    assert bits(observer.merge(right, left)) == once


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=batches)
def test_reading_and_updating_change_no_state(name: str, data: list[Any]) -> None:
    observer = observers.get(name)
    state = fold(observer, data)
    before = bits(state)
    observer.update(state, np.float32([1e30, -2.0]))
    observer.merge(state, state)
    observer.observed(state)
    observer.note(state)
    if state.extent.count if isinstance(state, HistogramState) else state.count:
        first = [observer.range(state, dtype) for dtype in DTYPES]
        assert [observer.range(state, dtype) for dtype in DTYPES] == first
    assert bits(state) == before


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=batches, dtype=st.sampled_from(DTYPES))
def test_every_range_is_usable(name: str, data: list[Any], dtype: str) -> None:
    x = np.concatenate(data)
    observer = observers.get(name)
    state = fold(observer, data)
    if x.size == 0:
        return
    found = observer.range(state, dtype)
    assert found.absmax > 0
    if np.any(x):
        assert found.absmax <= np.abs(x).max()
    if dtype != "int8":
        assert (found.min >= 0) == bool(np.all(x >= 0))
    assert observer.observed(state) == Range(float(x.min()), float(x.max()))


@pytest.mark.parametrize("name", NAMES)
def test_zero_batches_are_an_error(name: str) -> None:
    observer = observers.get(name)
    for state in (observer.empty(), observer.update(observer.empty(), np.zeros((0, 3), np.float32))):
        assert observer.observed(state) is None
        with pytest.raises(CalibrationError, match="no values were observed"):
            observer.range(state, "auto")


@pytest.mark.parametrize("name", NAMES)
def test_all_zero_is_answered_honestly(name: str) -> None:
    observer = observers.get(name)
    state = fold(observer, [np.zeros((2, 3), np.float32)])
    assert observer.observed(state) == Range(0, 0)
    assert observer.note(state) == "all zero"
    assert observer.range(state, "auto") == Range(0, 1)  # not (0, 0), which the stock kernel codes as 127


@pytest.mark.parametrize("name", NAMES)
def test_an_all_zero_first_batch_leaves_no_trace(name: str) -> None:
    observer = observers.get(name)
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    zero = np.zeros(10_000, np.float32)
    assert bits(fold(observer, [zero, x])) == bits(fold(observer, [x, zero]))
    assert observer.note(fold(observer, [zero, x])) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, -1e-43, 2.0**-100, 3e38])
def test_a_constant(name: str, value: float) -> None:
    observer = observers.get(name)
    state = fold(observer, [np.full(1000, value, np.float32)])
    assert observer.note(state) == "constant"
    assert observer.range(state, "auto").absmax == abs(np.float32(value))


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_are_counted(name: str) -> None:
    observer = observers.get(name)
    x = np.ones((4, 5), np.float32)
    x[0, :2], x[1, 0], x[3, 3] = math.nan, math.inf, -math.inf
    with pytest.raises(DataError, match=r"4 of 20 values are not finite \(2 NaN, 2 Inf\)"):
        observer.update(observer.empty(), x)
    with pytest.raises(DataError, match=r"1 of 1 values are not finite \(0 NaN, 1 Inf\)"):
        observer.update(observer.empty(), np.float64([1e300]))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_dtypes_are_refused(name: str) -> None:
    observer = observers.get(name)
    state = fold(observer, [np.float32([1, 2])])
    with pytest.raises(ConfigError, match="allowed: 'auto', 'int8', 'uint8'"):
        observer.range(state, "int4")
    with pytest.raises(DataError, match="dtype <U1"):
        observer.update(state, np.array(["a"]))


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_type_of_the_array_do_not_matter(name: str) -> None:
    observer = observers.get(name)
    x = np.arange(-300, 300, dtype=np.int32).reshape(20, 30)
    expected = bits(fold(observer, [x.astype(np.float32)]))
    for same in (x, x.T, x.astype(np.float64), np.repeat(x, 2, axis=1)[:, ::2], x.tolist()):
        assert bits(fold(observer, [same])) == expected


@pytest.mark.parametrize("name", NAMES)
def test_minus_zero_is_zero_in_any_order(name: str) -> None:
    observer = observers.get(name)
    for data in ([[-0.0], [0.0]], [[0.0], [-0.0]], [[-0.0, 1.0]], [[-1.0, -0.0]]):
        seen = observer.observed(fold(observer, data))
        assert "-0.0" not in {repr(seen.min), repr(seen.max)}


def test_states_are_frozen() -> None:
    state = fold(EntropyObserver(), [np.float32([1, 2])])
    with pytest.raises(ValueError, match="read-only"):
        state.counts[0] = 1
    with pytest.raises(FrozenInstanceError):
        state.exponent = 3
    with pytest.raises(ValueError, match="read-only"):
        EntropyObserver().empty().counts[0] = 1


# ------------------------------------------------------------------------------------------------ registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", {name: observers.get(name) for name in NAMES})


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match="observer is 'minmax'; allowed: 'entropy', 'naive'"):
        observers.get("minmax")
    assert observers.names() == NAMES


@pytest.mark.usefixtures("registry")
def test_registering() -> None:
    @dataclass(frozen=True)
    class Half(NaiveObserver):
        name: ClassVar[str] = "half"

    observers.register(Half())
    observers.register(Half())  # the same again is harmless
    assert observers.names() == ("entropy", "half", "naive")
    assert observers.get("half") == Half()

    @dataclass(frozen=True)
    class Impostor(NaiveObserver):
        name: ClassVar[str] = "naive"

    with pytest.raises(ConfigError, match="'naive' exists already"):
        observers.register(Impostor())


# ------------------------------------------------------------------------------------------------ naive


@pytest.mark.parametrize("dtype", DTYPES)
def test_naive_reports_what_it_saw(dtype: str) -> None:
    naive = NaiveObserver()
    assert naive.range(fold(naive, [[-1.5, 2.0], [3.0]]), dtype) == Range(-1.5, 3.0)
    assert naive.range(fold(naive, [[0.5, 2.0]]), dtype) == Range(0.5, 2.0)
    assert naive.range(fold(naive, [[-0.5, -2.0]]), dtype) == Range(-2.0, -0.5)


# ------------------------------------------------------------------------------------------------ histogram


def slow_counts(x: np.ndarray, exponent: int) -> np.ndarray:
    """The definition of the bins, one value at a time, in exact arithmetic."""
    counts = np.zeros(2 * HALF + 1, np.int64)
    for value in x.tolist():
        sign, (mantissa, power) = math.copysign(1, value), math.frexp(abs(value))
        magnitude = int(math.ldexp(mantissa, min(power + 12 - exponent, 20)))
        counts[HALF + int(sign) * magnitude] += 1
    return counts


@settings(deadline=None)
@given(data=batches)
def test_histogram_counts_by_definition(data: list[Any]) -> None:
    state = fold(EntropyObserver(), data)
    x = np.concatenate(data)
    np.testing.assert_array_equal(state.counts, slow_counts(x, state.exponent))
    assert state.counts.sum() == state.extent.count == x.size
    if np.any(x):
        assert np.abs(x.astype(np.float64)).max() < 2.0**state.exponent
    assert state.exponent >= MIN_EXPONENT


def test_the_range_is_the_smallest_power_of_two_above_the_data() -> None:
    entropy = EntropyObserver()
    for value, exponent in ((1.0, 1), (0.999, 0), (-1.0, 1), (1.5, 1), (2.0, 2), (-0.25, -1)):
        assert fold(entropy, [[value]]).exponent == exponent
    assert fold(entropy, [[100.0], [1.0]]).exponent == 7  # later, smaller data does not shrink it


def test_chunks_lose_nothing() -> None:
    x = np.random.default_rng(0).standard_normal(2 * CHUNK + 17).astype(np.float32)
    state = fold(EntropyObserver(), [x])
    v = np.trunc(x.astype(np.float64) / state.width).astype(int)
    np.testing.assert_array_equal(state.counts, np.bincount(v + HALF, minlength=2 * HALF + 1))


def test_rounding_down_instead_of_towards_zero_would_not_merge() -> None:
    """Why the middle bin is twice as wide: a denormal keeps its sign in one order of arrival and not in another."""
    tiny, large = np.float32(-(2.0**-149)), np.float32(2.0**20)
    early = np.floor(tiny * np.float32(2.0**112)) / 2**132  # counted in bin -1, then widened
    late = np.floor(tiny * np.float32(2.0 ** (12 - 21)))  # underflows to -0.0
    assert np.floor(early) != late
    entropy = EntropyObserver()
    assert bits(fold(entropy, [[tiny], [large]])) == bits(fold(entropy, [[large], [tiny]]))


# ------------------------------------------------------------------------------------------------ entropy


def literal(counts: np.ndarray, levels: int, i: int) -> float:
    """One candidate's divergence, word for word as in the module's description, bin by bin."""
    n = len(counts) // 2
    kept = counts[n - i : n + i + 1].astype(float)
    p = kept.copy()
    p[0] += counts[: n - i].sum()
    p[-1] += counts[n + i + 1 :].sum()
    if kept.sum() == 0:
        return math.inf
    q = np.zeros(len(kept))
    size = len(kept) // levels
    for group in range(levels):
        bins = slice(group * size, (group + 1) * size if group < levels - 1 else len(kept))
        support = np.flatnonzero(p[bins]) + group * size
        if len(support):
            q[support] = max(kept[bins].sum() / len(support), EPSILON)
    mask = p > 0
    return float(np.sum(p[mask] / p.sum() * np.log((p[mask] / p.sum()) / (q[mask] / kept.sum()))))


def samples(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    x = {
        "normal": lambda: rng.standard_normal(n),
        "half-normal": lambda: np.maximum(rng.standard_normal(n), 0),
        "laplace": lambda: rng.laplace(size=n),
        "abs-laplace": lambda: np.abs(rng.laplace(size=n)),
        "uniform": lambda: rng.uniform(-1, 1, n),
        "outliers": lambda: np.concatenate([rng.standard_normal(n - 5), [60, 70, -80, 90, 50]]),
        "relu6": lambda: np.clip(4 * rng.standard_normal(n), 0, 6),
    }[kind]()
    return x.astype(np.float32)


KINDS = ("normal", "half-normal", "laplace", "abs-laplace", "uniform", "outliers", "relu6")


def levels_of(state: HistogramState) -> int:
    return 511 if state.extent.min >= 0 else 255


@settings(deadline=None)
@given(data=st.data(), levels=st.sampled_from([3, 5, 9, 15]), half=st.integers(8, 40))
def test_divergences_equal_the_literal_loop(data: Any, levels: int, half: int) -> None:
    few = st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10_000))
    counts = np.array(data.draw(st.lists(few, min_size=2 * half + 1, max_size=2 * half + 1)), np.int64)
    counts[half] += 1  # never all zero
    expected = [literal(counts, levels, i) for i in range(levels // 2, half + 1)]
    np.testing.assert_allclose(divergences(counts, levels), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_equal_the_literal_loop_at_full_size(kind: str) -> None:
    state = fold(EntropyObserver(), [samples(kind, 200_000)])
    counts, levels = state.cropped(), levels_of(state)
    found = divergences(counts, levels)
    for c in (*range(0, len(found), 97), int(np.argmin(found)), len(found) - 1):
        assert found[c] == pytest.approx(literal(counts, levels, levels // 2 + c), rel=1e-9, abs=1e-11)


def edges_of(state: HistogramState, bins: int) -> np.ndarray:
    """The bins' edges: multiples of the width without 0, for the middle bin goes from -width to width."""
    n = bins // 2
    steps = np.arange(-n - 1, n + 2)
    return steps[steps != 0] * state.width


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_is_as_good_as_mxnets_on_the_same_histogram(kind: str) -> None:
    """The two differ by smoothing, EPSILON * bins / values * log, here 1e-4 * 8000 / 2e5 * 10 = 4e-5, by float32 sums
    in MXNet, and by its Q leaving out the lowest kept bin (which decides between the few candidates of "outliers").
    The curves are flat at their minimum, so thresholds are compared by what they cost: 1e-4 nats, where half the
    threshold costs 1e-2 and more.
    """
    prepare()
    mx = importlib.import_module("mxnet")
    state = fold(EntropyObserver(), [samples(kind, 200_000)])
    counts, levels = state.cropped(), levels_of(state)
    threshold, divergence = (
        float(t.asscalar())
        for t in mx.nd.contrib.calibrate_entropy(
            mx.nd.array(counts), mx.nd.array(edges_of(state, len(counts))), num_quantized_bins=levels
        )
    )
    found = divergences(counts, levels)
    theirs = found[round(threshold / state.width) - 1 - levels // 2]
    assert theirs == pytest.approx(divergence, abs=4e-5)
    assert theirs - found.min() <= 1e-4
    ours = EntropyObserver(EntropyParams(tolerance=0)).range(state, "auto")
    upper_edge = (int(np.argmin(found)) + levels // 2 + 1) * state.width
    assert ours.absmax == min(upper_edge, state.extent.absmax)
    assert ours.absmax == pytest.approx(min(threshold, state.extent.absmax), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_tolerance_takes_the_largest_threshold_that_costs_little_more(kind: str) -> None:
    state = fold(EntropyObserver(), [samples(kind, 200_000)])
    counts, levels = state.cropped(), levels_of(state)
    found = divergences(counts, levels)
    threshold = EntropyObserver(EntropyParams(tolerance=0.25)).range(state, "auto").absmax
    kept = next(i for i in range(len(found)) if (i + levels // 2 + 1) * state.width >= threshold)
    assert found[kept] <= 1.25 * found.min() + 1e-12
    assert (found[kept + 1 :] > 1.25 * found.min()).all()
    assert threshold >= EntropyObserver(EntropyParams(tolerance=0)).range(state, "auto").absmax


def test_tolerance_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match=r"tolerance is -0\.1; allowed: 0 or more"):
        EntropyParams(tolerance=-0.1)


def test_a_search_that_forgets_the_outliers_would_be_caught() -> None:
    """Teeth: without the outside counts in P the divergences are elsewhere by far more than any tolerance above."""
    state = fold(EntropyObserver(), [samples("normal", 200_000)])
    counts = state.cropped()
    n, i = len(counts) // 2, 400
    forgetful = literal(counts[n - i : n + i + 1], 255, i)
    assert abs(forgetful - divergences(counts, 255)[i - 127]) > 0.1


def test_entropy_ranges_by_dtype() -> None:
    entropy = EntropyObserver()
    positive = fold(entropy, [samples("half-normal", 50_000)])
    signed = fold(entropy, [samples("normal", 50_000)])
    for dtype in ("auto", "uint8"):
        assert entropy.range(positive, dtype).min == 0
    for found in (entropy.range(positive, "int8"), *(entropy.range(signed, dtype) for dtype in DTYPES)):
        assert found.min == -found.max < 0


def test_entropy_clips_outliers_and_keeps_what_is_spread() -> None:
    entropy = EntropyObserver()
    assert entropy.range(fold(entropy, [samples("outliers", 200_000)]), "auto").max < 9
    assert entropy.range(fold(entropy, [samples("uniform", 200_000)]), "auto").max > 0.98


@pytest.mark.parametrize("values", [[0, 5], [0, 1, 2, 3], [-1, 1], [-7, 0, 0.001], [0.5, 100]], ids=str)
def test_sparse_histograms_are_not_clipped(values: list[float]) -> None:
    """The divergence is blind here: of 0 and 5 it would keep 1."""
    entropy = EntropyObserver()
    state = fold(entropy, [np.repeat(np.float32(values), 100)])
    assert entropy.range(state, "auto").absmax == np.abs(np.float32(values)).max()
    assert entropy.note(state) == "few distinct values, not clipped"


def test_why_sparse_histograms_need_care() -> None:
    state = fold(EntropyObserver(), [np.repeat(np.float32([0, 5]), 100)])
    found = divergences(state.cropped(), 511)
    assert found[int(1 / state.width) - 255 - 2] == pytest.approx(0, abs=1e-12)


def test_too_few_bins_for_the_levels_fall_back_to_the_extent() -> None:
    entropy = EntropyObserver()
    state = fold(entropy, [np.float32([1e-35, -2e-35, 0])])  # below 2^-100 all share few bins
    assert entropy.range(state, "auto").absmax == np.float32(2e-35)


@pytest.mark.parametrize("levels", [0, 1, 4, -3])
def test_entropy_params_validate(levels: int) -> None:
    with pytest.raises(ConfigError, match="levels"):
        EntropyParams(levels)


def test_entropy_params_count() -> None:
    state = fold(EntropyObserver(), [samples("laplace", 100_000)])
    coarse = EntropyObserver(EntropyParams(15)).range(state, "int8")
    assert coarse.max < EntropyObserver().range(state, "int8").max
