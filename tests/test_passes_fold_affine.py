"""Fold affine: numbers go into weights and biases, results stay, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, CONV3, GOLDENS, SHAPE, assert_same_outputs, build, conv, fc, graph, refusals, rewritten
from helpers import assert_golden

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.fold_affine import FOLD_AFFINE
from mxq.passes.fold_scale import FOLD_SCALE
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PARAMETERS = {"s": (1, 8, 1, 1), "one": (1, 1, 1, 1), "wide": (1, 8, 6, 6), "row": (1, 10), "inner": (1, 1, 1, 10)}


def made(*lines: str) -> Model:
    """A network in which the names of `PARAMETERS` are parameters."""
    given = {name: shape for name, shape in PARAMETERS.items() if name in graph(*lines)}
    found, rng = build(*lines, data=SHAPE, **given), np.random.default_rng(1)
    return found.with_graph(found.graph, {n: rng.uniform(0.5, 2, s).astype(np.float32) for n, s in given.items()})


def operators(model: Model) -> list[str]:
    return [node.op for node in model.graph.operators]


LAB = (
    conv("c", "data", bias=False),
    '_s0 = _mul_scalar(c) scalar="1.9"',
    '_t0 = _plus_scalar(_s0) scalar="0.8"',
    "h = sigmoid(_t0)",
    '_s1 = _mul_scalar(h) scalar="0.6"',
    '_t1 = _minus_scalar(_s1) scalar="0.5"',
    conv("p", "_t1"),
    '_s2 = _mul_scalar(p) scalar="-0.5"',
    "a = tanh(_s2)",
    '_s3 = _mul_scalar(a) scalar="0.3"',
    '_t3 = _plus_scalar(_s3) scalar="2"',
    conv("q", "_t3", CONV1),
    conv("r", "_t3", CONV1, bias=False),
    "return q, r",
)
"""PP-LCNetV3: a scale and an offset after each convolution and each activation."""


def test_structure_and_numbers(update_goldens):
    """What is added before a padded convolution stays; all else is gone."""
    model = made(*LAB)
    result, trace = run_pass(FOLD_AFFINE, model)
    assert (trace.fired("number_after_layer"), trace.fired("shift_before_layers")) == (3, 1)
    assert trace.fired("shift_before_scale") == 1
    assert_golden(write_text(result.graph), GOLDENS / "fold_affine.txt", update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)
    assert rewritten(FOLD_AFFINE, result) is result
    folded = rewritten(FOLD_SCALE, result)
    assert operators(folded) == ["Convolution", "sigmoid", "_plus_scalar", "Convolution", "tanh", *["Convolution"] * 2]
    assert_same_outputs(model, folded, **CLOSE)


@pytest.mark.parametrize(
    "line",
    [
        'z = _rminus_scalar(c) scalar="3"', 'z = _div_scalar(c) scalar="3"', "z = broadcast_mul(s, c)",
        "z = broadcast_sub(s, c)", "z = broadcast_sub(c, s)", "z = broadcast_add(c, one)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", [CONV3, f'{CONV3} num_group="2"'])
def test_forms_after_a_convolution(line, layer):
    model = made(conv("c", "data", layer), line, "return z")
    result = rewritten(FOLD_AFFINE, model)
    assert operators(result) == ["Convolution"]
    assert_same_outputs(model, result, **CLOSE)


def test_after_and_before_a_fully_connected_layer():
    model = made('n = _minus_scalar(data) scalar="0.5"', fc("f", "n"), "z = broadcast_mul(f, row)", "return z")
    result = rewritten(FOLD_AFFINE, model)
    assert operators(result) == ["FullyConnected"]
    assert_same_outputs(model, result, **CLOSE)


C, PLUS = conv("c", "data"), 'z = _plus_scalar(c) scalar="3"'
DATA = 'z = _plus_scalar(data) scalar="3"'
REFUSED = {
    "other reader": ((C, PLUS, "t = exp(c)", "return z, t"), "number_after_layer", "the output of 'c' is also read"),
    "head": ((C, PLUS, "return z, c"), "number_after_layer", "'c' is an output of the network"),
    "shared weight": (
        (C, PLUS, "d = Convolution(data, c_weight, d_bias) " + CONV3, "return z, d"),
        "number_after_layer", "'c_weight' is not a parameter of 'c' alone",
    ),
    "padding": ((DATA, conv("p", "z"), "return p"), "shift_before_layers", "'p' pads it with zeros"),
    "sum is an output": (
        (DATA, conv("p", "z", CONV1), "return p, z"), "shift_before_layers", "it is an output of the network",
    ),
    "shared bias": (
        (DATA, conv("p", "z", CONV1), "q = Convolution(z, q_weight, p_bias) " + CONV1, "return p, q"),
        "shift_before_layers", "'p_bias' is not a parameter of 'p' alone",
    ),
    "scale is 0": (
        ('m = _mul_scalar(data) scalar="0"', 'z = _plus_scalar(m) scalar="3"', conv("p", "z"), "return p"),
        "shift_before_scale", "3 / 0 is no number",
    ),
    "reader of the sum": (
        ('m = _mul_scalar(data) scalar="2"', 'z = _plus_scalar(m) scalar="3"', conv("p", "z"), "t = exp(z)",
         "return p, t"),
        "shift_before_scale", "'t' (exp) reads it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    lines, rule, reason = REFUSED[name]
    model = made(*lines)
    assert any(reason in found for found in refusals(FOLD_AFFINE, model, rule))
    assert rewritten(FOLD_AFFINE, model) is model


@pytest.mark.parametrize(
    "lines",
    [
        (C, "z = broadcast_add(c, wide)", "return z"),
        (conv("c", "data", 'kernel="(1, 1)" num_filter="1"'), "z = broadcast_mul(c, s)", "return z"),
        (fc("f", "data", 'num_hidden="10" flatten="False"'), "z = broadcast_add(f, inner)", "return z"),
        (C, 'z = _div_scalar(c) scalar="0"', "return z"),
        (DATA, conv("p", "z", CONV1), "t = exp(z)", "return p, t"),
    ],
)
def test_not_meant(lines):
    model = made(*lines)
    assert rewritten(FOLD_AFFINE, model) is model


def test_reports_say_where_numbers_went():
    model = made(*LAB)
    plan = pipeline.plan(model, QuantConfig(), MxnetRunner()).plan
    reasons = {decision.node: decision.reason for decision in plan.removed}
    assert "its number is in the biases of the layers that read the sum" in reasons["_t3"]
