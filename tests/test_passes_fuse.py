"""Fusion: which chains become one node, that MXNet's fused float kernels give the same numbers, and every refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import (
    CONV3,
    GOLDENS,
    RELU,
    assert_same_outputs,
    bn,
    build,
    conv,
    fc,
    feeds,
    graph,
    op_names,
    reasons,
    rewritten,
    run,
)
from helpers import assert_golden

from mxq.backends import BackendSpec, Requirement
from mxq.backends.mxnet import MXNET_191
from mxq.errors import GraphError
from mxq.graph.ir import Graph, Model, Ref
from mxq.graph.serde import write_text
from mxq.passes.fuse import fuse, fuse_float, fuse_int8
from mxq.rewrite import run_pass


def fused(model: Model, spec: BackendSpec, *, int8: bool) -> Model:
    return fuse(model, spec, int8=int8)[0]


FUSE_FLOAT, FUSE_INT8 = fuse_float(MXNET_191), fuse_int8(MXNET_191)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""The fused kernels sum in another order; values are of unit size."""
CONV, FC = "_sg_mkldnn_conv", "_sg_mkldnn_fully_connected"
SUM = (conv("c", "data"), "s = elemwise_add(c, data)")

ACTS = {
    "relu": "Activation({}) " + RELU,
    "sigmoid": 'Activation({}) act_type="sigmoid"',
    "tanh": 'Activation({}) act_type="tanh"',
    "softrelu": 'Activation({}) act_type="softrelu"',
    "leaky": 'LeakyReLU({}) act_type="leaky" slope="0.1"',
    "leaky 0": 'LeakyReLU({}) act_type="leaky" slope="0.0"',
    "gelu": 'LeakyReLU({}) act_type="gelu"',
    "elu": 'LeakyReLU({}) act_type="elu" slope="0.5"',
    "clip": 'clip({}) a_min="0" a_max="0.5"',
    "relu6": 'clip({}) a_min="0.0" a_max="6.0"',
    "abs": "abs({})",
    "square": "square({})",
    "exp": "exp({})",
}
SCALED = "the int8 convolution applies it to the scaled integers instead of the values"


def chain(name: str, *before: str, layer: str = "c") -> Model:
    return build(*before, "a = " + ACTS[name].format(layer), "z = sin(a)", "return z")


# (activation, fused in float, why not in int8)
AFTER_CONV = [
    ("relu", True, ""),
    ("leaky", True, ""),
    ("leaky 0", True, ""),
    ("clip", True, ""),
    ("relu6", True, ""),
    ("sigmoid", True, SCALED),
    ("tanh", True, SCALED),
    ("softrelu", True, SCALED),
    ("gelu", True, "the int8 convolution applies GELU to the scaled integers instead of the values"),
    ("elu", False, "the kernel has no post-op LeakyReLU with"),
]
AFTER_FC = [
    ("relu", True, ""),
    ("elu", True, ""),
    ("gelu", True, ""),
    ("abs", True, ""),
    ("clip", True, ""),
    ("leaky", True, "the int8 fully connected kernel writes u8 after leaky ReLU, which is negative in part"),
    ("sigmoid", True, ""),
    ("tanh", True, ""),
    ("softrelu", True, ""),
    ("square", True, "fused in float only"),
    ("exp", True, "fused in float only"),
]


@pytest.mark.parametrize(("act", "in_float", "why_not_int8"), AFTER_CONV)
def test_after_a_convolution(act, in_float, why_not_int8):
    check(chain(act, conv("c", "data")), "fuse_conv_act", CONV, in_float, why_not_int8)


@pytest.mark.parametrize(("act", "in_float", "why_not_int8"), AFTER_FC)
def test_after_a_fully_connected_layer(act, in_float, why_not_int8):
    check(chain(act, fc("c", "data")), "fuse_fully_connected_act", FC, in_float, why_not_int8)


@pytest.mark.parametrize(("act", "in_float", "why_not_int8"), AFTER_CONV)
def test_after_a_sum(act, in_float, why_not_int8):
    check(chain(act, *SUM, layer="s"), "fuse_conv_add_act", CONV, in_float, why_not_int8)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("act", dict(row[:2] for row in AFTER_CONV))
