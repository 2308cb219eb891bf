"""The compiled loops against plain definitions, on every kind of float32, and the histogram that they fill."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq.errors import DataError, FormatError
from mxq.host import parallel
from mxq.observers import EntropyObserver, HistogramState, MinMax, kernels
from mxq.observers.histogram import HALF, MIN_EXPONENT
from mxq.quant import UINT8

MAX = float(np.finfo(np.float32).max)
TINY = 2.0**-149
SPECIAL = np.float32([0.0, -0.0, TINY, -TINY, 2.0**-126, -(2.0**-127), 1.0, -1.0, MAX, -MAX])
WHOLE = [*SPECIAL.tolist(), 2.0**-110, 2.0**127, -(2.0**127)]
BINS = 2 * HALF + 1

finite = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-4, 4, width=32))
values = st.one_of(finite, st.sampled_from(WHOLE))
batches = st.lists(arrays(np.float32, st.integers(0, 20), elements=values), min_size=1, max_size=6)


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads, whatever the machine has."""
    number = request.param
    pool = parallel.ThreadPoolExecutor(number, parallel.THREADS) if number > 1 else None
    monkeypatch.setattr(parallel, "_pool", lambda: (pool, number))
    yield number
    if pool is not None:
        pool.shutdown()


def fold(data: Any) -> HistogramState:
    state = HistogramState()
    for x in data:
        state = state.update(np.asarray(x, np.float32))
    return state


def bits(state: HistogramState) -> tuple[Any, ...]:
    """Everything in a state, bit for bit (bounds as text, to tell -0.0 from 0.0)."""
    return state.exponent, state.counts.tobytes(), state.extent.count, repr(state.extent.min), repr(state.extent.max)


# ------------------------------------------------------------------------------------------------ extremes


@given(arrays(np.float32, st.integers(1, 40), elements=values))
def test_extremes_are_the_minimum_and_the_maximum(x: np.ndarray) -> None:
    assert repr(kernels.extremes(x)) == repr((float(x.min()) + 0.0, float(x.max()) + 0.0))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([-0.0], (0.0, 0.0)),
        ([-0.0, 0.0], (0.0, 0.0)),
        ([-0.0, 1.0], (0.0, 1.0)),
        ([-1.0, -0.0], (-1.0, 0.0)),
        ([TINY, -TINY], (-TINY, TINY)),
        ([-TINY, -MAX], (-MAX, -TINY)),
        ([TINY, MAX], (TINY, MAX)),
        ([MAX, -MAX, 1.0], (-MAX, MAX)),
        ([math.inf, 1.0], (1.0, math.inf)),
        ([-math.inf, -1.0], (-math.inf, -1.0)),
        ([-math.inf, math.inf], (-math.inf, math.inf)),
    ],
    ids=str,
)
def test_extremes_of_special_values(x: list[float], expected: tuple[float, float]) -> None:
    """Of any sign alone and of both; zeros have no sign (as text, to tell -0.0 from 0.0)."""
    assert repr(kernels.extremes(np.float32(x))) == repr(expected)


@pytest.mark.parametrize("sign", [0x7F800000, 0xFF800000], ids=["positive", "negative"])
@pytest.mark.parametrize("payload", [1, 0x400000, 0x7FFFFF], ids=hex)
@pytest.mark.parametrize("others", [SPECIAL, np.abs(SPECIAL), -np.abs(SPECIAL)], ids=["mixed", "positive", "negative"])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_no_nan_goes_unseen_between_the_extremes(sign: int, payload: int, others: np.ndarray, place: int) -> None:
    """Comparing floats would lose it: min(1, NaN) depends on the order, with some instructions it is 1."""
    codes = others.view(np.uint32).copy()
    codes[place] = sign + payload
    assert np.isnan(kernels.extremes(codes.view(np.float32))).any()
    with pytest.raises(DataError, match=r"^1 of 10 values are not finite \(1 NaN, 0 Inf\)$"):
        MinMax().update(codes.view(np.float32))


# ------------------------------------------------------------------------------------------------ count


