"""BatchNorm folding: numbers, names, every guard; and wrong foldings that must be noticed."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV3, GOLDENS, SHAPE, assert_same_outputs, bn, build, conv, fc, op_names, reasons, rewritten
from helpers import assert_close, assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes import fold_bn
from mxq.passes.fold_bn import FOLD_BN, fold
from mxq.passes.simplify import SIMPLIFY
from mxq.rewrite import run_pass

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Folding changes the order of float32 operations; values are of unit size."""
GLOBAL = 'eps="1e-05" fix_gamma="False" use_global_stats="True"'


def folded(model: Model) -> Model:
    return rewritten(FOLD_BN, model)


def test_structure(update_goldens):
    model = build(
        conv("c1", "data"),
        bn("b1", "c1", GLOBAL),
        conv("c2", "b1", bias=False),
        bn("b2", "c2", GLOBAL),
        fc("f", "b2"),
        bn("b3", "f", GLOBAL),
        "return b3",
    )
    result, trace = run_pass(FOLD_BN, model)
    assert trace.fired("fold_bn") == 3
    assert_golden(write_text(result.graph), GOLDENS / "fold_bn.txt", update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)
    assert folded(result) is result
    assert not result.auxs


VARIANTS = {
    "bias": (conv("c", "data"), bn("b", "c", GLOBAL)),
    "no bias": (conv("c", "data", bias=False), bn("b", "c", GLOBAL)),
    "fixed gamma": (conv("c", "data"), bn("b", "c", 'fix_gamma="True" use_global_stats="True"')),
    "default attributes": (conv("c", "data"), bn("b", "c", 'use_global_stats="True"')),
    "large eps": (conv("c", "data"), bn("b", "c", 'eps="0.5" fix_gamma="False" use_global_stats="True"')),
    "groups": (conv("c", "data", CONV3 + ' num_group="8"'), bn("b", "c", GLOBAL)),
    "1-D": (conv("c", "r", 'kernel="(3,)" num_filter="4"'), bn("b", "c", GLOBAL)),
    "fully connected": (fc("c", "data"), bn("b", "c", GLOBAL)),
}


def variant(name: str) -> Model:
    reshape = ('r = Reshape(data) shape="(0, 0, -1)"',) if name == "1-D" else ()
    return build(*reshape, *VARIANTS[name], "return b")


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers(name):
    model = variant(name)
    result, trace = run_pass(FOLD_BN, model)
    assert trace.fired("fold_bn") == 1
    assert "BatchNorm" not in op_names(result)
    assert result.graph["b"].origins == ("c", "b")
    assert_same_outputs(model, result, **CLOSE)


def test_training_mode_batch_norm_folds_after_simplify():
    model = build(conv("c", "data"), bn("b", "c"), "return b")
    assert_same_outputs(model, folded(rewritten(SIMPLIFY, model)), **CLOSE)


def test_formula_in_double():
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3, 2, 2)).astype("f"), rng.standard_normal(4).astype("f")
    gamma, beta, mean = (rng.standard_normal(4).astype("f") for _ in range(3))
    var = rng.uniform(1e-6, 2, 4).astype("f")
    weight, bias = fold(w, b, gamma, beta, mean, var, eps=1e-3, fix_gamma=False)
    alpha = gamma.astype(float) / np.sqrt(var.astype(float) + 1e-3)
    assert weight.dtype == bias.dtype == np.float32
    assert_close(weight, w * alpha.reshape(4, 1, 1, 1), rtol=1e-6, atol=0)
    assert_close(bias, beta + alpha * (b.astype(float) - mean), rtol=1e-6, atol=1e-7)


def wrong_fold(error):
    def wrong(weight, bias, gamma, beta, mean, var, *, eps, fix_gamma):
        changed = {
            "bias": bias,
            "gamma": gamma,
            "beta": beta,
            "mean": mean,
            "var": var,
            "eps": eps,
            "fix_gamma": fix_gamma,
        }
        changed |= error(**changed)
        return fold(weight, **changed)

    return wrong


