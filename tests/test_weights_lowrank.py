"""Rounding in the space of the samples is rounding by the covariance, without a matrix of inputs by inputs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers import assert_close

from mxq.saturation.limits import Sums
from mxq.weights import lowrank
from mxq.weights.grid import FULL, HALVED, Grid, extremes, nearest, steps
from mxq.weights.lowrank import LowRank
from mxq.weights.rounding import Covariance

SHARE = 0.01


class Case:
    """A dense layer of ``outputs`` and ``inputs``, of which so many ``samples`` are seen: few causes, some noise."""

    def __init__(self, outputs: int, inputs: int, samples: int, levels: Grid = FULL) -> None:
        rng = np.random.default_rng(outputs)
        causes = rng.standard_normal((samples, 3)) @ rng.standard_normal((3, inputs))
        noise = 0.3 * rng.standard_normal((samples, inputs))
        self.inputs = np.maximum(causes + noise + 0.5, 0).astype(np.float32)[None]
        self.wanted = rng.standard_normal((1, outputs, inputs)).astype(np.float32)
        self.step = steps(self.wanted, np.square(self.inputs).mean(axis=1), levels)
        self.fixed = extremes(self.wanted, levels)
        self.nearest = nearest(self.wanted, self.step, self.fixed, levels)
        self.full, self.low = Covariance.of(self.inputs, SHARE), LowRank.of(self.inputs, SHARE)

    def successive(self, by: Covariance | LowRank, most: int = 127, sums: Sums | None = None) -> np.ndarray:
        return by.successive(self.wanted, self.step, self.fixed, most, sums)

    def error(self, codes: np.ndarray) -> np.ndarray:
        return self.full.error_of(codes, self.wanted, self.step)


@pytest.mark.parametrize(("outputs", "inputs", "samples"), [(6, 300, 40), (3, 700, 20), (1, 150, 1), (4, 120, 200)])
@pytest.mark.parametrize("levels", [FULL, HALVED])
def test_it_is_rounding_by_the_covariance(outputs: int, inputs: int, samples: int, levels: Grid) -> None:
    """Also where there are more samples than inputs; the last bits of sums may turn a code in a hundred."""
    case = Case(outputs, inputs, samples, levels)
    wanted, found = (case.successive(by, levels.most) for by in (case.full, case.low))
    assert found.dtype == wanted.dtype == np.int16
    assert found.shape == wanted.shape
    assert (found != wanted).mean() < 0.01
    assert_close(case.error(found), case.error(wanted), rtol=0.1, atol=0)
    assert (found != case.nearest).mean() > 0.05 or samples == 1
    np.testing.assert_array_equal(found[case.fixed != 0], case.fixed[case.fixed != 0])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(5, 260, 30)
    found = []
    for size in (260, 64, 7):
        monkeypatch.setattr(lowrank, "LEAST_BLOCK", size)
        found.append(case.successive(LowRank.of(case.inputs, SHARE)))
    assert (found[0] != found[1]).mean() < 0.01
    assert (found[0] != found[2]).mean() < 0.01


def test_errors_are_those_of_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_SPAN", 77)
    case = Case(5, 260, 30)
    for codes in (case.nearest, case.successive(case.low)):
        assert_close(case.low.error_of(codes, case.wanted, case.step), case.error(codes), rtol=1e-3, atol=1e-6)


def test_descent_is_that_by_the_covariance() -> None:
    case = Case(5, 200, 30)
    rest = (case.wanted, case.step, case.fixed, 127, 3)
    wanted, found = (by.descend(case.nearest, *rest) for by in (case.full, case.low))
    assert (found != wanted).mean() < 0.02
    assert_close(case.error(found), case.error(wanted), rtol=0.1, atol=0)
    assert case.error(found).sum() < 0.5 * case.error(case.nearest).sum()


@pytest.mark.parametrize("kind", ["pairs", "shifted"])
def test_limits_of_sums_hold(kind: str) -> None:
    case = Case(6, 240, 30)
    scale = (800 if kind == "pairs" else 127.5) / case.inputs.max()
    sums = Sums.of(kind, scale, case.inputs[0], 240)  # type: ignore[arg-type]
    assert sums.breaks(case.successive(case.low)[0]).any()
    free = case.successive(case.low, sums=sums)
    assert not sums.breaks(free[0]).any()
    swept = case.low.descend(free, case.wanted, case.step, case.fixed, 127, 1, sums)
    assert not sums.breaks(swept[0]).any()
    wanted = case.successive(case.full, sums=sums)
    assert (free != wanted).mean() < 0.02


def test_memory_is_that_of_the_samples() -> None:
    """A covariance of these inputs would take 576 MB."""
    case_inputs = np.random.default_rng(0).standard_normal((1, 16, 12_000)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((1, 4, 12_000)).astype(np.float32)
    step, fixed = steps(weight, np.ones((1, 12_000)), FULL), extremes(weight, FULL)
    tracemalloc.start()
    low = LowRank.of(case_inputs, SHARE)
    codes = low.successive(weight, step, fixed, 127)
    low.error_of(low.descend(codes, weight, step, fixed, 127, 1), weight, step)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


def test_samples_are_bounded() -> None:
    assert lowrank.places(5120) == lowrank.PLACES
    assert lowrank.places(150_528) == lowrank.VALUES // 150_528
    assert lowrank.places(1 << 40) == 1
