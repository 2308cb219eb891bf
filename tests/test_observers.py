"""Observers: folds that keep their laws, the specs that name them, and the entropy search against two oracles."""

from __future__ import annotations

import importlib
import math
import re
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
from mxq.observers import (
    AutoObserver,
    AutoParams,
    EntropyObserver,
    EntropyParams,
    FixedObserver,
    FixedParams,
    HistogramState,
    MeanStdObserver,
    MeanStdParams,
    MinMax,
    MovingObserver,
    MovingParams,
    MovingState,
    MseObserver,
    MseParams,
    NaiveObserver,
    NaiveParams,
    NormObserver,
    NormParams,
    PercentileObserver,
    PercentileParams,
)
from mxq.observers.entropy import EPSILON, divergences
from mxq.quant import ANY8, INT8, UINT8, QuantSpec
from mxq.quant.thresholds import Range
from mxq.registry import Registry

NAMES = ("auto", "ema_minmax", "entropy", "fixed", "mean_std", "mse", "naive", "norm", "percentile")
FINDERS = tuple(name for name in NAMES if name != "fixed")
"""Those that take their range from the data."""
UNORDERED = tuple(name for name in FINDERS if name != "ema_minmax")
WANTED = (ANY8, INT8, UINT8)

floats = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),  # of any magnitude, with denormals and -0.0
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 4.0, -4.0, 2.0**-110, 2.0**-149, -(2.0**-149), 2.0**127, -(2.0**127)]),
)
batches = st.lists(arrays(np.float32, st.integers(0, 20), elements=floats), min_size=1, max_size=6)


def exactly(message: str) -> str:
    """A pattern that matches this message and no longer one."""
    return f"^{re.escape(message)}$"


def fold(observer: Any, data: Any) -> Any:
    state = observer.empty()
    for x in data:
        state = observer.update(state, x)
    return state


def bits(state: Any) -> tuple[Any, ...]:
    """Everything in a state, comparable bit for bit (min and max as text, to tell -0.0 from 0.0)."""
    if isinstance(state, HistogramState):
        return (state.exponent, state.counts.tobytes(), *bits(state.extent))
    if isinstance(state, MovingState):
        return (state.momentum, state.batches, repr(state.first), repr(state.sum), *bits(state.extent))
    return (state.count, repr(state.min), repr(state.max))


# ------------------------------------------------------------------------------------------------ all observers


@pytest.mark.parametrize("name", UNORDERED)
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


@pytest.mark.parametrize("name", FINDERS)
@settings(deadline=None)
@given(data=batches)
def test_reading_and_updating_change_no_state(name: str, data: list[Any]) -> None:
    observer = observers.get(name)
    state = fold(observer, data)
    before = bits(state)
    observer.update(state, np.float32([1e30, -2.0]))
    observer.merge(state, state)
    observer.observed(state)
    observer.note(state, ANY8)
    if state.extent.count:
        first = [observer.range(state, kind) for kind in WANTED]
        assert [observer.range(state, kind) for kind in WANTED] == first
    assert bits(state) == before


@pytest.mark.parametrize("name", FINDERS)
@settings(deadline=None)
@given(data=batches, kind=st.sampled_from(WANTED))
def test_every_range_is_usable(name: str, data: list[Any], kind: QuantSpec) -> None:
    x = np.concatenate(data)
    observer = observers.get(name)
    state = fold(observer, data)
    if x.size == 0:
        return
    found = observer.range(state, kind)
    assert found.absmax > 0
    if np.any(x):
        assert found.absmax <= np.abs(x).max()
    if not kind.signed:
        assert (found.min >= 0) == bool(np.all(x >= 0))
    assert observer.observed(state) == Range(float(x.min()), float(x.max()))


@pytest.mark.parametrize("name", FINDERS)
def test_zero_batches_are_an_error(name: str) -> None:
    observer = observers.get(name)
    for state in (observer.empty(), observer.update(observer.empty(), np.zeros((0, 3), np.float32))):
        assert observer.observed(state) is None
        with pytest.raises(CalibrationError, match="no values were observed"):
            observer.range(state, ANY8)


@pytest.mark.parametrize("name", FINDERS)
def test_all_zero_is_answered_honestly(name: str) -> None:
    observer = observers.get(name)
    state = fold(observer, [np.zeros((2, 3), np.float32)])
    assert observer.observed(state) == Range(0, 0)
    assert observer.note(state, ANY8) == "all zero"
    assert observer.range(state, ANY8) == Range(0, 1)  # not (0, 0), which the stock kernel codes as 127


