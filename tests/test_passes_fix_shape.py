"""One shape of the input: what it spares, and that the network refuses others."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from graphs import (
    CONV1,
    GOLDENS,
    RELU,
    assert_same_outputs,
    build,
    conv,
    fc,
    feeds,
    op_names,
    quantized,
    reasons,
    rewritten,
    run,
)
from helpers import SATURATES, assert_golden

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.errors import ConfigError, RuntimeFailure
from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.numerics import sqnr_db
from mxq.passes.fix_shape import fix_shape, with_shapes
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner, write_pair

pytestmark = pytest.mark.kernels

SHAPE = (8, 6, 6)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
POOL = 'p = Pooling(x) kernel="(1, 1)" global_pool="True" pool_type="avg"'
BODY = (conv("a", "data"), "x = Activation(a) " + RELU)
HEAD = (*BODY, POOL, fc("f", "p"), "return f")
CUT = 's = slice_like(u, data) axes="(2, 3)"'


FIX = fix_shape(MxnetRunner())


def fixed(model: Model) -> Model:
    return rewritten(FIX, with_shapes(model, {"": SHAPE}))


def test_structure_and_numbers(update_goldens):
    lines = (*BODY, 'u = UpSampling(x) scale="2" sample_type="nearest" num_args="1"', CUT,
             conv("b", "s"), POOL.replace("x", "b"), fc("f", "p"), "return f")  # fmt: skip
    model = build(*lines)
    result, trace = run_pass(FIX, with_shapes(model, {"": SHAPE}))
    assert (trace.fired("fixed_average"), trace.fired("fixed_slice")) == (1, 1)
    assert_golden(write_text(result.graph), GOLDENS / "fix_shape.txt", update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)


def test_what_is_not_cut_goes():
    lines = (*BODY, 'u = Pooling(x) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
             'w = UpSampling(u) scale="2" sample_type="nearest" num_args="1"', CUT.replace("u,", "w,"),
             conv("b", "s", CONV1), "return b")  # fmt: skip
    model = build(*lines)
    result = fixed(model)
    assert "slice_like" not in op_names(result)
    assert "slice" not in op_names(result)
    assert_same_outputs(model, result, **CLOSE)


def test_a_head_is_int8_to_the_last_layer():
    model = build(*HEAD)
    plain, made = quantized(model).model, quantized(model, input_shape=SHAPE).model
    assert op_names(plain).count("Pooling") == 1
    assert op_names(made) == [
        "_contrib_quantize_v2", "_sg_mkldnn_conv", "_sg_mkldnn_conv", "_contrib_quantized_flatten",
        "_sg_mkldnn_fully_connected",
    ]  # fmt: skip
    (wanted,), (before,), (after,) = run(model), run(plain), run(made)
    assert sqnr_db(wanted, after) > sqnr_db(wanted, before) - (3 if SATURATES else 1)


@pytest.mark.parametrize("shape", ["8x6x6", [8, 6, 6], {"data": (8, 6, 6)}, {"data": "8x6x6"}])
def test_ways_to_say_it(shape):
    config = QuantConfig(input_shape=shape)
    assert set(config.shapes.values()) == {SHAPE}
    assert QuantConfig.from_json(config.to_json()) == config
    assert quantized(build(*HEAD), input_shape=shape).model.graph["data"].note.input_shape


@pytest.mark.parametrize("shape", ["", "8x", "8x-1x3", (), (8, 0), (8.5, 2), "8,6,6", True, 3, {}, {"data": None}])
def test_what_is_no_shape(shape):
    with pytest.raises(ConfigError, match=r"^input_shape is .*; allowed: the axes of one example"):
        QuantConfig(input_shape=shape)


def test_inputs_that_it_is_not_of():
    with pytest.raises(ConfigError, match=r"input_shape is of 'image'; allowed: each of the inputs 'data'"):
        quantized(build(*HEAD), input_shape={"image": SHAPE})
    two = build("x = elemwise_add(data, other)", conv("c", "x"), "return c", data=(2, *SHAPE), other=(2, *SHAPE))
    two = Model(two.graph, {k: v for k, v in two.args.items() if k != "other"})
    with pytest.raises(ConfigError, match="one shape; allowed: a mapping with one for each of the inputs 'data'"):
        pipeline.plan(two, QuantConfig(input_shape=SHAPE), MxnetRunner())
    done = pipeline.plan(two, QuantConfig(input_shape={"data": SHAPE, "other": SHAPE}), MxnetRunner())
    assert done.fused.graph["other"].note.input_shape


def test_a_shape_that_the_network_does_not_take():
    with pytest.raises(RuntimeFailure, match="MXNet cannot run the network on input 'data'"):
        quantized(build(*HEAD), input_shape=(7, 6, 6))


def test_the_axis_of_the_batch_does_not_belong_to_it():
    with pytest.raises(RuntimeFailure, match=r"input_shape is 'data' \(2, 8, 6, 6\): give the axes of one example"):
        quantized(build(*HEAD), input_shape=(2, *SHAPE))


def test_data_of_another_shape():
    with pytest.raises(RuntimeFailure, match=r"input 'data' takes examples of shape \(8, 6, 6\) alone \(input_shape\)"):
        quantized(build(*HEAD), feeds(data=(2, 8, 9, 9)), input_shape=SHAPE)


STOCK = """
import sys, mxq, numpy as np, mxnet as mx
net = mx.gluon.SymbolBlock.imports(sys.argv[1] + "-symbol.json", ["data"], sys.argv[1] + "-0000.params")
print(net(mx.nd.ones((2, 8, 6, 6))).shape)
try:
    net(mx.nd.ones((2, 8, 7, 7))).wait_to_read()
