"""Pool last: which averages change places with the convolution, that results stay, and when they do not."""

from __future__ import annotations

import pytest
from graphs import (
    CONV3,
    GOLDENS,
    RELU,
    SHAPE,
    assert_same_outputs,
    build,
    conv,
    feeds,
    graph,
    op_names,
    quantized,
    refusals,
    rewritten,
)
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.avgpool_after_conv1x1 import AVGPOOL_AFTER_CONV1X1
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner
from mxq.verification import verify

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
POOL = 'p = Pooling(data) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"'
FEWER = 'kernel="(1, 1)" num_filter="4"'
BRANCH = (POOL, conv("c", "p", FEWER), "r = Activation(c) " + RELU, "return r")
IN_A_NETWORK = (
    conv("b", "data"), "x = Activation(b) " + RELU, POOL.replace("data", "x"), *BRANCH[1:-1], conv("d", "r"),
    "return d",
)  # fmt: skip


def test_structure_and_numbers(update_goldens):
    """A pooled branch of Inception; the padding is averaged, too, and has no bias."""
    model = build(*BRANCH)
    result, trace = run_pass(AVGPOOL_AFTER_CONV1X1, model)
    assert trace.fired("avgpool_after_conv1x1") == 1
    assert_golden(write_text(result.graph), GOLDENS / "avgpool_after_conv1x1.txt", update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)
    assert rewritten(AVGPOOL_AFTER_CONV1X1, result) is result


@pytest.mark.parametrize(
    "pool",
    [
        'p = Pooling(data) kernel="(2, 3)" pool_type="avg"',
        'p = Pooling(data) kernel="(2, 2)" pool_type="avg" count_include_pad="False"',
        'p = Pooling(data) kernel="(3, 3)" pad="(1, 1)" pool_type="avg" stride="(1, 1)" pooling_convention="full"',
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_other_averages(pool, bias):
    model = build(pool, conv("c", "p", FEWER, bias=bias), "return c")
    result = rewritten(AVGPOOL_AFTER_CONV1X1, model)
    assert op_names(result) == ["Convolution", "Convolution"]
    assert_same_outputs(model, result, **CLOSE)


def test_both_are_int8_and_the_second_has_the_relu():
    made = quantized(build(*IN_A_NETWORK)).model.graph
    assert [n.op for n in made.operators if n.flag("quantized")] == ["_sg_mkldnn_conv"] * 4
    assert "_contrib_quantized_pooling" not in [n.op for n in made.operators]


ONLY = 'p = Pooling(data) kernel="(3, 3)" pad="(1, 1)" pool_type="avg" '
REFUSED = {
    "edges": ((ONLY + 'count_include_pad="False"', conv("c", "p", FEWER), "return c"), "averages fewer values"),
    "as many": ((ONLY, conv("c", "p", 'kernel="(1, 1)" num_filter="8"'), "return c"), "makes 8 channels of 8"),
    "another reader": ((ONLY, conv("c", "p", FEWER), "t = exp(p)", "return c, t"), "is also read by 't'"),
    "head": ((ONLY, conv("c", "p", FEWER), "return c, p"), "is an output"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    lines, reason = REFUSED[name]
    assert any(reason in found for found in refusals(AVGPOOL_AFTER_CONV1X1, build(*lines), "avgpool_after_conv1x1"))


def test_a_weight_that_is_fed():
    assert refusals(AVGPOOL_AFTER_CONV1X1, Model(graph(*BRANCH)), "avgpool_after_conv1x1") == [
        "the weight of 'c' is no parameter"
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ('p = Pooling(data) kernel="(3, 3)" pad="(1, 1)" pool_type="max"', conv("c", "p", FEWER)),
        ('p = Pooling(data) kernel="(2, 2)" stride="(2, 2)" pool_type="avg"', conv("c", "p", FEWER)),
        ('p = Pooling(data) kernel="(2, 2)" global_pool="True" pool_type="avg"', conv("c", "p", FEWER)),
        (ONLY, conv("c", "p", FEWER + ' stride="(2, 2)"')),
        (ONLY, conv("c", "p", CONV3)),
    ],
)
def test_not_meant(lines):
    assert not refusals(AVGPOOL_AFTER_CONV1X1, build(*lines, "return c"), "avgpool_after_conv1x1")


def test_verify_compares_what_both_networks_make():
    """The convolution before the average has no counterpart, what the average makes is what the convolution made."""
    model, data = build(*IN_A_NETWORK), feeds(data=SHAPE)
    found = verify(MxnetRunner(), model, quantized(model, data).model, [data], layers=True)
    assert found.outputs[0].sqnr > 25
    assert [layer.name for layer in found.layers][1:] == ["x", "r", "d"]
    assert all(layer.sqnr > 25 for layer in found.layers)
