"""Fold a scale: what goes into the weights, that results stay, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, CONV3, GOLDENS, RELU, SHAPE, assert_same_outputs, build, conv, graph, refusals, rewritten
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.fold_scale import FOLD_SCALE
from mxq.rewrite import run_pass

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PARAMETERS = {"s": (1, 8, 1, 1), "anchors": (1, 1, 9, 9)}
NORM = (conv("c", "data"), 'n = L2Normalization(c) mode="channel"')
SCALE = (*NORM, "z = broadcast_mul(n, s)")
CUT = 'a = slice_like(anchors, z) axes="(2, 3)"'


def made(*lines: str, **shapes: tuple[int, ...]) -> Model:
    """A network whose scale "s" and "anchors" are parameters."""
    given = {name: shapes.get(name, shape) for name, shape in PARAMETERS.items() if name in graph(*lines)}
    found, rng = build(*lines, data=SHAPE, **given), np.random.default_rng(1)
    return found.with_graph(found.graph, {n: rng.uniform(0.5, 20, s).astype(np.float32) for n, s in given.items()})


def test_structure_and_numbers(update_goldens):
    """gluoncv's NormScale: two predictors and the anchors read it."""
    model = made(*SCALE, conv("p", "z"), conv("q", "z", CONV1, bias=False), CUT, "return p, q, a")
    result, trace = run_pass(FOLD_SCALE, model)
    assert trace.fired("fold_channel_scale") == 1
    assert_golden(write_text(result.graph), GOLDENS / "fold_scale.txt", update=update_goldens)
    assert "s" not in result.args
    assert_same_outputs(model, result, **CLOSE)
    assert rewritten(FOLD_SCALE, result) is result


@pytest.mark.parametrize("groups", ["2", "8"])
def test_groups(groups):
    model = made(*SCALE, conv("p", "z", f'{CONV3} num_group="{groups}"'), "return p")
    result = rewritten(FOLD_SCALE, model)
    assert "z" not in result.graph
    assert_same_outputs(model, result, **CLOSE)


@pytest.mark.parametrize(
    "product", ["z = broadcast_mul(s, n)", 'z = _mul_scalar(n) scalar="20"', 'z = _mul_scalar(data) scalar="0.007"']
)
def test_other_forms(product):
    model = made(*NORM, product, conv("p", "z"), "return p, n")
    result = rewritten(FOLD_SCALE, model)
    assert "z" not in result.graph
    assert_same_outputs(model, result, **CLOSE)


REFUSED = {
    "head": ((*SCALE, conv("p", "z"), "return p, z"), "it is an output of the network"),
    "other reader": ((*SCALE, conv("p", "z"), "t = exp(z)", "return p, t"), "'t' (exp) reads it"),
    "channels unknown": (
        ("z = broadcast_mul(data, s)", conv("p", "z"), "return p"), "nothing shows that 'data' has 8 channels",
    ),
    "stretched": (
        (conv("c", "data", 'kernel="(1, 1)" num_filter="1"'), "z = broadcast_mul(c, s)", conv("p", "z"), "return p"),
        "nothing shows that 'c' has 8 channels",
    ),
    "shared weight": (
        (*SCALE, conv("p", "z"), "q = Convolution(c, p_weight, p_bias) " + CONV3, "return p, q"),
        "the weight of 'p' is not a parameter of it alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    lines, reason = REFUSED[name]
    assert any(reason in found for found in refusals(FOLD_SCALE, made(*lines), "fold_channel_scale"))


@pytest.mark.parametrize("shape", [(1, 8, 6, 6), (1, 1, 6, 6), (2, 8, 1, 1)])
def test_not_a_factor_of_channels(shape):
    model = made(*SCALE, conv("p", "z"), "return p", s=shape)
    assert rewritten(FOLD_SCALE, model) is model


def test_computed_factor():
    """Squeeze-and-excitation multiplies by what it computes."""
    model = made(*NORM, "g = broadcast_add(s, s)", "z = broadcast_mul(n, g)", conv("p", "z"), "return p")
    assert rewritten(FOLD_SCALE, model) is model


def test_without_a_convolution():
    model = made(*SCALE, "t = Activation(z) " + RELU, "return t")
    assert rewritten(FOLD_SCALE, model) is model
