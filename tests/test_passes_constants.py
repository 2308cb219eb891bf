"""Constants: what is folded, that results stay the same bit by bit, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import GOLDENS, build, feeds, graph, reasons, rewritten, run
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes import constants
from mxq.passes.constants import fold_constants
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner, load_model, to_block
from mxq.runtime.mxnet import mx

SHAPE = (2, 8, 6, 6)
PURE = (
    'w = Reshape(p_weight) shape="(8, 8, 1, 1)"',
    'c = Convolution(data, w) kernel="(1, 1)" num_filter="8" no_bias="True"',
)
P = {"p_weight": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


FOLD = fold_constants(MxnetRunner())


def model_of(*lines: str, **params: np.ndarray) -> Model:
    return Model(graph(*lines), params or P)


def folded(model: Model) -> Model:
    return rewritten(FOLD, model)


def assert_identical(model: Model, result: Model, shape: tuple[int, ...] = SHAPE) -> None:
    assert model.graph.heads == result.graph.heads
    for wanted, found in zip(run(model, feeds(data=shape)), run(result, feeds(data=shape)), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


def test_structure_and_numbers(update_goldens):
    model = model_of(*PURE, "return c")
    result, trace = run_pass(FOLD, model)
    assert trace.fired("fold_constant") == 1
    assert_golden(write_text(result.graph), GOLDENS / "constants.txt", update=update_goldens)
    assert list(result.args) == ["w"]
    for batch in (1, 3):
        assert_identical(model, result, (batch, *SHAPE[1:]))
    assert folded(result) is result
    given = feeds(data=SHAPE)["data"]
    np.testing.assert_array_equal(to_block(result)(mx.nd.array(given)).asnumpy(), run(model)[0])


@pytest.mark.parametrize(
    "zeros", ['_zeros() shape="(0, 8)"', '_ones() shape="(0, 8)"', '_full() shape="(0, 8)" value="0.5"']
)
def test_what_learns_its_size_from_its_readers_stays(zeros):
    """Begin states of recurrent cells; a layer over parameters and such a state cannot be computed beforehand."""
    layer = 'h = FullyConnected(z, p_weight) num_hidden="8" no_bias="True"'
    model = model_of(f"z = {zeros}", layer, "s = elemwise_add(h, data)", "return s")
    assert folded(model) is model
    assert_identical(model, folded(model), (3, 8))


def test_a_chain_with_a_source_becomes_one_parameter():
    lines = (
        't = transpose(p_weight) axes="(1, 0)"',
        'n = _arange() start="0" stop="8" dtype="float32"',
        'r = Reshape(n) shape="(1, 8)"',
        "s = broadcast_add(t, r)",
        *(line.replace("p_weight", "s") for line in PURE),
        "return c",
    )
    model = model_of(*lines)
    result, trace = run_pass(FOLD, model)
    assert trace.fired("fold_constant") == 1
    assert [n.op for n in result.graph.operators] == ["Convolution"]
    assert_identical(model, result)


def test_parameters_of_an_lstm():
    net = mx.gluon.rnn.LSTM(4, input_size=3)
    net.initialize()
    net(mx.nd.zeros((5, 2, 3)))
    block = mx.gluon.nn.HybridSequential()
    block.add(net)
    model = load_model(block)
    result, trace = run_pass(FOLD, model)
    assert trace.fired("fold_constant") == 1
    assert "_rnn_param_concat" not in {n.op for n in result.graph.operators}
    assert_identical(model, result, (5, 2, 3))


REFUSED = {
    "head": (
        ('w = Reshape(p_weight) shape="(1, -1)"', "z = tanh(data)", "return z, w"),
        "it is an output of the network",
    ),
    "second output": (
        ('w = SliceChannel(p_weight) axis="0" num_outputs="2"', "z = broadcast_add(data, w:1)", "return z"),
        "more than its first output is read",
    ),
    "type": (
        (
            'd = Cast(p_weight) dtype="float64"',
            'x = Cast(data) dtype="float64"',
            'f = Reshape(x) shape="(-1, 8)"',
            "w = dot(f, d)",
            "return w",
        ),
        "it is float64; parameters are float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    lines, reason = REFUSED[name]
    model = model_of(*lines)
    result, trace = run_pass(FOLD, model)
    assert result is model
    assert reasons(trace, "fold_constant") == [reason]


def test_refuses_large_results(monkeypatch):
    monkeypatch.setattr(constants, "LARGEST", 255)
    model = model_of(*PURE, "return c")
    result, trace = run_pass(FOLD, model)
    assert result is model
    assert reasons(trace, "fold_constant") == ["it takes 256 bytes; 255 at most are kept"]


@pytest.mark.parametrize(
    "line", ['r = _random_uniform() shape="(1, 8, 1, 1)"', 'r = Dropout(q) p="0.5"', "r = exp(data)"]
)
def test_what_is_not_of_parameters_alone_stays(line):
    model = build(
        line,
        "s = tanh(r)",
        "w = broadcast_add(data, s)",
        "return w",
        **({"data": SHAPE, "q": (1, 8, 1, 1)} if "q" in line else {"data": SHAPE}),
    )
    assert folded(model) is model


@pytest.mark.parametrize("op", ["_sample_uniform", "_npi_normal", "_npi_bernoulli", "_shuffle", "shuffle", "Custom"])
def test_what_is_drawn_stays(op):
    """Also where it is drawn with parameters alone."""
    model = Model(graph(f"r = {op}(p_weight, p_weight)", "w = broadcast_add(data, r)", "return w"), P)
    assert folded(model) is model


def test_what_later_passes_know_by_name_is_folded_too():
    """A density of a distribution is drawn from nothing."""
    lines = ("d = _random_pdf_normal(p_weight, p_low, p_high)", "w = broadcast_add(data, d)", "return w")
    ones = np.ones(8, np.float32)
    model = Model(graph(*lines), {"p_weight": np.ones((8, 8), np.float32), "p_low": ones, "p_high": ones})
    assert "d" in folded(model).args


def test_another_value_is_noticed():
    model = model_of(*PURE, "return c")
    result = folded(model)
    wrong = Model(result.graph, {"w": result.args["w"] * np.float32(1.001)})
    with pytest.raises(AssertionError):
        assert_identical(model, wrong)
