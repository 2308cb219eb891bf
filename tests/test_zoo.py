"""Networks of gluoncv's model zoo, with random parameters: fused as MXNet fuses, equal in float, close in int8."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import numbers
from helpers import TARGETS, assert_close, has_vnni
from mxnet.contrib import quantization as contrib

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.runtime import MxnetRunner, from_symbol, load_model, to_arrays, to_block, to_symbol

try:  # once: a failed import leaves half of gluoncv behind
    from gluoncv import model_zoo
except ImportError as error:
    pytest.skip(f"needs gluoncv: {error}", allow_module_level=True)

FLOAT_RTOL, FLOAT_ATOL = 1e-4, 1e-5
"""Of float outputs after fusing: relative to the value, and to the largest one. Sums change order; 3e-6 is usual."""


@dataclass(frozen=True)
class Net:
    """A network of the zoo: its ``name``, input ``side``, and the least int8 SQNR in dB; None: it is not run."""

    name: str
    side: int
    bar: float | None = None

    def __str__(self) -> str:
        return self.name


RUN = (
    Net("cifar_resnet20_v1", 32, 37),
    Net("cifar_resnet20_v2", 32, 30),
    Net("resnet18_v1", 64, 35),
    Net("resnet50_v2", 64, 28),
    Net("mobilenetv2_0.25", 64, 37),
    Net("squeezenet1.1", 224, 27),
    Net("densenet121", 224, 33),
)
SYMBOLS = (
    Net("inceptionv3", 299),
    Net("resnext101_32x4d", 64),
    Net("ssd_300_vgg16_atrous_voc", 300),
    Net("yolo3_mobilenet1.0_voc", 416),
)


@cache
def block(net: Net) -> Any:
    """The network with random parameters, and the statistics that training would have left in its BatchNorms."""
    mx.random.seed(5)
    detector = {"pretrained_base": False} if net in SYMBOLS[2:] else {}
    made = model_zoo.get_model(net.name, pretrained=False, **detector)
    made.initialize(mx.init.Xavier())
    made(mx.nd.zeros((1, 3, net.side, net.side)))  # so that every shape is known
    for param in made.collect_params().values():
        if param.name.endswith("running_var"):
            param.set_data(mx.nd.random.uniform(0.5, 1.5, param.shape))
        elif param.name.endswith("running_mean"):
            param.set_data(mx.nd.random.normal(0, 0.1, param.shape))
    return made


@cache
def model(net: Net) -> Model:
    return load_model(block(net))


@cache
def images(net: Net) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 3, net.side, net.side)).astype(np.float32)


@cache
def float_output(net: Net) -> np.ndarray:
    return run(model(net), net)


def run(made: Model, net: Net) -> np.ndarray:
    return MxnetRunner().compile(made)({made.inputs[0]: images(net)})[0]


@cache
def prepared(net: Net) -> pipeline.Prepared:
    return pipeline.plan(model(net), QuantConfig(num_calib_examples="100%"))


@cache
def int8(net: Net, target: str = "native") -> pipeline.Quantized:
    made = replace(prepared(net), config=replace(prepared(net).config, target=target))
    return pipeline.quantize(made, pipeline.calibrate(made, images(net), MxnetRunner(), progress=False))


def bar(net: Net, target: str = "native") -> float:
    """The least SQNR in dB of int8; where there is no VNNI, weights of convolutions of s8 have even codes alone."""
    assert net.bar is not None
    return net.bar if has_vnni(target) else net.bar - 3


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB; what all classes share is no signal."""
    wanted, found = (v - v.mean(axis=1, keepdims=True) for v in (wanted, found))
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def fused_by_mxnet(made: Model) -> set[frozenset[str]]:
    """The sets of nodes that MXNet itself joins for int8."""
    fused = json.loads(to_symbol(made.graph).get_backend_symbol("MKLDNN_QUANTIZE").tojson())
    nodes = [n for n in fused["nodes"] if n["op"].startswith("_sg_")]
    return {frozenset(m["name"] for m in n["subgraphs"][0]["nodes"] if m["op"] != "null") for n in nodes}


def fused_by_mxq(net: Net) -> set[frozenset[str]]:
    """The sets of nodes that mxq joins, but for what `avgpool_after_conv1x1` adds: a pooling, and parts of a set."""
    fused = [n for n in prepared(net).fused.graph.operators if n.op.startswith("_sg_")]
    sets = {frozenset(o for o in n.origins if model(net).graph[o].op != "Pooling") for n in fused}
    return {found for found in sets if not any(found < other for other in sets)}