def test_before_a_sum(act, int8):
    """Only leaky ReLU: after ReLU an s8 sum would be less than what two u8 summands give."""
    after = ("a = " + ACTS[act].format("c"), "s = elemwise_add(data, a)", "z = sin(s)", "return z")
    model = build(conv("c", "data"), *after)
    result, trace = fuse(model, MXNET_191, int8=int8)
    assert trace.fired("fuse_conv_act_add") == int(act == "leaky")
    if act == "leaky":
        assert op_names(result) == [CONV, "sin"]
        assert_same_outputs(model, result, **CLOSE)
    elif act != "elu":
        assert any("is fused after a sum, not before it" in found for found in reasons(trace, "fuse_conv_act_add"))


def check(model: Model, rule: str, fused_op: str, in_float: bool, why_not_int8: str) -> None:
    for int8, fires, reason in ((False, in_float, "no post-op"), (True, not why_not_int8, why_not_int8)):
        result, trace = fuse(model, MXNET_191, int8=int8)
        assert trace.fired(rule) == int(fires)
        assert op_names(result)[0] == fused_op  # without the post-op, where that may not come along
        assert len(op_names(result)) == (2 if fires else 3)
        if not fires:
            assert any(reason in found for found in reasons(trace, rule))
        if not (int8 and why_not_int8 and in_float):
            assert_same_outputs(model, result, **CLOSE)


