"""Shape only: what is not computed, that results stay the same bit by bit, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, CONV3, GOLDENS, RELU, build, conv, feeds, refusals, rewritten, run
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes import shape_only
from mxq.passes.shape_only import SHAPE_ONLY
from mxq.rewrite import run_pass

CUT = 'a = slice_like(anchors, z) axes="(2, 3)"'
FED = {"data": (2, 8, 6, 6), "anchors": (1, 1, 9, 9)}
TAIL = ('t = transpose(p) axes="(0, 2, 3, 1)"', "return a, t")
SSD = (conv("c", "data"), "f = Activation(c) " + RELU, 'z = _mul_scalar(f) scalar="0"', CUT, conv("p", "f"), *TAIL)


def assert_identical(model: Model, result: Model, **shapes: tuple[int, ...]) -> None:
    given = feeds(**(shapes or FED))
    for wanted, found in zip(run(model, given), run(result, given), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


def test_structure_and_numbers(update_goldens):
    model = build(*SSD, **FED)
    result, trace = run_pass(SHAPE_ONLY, model)
    assert trace.fired("shape_of_elementwise") == trace.fired("size_of_predictor") == 1
    assert_golden(write_text(result.graph), GOLDENS / "shape_only.txt", update=update_goldens)
    assert_identical(model, result)
    assert_identical(model, result, data=(1, 8, 5, 7), anchors=(1, 1, 9, 9))
    assert rewritten(SHAPE_ONLY, result) is result


@pytest.mark.parametrize(
    "line", ["a = zeros_like(z)", "a = ones_like(z)", "a = broadcast_like(anchors, z)", "a = shape_array(z)"]
)
@pytest.mark.parametrize(
    "made", ['_mul_scalar(data) scalar="0"', "exp(data)", "elemwise_add(data, data)", "softmax(data)"]
)
def test_other_readers_of_a_shape(line, made):
    shapes = {"data": (2, 8, 6, 6), "anchors": (1, 1, 1, 1)} if "anchors" in line else {"data": (2, 8, 6, 6)}
    model = build(f"z = {made}", line, "return a", **shapes)
    result, trace = run_pass(SHAPE_ONLY, model)
    assert trace.fired("shape_of_elementwise") == 1
    assert "z" not in result.graph
    assert_identical(model, result, **shapes)


def test_several_elementwise_operators_in_a_row():
    model = build("y = exp(data)", 'z = _mul_scalar(y) scalar="0"', "a = zeros_like(z)", "return a")
    result = rewritten(SHAPE_ONLY, model)
    assert [n.name for n in result.graph.operators] == ["a"]


NEEDED = {
    "values read": ("z = exp(data)", CUT, "w = tanh(z)", "return a, w"),
    "cut itself": ("z = exp(data)", 'a = slice_like(z, z) axes="(2, 3)"', "return a"),
    "head": ("z = exp(data)", CUT, "return a, z"),
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_computed_anyway_stays(name):
    lines = NEEDED[name]
    model = build(*lines, **(FED if "anchors" in "".join(lines) else {"data": FED["data"]}))
    result, trace = run_pass(SHAPE_ONLY, model)
    assert result is model
    assert trace.fired("shape_of_elementwise") == 0


NO_PREDICTOR = "no convolution that nothing is fused with keeps the size of 'f'"
F = "f = sort(data)"  # an operator whose shape could be another
OTHER = {
    "stride": (CONV3 + ' stride="(2, 2)"', TAIL, NO_PREDICTOR),
    "no padding": ('kernel="(3, 3)" num_filter="8"', TAIL, NO_PREDICTOR),
    "too much padding": (CONV1 + ' pad="(1, 1)"', TAIL, NO_PREDICTOR),
    "even kernel": ('kernel="(2, 2)" num_filter="8" pad="(1, 1)"', TAIL, NO_PREDICTOR),
    "dilated": (CONV3 + ' dilate="(2, 2)"', TAIL, NO_PREDICTOR),
    "fused with": (CONV3, ("t = Activation(p) " + RELU, "return a, t"), NO_PREDICTOR),
    "read by none": (CONV3, ("return a, p",), NO_PREDICTOR),
}


@pytest.mark.parametrize("name", OTHER)
def test_refuses_convolutions(name):
    attrs, tail, reason = OTHER[name]
    model = build(F, 'a = slice_like(anchors, f) axes="(2, 3)"', conv("p", "f", attrs), *tail, **FED)
    assert refusals(SHAPE_ONLY, model, "size_of_predictor") == [reason]


@pytest.mark.parametrize(("axes", "said"), [('axes="(1, 2)"', "(1, 2)"), ("", "all")])
def test_refuses_other_axes(axes, said):
    shapes = {"data": FED["data"], "anchors": (4, 9, 9, 9)}
    model = build(F, f"a = slice_like(anchors, f) {axes}", conv("p", "f"), *TAIL, **shapes)
    found = refusals(SHAPE_ONLY, model, "size_of_predictor")
    assert found == [f"it is cut along axes {said}, not height and width alone"]


def test_a_dilated_predictor_with_its_padding():
    wide = 'kernel="(3, 3)" num_filter="8" dilate="(2, 2)" pad="(2, 2)"'
    model = build(F, 'a = slice_like(anchors, f) axes="(2, 3)"', conv("p", "f", wide), *TAIL, **FED)
    result, trace = run_pass(SHAPE_ONLY, model)
    assert trace.fired("size_of_predictor") == 1
    assert_identical(model, result)


def test_a_predictor_of_another_size_is_noticed(monkeypatch):
    monkeypatch.setattr(shape_only, "keeps_size", lambda conv: True)
    model = build(*SSD[:-3], conv("p", "f", 'kernel="(3, 3)" num_filter="8"'), *TAIL, **FED)
    with pytest.raises(AssertionError):
        assert_identical(model, rewritten(SHAPE_ONLY, model))
