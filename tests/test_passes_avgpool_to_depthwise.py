"""Averages as convolutions: which become one, that results stay, that int8 is closer to float, and which stay."""

from __future__ import annotations

import math

import pytest
from graphs import (
    GOLDENS,
    RELU,
    assert_same_outputs,
    build,
    conv,
    fc,
    feeds,
    graph,
    numbers,
    op_names,
    quantized,
    refusals,
    rewritten,
    run,
)
from helpers import TARGETS, assert_golden, has_vnni

from mxq.graph.ir import VARIABLE, Graph, Model, Node, Ref
from mxq.graph.serde import write_text
from mxq.numerics import sqnr_db
from mxq.passes.avgpool_to_depthwise import AVGPOOL_TO_DEPTHWISE, never_negative
from mxq.rewrite import run_pass

pytestmark = pytest.mark.kernels

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SIZE = (4, 8, 7, 7)
POOL = 'p = Pooling(x) kernel="(7, 7)" pool_type="avg"'
BODY = (conv("a", "data"), "x = Activation(a) " + RELU)
HEAD = (*BODY, POOL, fc("f", "p"), "return f")


def sized(*lines: str) -> Model:
    return build(*lines, data=SIZE)


def test_structure_and_numbers(update_goldens):
    model = sized(*HEAD)
    result, trace = run_pass(AVGPOOL_TO_DEPTHWISE, model)
    assert trace.fired("window_average") == 1
    assert_golden(write_text(result.graph), GOLDENS / "avgpool_to_depthwise.txt", update=update_goldens)
    assert_same_outputs(model, result, feeds(data=SIZE), **CLOSE)
    assert rewritten(AVGPOOL_TO_DEPTHWISE, result) is result


@pytest.mark.parametrize(
    "pool",
    [
        POOL + ' stride="(7, 7)"',
        POOL.replace("(7, 7)", "(5, 6)"),
        POOL.replace("(7, 7)", "(5, 5)") + ' pad="(2, 1)" stride="(2, 3)"',
        POOL.replace("(7, 7)", "(5, 5)") + ' count_include_pad="False"',
    ],
)
@pytest.mark.parametrize("body", [BODY, (conv("x", "data"),)])
def test_other_windows(pool, body):
    """After a tensor with negative values there is no ReLU."""
    model = sized(*body, pool, fc("f", "p"), "return f")
    result = rewritten(AVGPOOL_TO_DEPTHWISE, model)
    assert op_names(result).count("Activation") == 2 * (len(body) - 1)
    assert_same_outputs(model, result, feeds(data=SIZE), **CLOSE)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(3))
def test_closer_to_float_than_the_int8_pooling(seed, target, monkeypatch):
    model, data = build(*HEAD, data=SIZE, seed=seed), feeds(data=SIZE)
    made = quantized(model, data, target=target).model
    assert "_contrib_quantized_pooling" not in op_names(made)
    assert "Pooling" not in op_names(made)
    (wanted,), (better,) = run(model, data), numbers(made, target, data)
    monkeypatch.setattr("mxq.passes.avgpool_to_depthwise.LARGE", 10**6)
    made = quantized(model, data, target=target).model
    assert "_contrib_quantized_pooling" in op_names(made)
    (worse,) = numbers(made, target, data)
    assert sqnr_db(wanted, better) > min(sqnr_db(wanted, worse), math.inf if has_vnni(target) else 36)


def test_what_is_float_is_averaged_in_float():
    made = quantized(sized(*HEAD), feeds(data=SIZE), exclude_layers=("a",))
    decision = made.report.plan["p"]
    assert not decision.int8
    assert "it averages a float tensor" in decision.reason
    assert quantized(sized(*HEAD), feeds(data=SIZE)).report.plan["p"].int8


def test_explain_says_what_it_is():
    made = quantized(sized(*HEAD), feeds(data=SIZE))
    assert "an average, as a convolution" in made.report.plan["p"].reason


REFUSED = {
    "edges": ((*BODY, POOL + ' pad="(1, 1)" count_include_pad="False"', fc("f", "p"), "return f"), "fewer values"),
    "ceil": ((*BODY, POOL + ' pooling_convention="full"', fc("f", "p"), "return f"), "beyond the image"),
    "unknown channels": ((POOL.replace("x", "data"), fc("f", "p"), "return f"), "how many channels 'data' has"),
    "another reader": ((*BODY, POOL, fc("f", "p"), "y = exp(x)", "return f, y"), "'x' is read elsewhere"),
    "an output": ((*BODY, POOL, "return p"), "no layer reads it"),
    "an output after Flatten": ((*BODY, POOL, "f = Flatten(p)", "return f"), "no layer reads it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    lines, reason = REFUSED[name]
    assert any(reason in found for found in refusals(AVGPOOL_TO_DEPTHWISE, sized(*lines), "window_average"))


@pytest.mark.parametrize(
    "pool", [POOL.replace("avg", "max"), POOL.replace("(7, 7)", "(4, 4)"), POOL + ' global_pool="True"']
)
def test_not_meant(pool):
    assert not refusals(AVGPOOL_TO_DEPTHWISE, sized(*BODY, pool, fc("f", "p"), "return f"), "window_average")


def test_without_parameters():
    """What it needs to know is in the graph."""
    found = rewritten(AVGPOOL_TO_DEPTHWISE, Model(graph(*HEAD)))
    assert list(found.args) == ["p_window"]


@pytest.mark.parametrize(
    ("line", "never"),
    [
        ("y = exp(data)", True),
        ("y = elemwise_mul(a, a)", True),
        ('y = LeakyReLU(a) act_type="elu"', True),
        ('y = LeakyReLU(data) act_type="elu"', False),
        ('y = transpose(a) axes="(0, 2, 3, 1)"', True),
        ('y = _plus_scalar(a) scalar="0.5"', True),
        ('y = _plus_scalar(a) scalar="-0.5"', False),
        ('y = clip(data) a_min="0" a_max="6"', True),
        ('y = clip(data) a_min="-1" a_max="6"', False),
        ("y = elemwise_sub(a, a)", False),
        ("y = broadcast_add(a, data)", False),
        ("y = slice_like(a, data)", True),
        ("y = somewhat(a)", False),
    ],
)
def test_what_the_graph_shows_of_signs(line, never):
    found = graph("a = relu(data)", line, "return y")
    assert never_negative(found, Ref("y")) == never


@pytest.mark.parametrize("inputs", [1, 2], ids=["a long way", "ways that part and meet"])
@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_what_was_never_negative_far_before(inputs, act):
    nodes = [Node("data", VARIABLE), Node("0", "Activation", {"act_type": act}, (Ref("data"),))]
    nodes += [Node(f"{i + 1}", "Concat", {}, (Ref(f"{i}"),) * inputs) for i in range(3000)]
    assert never_negative(Graph(tuple(nodes), (Ref("3000"),)), Ref("3000")) == (act == "relu")
