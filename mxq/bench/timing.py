"""Timing that compares: warm-up, interleaved repeats, medians, and ratios paired repeat by repeat.

Milliseconds belong to one machine at one moment; ratios taken within one run travel further. Repeats go round
robin (A B C A B C ...), so a slow second of the machine falls on every candidate alike, and each ratio is the
median of the ratios *within* a round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from mxq.errors import ConfigError, one_of
from mxq.graph.ir import Array, Model

Clock = Callable[[], float]

FLOAT, FUSED, INT8 = "fp32", "fp32 fused", "int8"
"""What the forms of a network are called in a `Benchmark`: as given, with fused kernels, and what was made of it."""
MOST_VALUES: Final = 2**31
"""Of one input of a batch; MXNet counts no further."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one candidate took; times in seconds per call.

    Attributes:
        median, minimum, p90: over the rounds.
        rate: examples per second at the median time.
        speedup: median over the rounds of base time / own time (above 1: faster than the base).
        low, high: 10th and 90th percentile of those ratios.
    """

    name: str
    median: float
    minimum: float
    p90: float
    rate: float
    speedup: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "median_ms": self.median * 1e3,
            "min_ms": self.minimum * 1e3,
            "p90_ms": self.p90 * 1e3,
            "examples_per_second": self.rate,
            "speedup": self.speedup,
            "speedup_p10": self.low,
            "speedup_p90": self.high,
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Timings in the order the candidates were given, and how they were taken."""

    timings: tuple[Timing, ...]
    base: str
    examples: int
    repeats: int
    warmup: int
    calls: int

    def __getitem__(self, name: str) -> Timing:
        for timing in self.timings:
            if timing.name == name:
                return timing
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "examples_per_call": self.examples,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "calls_per_repeat": self.calls,
            "timings": [t.to_json() for t in self.timings],
        }


def bench(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 50,
    warmup: int = 5,
    examples: int = 1,
    calls: int = 1,
    base: str | None = None,
    clock: Clock = time.perf_counter,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Times ``candidates`` against each other.

    Args:
        candidates: name -> what to time; a call must return only when the work is done.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        examples: how many examples one call works through (the batch size), for the rate.
        calls: calls per reading of the clock; more than one for work too short for it. A slow call hides
            among its neighbours then.
        base: the candidate that others are compared with; the first where not given.
        clock: seconds, as `time.perf_counter`.
        progress: told after each round how many of ``warmup + repeats`` are done.

    Raises:
        ConfigError: no candidates, an unknown base, or a count that is not positive.
    """
    check_rounds(repeats, warmup)
    _check_count("calls", calls, 1)
    readings = {name: partial(_once, call, calls, clock) for name, call in candidates.items()}
    found = rounds(readings, repeats=repeats, warmup=warmup, examples=examples, base=base, progress=progress)
    return replace(found, calls=calls)


def rounds(
    readings: Mapping[str, Callable[[], float]],
    *,
    repeats: int = 50,
    warmup: int = 5,
    examples: int = 1,
    base: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """As `bench`, of candidates that time themselves.

    Args:
        readings: name -> what gives the seconds of a call.
        repeats, warmup, examples, base, progress: as of `bench`.

    Raises:
        ConfigError: as of `bench`.
    """
    if not readings:
        raise ConfigError("nothing to time: candidates is empty")
    base = next(iter(readings)) if base is None else base
    if base not in readings:
        raise one_of("base", base, readings)
    check_rounds(repeats, warmup)
    _check_count("examples", examples, 1)
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for done in range(warmup + repeats):
        for name, reading in readings.items():
            took = reading()
            if done >= warmup:
                seconds[name].append(took)
        if progress is not None:
            progress(done + 1)
    timings = tuple(summarize(name, took, seconds[base], examples) for name, took in seconds.items())
    return Benchmark(timings, base, examples, repeats, warmup, calls=1)


def check_rounds(repeats: object, warmup: object) -> None:
    """Raises ConfigError for numbers of rounds that are none."""
    _check_count("repeats", repeats, 1)
    _check_count("warmup", warmup, 0)


def _check_count(name: str, count: object, least: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise ConfigError(f"{name} is {count!r}; allowed: a whole number, {least} or more")


def summarize(name: str, seconds: Iterable[float], base: Iterable[float], examples: int = 1) -> Timing:
    """The `Timing` of per-round ``seconds``, compared round by round with those of the ``base``.

    Raises:
        ConfigError: a reading is zero, so that no ratio can be formed.
    """
    own = np.asarray(list(seconds), np.float64)
    if not own.min() > 0:
        raise ConfigError(f"{name!r} took {own.min()} s by the clock, too short to compare; raise calls")
    ratios = np.asarray(list(base), np.float64) / own
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    return Timing(
        name=name,
        median=float(np.median(own)),
        minimum=float(own.min()),
        p90=float(np.percentile(own, 90)),
        rate=float(examples / np.median(own)),
        speedup=float(middle),
        low=float(low),
        high=float(high),
    )


def random_feeds(model: Model, shapes: Mapping[str, Sequence[int]], batch_size: int) -> dict[str, Array]:
    """Normal noise of the right shape and type; the kernels' time does not depend on the values.

    Args:
        model: whose inputs to feed.
        shapes: input -> shape of one example, without the batch.
        batch_size: examples to a batch.

    Raises:
        ConfigError: a batch would have more than `MOST_VALUES`.
    """
    rng = np.random.default_rng(0)
    return {
        name: noise_of(name, (batch_size, *shapes[name]), model.graph[name].input_dtype, rng) for name in model.inputs
    }


def noise_of(name: str, shape: Sequence[int], dtype: str, rng: np.random.Generator) -> Array:
    """Normal noise for the input ``name``; as integers its magnitude, in 0..127.

    Raises:
        ConfigError: that would be more than `MOST_VALUES`.
    """
    if (values := math.prod(shape)) > MOST_VALUES:
        raise ConfigError(
            f"{shape[0]} examples of the shape {'x'.join(map(str, shape[1:]))} of {name!r} are {values:,} values; "
            f"allowed: {MOST_VALUES:,}"
        )
    noise = rng.standard_normal(shape)
    made: Array = (noise if dtype.startswith("float") else np.clip(np.abs(32 * noise), 0, 127)).astype(dtype)
    return made


def _once(call: Callable[[], object], calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls
