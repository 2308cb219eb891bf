"""Ranges that serve most examples."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, conv, pictures, run
from helpers import assert_close

from mxq.graph.ir import Ref
from mxq.quant.thresholds import FIXED, Range, Threshold, Thresholds
from mxq.runtime import MxnetRunner
from mxq.weights.example_ranges import RULES, ruled, seen_of

SEEN = np.array([[-1.0, 2.0, 1.5], [-2.0, 4.0, 3.0], [-30.0, 60.0, 50.0]])
"""Three examples, of which the last is ten times as large and more."""


def test_the_mean_of_what_examples_hold() -> None:
    assert RULES["mean"](SEEN) == Range(-11.0, 22.0)


def test_the_median_of_their_quantiles() -> None:
    assert RULES["quantile"](SEEN) == Range(-3.0, 3.0)


def test_what_is_seen_is_that_of_each_example() -> None:
    model, data = (
        build(conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="relu"', "return relu0"),
        pictures(3, 0),
    )
    found = seen_of(MxnetRunner(), model, [Ref("data"), Ref("conv0")], [{"data": data[i : i + 1]} for i in range(3)])
    inner = run(model, {"data": data}, (Ref("conv0"),))[1]
    for name, value in (("data", data), ("conv0", inner)):
        each = value.reshape(3, -1)
        assert_close(found[name][:, 0], each.min(axis=1), rtol=1e-5, atol=1e-6)
        assert_close(found[name][:, 1], each.max(axis=1), rtol=1e-5, atol=1e-6)
        assert_close(found[name][:, 2], np.abs(each).max(axis=1), rtol=1e-5, atol=1e-6)  # of so few the quantile


@pytest.mark.parametrize(
    ("calibrated", "expected"),
    [
        (Range(-30.0, 60.0), Range(-3.0, 3.0)),
        (Range(-30.0, 2.0), Range(-3.0, 2.0)),
        (Range(0.0, 60.0), Range(0.0, 3.0)),
        (Range(-1.0, 2.0), Range(-1.0, 2.0)),
    ],
)
def test_ranges_only_shrink(calibrated: Range, expected: Range) -> None:
    found = ruled(Thresholds({"x": Threshold(calibrated, "naive")}), {"x": SEEN}, RULES["quantile"])
    assert found.range("x") == expected
    assert bool(found["x"].note) == (calibrated != expected)


def test_ranges_that_are_given_stay() -> None:
    given = Thresholds({"x": Threshold(Range(-30.0, 60.0), FIXED), "unseen": Threshold(Range(-1.0, 1.0), "naive")})
    assert ruled(given, {"x": SEEN}, RULES["mean"]) == given


def test_a_tensor_that_is_zero_in_most_examples_keeps_its_range() -> None:
    given = Thresholds({"x": Threshold(Range(0.0, 5.0), "naive")})
    assert (
        ruled(given, {"x": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 5.0]])}, RULES["quantile"]) == given
    )