def counted(x: Any, factor: float, half: int = HALF) -> list[int]:
    lanes = np.zeros((kernels.LANES, 2 * half + 1), np.int64)
    kernels.count(np.asarray(x, np.float32), np.float32(factor), half, lanes)
    return lanes.sum(axis=0).tolist()


def test_count_truncates_towards_zero() -> None:
    x = [0.0, -0.0, 0.99, -0.99, 1.0, -1.0, 1.99, -3.5, 3.99, TINY, -TINY]
    assert counted(x, 1.0, half=3) == [1, 0, 1, 6, 2, 0, 1]


@pytest.mark.parametrize("size", range(14))
def test_count_leaves_out_no_value(size: int) -> None:
    """Whatever remains of a division by the number of lanes; and what was counted before stays."""
    x = np.arange(size) % 4 - 1
    assert counted(x, 1.0, half=3) == np.bincount(x + 3, minlength=7).tolist()
    lanes = np.ones((kernels.LANES, 7), np.int64)
    kernels.count(np.float32([2]), np.float32(1), 3, lanes)
    assert lanes.sum(axis=0).tolist() == [4, 4, 4, 4, 4, 5, 4]


def test_count_at_the_ends_of_float32() -> None:
    """Products that underflow are in the middle bin, the largest value is in the last."""
    counts = counted([MAX, -MAX, TINY, -TINY, 1.0], 2.0 ** (12 - 128))
    assert (counts[0], counts[HALF], counts[-1]) == (1, 3, 1)
    below = np.nextafter(np.float32(4), np.float32(0))
    assert counted([below, -below], 1.0, half=3) == [1, 0, 0, 0, 0, 0, 1]
    assert counted([TINY, -TINY], 2.0 ** (12 - MIN_EXPONENT))[HALF] == 2


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", range(6))
def test_only_what_fits_is_counted(monkeypatch: pytest.MonkeyPatch, value: float, place: int) -> None:
    """The loop writes where its index says: a value that has no bin must not get there."""
    before, x = fold([[1.0, 2.0]]), np.ones(6, np.float32)
    held, x[place] = bits(before), value
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "count", lambda *_: pytest.fail("it was counted"))
        with pytest.raises(DataError, match=r"^1 of 6 values are not finite"):
            before.update(x)
    assert bits(before) == held


@given(data=batches)
@settings(deadline=None)
def test_every_value_that_is_counted_fits(data: list[Any]) -> None:
    count, seen = kernels.count, 0

    def checked(x: np.ndarray, factor: np.float32, half: int, lanes: np.ndarray) -> None:
        nonlocal seen
        seen += x.size
        assert np.all(np.abs(x.astype(np.float64) * factor) < half + 1)
        assert lanes.shape[1] == 2 * half + 1
        count(x, factor, half, lanes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "count", checked)
        fold(data)
    assert seen == sum(x.size for x in data)


