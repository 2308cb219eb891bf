"""A bias for every int8 layer, and one that is moved: what the network computes stays, or moves by just that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import CONV1, assert_same_outputs, build, conv, fc, feeds, run
from helpers import assert_close

from mxq import pipeline
from mxq.backends import layer_of
from mxq.config import QuantConfig
from mxq.passes.biases import add_biases, has_bias, with_bias
from mxq.runtime import MxnetRunner

RELU0 = 'relu0 = Activation(conv0) act_type="relu"'
BARE = (
    conv("conv0", "data", bias=False),
    RELU0,
    conv("conv1", "data", CONV1, bias=False),
    "sum = elemwise_add(conv1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    fc("fc0", "relu1", bias=False),
    "return fc0",
)


def planned(*lines: str, **options: object) -> pipeline.Prepared:
    config = QuantConfig(num_calib_examples="100%", effort="fast", target="avx512_vnni", **options)
    return pipeline.plan(build(*lines), config)


def layers(prepared: pipeline.Prepared, model: object = None) -> list:
    graph = (model or prepared.fused).graph
    return [n for n in graph.operators if layer_of(n) is not None]


def test_every_int8_layer_has_one_and_nothing_changes() -> None:
    prepared = planned(*BARE)
    before = layers(prepared)
    assert len(before) == 3
    assert not any(map(has_bias, before))
    found = add_biases(prepared.fused, prepared.plan)
    after = layers(prepared, found)
    assert all(map(has_bias, after))
    assert [n.name for n in after] == [n.name for n in before]
    assert_same_outputs(prepared.fused, found, rtol=1e-6, atol=1e-6)
    for old, new in zip(before, after, strict=True):
        name = new.inputs[2].name
        assert name == f"{new.name}_bias"
        assert found.args[name].dtype == np.float32
        assert found.args[name].shape == (len(found.args[new.inputs[1].name]),)
        assert not found.args[name].any()
        assert new.inputs[:2] == old.inputs[:2]
        assert new.inputs[3:] == old.inputs[2:]


def test_the_kernels_take_them() -> None:
    prepared = planned(*BARE)
    ranges = pipeline.calibrate(prepared, feeds()["data"], MxnetRunner(), progress=False)
    plain = pipeline.quantize(prepared, ranges).model
    changed = replace(prepared, fused=add_biases(prepared.fused, prepared.plan))
    assert_close(run(pipeline.quantize(changed, ranges).model)[0], run(plain)[0], rtol=0, atol=1e-6)


def test_where_all_have_one_it_is_the_same_object() -> None:
    prepared = planned(conv("conv0", "data"), RELU0, fc("fc0", "relu0"), "return fc0")
    assert add_biases(prepared.fused, prepared.plan) is prepared.fused


def test_float_layers_stay_as_they_are() -> None:
    prepared = planned(*BARE, exclude_layers=("fc0",))
    found = add_biases(prepared.fused, prepared.plan)
    assert [has_bias(n) for n in layers(prepared, found)] == [True, True, False]


def test_the_given_model_is_not_changed() -> None:
    prepared = planned(*BARE)
    names, count = set(prepared.fused.args), len(prepared.fused.graph.nodes)
    add_biases(prepared.fused, prepared.plan)
    assert set(prepared.fused.args) == names
    assert len(prepared.fused.graph.nodes) == count


def test_a_name_that_is_taken() -> None:
    prepared = planned(conv("conv0", "data", bias=False), "conv0_bias = _copy(conv0)", "return conv0_bias")
    found = add_biases(prepared.fused, prepared.plan)
    (layer,) = layers(prepared, found)
    assert has_bias(layer)
    assert layer.inputs[2].name in found.args
    assert_same_outputs(prepared.fused, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", ["conv", "fc"])
def test_an_offset_moves_the_output(layer: str, bias: bool) -> None:
    line = conv("y", "data", bias=bias) if layer == "conv" else fc("y", "data", bias=bias)
    model = planned(line, "return y").fused
    (node,) = [n for n in model.graph.operators if layer_of(n) is not None]
    nodes, args = with_bias(model, node, 0.75)
    moved = model.with_graph(model.graph.replace({node.name: nodes}), args)
    assert_close(run(moved)[0], run(model)[0] + np.float32(0.75), rtol=1e-6, atol=1e-5)
    assert len(args) == 1
    assert len(nodes) == (1 if bias else 2)


def test_before_a_fused_activation() -> None:
    model = planned(conv("conv0", "data", bias=False), RELU0, "return relu0").fused
    (node,) = [n for n in model.graph.operators if layer_of(n) is not None]
    nodes, args = with_bias(model, node, -0.5)
    moved = model.with_graph(model.graph.replace({node.name: nodes}), args)
    plain = run(planned(conv("conv0", "data", bias=False), "return conv0").fused)[0]
    assert_close(run(moved)[0], np.maximum(plain - 0.5, 0), rtol=1e-5, atol=1e-5)


def test_what_is_no_layer() -> None:
    model = build('relu0 = Activation(data) act_type="relu"', "return relu0")
    (node,) = model.graph.operators
    assert layer_of(node) is None
    assert not has_bias(node)