except mx.base.MXNetError:
    print("refused")
"""


@pytest.mark.parametrize(
    "tail", [(fc("f", "p"), "return f"), (conv("c", "p", CONV1), "f = Flatten(c)", "return f")], ids=["layer", "conv"]
)
def test_stock_mxnet_refuses_another_shape(tail, tmp_path):
    made = quantized(build(*BODY, POOL, *tail), input_shape=SHAPE).model
    write_pair(made, tmp_path / "net")
    command = [sys.executable, "-c", STOCK, str(tmp_path / "net")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"(2, {10 if len(tail) == 2 else 8})", "refused"]


NOT_DONE = {
    "another reader": ((*BODY, POOL, fc("f", "p"), "y = exp(x)", "return f, y"), "'x' is read elsewhere"),
    "an output": ((*BODY, POOL, "return p"), "no layer reads it"),
    "maximum": ((*BODY, POOL.replace("avg", "max"), fc("f", "p"), "return f"), ""),
    "batch": ((*BODY, 's = slice_like(x, data) axes="(0,)"', fc("f", "s"), "return f"), ""),
    "all axes": ((*BODY, "s = slice_like(x, data)", fc("f", "s"), "return f"), ""),
}


@pytest.mark.parametrize("name", NOT_DONE)
def test_not_done(name):
    lines, reason = NOT_DONE[name]
    model = with_shapes(build(*lines), {"": SHAPE})
    result, trace = run_pass(FIX, model)
    assert result is model
    found = reasons(trace, "fixed_average")
    assert any(reason in each for each in found) if reason else not found


def test_the_channels_of_an_input():
    """SSD multiplies its input channel by channel, which goes into the first convolution."""
    lines = ("x = broadcast_mul(data, scale)", conv("a", "x"), "return a")
    model = build(*lines, data=(2, *SHAPE), scale=(1, 8, 1, 1))
    model = Model(model.graph, {**model.args, "scale": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1)})
    plain, made = quantized(model).model, quantized(model, input_shape=SHAPE).model
    assert "broadcast_mul" in op_names(plain)
    assert "broadcast_mul" not in op_names(made)
    assert sqnr_db(run(model)[0], run(made)[0]) > 28
