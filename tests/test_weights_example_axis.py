"""Whether a batch may be cut: what the network does with two examples decides, not which axis comes first."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CHANNELS, SHAPE, build, conv, fc

from mxq.data.feed import Feed
from mxq.graph.ir import Model
from mxq.runtime import MxnetRunner
from mxq.weights.example_axis import can_be_cut

RNN = 'RNN({0}, r_parameters, {1}) state_size="4" num_layers="1" mode="gru"'
FLAT = 'num_hidden="4" flatten="False"'
SEQUENCE = {"data": (6, 5, 3)}


def cut(model: Model, **shapes: tuple[int, ...]) -> bool:
    rng = np.random.default_rng(0)
    return can_be_cut(MxnetRunner(), model, {k: rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()})


def recurrent(*lines: str, **shapes: tuple[int, ...]) -> Model:
    model = build(*lines, **shapes)
    rng = np.random.default_rng(0)
    return Model(model.graph, {k: rng.uniform(-1, 1, v.shape).astype(np.float32) for k, v in model.args.items()})


TIME_FIRST = ('z = _zeros() shape="(1, 0, 4)"', "r = " + RNN.format("data", "z"), fc("f", "r", FLAT), "return f")
BATCH_FIRST = (
    'z = _zeros() shape="(1, 0, 4)"',
    't = transpose(data) axes="(1, 0, 2)"',
    "r = " + RNN.format("t", "z"),
    fc("f", "r", FLAT),
    'o = transpose(f) axes="(1, 0, 2)"',
)


def test_pictures() -> None:
    model = build(conv("c", "data"), fc("f", "c"), "s = softmax(f)", "return s, c")
    assert cut(model, data=SHAPE)
    assert cut(model, data=(9, *SHAPE[1:]))


def test_one_example_does_not_tell() -> None:
    assert not cut(build(conv("c", "data"), "return c"), data=(1, *SHAPE[1:]))


def test_time_before_the_batch() -> None:
    assert not cut(recurrent(*TIME_FIRST, **SEQUENCE), **SEQUENCE)


def test_time_before_the_batch_where_the_data_says_so() -> None:
    x = np.random.default_rng(0).standard_normal(SEQUENCE["data"]).astype(np.float32)
    model = recurrent(*TIME_FIRST, **SEQUENCE)
    assert can_be_cut(MxnetRunner(), model, Feed({"data": x}, 5, {"data": 1}))
    assert not can_be_cut(MxnetRunner(), model, Feed({"data": x}, 5, None))


def test_a_batch_before_time() -> None:
    assert cut(recurrent(*BATCH_FIRST, "return o", **SEQUENCE), **SEQUENCE)


@pytest.mark.parametrize("end", ['y = Reshape(o) shape="(-1, 4)"', 'y = Reshape(f) shape="(-1, 4)"', "y = _copy(f)"])
def test_rows_of_all_examples_in_any_order(end: str) -> None:
    """One example after the other, or by turns where time comes first."""
    assert cut(recurrent(*BATCH_FIRST, end, "return y", **SEQUENCE), **SEQUENCE)


@pytest.mark.parametrize("end", ['m = mean(c) axis="0"', 'm = softmax(c) axis="0"', "m = elemwise_add(c, r)"])
def test_examples_that_see_each_other(end: str) -> None:
    lines = (conv("c", "data"), 'r = reverse(c) axis="0"', end, "return m")
    assert not cut(build(*lines), data=SHAPE)


@pytest.mark.parametrize("shape", ["(4, -1)", "(4, 8, 36)"])
def test_a_batch_size_inside_a_reshape(shape: str) -> None:
    model = build(conv("c", "data"), f'r = Reshape(c) shape="{shape}"', "return r", data=(4, *SHAPE[1:]))
    assert not cut(model, data=(4, *SHAPE[1:]))


def test_five_axes() -> None:
    """Views of an object, as pictures of their own in between."""
    lines = (
        f'p = Reshape(data) shape="(-1, {CHANNELS}, 6, 6)"',
        conv("c", "p"),
        f'v = Reshape(c) shape="(-1, 3, {CHANNELS}, 6, 6)"',
        'm = mean(v) axis="1"',
        "return m",
    )
    shapes = {"data": (4, 3, CHANNELS, 6, 6)}
    assert cut(build(*lines, **shapes), **shapes)


def test_begin_states_as_inputs() -> None:
    """Of cells they count examples too; those of a layer have another first axis."""
    cell = (fc("f", "data", 'num_hidden="4"'), fc("g", "state", 'num_hidden="4"'), "h = elemwise_add(f, g)", "return h")
    shapes = {"data": (6, 3), "state": (6, 4)}
    assert cut(build(*cell, **shapes), **shapes)
    layer = ("r = " + RNN.format("data", "state"), "return r")
    shapes = {"data": (6, 5, 3), "state": (1, 5, 4)}
    assert not cut(recurrent(*layer, **shapes), **shapes)


def test_what_is_the_same_for_all_may_be_an_output() -> None:
    model = build(conv("c", "data"), 'a = _arange() start="0" stop="5"', "return c, a")
    assert cut(model, data=SHAPE)
