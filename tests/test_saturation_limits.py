"""Rounding where two products are added in 16 bits: limits hold, and what they cost is made up for."""

from __future__ import annotations

import numpy as np
import pytest

from mxq.saturation.limits import Exposed, Sums, by_channel
from mxq.weights.grid import FULL, extremes, nearest, steps
from mxq.weights.reconstruction import DAMPING
from mxq.weights.rounding import covariance, damped, descend, error_of, successive

CHANNELS, POSITIONS, OUTPUTS = 7, 4, 12


class Case:
    """A layer with some large weights beside each other, on correlated inputs that use all codes."""

    def __init__(self, kernel: str, channels: int = CHANNELS, seed: int = 0, count: int = 2000) -> None:
        rng = np.random.default_rng(seed)
        size = channels * POSITIONS
        mixed = rng.standard_normal((count, 4)) @ rng.standard_normal((4, size))
        inputs = np.abs(mixed) if kernel == "pairs" else mixed
        self.inputs = np.clip(inputs / np.abs(inputs).max(), -1, 1).astype(np.float32)[None]
        self.scale = 255.5 if kernel == "pairs" else 127.5
        self.wanted = rng.standard_normal((1, OUTPUTS, size)).clip(-1.6, 1.6).astype(np.float32)
        self.hessian = damped(covariance(self.inputs), DAMPING)
        self.step = steps(self.wanted, np.square(self.inputs).mean(axis=1), FULL)
        self.fixed = extremes(self.wanted, FULL)
        self.nearest = nearest(self.wanted, self.step, self.fixed, FULL)
        self.sums = Sums.of(kernel, self.scale, self.inputs[0], channels)

    def error(self, codes: np.ndarray) -> float:
        return float(error_of(codes, self.wanted, self.hessian, self.step).sum())


@pytest.mark.parametrize("channels", [6, 7, 1])
@pytest.mark.parametrize("kernel", ["pairs", "shifted"])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_no_pair_is_beyond_what_it_meets(kernel, channels, sweeps):
    case = Case(kernel, channels)
    codes = successive(case.wanted, case.hessian, case.step, case.fixed, FULL.most, case.sums)
    codes = descend(codes, case.wanted, case.hessian, case.step, case.fixed, FULL.most, sweeps, case.sums)
    assert not case.sums.breaks(codes[0]).any()
    assert case.sums.lost(codes[0], case.step[0]).max() == 0
    assert (codes[case.fixed != 0] == case.fixed[case.fixed != 0]).all()
    assert case.sums.breaks(case.nearest[0]).any() == (channels > 1)


@pytest.mark.parametrize("kernel", ["pairs", "shifted"])
@pytest.mark.parametrize("seed", range(3))
def test_other_weights_make_up_for_the_limits(kernel, seed):
    case = Case(kernel, seed=seed)
    found = successive(case.wanted, case.hessian, case.step, case.fixed, FULL.most, case.sums)
    assert case.error(found) < 0.7 * case.error(case.sums.limited(case.nearest[0])[None])


def test_what_limits_cost_is_known_before_weights_are_chosen():
    """About, and over several layers: less than their change of weights, as others make up for it."""
    shares = []
    for seed in range(5):
        case = Case("shifted", seed=seed)
        weight = by_channel(case.wanted[0], CHANNELS)
        exposed = Exposed.of("shifted", weight, by_channel(case.inputs[0], CHANNELS))
        given = (case.wanted, case.hessian, case.step, case.fixed, FULL.most)
        limited, free = (case.error(successive(*given, *sums)) for sums in ((case.sums,), ()))
        shares.append(exposed.cost(case.scale) * exposed.energy / (limited - free))
    assert 0.6 < np.exp(np.mean(np.log(shares))) < 2.5


def test_without_a_partner_nothing_is_limited():
    case = Case("pairs", 1)
    limits = (case.sums, None)
    one, other = (successive(case.wanted, case.hessian, case.step, case.fixed, FULL.most, s) for s in limits)
    assert (one == other).all()


@pytest.mark.parametrize("kernel", ["pairs", "shifted"])
def test_room_is_all_that_fits(kernel):
    """Beside each code the sum is exact for the largest activation codes, and would not be with one more."""
    sums = Case(kernel, 2).sums
    first, second = (int(h) for h in sums.highest)
    beside = np.arange(-127, 128)
    low, high = sums.room(0, beside, 127)
    assert (first * np.maximum(high, 0) + second * np.maximum(beside, 0) <= 32767).all()
    assert (first * np.minimum(low, 0) + second * np.minimum(beside, 0) >= -32768).all()
    more, less = high < 127, low > -127
    assert more.any()
    assert less.any()
    assert (first * (high + 1) + second * beside > 32767)[more].all()
    assert (first * (low - 1) + second * beside < -32768)[less].all()


@pytest.mark.parametrize("count", [100, 300])
def test_few_samples_do_not_show_the_largest_values(count):
    few, many = (Case("pairs", count=n).sums.highest for n in (count, 2000))
    values = Case("pairs", count=count)
    top = values.inputs[0].max(axis=0).reshape(-1, CHANNELS).max(axis=0) * values.scale
    assert (few == np.clip(np.ceil(1.25 * top), 0, 255)).all()
    assert many.max() == 255