WRONG = {
    "dropped bias": ("bias", lambda bias, **_: {"bias": None}),
    "scaled weights": ("bias", lambda gamma, **_: {"gamma": gamma * np.float32(1.001)}),
    "dropped beta": ("no bias", lambda beta, **_: {"beta": 0 * beta}),
    "dropped mean": ("no bias", lambda mean, **_: {"mean": 0 * mean}),
    "ignored eps": ("large eps", lambda **_: {"eps": 0.0}),
    "default eps": ("default attributes", lambda **_: {"eps": 1e-5}),
    "gamma although fixed": ("fixed gamma", lambda **_: {"fix_gamma": False}),
    "gamma of a neighbour": ("fully connected", lambda gamma, **_: {"gamma": np.roll(gamma, 1)}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_foldings_are_noticed(name, monkeypatch):
    kind, error = WRONG[name]
    monkeypatch.setattr(fold_bn, "fold", wrong_fold(error))
    model = variant(kind)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, folded(model), **CLOSE)


REFUSED = {
    "read elsewhere": (
        (conv("c", "data"), bn("b", "c", GLOBAL), "e = exp(c)", "return b, e"),
        "the output of 'c' is also read by 'e'",
    ),
    "an output": ((conv("c", "data"), bn("b", "c", GLOBAL), "return b, c"), "'c' is an output of the network"),
    "batch statistics": ((conv("c", "data"), bn("b", "c"), "return b"), "BatchNorm uses batch statistics"),
    "batch mean read": (
        (conv("c", "data"), bn("b", "c", GLOBAL), "e = exp(b:1)", "return b, e"),
        "the batch mean or variance of BatchNorm is read",
    ),
    "batch mean returned": (
        (conv("c", "data"), bn("b", "c", GLOBAL), "return b, b:2"),
        "the batch mean or variance of BatchNorm is an output of the network",
    ),
    "axis": (
        (conv("c", "data"), bn("b", "c", GLOBAL + ' axis="3"'), "return b"),
        "BatchNorm normalises axis 3, the layer's channels are axis 1",
    ),
    "flatten": (
        (fc("f", "data", 'num_hidden="5" flatten="False"'), bn("b", "f", GLOBAL), "return b"),
        "the fully connected layer keeps inner axes (flatten=False), its channels may not be axis 1",
    ),
    "shared weight": (
        (
            conv("c", "data", bias=False),
            bn("b", "c", GLOBAL),
            f'd = Convolution(data, c_weight) no_bias="True" {CONV3}',
            "return b, d",
        ),
        "the parameter 'c_weight' is shared with 'd'",
    ),
    "shared bias": (
        (conv("c", "data"), bn("b", "c", GLOBAL), "e = exp(c_bias)", "return b, e"),
        "the parameter 'c_bias' is shared with 'e'",
    ),
    "weight returned": (
        (conv("c", "data"), bn("b", "c", GLOBAL), "return b, c_weight"),
        "the parameter 'c_weight' is shared with 'the outputs'",
    ),
    "computed weight": (
        (
            f'w = _mul_scalar(v_weight) scalar="2"\nc = Convolution(data, w, c_bias) {CONV3}',
            bn("b", "c", GLOBAL),
            "return b",
        ),
        "'w' is computed or fed, not a parameter",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    lines, reason = REFUSED[name]
    shapes = {"v_weight": (8, 8, 3, 3), "data": SHAPE} if name == "computed weight" else {}
    model = build(*lines, **shapes)
    result, trace = run_pass(FOLD_BN, model)
    assert result is model
    assert reasons(trace, "fold_bn") == [reason]


def test_refuses_another_layout():
    line = conv("c", "data", CONV3 + ' layout="NHWC"')
    made = build(conv("c", "data"), bn("b", "c", GLOBAL), "return b")
    other = build(conv("c", "data"), "return c").graph["c"].with_attrs(layout="NHWC")
    model = made.with_graph(made.graph.replace({"c": (other,)}))
    result, trace = run_pass(FOLD_BN, model)
    assert result is model
    assert reasons(trace, "fold_bn") == ["the convolution has layout NHWC, its channels are not axis 1"]
    assert "NHWC" in line


def test_a_taken_bias_name_is_avoided():
    model = build(conv("c", "data", bias=False), bn("b", "c", GLOBAL), "c_bias = exp(b)", "return c_bias")
    result = folded(model)
    assert result.graph["b"].inputs[2].name == "c_bias0"
    assert_same_outputs(model, result, **CLOSE)


def test_shared_statistics_may_be_folded():
    second = "b2 = BatchNorm(c2, b_gamma, b_beta, b_moving_mean, b_moving_var) " + GLOBAL
    model = build(conv("c", "data"), bn("b", "c", GLOBAL), conv("c2", "b"), second, "return b2")
    result, trace = run_pass(FOLD_BN, model)
    assert_same_outputs(model, result, **CLOSE)
    assert trace.fired("fold_bn") == 2
