"""A PReLU becomes two depthwise convolutions: structure, numbers, for whom, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, GOLDENS, assert_same_outputs, build, conv, op_names, refusals, rewritten
from helpers import assert_golden

from mxq.backends import get
from mxq.backends.hardware import simulated
from mxq.config import QuantConfig
from mxq.graph.ir import Array, Model
from mxq.graph.serde import write_text
from mxq.passes.prelu_to_depthwise import NAME, prelu_to_depthwise
from mxq.pipeline import plan
from mxq.qat.config import QatConfig

PASS = prelu_to_depthwise(simulated("onnx").spec)
PRELU = 'y = LeakyReLU(c, slope) act_type="prelu"'
SLOPES = np.linspace(-0.3, 1, 8, dtype=np.float32)


def made(slopes: Array, *lines: str) -> Model:
    found = build(*(lines or (conv("c", "data"), PRELU, conv("z", "y", CONV1), "return z")))
    return found.with_graph(found.graph, {"slope": slopes})


@pytest.mark.parametrize("slopes", [SLOPES, SLOPES[2:3]])
def test_structure_and_numbers(update_goldens, slopes):
    model = made(SLOPES)
    model = model.with_graph(model.graph, {"slope": slopes})
    result = rewritten(PASS, model)
    if len(slopes) > 1:
        assert_golden(write_text(result.graph), GOLDENS / "prelu_to_depthwise.txt", update=update_goldens)
    assert "LeakyReLU" not in op_names(result)
    assert_same_outputs(model, result, rtol=1e-5, atol=1e-5)


def test_refusals():
    assert "its slopes are no parameter, or above 1" in refusals(PASS, made(SLOPES + 0.1), NAME)
    unknown = made(SLOPES, "c = sin(data)", PRELU, conv("z", "y", CONV1), "return z")
    assert "nothing shows how many channels 'c' has" in refusals(PASS, unknown, NAME)


@pytest.mark.parametrize(
    "lines",
    [
        ('y = LeakyReLU(data, slope) act_type="prelu"', conv("z", "y", CONV1), "return z"),
        (conv("c", "data"), PRELU, "return y"),
        (conv("c", "data"), PRELU, conv("z", "y", CONV1), "return z, y"),
    ],
)
def test_not_meant(lines):
    model = made(SLOPES, *lines)
    assert rewritten(PASS, model) is model


def test_whose_kernels_ask_for_it():
    model = made(SLOPES)
    for other in (get("mxnet"), simulated("tensorrt"), simulated("openvino")):
        assert rewritten(prelu_to_depthwise(other.spec), model) is model
    assert rewritten(prelu_to_depthwise(simulated("onnxruntime").spec), model) is not model


def test_training_keeps_slopes():
    model = made(SLOPES)
    settings = (QuantConfig(simulate=True, hardware="onnx"), QatConfig(hardware="onnx").planning)
    assert [op_names(plan(model, each).fused).count("_sg_mkldnn_conv") for each in settings] == [4, 2]
