"""Timing against a clock that the candidates move themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mxq.bench.timing import bench, summarize
from mxq.errors import ConfigError


class FakeClock:
    """A clock that stands still but for the work done."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """A candidate that takes ``seconds``, in turn and over again."""
        turn = 0

        def call() -> None:
            nonlocal turn
            self.order.append(name)
            self.now += seconds[turn % len(seconds)]
            turn += 1

        return call


def close(value: float, expected: float) -> bool:
    return value == pytest.approx(expected, rel=1e-9, abs=0)


def test_rounds_are_interleaved_and_warm_up_comes_first() -> None:
    clock = FakeClock()
    bench({n: clock.work(n, 1.0) for n in "ABC"}, repeats=2, warmup=1, clock=clock)
    assert "".join(clock.order) == "ABC" * 3


def test_median_minimum_and_percentile_leave_the_warm_up_out() -> None:
    clock = FakeClock()
    # Two slow rounds of warm-up, then 1..10 seconds.
    call = clock.work("A", 500.0, 900.0, *(float(s) for s in range(1, 11)))
    result = bench({"A": call}, repeats=10, warmup=2, examples=4, clock=clock)["A"]
    assert close(result.median, 5.5)
    assert close(result.minimum, 1.0)
    assert close(result.p90, 9.1)
    assert close(result.rate, 4 / 5.5)
    assert (result.speedup, result.low, result.high) == (1.0, 1.0, 1.0)


def test_ratios_are_paired_within_a_round() -> None:
    # The machine slows down tenfold half way; in every round B is exactly twice as fast.
    clock = FakeClock()
    drift = [1.0, 1.0, 10.0, 10.0, 10.0]
    result = bench(
        {"A": clock.work("A", *drift), "B": clock.work("B", *(d / 2 for d in drift))},
        repeats=5,
        warmup=0,
        clock=clock,
    )
    assert (result.base, result["A"].speedup) == ("A", 1.0)
    assert close(result["B"].speedup, 2.0)
    assert close(result["B"].low, 2.0)
    assert close(result["B"].high, 2.0)


def test_the_paired_median_is_not_the_ratio_of_medians() -> None:
    timing = summarize("B", seconds=[1.0, 4.0, 5.0], base=[3.0, 4.0, 5.0])
    assert close(timing.speedup, 1.0)  # ratios 3, 1, 1
    assert close(timing.high, 2.6)
    assert close(summarize("B", seconds=[1.0, 2.0, 9.0], base=[9.0, 3.0, 1.0]).speedup, 1.5)  # medians: 3 / 2 too
    assert close(summarize("B", seconds=[1.0, 2.0, 3.0], base=[9.0, 9.0, 1.0]).speedup, 4.5)


def test_a_named_base() -> None:
    clock = FakeClock()
    result = bench({"A": clock.work("A", 2.0), "B": clock.work("B", 1.0)}, base="B", repeats=3, clock=clock)
    assert close(result["A"].speedup, 0.5)
    assert result.to_json()["base"] == "B"
    assert result.to_json()["timings"][0]["median_ms"] == pytest.approx(2000.0, rel=1e-9, abs=0)


def test_several_calls_share_one_reading() -> None:
    clock = FakeClock()
    result = bench({"A": clock.work("A", 1.0, 3.0)}, repeats=3, warmup=1, calls=2, clock=clock)
    assert len(clock.order) == 8
    assert close(result["A"].median, 2.0)


def test_progress_counts_rounds() -> None:
    clock, seen = FakeClock(), list[int]()
    bench({"A": clock.work("A", 1.0)}, repeats=2, warmup=1, clock=clock, progress=seen.append)
    assert seen == [1, 2, 3]


def test_mistakes_are_named() -> None:
    clock = FakeClock()
    call = clock.work("A", 1.0)
    with pytest.raises(ConfigError, match="nothing to time"):
        bench({})
    with pytest.raises(ConfigError, match="base is 'C'; allowed: 'A'"):
        bench({"A": call}, base="C")
    for setting in ({"repeats": 0}, {"warmup": -1}, {"examples": 0}, {"calls": 0}):
        (name,) = setting
        with pytest.raises(ConfigError, match=f"{name} is {setting[name]}"):
            bench({"A": call}, clock=clock, **setting)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="raise calls"):
        bench({"A": clock.work("A", 0.0)}, clock=clock)
    with pytest.raises(KeyError):
        bench({"A": call}, repeats=1, clock=clock)["B"]