@pytest.mark.parametrize("name", UNORDERED)
def test_an_all_zero_first_batch_leaves_no_trace(name: str) -> None:
    observer = observers.get(name)
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    zero = np.zeros(10_000, np.float32)
    assert bits(fold(observer, [zero, x])) == bits(fold(observer, [x, zero]))
    assert observer.note(fold(observer, [zero, x]), ANY8) == ""


@pytest.mark.parametrize("name", FINDERS)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, -1e-43, 2.0**-100, 3e38])
def test_a_constant(name: str, value: float) -> None:
    observer = observers.get(name)
    state = fold(observer, [np.full(1000, value, np.float32)])
    assert observer.note(state, ANY8) == "constant"
    assert observer.range(state, ANY8).absmax == abs(np.float32(value))


@pytest.mark.parametrize("name", FINDERS)
def test_nan_and_inf_are_counted(name: str) -> None:
    observer = observers.get(name)
    x = np.ones((4, 5), np.float32)
    x[0, :2], x[1, 0], x[3, 3] = math.nan, math.inf, -math.inf
    with pytest.raises(DataError, match=r"4 of 20 values are not finite \(2 NaN, 2 Inf\)"):
        observer.update(observer.empty(), x)
    with pytest.raises(DataError, match=r"1 of 1 values are not finite \(0 NaN, 1 Inf\)"):
        observer.update(observer.empty(), np.float64([1e300]))


@pytest.mark.parametrize("name", FINDERS)
def test_what_is_no_number_is_refused(name: str) -> None:
    observer = observers.get(name)
    with pytest.raises(DataError, match="dtype <U1"):
        observer.update(observer.empty(), np.array(["a"]))


@pytest.mark.parametrize("name", FINDERS)
def test_layout_and_type_of_the_array_do_not_matter(name: str) -> None:
    observer = observers.get(name)
    x = np.arange(-300, 300, dtype=np.int32).reshape(20, 30)
    expected = bits(fold(observer, [x.astype(np.float32)]))
    for same in (x, x.T, x.astype(np.float64), np.repeat(x, 2, axis=1)[:, ::2], x.tolist()):
        assert bits(fold(observer, [same])) == expected


@pytest.mark.parametrize("name", FINDERS)
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
        state.extent = MinMax()
    with pytest.raises(FrozenInstanceError):
        state.extent.count = 3
    with pytest.raises(ValueError, match="read-only"):
        EntropyObserver().empty().counts[0] = 1


# ------------------------------------------------------------------------------------------------ registry


KNOWN = ", ".join(f"'{name}'" for name in (*NAMES, "minmax", "kl"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Registry[observers.Observer[Any]]("observer", "mxq.observers", observers.Observer)
    for name in ("entropy", "naive"):
        few.register(observers.get(name))
    monkeypatch.setattr("mxq.observers.registry.OBSERVERS", few)
    monkeypatch.setattr(observers, "register", few.register)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match=exactly(f"observer is 'best'; allowed: {KNOWN}")):
        observers.get("best")
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

    with pytest.raises(
        ConfigError, match=exactly("an observer named 'naive' exists already; known: entropy, naive, half")
    ):
        observers.register(Impostor())


# ------------------------------------------------------------------------------------------------ specs


def test_defaults_are_what_the_docs_say() -> None:
    assert {name: observers.get(name).params for name in FINDERS} == {
        "auto": AutoParams(),
        "ema_minmax": MovingParams(momentum=0.9),
        "entropy": EntropyParams(levels=255, tolerance=0.25),
        "mean_std": MeanStdParams(k=3.0),
        "mse": MseParams(steps=96),
        "naive": NaiveParams(),
        "norm": NormParams(p=2.0),
        "percentile": PercentileParams(percentile=99.99),
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("minmax", NaiveObserver()),
        ("kl", EntropyObserver()),
        ("kl:127", EntropyObserver(EntropyParams(127))),
        ("percentile:99.9", PercentileObserver(PercentileParams(99.9))),
        ("percentile:percentile=99.9", PercentileObserver(PercentileParams(99.9))),
        (" percentile : percentile = 99.9 ", PercentileObserver(PercentileParams(99.9))),
        ("percentile:", PercentileObserver()),
        ("percentile:1e2", PercentileObserver(PercentileParams(100))),
        ("entropy:127,0", EntropyObserver(EntropyParams(127, 0))),
        ("entropy:127,tolerance=0", EntropyObserver(EntropyParams(127, 0))),
        ("entropy:tolerance=0,levels=127", EntropyObserver(EntropyParams(127, 0))),
        ("ema_minmax:0.5", MovingObserver(MovingParams(0.5))),
        ("mse:256", MseObserver(MseParams(256))),
        ("norm:1", NormObserver(NormParams(1))),
        ("mean_std:2.6", MeanStdObserver(MeanStdParams(2.6))),
        ("fixed:-1,2.5", FixedObserver(FixedParams(-1, 2.5))),
        ("fixed:min=0,max=6", FixedObserver(FixedParams(0, 6))),
        ("fixed:max=6,min=0", FixedObserver(FixedParams(0, 6))),
    ],
)
def test_specs(spec: str, expected: Any) -> None:
    assert observers.get(spec) == expected
    assert type(observers.get(spec)) is type(expected)


