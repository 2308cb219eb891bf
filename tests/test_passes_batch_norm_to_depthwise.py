"""A BatchNorm alone becomes a depthwise convolution: structure, numbers, where, and when it refuses."""

from __future__ import annotations

import pytest
from graphs import (
    CONV1,
    GOLDENS,
    RELU,
    assert_same_outputs,
    bn,
    build,
    conv,
    fc,
    feeds,
    op_names,
    refusals,
    rewritten,
    run,
)
from helpers import assert_close, assert_golden

import mxq
from mxq.backends import get
from mxq.backends.hardware import simulated
from mxq.config import QuantConfig
from mxq.graph.serde import write_text
from mxq.passes.batch_norm_to_depthwise import NAME, batch_norm_to_depthwise
from mxq.pipeline import plan
from mxq.qat.config import QatConfig
from mxq.rewrite import run_pass
from mxq.runtime import to_arrays, to_symbol

PASS = batch_norm_to_depthwise(simulated("onnx").spec)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FIXED = 'eps="1e-05" fix_gamma="True" use_global_stats="True"'
GLOBAL = FIXED.replace("True", "False", 1)
JOIN = (conv("c", "data"), conv("d", "data"), 'x = Concat(c, d) dim="1" num_args="2"')


@pytest.mark.parametrize("attrs", [GLOBAL, FIXED])
def test_structure_and_numbers(update_goldens, attrs):
    model = build(*JOIN, bn("n", "x", attrs), "r = Activation(n) " + RELU, conv("z", "r", CONV1), "return z")
    result, trace = run_pass(PASS, model)
    assert trace.fired(NAME) == 1
    if attrs == GLOBAL:
        assert_golden(write_text(result.graph), GOLDENS / "batch_norm_to_depthwise.txt", update=update_goldens)
    assert "BatchNorm" not in op_names(result)
    assert not result.auxs
    assert_same_outputs(model, result, **CLOSE)


def test_before_a_pooling():
    """As at the end of DenseNet."""
    pool = 'p = Pooling(r) kernel="(6, 6)" global_pool="True" pool_type="avg"'
    normed = (*JOIN, bn("n", "x", GLOBAL), "r = Activation(n) " + RELU)
    model = build(*normed, pool, "t = Flatten(p)", fc("z", "t"), "return z")
    result = rewritten(PASS, model)
    assert "BatchNorm" not in op_names(result)
    assert_same_outputs(model, result, **CLOSE)


REFUSED = {
    "batch statistics": ((*JOIN, bn("n", "x"), conv("z", "n"), "return z"), "BatchNorm uses batch statistics"),
    "channels unknown": (
        ("x = sin(data)", bn("n", "x", GLOBAL), conv("z", "n"), "return z"), "how many channels 'x' has",
    ),
    "another axis": (
        (*JOIN, bn("n", "x", f'{GLOBAL} axis="3"'), conv("z", "n"), "return z"), "another axis than 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    lines, reason = REFUSED[name]
    assert any(reason in found for found in refusals(PASS, build(*lines), NAME))


@pytest.mark.parametrize(
    "lines",
    [
        (bn("n", "data", GLOBAL), conv("z", "n"), "return z"),  # pictures
        (*JOIN, bn("n", "x", GLOBAL), "return n"),
        (*JOIN, bn("n", "x", GLOBAL), conv("z", "n"), "return z, n"),
        (*JOIN, bn("n", "x", GLOBAL), "z = softmax(n)", "return z"),
    ],
)
def test_not_meant(lines):
    model = build(*lines)
    assert rewritten(PASS, model) is model


def test_whose_kernels_ask_for_it():
    model = build(*JOIN, bn("n", "x", GLOBAL), conv("z", "n"), "return z")
    for other in (get("mxnet"), simulated("tensorrt")):
        assert rewritten(batch_norm_to_depthwise(other.spec), model) is model
    for hardware in ("onnx", "onnxruntime", "openvino"):
        assert rewritten(batch_norm_to_depthwise(simulated(hardware).spec), model) is not model


def test_training_keeps_batch_norms():
    model = build(*JOIN, bn("n", "x", GLOBAL), conv("z", "n"), "return z")
    assert "BatchNorm" not in op_names(plan(model, QuantConfig(simulate=True, hardware="onnx")).fused)
    assert "BatchNorm" in op_names(plan(model, QatConfig(hardware="onnx").planning).fused)


def test_a_file_has_it_on_codes(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
    model = build(*JOIN, bn("n", "x", GLOBAL), "r = Activation(n) " + RELU, conv("z", "r", CONV1), "return z")
    data = feeds()["data"]
    triple = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    mxq.export_onnx(triple, tmp_path / "a.onnx", data, effort="fast", num_calib_examples="100%")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    opened = ort.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert_close(opened.run(None, {"data": data})[0], run(model, {"data": data})[0], rtol=0.0, atol=0.2)