@pytest.mark.parametrize("net", [*(n for n in RUN if n.name != "cifar_resnet20_v2"), *SYMBOLS], ids=str)
def test_fuses_what_mxnet_fuses(net: Net) -> None:
    mine, theirs = fused_by_mxq(net), fused_by_mxnet(model(net))
    assert len(mine) > 10
    assert mine == theirs


def test_a_convolution_with_a_second_reader_is_not_fused() -> None:
    """MXNet joins the first convolution of this network to a BatchNorm and ReLU, though the sum behind reads it too."""
    net = RUN[1]
    assert net.name == "cifar_resnet20_v2"
    mine, theirs = fused_by_mxq(net), fused_by_mxnet(model(net))
    (alone,), (joined,) = mine - theirs, theirs - mine
    first = next(n for n in model(net).graph.operators if n.op == "Convolution")
    assert alone == {first.name}
    assert first.name in joined
    assert {model(net).graph[name].op for name in joined} == {"Convolution", "BatchNorm", "Activation"}
    assert len(model(net).graph.consumers[first.name]) == 2


@pytest.mark.parametrize("net", RUN, ids=str)
def test_fusing_keeps_the_float_output(net: Net) -> None:
    wanted = float_output(net)
    assert_close(run(prepared(net).fused, net), wanted, rtol=FLOAT_RTOL, atol=FLOAT_ATOL * float(np.abs(wanted).max()))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("net", RUN, ids=str)
def test_int8_is_close_to_float(net: Net, target: str) -> None:
    found = numbers(int8(net, target).model, target, {"data": images(net)})[0]
    assert sqnr(float_output(net), found) >= bar(net, target)


@pytest.mark.parametrize("net", RUN, ids=str)
def test_convolutions_are_int8(net: Net) -> None:
    """All but those that were measured to be noisy."""
    report = int8(net).report
    convolutions = [d for d in report.plan.decisions if "Convolution" in d.op or "FullyConnected" in d.op]
    noisy = {name for name, found in report.noise.items() if found.to_float}
    assert {d.node for d in convolutions if not d.int8} == noisy
    assert len(noisy) < len(convolutions) / 4


def test_squeeze_and_excitation_runs_in_static_memory() -> None:
    """With int8 convolutions over pooled images MXNet ends in "We can't generate TBlob for MKLDNN data"."""
    net = Net("se_resnext50_32x4d", 64)
    held, x = to_block(int8(net).model), mx.nd.array(images(net))
    held.hybridize(static_alloc=True, static_shape=True)
    for _ in range(3):
        held(x).wait_to_read()


@pytest.mark.parametrize("net", RUN[:3], ids=str)
def test_the_gluon_network_itself(net: Net) -> None:
    """`quantize_net` of the block, and the block afterwards as before."""
    made, x = block(net), mx.nd.array(images(net))
    before = made(x).asnumpy()
    quantized = mxq.quantize_net(made, images(net), num_calib_examples="100%")
    quantized.hybridize()
    np.testing.assert_array_equal(made(x).asnumpy(), before)
    assert sqnr(before, quantized(x).asnumpy()) >= bar(net)


def by_contrib(net: Net) -> Model:
    """The network quantized by ``mxnet.contrib.quantization`` on the same images."""
    made = model(net)
    result = contrib.quantize_model_mkldnn(
        to_symbol(made.graph),
        to_arrays(made.args),
        to_arrays(made.auxs),
        data_names=made.inputs,
        label_names=None,
        calib_mode="naive",
        calib_data=mx.io.NDArrayIter({made.inputs[0]: images(net)}, batch_size=4),
        quantized_dtype="auto",
        quantize_mode="smart",
    )
    return from_symbol(*result)


@pytest.mark.filterwarnings("ignore")  # of contrib
@pytest.mark.parametrize("net", RUN, ids=str)
def test_no_further_from_float_than_contrib(net: Net) -> None:
    wanted = float_output(net)
    theirs = sqnr(wanted, run(by_contrib(net), net))
    margin = 0.3 if has_vnni("native") else 2.0  # without data, the guard supposes what activations are like
    assert sqnr(wanted, run(int8(net).model, net)) >= theirs - margin, f"contrib: {theirs:.1f} dB"
