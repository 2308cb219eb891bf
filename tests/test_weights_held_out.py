"""What is held back from methods, and which network is closest to float on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import build, conv, decided, fc, pictures, run
from helpers import assert_close

from mxq import pipeline
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.data.feed import Feed
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Range, Thresholds
from mxq.runtime import MxnetRunner
from mxq.weights.held_out import BETTER, LEAST, MOST, Judge, divided

LINES = (conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="relu"', fc("fc0", "relu0"))
NET = build(*LINES, "return fc0")
DATA = pictures(8, 3)


def feed(start: int, count: int) -> Feed:
    return Feed({"data": np.arange(start, start + count, dtype=np.float32)[:, None]}, count, {"data": 0})


def numbers(feeds: list[Feed]) -> list[int]:
    return [int(n) for each in feeds for n in each["data"].ravel()]


def network(share: float = 1.0) -> QuantizedNetwork:
    """Of `NET`, with all ranges so many times as wide as they are on `DATA`."""
    prepared = pipeline.plan(NET, QuantConfig(target="avx512_vnni", num_calib_examples="100%"))
    found = pipeline.calibrate(prepared, DATA, MxnetRunner(), progress=False).thresholds
    return decided(prepared, Thresholds({k: t.ranged(t.range.times(share), "") for k, t in found.items()}))


def judge(model: Any = NET) -> Judge:
    return Judge.of(MxnetRunner(), model, [{"data": DATA[:3]}, {"data": DATA[3:]}])


class TestDivided:
    @pytest.mark.parametrize("sizes", [(32,), (10, 10, 12), (1,) * 32])
    def test_every_fourth_example_is_held_back_whatever_the_batches(self, sizes: tuple[int, ...]) -> None:
        starts = np.cumsum([0, *sizes])
        fitted, held = divided([feed(int(a), n) for a, n in zip(starts, sizes, strict=False)], cut=True)
        assert numbers(held) == list(range(3, 32, 4))
        assert sorted(numbers(fitted) + numbers(held)) == list(range(32))

    def test_of_many_no_more_than_serve(self) -> None:
        fitted, held = divided([feed(0, 256)], cut=True)
        assert numbers(held) == list(range(3, 4 * MOST, 4))
        assert len(numbers(fitted)) == 256 - MOST

    def test_of_few_none(self) -> None:
        few = [feed(0, LEAST - 1)]
        assert divided(few, cut=True) == (few, [])
        assert divided([], cut=True) == ([], [])

    def test_batches_that_cannot_be_cut_stay_whole(self) -> None:
        batches = [feed(10 * i, 10) for i in range(LEAST)]
        fitted, held = divided(batches, cut=False)
        assert held == [batches[3], batches[7]]
        assert fitted == [b for b in batches if not any(b is h for h in held)]
        assert divided(batches[:-1], cut=False)[1] == []


class TestJudge:
    def test_noise_is_that_of_the_formula(self) -> None:
        found = network()
        wanted, made = (run(m, {"data": DATA})[0].astype(np.float64) for m in (NET, simulate(found)))
        assert_close(judge().noise(found), ((made - wanted) ** 2).sum() / (wanted**2).sum(), rtol=1e-5, atol=0)

    def test_outputs_count_alike_and_those_that_are_zero_not_at_all(self) -> None:
        """One output is a thousandth of the other, which has the same noise in shares of it, and one is always 0."""
        lines = ('small = _mul_scalar(fc0) scalar="0.001"', 'none = _mul_scalar(fc0) scalar="0"')
        three = build(*LINES, *lines, "return fc0, small, none")
        prepared = pipeline.plan(three, QuantConfig(target="avx512_vnni", num_calib_examples="100%"))
        found = decided(prepared, pipeline.calibrate(prepared, DATA, MxnetRunner(), progress=False).thresholds)
        assert_close(judge(three).noise(found), judge().noise(network()), rtol=1e-3, atol=0)

    def test_what_is_not_finite_is_left_out(self) -> None:
        odd = judge()
        wanted = [[w.copy() for w in each] for each in odd.wanted]
        wanted[0][0][0, 0] = np.inf
        noise = Judge(odd.runner, odd.feeds, wanted).noise(network())
        assert 0 < noise < 1

    def test_the_least_noise_is_chosen(self) -> None:
        first, wide, wider = network(), network(4.0), network(16.0)
        found = judge().best(wider, {"wide": lambda: wide, "first": lambda: first})
        assert (found.name, found.network) == ("first", first)
        assert found.noise["first"] < found.noise["wide"] < found.noise[""]

    def test_what_came_first_stays_where_others_are_hardly_better(self) -> None:
        class Told(Judge):
            def noise(self, network: QuantizedNetwork) -> float:
                return network.thresholds.range("relu0").max

        told, first = Told(MxnetRunner(), [], []), network()
        size = first.thresholds.range("relu0").max

        def times(share: float) -> QuantizedNetwork:
            table = dict(first.thresholds) | {"relu0": first.thresholds["relu0"].ranged(Range(0.0, share * size), "")}
            return first.with_thresholds(Thresholds(table))

        assert told.best(first, {"a": lambda: times(BETTER + 0.01), "b": lambda: first}).name == ""
        assert told.best(first, {"a": lambda: times(BETTER - 0.01), "b": lambda: times(BETTER - 0.02)}).name == "a"
        assert told.best(first, {"a": lambda: times(BETTER - 0.01), "b": lambda: times(BETTER**2 - 0.01)}).name == "b"
