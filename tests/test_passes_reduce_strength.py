"""Quicker operators: each rule fires, keeps the numbers, and refuses where the identity does not hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import GOLDENS, RELU, applied, assert_same_outputs, build, conv, graph, op_names, reasons, rewritten
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.reduce_strength import (
    AFTER_FUSION,
    BEFORE_FUSION,
    REDUCE_STRENGTH,
    REDUCE_STRENGTH_AFTER_FUSION,
    UPSAMPLING_AS_DECONVOLUTION,
    UpSamplingAsDeconvolution,
)
from mxq.rewrite import apply_rules

ROUNDED = {"rtol": 2e-6, "atol": 1e-6}
EXACT = {"rtol": 0.0, "atol": 0.0}
RULES = {rule.name: rule for rule in (*BEFORE_FUSION, UpSamplingAsDeconvolution(), *AFTER_FUSION)}
SIGMOID = ('p = _plus_scalar(data) scalar="3.0"', 'k = clip(p) a_min="0" a_max="6"')
PRELU = 'a = LeakyReLU({}, a_gamma) act_type="prelu"'

INNER = 'i = Concat(a, data) num_args="2"'
JOINED = 'o = Concat(data, i, a, i) num_args="4"'
CASES = {
    "hard_sigmoid": ((*SIGMOID, 'y = _div_scalar(k) scalar="6.0"', "return y"), ["hard_sigmoid"], ROUNDED),
    "hard_swish": (
        (*SIGMOID, "m = elemwise_mul(k, data)", 'y = _div_scalar(m) scalar="6.0"', "return y"),
        ["hard_sigmoid", "elemwise_mul"],
        ROUNDED,
    ),
    "divide_as_multiply": (('y = _div_scalar(data) scalar="3.0"', "return y"), ["_mul_scalar"], ROUNDED),
    "global_pooling": (('y = _contrib_AdaptiveAvgPooling2D(data) output_size="1"', "return y"), ["Pooling"], ROUNDED),
    "repeat_as_upsampling": (
        (conv("c", "data"), 'r = repeat(c) repeats="2" axis="-1"', 'y = repeat(r) repeats="2" axis="-2"', "return y"),
        ["Convolution", "UpSampling"],
        EXACT,
    ),
    "upsampling_as_deconvolution": (
        (conv("c", "data"), 'y = UpSampling(c) scale="2" sample_type="nearest" num_args="1"', "return y"),
        ["Convolution", "Deconvolution"],
        EXACT,
    ),
    "pool_before_prelu": (
        (PRELU.format("data"), 'y = Pooling(a) kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)"', "return y"),
        ["Pooling", "LeakyReLU"],
        EXACT,
    ),
    "join_once": (("a = exp(data)", INNER, JOINED, "return o"), ["exp", "Concat"], EXACT),
    "prelu_as_maximum": (
        (conv("c", "data"), PRELU.format("c"), "return a"),
        ["Convolution", "broadcast_mul", "_maximum"],
        EXACT,
    ),
    "clip_as_minimum": (('y = clip(data) a_min="0" a_max="0.5"', "return y"), ["Activation", "_minimum_scalar"], EXACT),
}


def made(name: str) -> Model:
    model = build(*CASES[name][0])
    if "a_gamma" in model.args:
        slopes = np.linspace(0.0, 1.0, 8, dtype=np.float32)
        return Model(model.graph, {**model.args, "a_gamma": slopes}, model.auxs)
    return model


@pytest.mark.parametrize("name", CASES)
def test_fires_and_keeps_the_numbers(name, update_goldens):
    _, ops, close = CASES[name]
    model = made(name)
    result, trace = apply_rules(model, (RULES[name],))
    assert trace.fired(name) == 1
    assert op_names(result) == ops
    assert_golden(write_text(result.graph), GOLDENS / f"reduce_{name}.txt", update=update_goldens)
    assert_same_outputs(model, result, **close)


def test_every_rule_is_tested():
    assert set(RULES) == set(CASES)


def test_a_hard_swish_needs_two_operators():
    model = build(*SIGMOID, 's = _mul_scalar(k) scalar="0.16666667"', "y = elemwise_mul(data, s)", "return y")
    result = rewritten(REDUCE_STRENGTH, model)
    assert op_names(result) == ["hard_sigmoid", "elemwise_mul"]
    assert_same_outputs(model, result, **ROUNDED)


def test_repeats_become_a_deconvolution():
    model = made("repeat_as_upsampling")
    result = rewritten(UPSAMPLING_AS_DECONVOLUTION, rewritten(REDUCE_STRENGTH, model))
    assert op_names(result) == ["Convolution", "Deconvolution"]
    assert_same_outputs(model, result, **EXACT)


@pytest.mark.parametrize("step", [REDUCE_STRENGTH, REDUCE_STRENGTH_AFTER_FUSION])
def test_nothing_to_do_returns_the_same_object(step):
    model = build(conv("c", "data"), "r = Activation(c) " + RELU, "return r")
    assert rewritten(step, model) is model


REFUSED = [
    (
        "hard_sigmoid",
        (*SIGMOID, 'y = _div_scalar(k) scalar="5"', "return y"),
        "the clipped value is not scaled to 0..1",
    ),
    ("hard_sigmoid", (*SIGMOID, 'y = _div_scalar(k) scalar="6"', "return y, k"), "'k' is an output of the network"),
    (
        "hard_sigmoid",
        (*SIGMOID, 'y = _div_scalar(k) scalar="6"', "z = exp(p)", "return y, z"),
        "the output of 'p' is also read by 'z'",
    ),
    (
        "hard_swish",
        (*SIGMOID, "m = elemwise_mul(k, data)", 'y = _div_scalar(m) scalar="5.0"', "return y"),
        "the clipped value is not scaled to 0..1",
    ),
    ("divide_as_multiply", ('y = _div_scalar(data) scalar="1e-39"', "return y"), "1e-39 has no reciprocal in float32"),
    ("divide_as_multiply", ('y = _div_scalar(data) scalar="0"', "return y"), "0 has no reciprocal in float32"),
    (
        "global_pooling",
        ('y = _contrib_AdaptiveAvgPooling2D(data) output_size="(2, 1)"', "return y"),
        "its output_size is (2, 1)",
    ),
    (
        "repeat_as_upsampling",
        (conv("c", "data"), 'r = repeat(c) repeats="2" axis="3"', 'y = repeat(r) repeats="3" axis="2"', "return y"),
        "it does not repeat rows and columns equally often",
    ),
    (
        "repeat_as_upsampling",
        ('r = repeat(data) repeats="2" axis="3"', 'y = repeat(r) repeats="2" axis="2"', "return y"),
        "nothing shows that its input is (N, C, H, W)",
    ),
    (
        "upsampling_as_deconvolution",
        ('y = UpSampling(data) scale="2" sample_type="nearest" num_args="1"', "return y"),
        "its number of channels is not known",
    ),
    (
        "upsampling_as_deconvolution",
        (conv("c", "data"), 'y = UpSampling(c) scale="65" sample_type="nearest" num_args="1"', "return y"),
        "its scale is beyond 64",
    ),
    ("prelu_as_maximum", (PRELU.format("data"), "return a"), "nothing shows that its input is (N, C, H, W)"),
    ("clip_as_minimum", ('y = clip(data) a_min="-1" a_max="1"', "return y"), "it does not clip at zero"),
]


@pytest.mark.parametrize(("rule", "lines", "reason"), REFUSED)
def test_refuses(rule, lines, reason):
    model = Model(graph(*lines), {"a_gamma": np.ones(8, np.float32)})
    result, trace = apply_rules(model, (RULES[rule],))
    assert result is model
    assert reasons(trace, rule) == [reason]


@pytest.mark.parametrize(
    ("rule", "slope", "reason"),
    [
        ("pool_before_prelu", -0.25, "a slope is -0.25, so that the greatest value may change"),
        ("prelu_as_maximum", 1.5, "a slope is 1.5, above one"),
    ],
)
def test_slopes_that_break_the_identity(rule, slope, reason):
    model = made(rule)
    slopes = np.array([slope, *([0.5] * 7)], np.float32)
    model = Model(model.graph, {**model.args, "a_gamma": slopes}, model.auxs)
    result, trace = apply_rules(model, (RULES[rule],))
    assert result is model
    assert reasons(trace, rule) == [reason]


class TestTeeth:
    """What a wrong rule would do is noticed by the comparison above."""

    @pytest.mark.parametrize(
        ("name", "attrs"),
        [
            ("hard_sigmoid", {"beta": "0.4"}),
            ("divide_as_multiply", {"scalar": "0.3334"}),
            ("global_pooling", {"pool_type": "max"}),
            ("upsampling_as_deconvolution", {"num_group": "1"}),
            ("clip_as_minimum", {"scalar": "0.51"}),
        ],
    )
    def test_another_attribute(self, name, attrs):
        model = made(name)
        result = applied(model, (RULES[name],))
        root = result.graph["y"]
        args = dict(result.args)
        if name == "upsampling_as_deconvolution":  # as many weights as without groups
            args["y_ones"] = np.ones((8, 8, 2, 2), np.float32)
        wrong = Model(result.graph.replace({"y": (root.with_attrs(**attrs),)}), args, result.auxs)
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(model, wrong, **CASES[name][2])

    def test_slopes_in_another_order(self):
        model = made("prelu_as_maximum")
        result = applied(model, (RULES["prelu_as_maximum"],))
        args = {**result.args, "a_slopes": result.args["a_slopes"][:, ::-1]}
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(model, replace(result, args=args), **EXACT)


@pytest.mark.parametrize(
    "lines",
    [
        ("a = exp(data)", INNER + ' dim="2"', 'o = Concat(i, i) num_args="2"', "return o"),
        ("a = exp(data)", INNER, JOINED, "z = exp(i)", "return o, z"),
        ("a = exp(data)", INNER, JOINED, "return o, i"),
    ],
)
def test_what_else_reads_a_concat_or_joins_along_another_axis(lines):
    model = build(*lines)
    assert rewritten(REDUCE_STRENGTH, model) is model