def test_a_spec_leaves_the_registered_observer_alone() -> None:
    assert observers.get("percentile:50") != observers.get("percentile")
    assert observers.get("percentile") == PercentileObserver()


def unknown(name: str, key: str, allowed: str) -> str:
    return f"observer {name!r} has no parameter {key!r} or it is given twice; allowed: {allowed}"


def unreadable(name: str, key: str, text: str, allowed: str = "a number") -> str:
    return f"observer {name!r}: {key} is {text!r}; allowed: {allowed}"


def unfixed(low: str, high: str) -> str:
    return f"fixed range is [{low}, {high}]; allowed: finite, MIN <= 0 <= MAX, not empty"


NO_RANGE = "observer 'fixed' needs parameters: fixed:MIN,MAX"
REFUSED = {
    "": f"observer is ''; allowed: {KNOWN}",
    ":1": f"observer is ''; allowed: {KNOWN}",
    "Naive": f"observer is 'Naive'; allowed: {KNOWN}; did you mean 'naive'?",
    "percentile99": f"observer is 'percentile99'; allowed: {KNOWN}; did you mean 'percentile'?",
    "naive:1": unknown("naive", "1", "none"),
    "minmax:1": unknown("naive", "1", "none"),
    "auto:mse": unknown("auto", "1", "none"),
    "percentile:q=99": unknown("percentile", "q", "percentile"),
    "percentile:99,98": unknown("percentile", "2", "percentile"),
    "percentile:99,": unknown("percentile", "2", "percentile"),
    "percentile:a=b=c": unknown("percentile", "a", "percentile"),
    "entropy:=9": unknown("entropy", "", "levels, tolerance"),
    "entropy:255,0,1": unknown("entropy", "3", "levels, tolerance"),
    "entropy:255,levels=9": unknown("entropy", "levels", "levels, tolerance"),
    "entropy:tolerance=0,0": unknown("entropy", "tolerance", "levels, tolerance"),
    "fixed:1,2,3": unknown("fixed", "3", "min, max"),
    "percentile:high": unreadable("percentile", "percentile", "high"),
    "percentile:percentile=": unreadable("percentile", "percentile", ""),
    "percentile:nan": unreadable("percentile", "percentile", "nan"),
    "fixed:nan,nan": unreadable("fixed", "min", "nan"),
    "entropy:127.0": unreadable("entropy", "levels", "127.0", "a whole number"),
    "mse:1e3": unreadable("mse", "steps", "1e3", "a whole number"),
    "percentile:49.9": "percentile is 49.9; allowed: 50 to 100, such as 99.99",
    "percentile:100.1": "percentile is 100.1; allowed: 50 to 100, such as 99.99",
    "percentile:inf": "percentile is inf; allowed: 50 to 100, such as 99.99",
    "entropy:4": "levels is 4; allowed: odd numbers from 3",
    "entropy:tolerance=-1": "tolerance is -1.0; allowed: 0 or more",
    "mse:7": "steps is 7; allowed: 8 to 4096",
    "mse:4097": "steps is 4097; allowed: 8 to 4096",
    "norm:0.5": "p is 0.5; allowed: 1 or more",
    "norm:inf": "p is inf; allowed: 1 or more",
    "mean_std:0": "k is 0.0; allowed: more than 0",
    "mean_std:inf": "k is inf; allowed: more than 0",
    "ema_minmax:1": "momentum is 1.0; allowed: 0 <= momentum < 1",
    "ema_minmax:-0.1": "momentum is -0.1; allowed: 0 <= momentum < 1",
    "fixed": NO_RANGE,
    "fixed: ": NO_RANGE,
    "fixed:3": unfixed("3.0", "nan"),
    "fixed:max=3": unfixed("nan", "3.0"),
    "fixed:0,0": unfixed("0.0", "0.0"),
    "fixed:1,2": unfixed("1.0", "2.0"),
    "fixed:-2,-1": unfixed("-2.0", "-1.0"),
    "fixed:2,-1": unfixed("2.0", "-1.0"),
    "fixed:-inf,1": unfixed("-inf", "1.0"),
}


