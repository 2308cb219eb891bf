"""Subsampling early: what is not computed, that results stay the same for any image, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import (
    CONV1,
    GOLDENS,
    RELU,
    assert_same_outputs,
    bn,
    build,
    conv,
    feeds,
    quantized,
    refusals,
    rewritten,
    run,
)
from helpers import assert_golden

from mxq import pipeline
from mxq.graph.annotation import RouteKind
from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes import subsample_early
from mxq.passes.subsample_early import SUBSAMPLE_EARLY, move_strides
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner
from mxq.verification import verify

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
S2 = CONV1 + ' stride="(2, 2)"'
POOL2 = 'kernel="(2, 2)" stride="(2, 2)" pool_type="avg"'

BLOCK = (
    "p = Activation(data) " + RELU,
    conv("a", "p"),
    "ra = Activation(a) " + RELU,
    conv("b", "ra", CONV1),
    "s = elemwise_add(b, p)",
    "r = Activation(s) " + RELU,
)
NEXT = (conv("c", "r", S2), conv("d", "r", S2))
"""The last bottleneck of a stage, and what reads it."""


def strides(model: Model) -> dict[str, tuple[int, ...]]:
    """Of all convolutions and poolings."""
    return {n.name: n.ints("stride") for n in model.graph.operators if n.op in ("Convolution", "Pooling")}


def moved(model: Model) -> Model:
    return move_strides(model)[0]


def test_structure_and_numbers(update_goldens):
    model = build(*BLOCK, *NEXT, "return c, d")
    result, trace = run_pass(SUBSAMPLE_EARLY, model)
    assert [e.node for e in trace.events if e.rule == "move_strides"] == ["a", "ra", "b", "s", "r"]
    assert [n.name for n in result.graph.operators if n.note.stride != (1, 1)] == ["a", "ra", "b", "s", "r"]
    assert_golden(write_text(result.graph), GOLDENS / "subsample_early.txt", update=update_goldens)
    assert rewritten(SUBSAMPLE_EARLY, result) is result
    for height, width in ((6, 6), (7, 9), (1, 2), (8, 5)):
        assert_same_outputs(model, result, feeds(data=(2, 8, height, width)), **CLOSE)


def test_less_is_computed():
    result = moved(build(*BLOCK, *NEXT, "return c, d"))
    assert strides(result) == {"a": (2, 2), "b": (), "p_every_2x2": (2, 2), "c": (1, 1), "d": (1, 1)}


def test_strides_add_up():
    lines = (conv("a", "data"), conv("b", "a", S2), conv("c", "b", CONV1 + ' stride="(2, 3)"'), "return c")
    model = build(*lines)
    result = moved(model)
    assert strides(result) == {"a": (4, 6), "b": (1, 1), "c": (1, 1)}
    assert result.graph["a"].note.stride == (4, 6)
    assert result.graph["b"].note.stride == (2, 3)
    assert_same_outputs(model, result, feeds(data=(1, 8, 13, 17)), **CLOSE)


def test_strided_and_dilated_makers():
    attrs = 'kernel="(3, 2)" num_filter="8" pad="(2, 1)" stride="(2, 1)" dilate="(2, 1)"'
    model = build(conv("a", "data", attrs), conv("c", "a", S2), "return c")
    result = moved(model)
    assert strides(result) == {"a": (4, 2), "c": (1, 1)}
    for side in (5, 6, 7, 8, 9):
        assert_same_outputs(model, result, feeds(data=(1, 8, side, side + 3)), **CLOSE)


def test_operators_with_parameters():
    lines = (
        conv("a", "data"),
        'l = LeakyReLU(a, l_gamma) act_type="prelu"',
        bn("n", "l", 'eps="1e-05" fix_gamma="False" use_global_stats="True"'),
        conv("c", "n", S2),
        "return c",
    )
    model = build(*lines)
    result = moved(model)
    assert strides(result) == {"a": (2, 2), "c": (1, 1)}
    assert_same_outputs(model, result, **CLOSE)


def test_one_pooling_serves_all_who_read_alike():
    lines = (
        "p = tanh(data)",
        conv("a", "p"),
        "s = elemwise_add(a, p)",
        "t = elemwise_mul(s, p)",
        conv("c", "t", S2),
        "return c",
    )
    model = build(*lines)
    result = moved(model)
    assert [n.name for n in result.graph.operators if n.op == "Pooling"] == ["p_every_2x2"]
    assert_same_outputs(model, result, **CLOSE)


STAYS = {
    "an output": (*BLOCK, *NEXT, "return c, d, r"),
    "another reader": (*BLOCK, *NEXT, conv("e", "r"), "return c, d, e"),
    "other strides": (*BLOCK, conv("c", "r", S2), conv("d", "r", CONV1), "return c, d"),
    "a larger kernel": (*BLOCK, conv("c", "r", 'kernel="(3, 3)" num_filter="8" stride="(2, 2)"'), "return c"),
    "padding": (*BLOCK, conv("c", "r", S2 + ' pad="(1, 1)"'), "return c"),
    "groups": (*BLOCK, conv("c", "r", S2 + ' num_group="2"'), "return c"),
    "no convolution makes less": ("x = tanh(data)", conv("c", "x", S2), "return c"),
    "a BatchNorm of columns": (conv("a", "data"), bn("n", "a", 'eps="1e-05" axis="3"'), conv("c", "n", S2), "return c"),
    "no strides": (*BLOCK, conv("c", "r", CONV1), "return c"),
}  # fmt: skip


@pytest.mark.parametrize("why", STAYS)
def test_what_stays(why):
    lines = STAYS[why]
    model = build(*lines)
    assert rewritten(SUBSAMPLE_EARLY, model) is model


def test_what_goes_up_to_where_all_is_read():
    lines = (*BLOCK, conv("e", "ra", CONV1), *NEXT, "return c, d, e")
    result = moved(build(*lines))
    assert strides(result)["a"] == ()
    assert strides(result)["b"] == (2, 2)


@pytest.mark.parametrize("wrong", [(1, 1), (3, 3), (2, 1)])
def test_wrong_strides_are_noticed(wrong, monkeypatch):
    monkeypatch.setattr(subsample_early, "_over", lambda a, _: wrong if a == (2, 2) else a)
    model = build(*BLOCK, *NEXT, "return c, d")
    with pytest.raises(Exception, match=r"Incompatible attr|shape"):
        assert_same_outputs(model, moved(model), **CLOSE)


# ---- average pooling ----


@pytest.mark.parametrize("bias", [True, False])
def test_pool_first(bias, update_goldens):
    model = build(conv("c", "data", CONV1, bias=bias), "p = Pooling(c) " + POOL2, "return p")
    result, trace = run_pass(SUBSAMPLE_EARLY, model)
    assert trace.fired("pool_first") == 1
    if bias:
        assert_golden(write_text(result.graph), GOLDENS / "pool_first.txt", update=update_goldens)
    for side in (6, 7):
        assert_same_outputs(model, result, feeds(data=(2, 8, side, 5)), **CLOSE)


@pytest.mark.parametrize(
    "attrs",
    [
        'pool_type="avg" global_pool="True" kernel="(1, 1)"',
        'kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)" pool_type="avg" count_include_pad="False"',
        POOL2 + ' pooling_convention="full"',
    ],
)
def test_other_averages(attrs):
    model = build(conv("c", "data", CONV1), "p = Pooling(c) " + attrs, "return p")
    result = rewritten(SUBSAMPLE_EARLY, model)
    assert [n.op for n in result.graph.operators] == ["Pooling", "Convolution"]
    for side in (6, 7):
        assert_same_outputs(model, result, feeds(data=(2, 8, side, 5)), **CLOSE)


LATER = {
    "maximum": (CONV1, POOL2.replace("avg", "max"), ""),
    "as many pixels": (CONV1, 'kernel="(3, 3)" pad="(1, 1)" pool_type="avg" count_include_pad="False"', ""),
    "no 1x1 convolution": ('kernel="(3, 3)" num_filter="8"', POOL2, ""),
    "strides": (S2, POOL2, "the convolution has stride (2, 2)"),
    "padding": (CONV1, 'kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)" pool_type="avg"',
                "the pooling averages its padding too, which would have no bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", LATER)
def test_pooling_that_stays(case):
    attrs, pool, why = LATER[case]
    model = build(conv("c", "data", attrs), "p = Pooling(c) " + pool, "return p")
    assert refusals(SUBSAMPLE_EARLY, model, "pool_first") == ([why] if why else [])


def test_a_convolution_that_is_read_elsewhere_stays():
    model = build(conv("c", "data", CONV1), "p = Pooling(c) " + POOL2, "return p, c")
    assert refusals(SUBSAMPLE_EARLY, model, "pool_first") == ["'c' is an output of the network"]


def test_a_wrong_average_is_noticed(monkeypatch):
    model = build(conv("c", "data", CONV1), "p = Pooling(c) " + POOL2, "return p")
    result = rewritten(SUBSAMPLE_EARLY, model)
    changes = {"p_first": (result.graph["p_first"].with_attrs(pool_type="max"),)}
    wrong = result.with_graph(result.graph.replace(changes))
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, wrong, **CLOSE)


# ---- with the rest ----


def whole() -> Model:
    lines = (conv("i", "data"), *(line.replace("(data)", "(i)") for line in BLOCK), *NEXT)
    return build(*lines, 'e = Concat(c, d) dim="1" num_args="2"', conv("f", "e", CONV1), "return f")


def test_int8_and_its_layers():
    model, data = whole(), feeds(data=(4, 8, 9, 9))
    made = quantized(model, data)
    assert {n.name: n.op for n in made.model.graph.operators if n.note.stride != (1, 1)} == {
        "quantized_ra": "_sg_mkldnn_conv", "quantized_r": "_sg_mkldnn_conv",
    }  # fmt: skip
    reason = made.report.plan["ra"].reason
    assert RouteKind.READ_PIXELS.value in reason
    found = verify(MxnetRunner(), model, made.model, [data], layers=True)
    assert found.outputs[0].sqnr > 25
    layers = {layer.name: layer for layer in found.layers}
    for name in ("ra", "r"):  # of the float network's pixels those that the int8 one has
        assert layers[name].sqnr > 28
        assert layers[name].introduced is not None
        assert layers[name].introduced > 28
        assert layers[name].clipped < 0.01
    assert layers["c"].introduced is not None


def test_beside_a_fused_network_that_is_strided_too():
    model, data = whole(), feeds(data=(4, 8, 9, 9))
    found = verify(MxnetRunner(), pipeline.fuse_float(model), quantized(model, data).model, [data], layers=True)
    assert {"ra", "r"} <= {layer.name for layer in found.layers if layer.sqnr > 28}


def test_float_is_the_same():
    model = whole()
    assert_same_outputs(model, pipeline.fuse_float(model), feeds(data=(2, 8, 9, 9)), **CLOSE)


def test_elementwise_inputs_of_other_outputs_have_names_of_their_own():
    lines = (
        'x = SliceChannel(data) num_outputs="2"',
        conv("a", "x"),
        "s = elemwise_add(x:0, x:1)",
        conv("k", "s", 'kernel="(3, 3)" num_filter="4" pad="(1, 1)"'),
        "u = elemwise_add(k, x:0)",
        "v = elemwise_add(u, x:1)",
        conv("c", "v", S2),
        "return c, a",
    )
    model = build(*lines)
    result = moved(model)
    assert sorted(n.name for n in result.graph.operators if n.op == "Pooling") == ["x1_every_2x2", "x_every_2x2"]
    for wanted, got in zip(run(model), run(result), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_strides_multiply_with_those_that_moved_before():
    first = moved(build(conv("a", "data"), conv("c", "a", S2), "return c"))
    assert first.graph["a"].note.stride == (2, 2)
    changed = first.with_graph(first.graph.replace({"c": (first.graph["c"].with_attrs(stride="(2, 3)"),)}))
    assert moved(changed).graph["a"].note.stride == (4, 6)
