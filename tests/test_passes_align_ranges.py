"""One range for what a Concat joins."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import RELU, build, conv, decided, quantized, run

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.passes.align_ranges import align_ranges
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.rewrite import Event

CAT = 'k = Concat(a, b) dim="1" num_args="2"'


def branches(*more: str) -> tuple[str, ...]:
    return (conv("p", "data"), "a = Activation(p) " + RELU, conv("q", "data"), "b = Activation(q) " + RELU, *more)


def aligned(*lines: str, given: str = "", **ranges: tuple[float, float]) -> tuple[dict[str, Range], tuple[Event, ...]]:
    prepared = pipeline.plan(build(*lines), QuantConfig())
    table = {
        str(r): Threshold(Range(*ranges.get(r.name, (0, 9))), "fixed:0,1" if r.name == given else "naive")
        for r in prepared.plan.observe
    }
    found = decided(prepared, Thresholds(table)).after(align_ranges(prepared.backend.spec))
    return {name: found.thresholds[name].range for name in ranges}, found.trace.events


def test_both_branches_get_the_union():
    found, events = aligned(*branches(CAT, conv("z", "k"), "return z"), a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 5), "b": Range(0, 5)}
    assert [e.node for e in events] == ["a"]


def test_a_range_that_is_given_stays_but_counts():
    lines = branches(CAT, conv("z", "k"), "return z")
    assert aligned(*lines, given="a", a=(0, 2), b=(0, 5)) == ({"a": Range(0, 2), "b": Range(0, 5)}, ())
    found, events = aligned(*lines, given="b", a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 5), "b": Range(0, 5)}
    assert [e.node for e in events] == ["a"]


def test_through_pooling_and_a_second_concat():
    lines = (
        *branches(CAT, 'm = Pooling(k) kernel="(3, 3)" pad="(1, 1)"', conv("r", "data"), "c = Activation(r) " + RELU),
        'j = Concat(m, c) dim="1" num_args="2"', conv("z", "j"), "return z",
    )  # fmt: skip
    found, _ = aligned(*lines, a=(0, 2), b=(0, 5), c=(0, 7))
    assert found == {"a": Range(0, 7), "b": Range(0, 7), "c": Range(0, 7)}


def test_what_is_read_elsewhere_keeps_its_range_but_counts():
    found, _ = aligned(*branches(CAT, conv("z", "k"), conv("y", "b"), "return z, y"), a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 5), "b": Range(0, 5)}
    found, _ = aligned(*branches(CAT, conv("z", "k"), conv("y", "a"), "return z, y"), a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 2), "b": Range(0, 5)}


@pytest.mark.parametrize(
    ("own", "union", "expected"),
    [
        ((0, 4), (0, 5), (0, 5)),
        ((0, 4), (0, 5.6), (0, 5.6)),
        ((0, 4), (0, 5.8), (0, 4)),  # more than the root of 2
        ((-4, 3), (-5, 1), (-5, 3)),
        ((0, 4), (-1, 5), (0, 4)),  # it would turn from u8 to s8
    ],
)
def test_what_is_read_elsewhere_is_widened_a_little(own, union, expected):
    found, _ = aligned(*branches(CAT, conv("z", "k"), conv("y", "a"), "return z, y"), a=own, b=union)
    assert found["a"] == Range(*expected)


def test_an_output_of_the_network_keeps_its_range_but_counts():
    found, _ = aligned(*branches(CAT, conv("z", "k"), "return z, a"), a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 2), "b": Range(0, 5)}
    found, _ = aligned(*branches(CAT, conv("z", "k"), "return z, b"), a=(0, 2), b=(0, 5))
    assert found == {"a": Range(0, 5), "b": Range(0, 5)}


def test_a_little_twice_is_not_a_little():
    """From one Concat to the next, ranges of what is read elsewhere do not grow step by step."""
    lines = (
        *branches(CAT, 'm = Pooling(k) kernel="(3, 3)" pad="(1, 1)"', conv("r", "data"), "c = Activation(r) " + RELU),
        'j = Concat(m, c) dim="1" num_args="2"', conv("z", "j"), conv("y", "a"), "return z, y",
    )  # fmt: skip
    found, _ = aligned(*lines, a=(0, 4), b=(0, 5), c=(0, 7))
    assert found == {"a": Range(0, 4), "b": Range(0, 7), "c": Range(0, 7)}


def test_a_dense_block_has_one_range():
    lines, ranges = [conv("p", "data"), "k0 = Activation(p) " + RELU], {"k0": (0.0, 3.0)}
    for i in range(1, 4):
        lines += [conv(f"c{i}", f"k{i - 1}"), f"a{i} = Activation(c{i}) " + RELU]
        lines += [f'k{i} = Concat(k{i - 1}, a{i}) dim="1" num_args="2"']
        ranges[f"a{i}"] = (0.0, 3.0 + 0.3 * i)
    found, _ = aligned(*lines, conv("z", "k3"), "return z", **ranges)
    assert set(found.values()) == {Range(0, 3.9)}


def test_a_concat_in_float_changes_nothing():
    found, events = aligned(*branches(CAT, "z = exp(k)", conv("p2", "z"), "return p2"), z=(0, 2))
    assert not events
    assert found == {"z": Range(0, 2)}


def test_the_written_ranges_are_equal_and_the_result_is_no_worse():
    model = build(*branches(CAT, conv("z", "k"), "return z"))
    scaled = {**model.args, "p_weight": 0.1 * model.args["p_weight"], "p_bias": 0.1 * model.args["p_bias"]}
    model = type(model)(model.graph, scaled, model.auxs)
    found = quantized(model)
    written = {n: (found.report.tensors[n].min, found.report.tensors[n].max) for n in ("quantized_a", "quantized_b")}
    assert written["quantized_a"] == written["quantized_b"]
    assert "to be what 'k' joins it with" in str(found.report.thresholds)
    wanted, got = run(model)[0], run(found.model)[0]
    assert np.square(wanted - got).sum() < 1e-2 * np.square(wanted).sum()