@pytest.mark.parametrize("spec", REFUSED)
def test_specs_that_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=exactly(REFUSED[spec])):
        observers.get(spec)


def between(low: float, high: float, **options: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **options)


LARGEST = np.finfo(np.float64).max
ANY = st.one_of(
    st.builds(AutoObserver),
    st.builds(NaiveObserver),
    st.builds(MovingObserver, st.builds(MovingParams, between(0, 1, exclude_max=True))),
    st.builds(PercentileObserver, st.builds(PercentileParams, between(50, 100))),
    st.builds(
        EntropyObserver, st.builds(EntropyParams, st.integers(1, 10**6).map(lambda n: 2 * n + 1), between(0, LARGEST))
    ),
    st.builds(MseObserver, st.builds(MseParams, st.integers(8, 4096))),
    st.builds(NormObserver, st.builds(NormParams, between(1, LARGEST))),
    st.builds(MeanStdObserver, st.builds(MeanStdParams, between(0, LARGEST, exclude_min=True))),
    st.builds(FixedObserver, st.builds(FixedParams, between(-LARGEST, 0), between(0, LARGEST, exclude_min=True))),
)


@given(ANY)
def test_spec_of_round_trip(observer: Any) -> None:
    spec = observers.spec_of(observer)
    assert observers.get(spec) == observer
    assert type(observers.get(spec)) is type(observer)
    assert observers.spec_of(observers.get(spec)) == spec
    defaults = observer == type(observer)()
    assert (spec == observer.name) == defaults


def test_specs_name_only_what_differs_from_the_defaults() -> None:
    assert observers.spec_of(EntropyObserver()) == "entropy"
    assert observers.spec_of(EntropyObserver(EntropyParams(127))) == "entropy:127"
    assert observers.spec_of(EntropyObserver(EntropyParams(127, 0.5))) == "entropy:127,0.5"
    assert observers.spec_of(EntropyObserver(EntropyParams(tolerance=0.0))) == "entropy:tolerance=0.0"
    assert observers.spec_of(FixedObserver(FixedParams(0, 6))) == "fixed:0,6"


# ------------------------------------------------------------------------------------------------ who reads what


def test_which_statistics_serve_which_observer() -> None:
    everything = ["extent", "histogram", "moving(0.9)", "moving(0.5)"]
    served = {
        spec: [s for s in everything if observers.get(spec).reads(s)]
        for spec in (*FINDERS, "ema_minmax:0.5", "fixed:0,1")
    }
    assert served == {
        **{spec: ["histogram"] for spec in ("auto", "entropy", "mean_std", "mse", "norm", "percentile")},
        "naive": everything,
        "fixed:0,1": everything,
        "ema_minmax": ["moving(0.9)"],
        "ema_minmax:0.5": ["moving(0.5)"],
    }


@given(ANY)
def test_every_observer_reads_what_it_collects_and_what_stands_in_for_it(observer: Any) -> None:
    assert observer.reads(observer.statistic)
    assert observer.empty().statistic == observer.statistic
    assert observer.reads(observers.collector(observer).statistic)
    assert observers.STATES[observer.empty().kind] is type(observer.empty())


@pytest.mark.parametrize("name", ["naive", "fixed:-3,5"])
def test_the_extent_may_be_read_off_any_state(name: str) -> None:
    observer = observers.get(name)
    data = [[-1.5, 2.0], [3.0]]
    own = fold(observer, data)
    for other in ("entropy", "ema_minmax"):
        state = fold(observers.get(other), data)
        assert observer.range(state, ANY8) == observer.range(own, ANY8)
        assert observer.observed(state) == observer.observed(own) == Range(-1.5, 3.0)
        assert observer.note(state, ANY8) == observer.note(own, ANY8) == ""


# ------------------------------------------------------------------------------------------------ naive


