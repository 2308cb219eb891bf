"""Grouped convolutions as several dense ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import GOLDENS, RELU, assert_same_outputs, build, conv, feeds, op_names, quantized, refusals, rewritten, run
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.split_groups import SPLIT_GROUPS, block_diagonal
from mxq.rewrite import run_pass

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHAPE = (2, 16, 6, 6)


def block(filters: int = 64, groups: int = 16, *, bias: bool = True, first: str = "") -> tuple[str, ...]:
    return (
        conv("a", "data", f'kernel="(1, 1)" num_filter="{filters}"{first}'),
        "ar = Activation(a) " + RELU,
        conv("g", "ar", f'kernel="(3, 3)" pad="(1, 1)" num_filter="{filters}" num_group="{groups}"', bias=bias),
        "gr = Activation(g) " + RELU,
        conv("z", "gr", 'kernel="(1, 1)" num_filter="8"'),
    )


def made(*lines: str) -> Model:
    return build(*lines, data=SHAPE)


@pytest.mark.parametrize("bias", [True, False])
def test_fires_and_keeps_the_numbers(bias, update_goldens):
    model = made(*block(bias=bias), "return z")
    result, trace = run_pass(SPLIT_GROUPS, model)
    assert trace.fired("split_groups") == 1
    part = ["Convolution", "Activation"] * 2
    assert op_names(result) == [*part, *part, "Concat", "Convolution"]
    if bias:
        assert_golden(write_text(result.graph), GOLDENS / "split_groups.txt", update=update_goldens)
    assert_same_outputs(model, result, feeds(data=SHAPE), **CLOSE)
    assert rewritten(SPLIT_GROUPS, result) is result


def test_all_of_it_is_int8_and_close():
    model, given = made(*block(), "return z"), feeds(data=SHAPE)
    found = quantized(model, given)
    assert all(d.int8 for d in found.report.plan.decisions)
    wanted, got = run(model, given)[0], run(found.model, given)[0]
    assert np.square(wanted - got).sum() < 1e-3 * np.square(wanted).sum()


def test_exclusion_by_the_original_name():
    found = quantized(made(*block(), "return z"), feeds(data=SHAPE), exclude_layers=["g"])
    left = {d.node for d in found.report.plan.decisions if not d.int8 and d.op != "Concat"}
    assert left == {"gr_part0", "gr_part1"}


REFUSED = {
    "its groups of 8 channels are as quick in float": (*block(64, 8), "return z"),
    "the layer before, 'a', has groups too": (*block(first=' num_group="2"'), "return z"),
    "12 groups cannot be shared out evenly": (*block(48, 12), "return z"),
    "the output of 'ar' is also read by 'e'": (*block(), "e = exp(ar)", "return z, e"),
    "'g' is an output of the network": (*block(), "return z, g"),
    "'g_weight' is not a parameter of 'g' alone": (*block(), "e = exp(g_weight)", "return z, e"),
    "'a_bias' is not a parameter of 'a' alone": (*block(), "e = exp(a_bias)", "return z, e"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason):
    assert refusals(SPLIT_GROUPS, made(*REFUSED[reason]), "split_groups") == [reason]


@pytest.mark.parametrize("groups", [1, 64])
def test_is_not_about_dense_and_depthwise_convolutions(groups):
    model = made(*block(64, groups), "return z")
    result, trace = run_pass(SPLIT_GROUPS, model)
    assert result is model
    assert not trace.events


def test_block_diagonal():
    weight = np.arange(8, dtype=np.float32).reshape(4, 2, 1, 1) + 1
    expected = np.array([[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]], np.float32)
    np.testing.assert_array_equal(block_diagonal(weight, 2)[..., 0, 0], expected)


def test_groups_in_another_order_are_noticed():
    model = made(*block(), "return z")
    result = rewritten(SPLIT_GROUPS, model)
    wrong = replace(result, args={**result.args, "g_weight_part0": result.args["g_weight_part1"]})
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, wrong, feeds(data=SHAPE), **CLOSE)
