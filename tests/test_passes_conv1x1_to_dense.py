"""1x1 convolutions over pooled images as fully connected layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import (
    CONV1,
    CONV3,
    GOLDENS,
    RELU,
    assert_same_outputs,
    build,
    conv,
    graph,
    op_names,
    quantized,
    refusals,
    rewritten,
    run,
)
from helpers import assert_golden

from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.passes.conv1x1_to_dense import CONV1X1_TO_DENSE, HEAD_TO_DENSE
from mxq.passes.shapes import image_channels, is_pooled
from mxq.rewrite import run_pass

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
POOL = 'p = Pooling(c) global_pool="True" pool_type="avg" kernel="(1, 1)"'
SQUEEZE = (
    conv("c", "data"),
    POOL,
    conv("s", "p", 'kernel="(1, 1)" num_filter="4"'),
    "r = Activation(s) " + RELU,
    conv("e", "r", CONV1, bias=False),
    'g = Activation(e) act_type="sigmoid"',
    "y = broadcast_mul(c, g)",
)


def test_squeeze_and_excitation(update_goldens):
    model = build(*SQUEEZE, "return y")
    result, trace = run_pass(CONV1X1_TO_DENSE, model)
    assert [trace.fired(r) for r in ("conv1x1_to_dense", "activate_before_reshape", "flatten_column")] == [2, 2, 1]
    layers = ["FullyConnected", "Activation"]
    assert op_names(result) == ["Convolution", "Pooling", *layers, *layers, "Reshape", "broadcast_mul"]
    assert_golden(write_text(result.graph), GOLDENS / "conv1x1_to_dense.txt", update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)
    assert rewritten(CONV1X1_TO_DENSE, result) is result


def test_the_names_of_the_original_layers_stay_known():
    result = rewritten(CONV1X1_TO_DENSE, build(*SQUEEZE, "return y"))
    origins = {n.op + str(n.origins) for n in result.graph.operators}
    assert {"FullyConnected('s',)", "FullyConnected('e',)"} <= origins


def test_a_result_that_is_an_output_keeps_its_name_and_shape():
    model = build(*SQUEEZE[:3], "return s")
    result = rewritten(CONV1X1_TO_DENSE, model)
    assert op_names(result)[-2:] == ["FullyConnected", "Reshape"]
    assert run(result)[0].shape == (2, 4, 1, 1)
    assert_same_outputs(model, result, **CLOSE)


def test_int8_layers_write_float_with_their_sigmoid():
    made = quantized(build(*SQUEEZE, conv("z", "y"), "return z"), target="avx512_vnni")
    assert [d.node for d in made.report.plan.decisions if not d.int8] == ["g", "y"]
    assert "_sg_mkldnn_fully_connected" in op_names(made.model)


REFUSED = {
    "padding": (conv("c", "data"), POOL, conv("s", "p", CONV3), "return s"),
    "groups": (conv("c", "data"), POOL, conv("s", "p", CONV1 + ' num_group="2"'), "return s"),
    "not pooled": (conv("c", "data"), conv("s", "c", CONV1), "return s"),
    "nothing says it is an image": (POOL.replace("(c)", "(data)"), conv("s", "p", CONV1), "return s"),
    "a plain reshape": ('p = Reshape(data) shape="(0, -1, 1)"', "s = Activation(p) " + RELU, "return s"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_not_about(name):
    model = Model(graph(*REFUSED[name]), {"s_weight": np.zeros((8, 8, 1, 1), np.float32)})
    assert rewritten(CONV1X1_TO_DENSE, model) is model


def test_a_shared_weight_is_refused():
    lines = (conv("c", "data"), POOL, conv("s", "p", CONV1), "t = exp(s_weight)", "return s, t")
    found = refusals(CONV1X1_TO_DENSE, build(*lines), "conv1x1_to_dense")
    assert found == ["the weight 's_weight' is not a parameter of this layer alone"]


def test_a_transposed_weight_is_noticed():
    model = build(conv("c", "data"), POOL, conv("s", "p", CONV1), "return s")
    result = rewritten(CONV1X1_TO_DENSE, model)
    wrong = replace(result, args={**result.args, "s_weight": result.args["s_weight"].T})
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, wrong, **CLOSE)


class TestShapes:
    def test_channels(self):
        net = graph(
            conv("c", "data"), "r = Activation(c) " + RELU,
            'u = UpSampling(r) scale="2" sample_type="nearest" num_args="1"',
            'k = Concat(r, c) dim="1" num_args="2"', 'f = Concat(r, data) dim="1" num_args="2"', "t = transpose(c)",
            "return u, k, f, t",
        )  # fmt: skip
        found = {n: image_channels(net, net[n].out) for n in ("c", "r", "u", "k", "f", "t", "data")}
        assert found == {"c": 8, "r": 8, "u": 8, "k": 16, "f": None, "t": None, "data": None}

    def test_pooled(self):
        net = graph(*SQUEEZE, "return y")
        assert [n.name for n in net.operators if is_pooled(net, n.out)] == ["p", "s", "r", "e", "g"]


HEAD = (conv("c", "data"), POOL, conv("h", "p", 'kernel="(1, 1)" num_filter="5"'))


@pytest.mark.parametrize(
    ("end", "ops"),
    [
        (("return h",), ["FullyConnected", "Reshape"]),
        (("f = Flatten(h)", "return f"), ["FullyConnected", "Flatten"]),
        (("f = Flatten(h)", "s = softmax(f)", "return s"), ["FullyConnected", "Flatten", "softmax"]),
    ],
)
def test_a_head_alone_becomes_dense_where_only_heads_are_to(end, ops):
    model = build(*HEAD, *end)
    result = rewritten(HEAD_TO_DENSE, model)
    assert op_names(result)[2:] == ops
    assert_same_outputs(model, result, **CLOSE)


def test_what_other_layers_read_is_no_head():
    model = build(*SQUEEZE, "return y")
    assert rewritten(HEAD_TO_DENSE, model) is model