@pytest.mark.parametrize("kind", WANTED, ids=str)
def test_naive_reports_what_it_saw(kind: QuantSpec) -> None:
    naive = NaiveObserver()
    assert naive.range(fold(naive, [[-1.5, 2.0], [3.0]]), kind) == Range(-1.5, 3.0)
    assert naive.range(fold(naive, [[0.5, 2.0]]), kind) == Range(0.5, 2.0)
    assert naive.range(fold(naive, [[-0.5, -2.0]]), kind) == Range(-2.0, -0.5)


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
        "exponential": lambda: rng.exponential(size=n),
        "student": lambda: rng.standard_t(3, size=n),
        "bimodal": lambda: np.concatenate([rng.normal(-3, 0.3, n // 2), rng.normal(5, 0.5, n - n // 2)]),
    }[kind]()
    return x.astype(np.float32)


KINDS = (
    "normal",
    "half-normal",
    "laplace",
    "abs-laplace",
    "uniform",
    "outliers",
    "relu6",
    "exponential",
    "student",
    "bimodal",
)


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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "student"])  # MXNet smooths its lone values away
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
    ours = EntropyObserver(EntropyParams(tolerance=0)).range(state, ANY8)
    upper_edge = (int(np.argmin(found)) + levels // 2 + 1) * state.width
    assert ours.absmax == min(upper_edge, state.extent.absmax)
    assert ours.absmax == pytest.approx(min(threshold, state.extent.absmax), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_tolerance_takes_the_largest_threshold_that_costs_little_more(kind: str) -> None:
    state = fold(EntropyObserver(), [samples(kind, 200_000)])
    counts, levels = state.cropped(), levels_of(state)
    found = divergences(counts, levels)
    threshold = EntropyObserver(EntropyParams(tolerance=0.25)).range(state, ANY8).absmax
    kept = next(i for i in range(len(found)) if (i + levels // 2 + 1) * state.width >= threshold)
    assert found[kept] <= 1.25 * found.min() + 1e-12
    assert (found[kept + 1 :] > 1.25 * found.min()).all()
    assert threshold >= EntropyObserver(EntropyParams(tolerance=0)).range(state, ANY8).absmax


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


def test_entropy_ranges_by_spec() -> None:
    entropy = EntropyObserver()
    positive = fold(entropy, [samples("half-normal", 50_000)])
    signed = fold(entropy, [samples("normal", 50_000)])
    for kind in (ANY8, UINT8):
        assert entropy.range(positive, kind).min == 0
    for found in (entropy.range(positive, INT8), *(entropy.range(signed, kind) for kind in WANTED)):
        assert found.min == -found.max < 0


def test_entropy_clips_outliers_and_keeps_what_is_spread() -> None:
    entropy = EntropyObserver()
    assert entropy.range(fold(entropy, [samples("outliers", 200_000)]), ANY8).max < 9
    assert entropy.range(fold(entropy, [samples("uniform", 200_000)]), ANY8).max > 0.98


@pytest.mark.parametrize("values", [[0, 5], [0, 1, 2, 3], [-1, 1], [-7, 0, 0.001], [0.5, 100]], ids=str)
def test_sparse_histograms_are_not_clipped(values: list[float]) -> None:
    """The divergence is blind here: of 0 and 5 it would keep 1."""
    entropy = EntropyObserver()
    state = fold(entropy, [np.repeat(np.float32(values), 100)])
    assert entropy.range(state, ANY8).absmax == np.abs(np.float32(values)).max()
    assert entropy.note(state, ANY8) == "few distinct values, not clipped"


def test_why_sparse_histograms_need_care() -> None:
    state = fold(EntropyObserver(), [np.repeat(np.float32([0, 5]), 100)])
    found = divergences(state.cropped(), 511)
    assert found[int(1 / state.width) - 255 - 2] == pytest.approx(0, abs=1e-12)


def test_too_few_bins_for_the_levels_fall_back_to_the_extent() -> None:
    entropy = EntropyObserver()
    state = fold(entropy, [np.float32([1e-35, -2e-35, 0])])  # below 2^-100 all share few bins
    assert entropy.range(state, ANY8).absmax == np.float32(2e-35)


@pytest.mark.parametrize("levels", [0, 1, 4, -3])
def test_entropy_params_validate(levels: int) -> None:
    with pytest.raises(ConfigError, match="levels"):
        EntropyParams(levels)


def test_entropy_params_count() -> None:
    state = fold(EntropyObserver(), [samples("laplace", 100_000)])
    coarse = EntropyObserver(EntropyParams(15)).range(state, INT8)
    assert coarse.max < EntropyObserver().range(state, INT8).max