STRUCTURES = {
    "conv": ("fuse_conv", (conv("c", "data"), "return c")),
    "conv_no_bias": ("fuse_conv", (conv("c", "data", bias=False), "return c")),
    "conv_relu": ("fuse_conv_act", (conv("c", "data"), "a = Activation(c) " + RELU, "return a")),
    "conv_act_add": (
        "fuse_conv_act_add",
        (conv("c", "data"), "a = " + ACTS["leaky"].format("c"), "s = elemwise_add(a, data)", "return s"),
    ),
    "conv_add": ("fuse_conv_add", (conv("c", "data"), "s = elemwise_add(c, data)", "return s")),
    "conv_add_relu": ("fuse_conv_add_act", (*SUM, "a = Activation(s) " + RELU, "return a")),
    "conv_add_turned": (
        "fuse_conv_add_act",
        (conv("c", "data"), "s = elemwise_add(data, c)", "a = Activation(s) " + RELU, "return a"),
    ),
    "fc": ("fuse_fully_connected", (fc("f", "data"), "return f")),
    "fc_relu": ("fuse_fully_connected_act", (fc("f", "data"), "a = Activation(f) " + RELU, "return a")),
    "names": (
        "fuse_conv_add_act",
        (
            "d = exp(x)",
            "weight = Convolution(d, data, b) " + CONV3,
            "sum = elemwise_add(weight, x)",
            "bias = Activation(sum) " + RELU,
            "return bias",
        ),
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name, update_goldens):
    rule, lines = STRUCTURES[name]
    shapes = {"x": (2, 8, 6, 6)} if name == "names" else {"data": (2, 8, 6, 6)}
    model = build(*lines, **shapes)
    result, trace = run_pass(FUSE_INT8, model)
    assert trace.fired(rule) == 1
    assert sum(e.fired for e in trace.events) == 1
    assert_golden(write_text(result.graph), GOLDENS / f"fuse_{name}.txt", update=update_goldens)
    assert_same_outputs(model, result, feeds(**shapes), **CLOSE)
    assert rewritten(FUSE_INT8, result) is result


def test_a_residual_network_fuses_greedily():
    model = build(
        conv("c1", "data"),
        "r1 = Activation(c1) " + RELU,
        conv("c2", "r1"),
        conv("c3", "r1"),
        "s = elemwise_add(c2, c3)",
        "r2 = Activation(s) " + RELU,
        "f = Flatten(r2)",
        fc("d", "f"),
        "return d",
    )
    result, trace = fuse(model, MXNET_191, int8=True)
    assert op_names(result) == [CONV, CONV, CONV, "Flatten", FC]
    assert [trace.fired(f"fuse_conv{s}") for s in ("_add_act", "_act", "_add", "")] == [1, 1, 0, 1]
    assert result.graph["r2"].origins in (("c2", "s", "r2"), ("c3", "s", "r2"))
    assert_same_outputs(model, result, **CLOSE)


def test_a_layer_that_two_sums_could_take_goes_into_one():
    model = build(
        conv("c", "data"), conv("d", "data"), "s = elemwise_add(c, d)", "t = elemwise_add(s, data)", "return t"
    )
    assert_same_outputs(model, fused(model, MXNET_191, int8=True), **CLOSE)


# ---- what must be noticed ------------------------------------------------------------------------------------


def tampered(model: Model, change) -> Model:
    """The fused model with ``change`` applied to its fused nodes."""
    result = fused(model, MXNET_191, int8=False)
    return result.with_graph(
        result.graph.replace({n.name: (change(n),) for n in result.graph.operators if n.op in (CONV, FC)})
    )


def inner(node, change) -> Graph:
    """The node with ``change`` applied to the operators of its subgraph."""
    sub = node.subgraphs[0]
    nodes = tuple(n if n.is_variable else change(n) for n in sub.nodes)
    return replace(node, subgraphs=(Graph(nodes, sub.heads, sub.attrs),))


WRONG = {
    "sum operand": ("conv_add_relu", lambda n: replace(n, inputs=(*n.inputs[:-1], Ref("other")))),
    "activation lost": (
        "conv_add_relu",
        lambda n: replace(
            n.with_attrs(with_postsum_act="false"), subgraphs=(Graph(n.subgraphs[0].nodes[:-1], (Ref("s"),)),)
        ),
    ),
    "another slope": ("leaky", lambda n: inner(n, lambda i: i.with_attrs(slope="0.11") if i.op == "LeakyReLU" else i)),
    "another padding": (
        "conv",
        lambda n: inner(n, lambda i: i.with_attrs(dilate="(2, 2)", pad="(2, 2)") if i.op == "Convolution" else i),
    ),
    "weight of another": ("conv", lambda n: replace(n, inputs=(n.inputs[0], Ref("o_weight"), n.inputs[2]))),
    "activation lost after fc": (
        "fc_relu",
        lambda n: replace(
            n.with_attrs(with_eltwise="False"), subgraphs=(Graph(n.subgraphs[0].nodes[:-1], (Ref("f"),)),)
        ),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_fusions_are_noticed(name):
    kind, change = WRONG[name]
    lines = (
        STRUCTURES[kind][1] if kind in STRUCTURES else (conv("c", "data"), f"a = {ACTS[kind].format('c')}", "return a")
    )
    other = ("other = exp(data)", conv("o", "other"), "z = sin(o)")
    model = build(*other, *lines[:-1], lines[-1] + ", z")
    good = fused(model, MXNET_191, int8=False)
    assert_same_outputs(model, good, **CLOSE)
    target = lines[-1].split()[-1]
    wrong = tampered(model, lambda n: change(n) if n.name == target else n)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, wrong, **CLOSE)


# ---- refusals ------------------------------------------------------------------------------------------------

REFUSED = {
    "1-D": (
        "fuse_conv",
        ('r = Reshape(data) shape="(0, 0, -1)"', conv("c", "r", 'kernel="(3,)" num_filter="4"'), "return c"),
        "kernel has 1 dimensions; int8 kernels take 2 or 3",
    ),
    "read elsewhere": (
        "fuse_conv_act",
        (conv("c", "data"), "a = Activation(c) " + RELU, "e = exp(c)", "return a, e"),
        "the output of 'c' is also read by 'e'",
    ),
    "sum read elsewhere": (
        "fuse_conv_add_act",
        (*SUM, "a = Activation(s) " + RELU, "e = exp(s)", "return a, e"),
        "the output of 's' is also read by 'e'",
    ),
    "head inside": (
        "fuse_conv_act",
        (conv("c", "data"), "a = Activation(c) " + RELU, "return a, c"),
        "'c' is an output of the network",
    ),
    "sum is a head": (
        "fuse_conv_add_act",
        (*SUM, "a = Activation(s) " + RELU, "return a, s"),
        "'s' is an output of the network",
    ),
    "own result twice": (
        "fuse_conv_add",
        (conv("c", "data"), "s = elemwise_add(c, c)", "return s"),
        "both operands of the sum are the layer's own result",
    ),
    "own activation twice": (
        "fuse_conv_act_add",
        (conv("c", "data"), 'a = LeakyReLU(c) act_type="leaky" slope="0.1"', "s = elemwise_add(a, a)", "return s"),
        "both operands of the sum are the layer's own result",
    ),
    "clip from below zero": (
        "fuse_conv_act",
        (conv("c", "data"), 'a = clip(c) a_min="-1" a_max="1"', "return a"),
        "the kernel has no post-op clip with",
    ),
    "prelu": (
        "fuse_conv_act",
        (conv("c", "data"), 'a = LeakyReLU(c, a_gamma) act_type="prelu"', "return a"),
        "the kernel has no post-op LeakyReLU with",
    ),
}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, int8):
    rule, lines, reason = REFUSED[name]
    model = build(*lines)
    result, trace = fuse(model, MXNET_191, int8=int8)
    assert trace.fired(rule) == 0
    assert any(found.startswith(reason) for found in reasons(trace, rule))
    assert_same_outputs(model, result, **CLOSE)


@pytest.mark.parametrize("layout", ["NHWC", "NDHWC"])
def test_another_layout(layout):
    model = Model(graph(conv("c", "data", f'{CONV3} layout="{layout}"'), "return c"))
    result, trace = fuse(model, MXNET_191, int8=True)
    assert result is model
    assert reasons(trace, "fuse_conv") == [f"layout is '{layout}'; the int8 kernel takes 'None' or 'NCHW' or 'NCDHW'"]


def test_an_int8_network_is_refused():
    model = Model(graph('q = _sg_mkldnn_conv(data, w) quantized="true"', "return q"))
    for step in (FUSE_FLOAT, FUSE_INT8):
        with pytest.raises(GraphError, match="requires 'a float network', but 'q'"):
            rewritten(step, model)


def test_no_sum_after_a_fully_connected_layer():
    model = build(fc("f", "data"), fc("g", "data"), "s = elemwise_add(f, g)", "return s")
    assert op_names(fused(model, MXNET_191, int8=False)) == [FC, FC, "elemwise_add"]


def test_batch_norm_stays_outside():
    model = build(conv("c", "data"), bn("b", "c"), "a = Activation(b) " + RELU, "return a")
    assert op_names(fused(model, MXNET_191, int8=False)) == [CONV, "BatchNorm", "Activation"]


class TestNeeds:
    node = graph(conv("c", "data", 'kernel="(3, 3)" num_filter="8" num_group="2"'), "return c")["c"]

    def test_the_first_that_is_broken(self):
        needs = (Requirement("stride", ("(1, 1)",), default="(1, 1)"), Requirement("num_group", ("1",)))
        spec = replace(MXNET_191.ops[0], needs=needs)
        assert spec.broken_need(self.node) == "num_group is '2'; the int8 kernel takes '1'"

    def test_the_value_of_another_attribute(self):
        need = Requirement("num_group", ("1",), same_as="num_filter", why="because")
        assert need.violation(self.node) == "num_group is '2'; the int8 kernel takes '1' or '8' (because)"
        assert need.violation(self.node.with_attrs(num_group="8")) == ""
        assert need.violation(self.node.with_attrs(num_filter="2")) == ""

    def test_only_when(self):
        need = Requirement("num_group", ("1",), when={"no_bias": ("True",), "layout": ("", "NCHW")})
        assert need.violation(self.node) == ""
        assert need.violation(self.node.with_attrs(no_bias="True"))
        assert need.violation(self.node.with_attrs(no_bias="True", layout="NHWC")) == ""

    def test_unknown_operators_say_so(self):
        assert MXNET_191.find("no_such_op") is None
        assert MXNET_191.why_not("no_such_op") == "MXNet 1.9.1 has no int8 kernel for no_such_op"
        assert "float exponentials" in MXNET_191.why_not("softmax")


def test_several_readers_of_the_fused_result():
    model = build(conv("c", "data"), "a = Activation(c) " + RELU, "x = exp(a)", "y = sin(a)", "return x, y, a")
    result = fused(model, MXNET_191, int8=True)
    assert op_names(result)[0] == CONV
    assert_same_outputs(model, result, **CLOSE)
    assert all(np.isfinite(a).all() for a in run(result))