# ------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize(
    "size", [0, 1, parallel.PIECE - 1, 2 * parallel.PIECE, 2 * parallel.PIECE + 1, 10 * parallel.PIECE + 7]
)
def test_pieces_are_all_of_it_in_order(threads: int, size: int) -> None:
    x = np.arange(size, dtype=np.float32)
    parts = parallel.pieces(x)
    np.testing.assert_array_equal(np.concatenate(parts), x)
    assert len(parts) == min(threads, max(1, size // parallel.PIECE))
    assert all(np.shares_memory(part, x) for part in parts if size)


def test_in_parallel_keeps_the_order(threads: int) -> None:
    assert parallel.in_parallel(lambda i: i * i, range(20)) == [i * i for i in range(20)]
    assert parallel.in_parallel(lambda i: i, iter(())) == []
    assert parallel.in_parallel(lambda i: parallel.in_parallel(lambda j: (i, j), range(3)), range(9))[8][2] == (8, 2)


def test_in_parallel_runs_on_so_many_threads(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=20)
    assert sorted(parallel.in_parallel(lambda _: meeting.wait(), range(threads))) == list(range(threads))


def test_the_first_error_is_raised(threads: int) -> None:
    def fail(i: int) -> int:
        if i in {3, 4}:
            raise DataError(f"item {i}")
        return i

    with pytest.raises(DataError, match=r"^item 3$"):
        parallel.in_parallel(fail, range(6))
    assert parallel.in_parallel(fail, range(3)) == [0, 1, 2]  # and the threads live on


LARGE = np.random.default_rng(3).standard_normal(5 * parallel.PIECE + 17).astype(np.float32)


def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [LARGE, 100 * LARGE[::-1].copy(), LARGE[:5]]
    found, extent = fold(many), MinMax().update(LARGE)
    monkeypatch.setattr(parallel, "_pool", lambda: (None, 1))
    assert bits(found) == bits(fold(many))
    assert extent == MinMax().update(LARGE) == MinMax(LARGE.size, float(LARGE.min()), float(LARGE.max()))


@pytest.mark.parametrize("place", [0, parallel.PIECE, LARGE.size // 2, LARGE.size - 1])
@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
def test_what_is_not_finite_is_found_in_any_piece(threads: int, value: float, place: int) -> None:
    x = LARGE.copy()
    x[place] = value
    nans, infinite = int(math.isnan(value)), int(math.isinf(value))
    message = rf"^1 of {x.size} values are not finite \({nans} NaN, {infinite} Inf\)$"
    for empty in (MinMax(), HistogramState()):
        with pytest.raises(DataError, match=message):
            empty.update(x)


# ------------------------------------------------------------------------------------------------ expected errors


def sampled(edges: np.ndarray, counts: np.ndarray, threshold: float, lowest: int, highest: int) -> float:
    """The mean squared error by its definition, at 4000 places of every bin."""
    within = (np.arange(4000) + 0.5) / 4000
    x = edges[:, :1] + (edges[:, 1:] - edges[:, :1]) * within
    step = threshold / (highest + 0.5)
    coded = step * np.clip(np.rint(x / step), lowest, highest)
    return float(((x - coded) ** 2).mean(axis=1) @ counts / counts.sum())


@settings(deadline=None)
@given(
    starts=st.lists(st.integers(-40, 40), min_size=1, max_size=8, unique=True),
    counts=st.lists(st.integers(1, 1000), min_size=8, max_size=8),
    threshold=st.floats(0.5, 60),
    codes=st.sampled_from([(-128, 127), (0, 255), (-4, 3)]),
)
def test_expected_errors_by_definition(starts: list[int], counts: list[int], threshold: float, codes: Any) -> None:
    """Bins side by side, bins apart, steps wider and narrower than a bin, all of it beyond the last code."""
    edges = np.array([[s, s + 1] for s in sorted(starts)], np.float64)
    weights = np.array(counts[: len(starts)], np.float64)
    ends = (np.array([float(end)]) for end in codes)
    (found,) = kernels.expected_errors(edges, weights, np.array([threshold / (codes[1] + 0.5)]), *ends)
    assert_close(found, sampled(edges, weights, threshold, *codes), rtol=1e-3, atol=1e-9)


def test_expected_errors_one_by_hand() -> None:
    """A bin as wide as a step: s^2 / 12. A value beyond the last code: its distance from it, squared."""
    step, ends = 2 / 127.5, (np.array([-128.0]), np.array([127.0]))
    inside = np.array([[-0.5, 0.5]]) * step
    (found,) = kernels.expected_errors(inside, np.ones(1), np.array([step]), *ends)
    assert_close(found, step**2 / 12, rtol=1e-12, atol=0)
    far = np.array([[9.9999, 10.0001]])
    (found,) = kernels.expected_errors(far, np.ones(1), np.array([step]), *ends)
    assert_close(found, (10 - 127 * step) ** 2, rtol=1e-8, atol=0)


# ------------------------------------------------------------------------------------------------ histogram


def slow_counts(x: np.ndarray, exponent: int) -> np.ndarray:
    """The definition of the bins, one value at a time, in exact arithmetic."""
    counts = np.zeros(BINS, np.int64)
    for value in x.tolist():
        sign, (mantissa, power) = math.copysign(1, value), math.frexp(abs(value))
        magnitude = int(math.ldexp(mantissa, min(power + 12 - exponent, 20)))
        counts[HALF + int(sign) * magnitude] += 1
    return counts


@settings(deadline=None)
@given(data=batches)
def test_histogram_counts_by_definition(data: list[Any]) -> None:
    state = fold(data)
    x = np.concatenate(data)
    np.testing.assert_array_equal(state.counts, slow_counts(x, state.exponent))
    assert state.counts.sum() == state.extent.count == x.size
    if np.any(x):
        assert np.abs(x.astype(np.float64)).max() < 2.0**state.exponent
    assert state.exponent >= MIN_EXPONENT


def test_the_range_is_the_smallest_power_of_two_above_the_data() -> None:
    for value, exponent in ((1.0, 1), (0.999, 0), (-1.0, 1), (1.5, 1), (2.0, 2), (-0.25, -1), (MAX, 128)):
        assert fold([[value]]).exponent == exponent
    assert fold([[100.0], [1.0]]).exponent == 7  # later, smaller data does not shrink it


def test_many_values_lose_nothing() -> None:
    x = np.random.default_rng(0).standard_normal(2**19 + 17).astype(np.float32)
    state = fold([x])
    v = np.trunc(x.astype(np.float64) / state.width).astype(int)
    np.testing.assert_array_equal(state.counts, np.bincount(v + HALF, minlength=BINS))


@pytest.mark.parametrize("direction", ["growing", "shrinking", "shuffled"])
def test_growth_over_all_magnitudes_counts_as_if_at_once(direction: str) -> None:
    """From below 2^-140 to 2^120, one step of the exponent after another; each batch moves what was there before."""
    rng = np.random.default_rng(5)
    data = [(rng.standard_normal(50) * 2.0**k).astype(np.float32) for k in range(-140, 121, 3)]
    if direction != "growing":
        data = data[::-1] if direction == "shrinking" else [data[i] for i in rng.permutation(len(data))]
    for part in (data[: len(data) // 2], data):
        x = np.concatenate(part).astype(np.float64)
        state = fold(part)
        assert state.exponent == max(MIN_EXPONENT, math.frexp(np.abs(x).max())[1])
        v = np.trunc(x / state.width).astype(int)
        np.testing.assert_array_equal(state.counts, np.bincount(v + HALF, minlength=BINS))
        assert (state.extent.min, state.extent.max) == (x.min(), x.max())


def test_rounding_down_instead_of_towards_zero_would_not_merge() -> None:
    """Why the middle bin is twice as wide: a denormal keeps its sign in one order of arrival and not in another."""
    tiny, large = np.float32(-(2.0**-149)), np.float32(2.0**20)
    early = np.floor(tiny * np.float32(2.0**112)) / 2**132  # counted in bin -1, then widened
    late = np.floor(tiny * np.float32(2.0 ** (12 - 21)))  # underflows to -0.0
    assert np.floor(early) != late
    assert bits(fold([[tiny], [large]])) == bits(fold([[large], [tiny]]))


@settings(deadline=None)
@given(parts=st.lists(batches, min_size=3, max_size=3))
def test_merging_is_associative_and_commutative_bit_for_bit(parts: list[Any]) -> None:
    a, b, c = map(fold, parts)
    once = bits(fold([np.concatenate([x for part in parts for x in part])]))
    assert bits(a.merge(b).merge(c)) == bits(a.merge(b.merge(c))) == once
    assert bits(c.merge(a).merge(b)) == bits(b.merge(c.merge(a))) == once
    assert bits(a.merge(HistogramState())) == bits(HistogramState().merge(a)) == bits(a)


def test_a_state_is_exactly_64_kib() -> None:
    for data in ([], [[1.0]], [LARGE, -1e30 * LARGE]):
        held = fold(data).to_arrays()
        assert sorted(held) == ["bounds", "counts"]
        assert held["counts"].nbytes + held["bounds"].nbytes == 65536
        assert (held["counts"].dtype, held["bounds"].dtype) == (np.int64, np.float32)


@settings(deadline=None)
@given(data=batches)
def test_arrays_hold_all_of_a_state(data: list[Any]) -> None:
    state = fold(data)
    assert bits(HistogramState.from_arrays(state.to_arrays())) == bits(state)
    assert not HistogramState.from_arrays(state.to_arrays()).counts.flags.writeable
    assert MinMax.from_arrays(state.extent.to_arrays()) == state.extent


def changed(**values: Any) -> dict[str, np.ndarray]:
    return {**fold([[-1.0, 2.0]]).to_arrays(), **values}


DAMAGED = {
    "too few counts": (changed(counts=np.zeros(10, np.int64)), r"counts of shape \(10,\), from 0 to 0"),
    "no counts": (changed(counts=np.zeros(0, np.int64)), r"counts of shape \(0,\)"),
    "a negative count": (changed(counts=np.full(BINS, -1)), r"counts of shape \(8191,\), from -1 to -1"),
    "crossed bounds": (changed(bounds=np.float32([2, -1])), r"2 values between 2\.0 and -1\.0"),
    "NaN bounds": (changed(bounds=np.float32([math.nan, 1])), r"2 values between nan and 1\.0"),
    "endless bounds": (changed(bounds=np.float32([0, math.inf])), r"2 values between 0\.0 and inf"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_arrays_of_no_state_are_refused(case: str) -> None:
    held, message = DAMAGED[case]
    with pytest.raises(FormatError, match=f"^statistics are damaged: {message}$"):
        HistogramState.from_arrays(held)


def test_a_negative_number_of_values_is_refused() -> None:
    with pytest.raises(FormatError, match=r"^statistics are damaged: -1 values between 0\.0 and 1\.0$"):
        MinMax.from_arrays({"count": np.array(-1), "bounds": np.float32([0, 1])})


# ------------------------------------------------------------------------------------------------ reading it


@settings(deadline=None)
@given(data=batches)
def test_views_of_the_histogram_agree(data: list[Any]) -> None:
    state = fold(data)
    x = np.concatenate(data).astype(np.float64)
    sizes, centres = state.magnitudes(), state.centres()
    v = np.trunc(np.abs(x) / state.width).astype(int)
    np.testing.assert_array_equal(sizes, np.bincount(v, minlength=HALF + 1))
    assert sizes.dtype == np.int64
    assert (centres.shape, centres[HALF]) == ((BINS,), 0)
    np.testing.assert_array_equal(centres, -centres[::-1])
    nearest = centres[HALF + np.trunc(x / state.width).astype(int)]
    assert np.all(np.abs(x - nearest) <= np.where(nearest == 0, 1, 0.5) * state.width)
    counts = state.cropped()
    assert counts.sum() == x.size
    assert counts.size % 2 == 1
    assert np.any(counts[[0, -1]]) or not x.size


@settings(deadline=None)
@given(data=batches)
def test_filled_bins_hold_every_value(data: list[Any]) -> None:
    state = fold(data)
    edges, counts = state.filled()
    assert counts.sum() == state.extent.count
    assert (edges.shape, counts.shape) == ((np.count_nonzero(state.counts), 2), (np.count_nonzero(state.counts),))
    if not counts.size:
        return
    assert np.all(counts > 0)
    assert np.all(edges[:, 0] < edges[:, 1])
    slack = 1e-6 * state.width
    assert np.all(edges[1:, 0] >= edges[:-1, 1] - 2 * slack)  # in order, side by side or apart
    assert edges.min() >= state.extent.min - slack
    assert edges.max() <= state.extent.max + slack
    x = np.concatenate(data).astype(np.float64)
    away = x[np.abs(x) >= state.width]
    for value in away:
        assert np.any((edges[:, 0] - slack <= value) & (value <= edges[:, 1] + slack))


def test_zeros_have_no_width() -> None:
    """ReLU makes many, and every range codes them without an error."""
    state = fold([np.float32([0, 0, 0, 0.25, 1])])
    edges, counts = state.filled()
    assert counts.tolist() == [3, 1, 1]
    assert_close(edges[0], [0, 0], rtol=0, atol=1e-6 * state.width)
    assert np.all(state.expected_errors(np.array([1.0, 0.5]), UINT8) < 0.3)
    only = fold([np.zeros(1000, np.float32), np.float32([1])])
    assert only.expected_errors(np.array([1.0]), UINT8)[0] < (1 / 255.5) ** 2 / 1000


def test_the_observers_update_is_the_states() -> None:
    assert bits(EntropyObserver().update(HistogramState(), LARGE)) == bits(fold([LARGE]))
