"""Signed tensors that are shifted for kernels without VNNI: in float nothing changes, in int8 weights keep a bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, CONV3, RELU, assert_same_outputs, build, conv, decided, fc, feeds, run
from helpers import SATURATES

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.passes.shift_streams import shift_streams
from mxq.quant import NetworkPass, QuantizedNetwork
from mxq.quant.thresholds import Thresholds
from mxq.rewrite import NO_EVENTS
from mxq.runtime import MxnetRunner
from mxq.saturation.activity import sampled
from mxq.verification import verify

pytestmark = pytest.mark.kernels

SHAPE = (16, CHANNELS, 6, 6)
WIDE = 'kernel="(1, 1)" num_filter="64"'
BLOCKS = (
    conv("a", "data"),
    "ra = Activation(a) " + RELU,
    conv("b", "ra", WIDE),
    conv("c", "b", CONV1),
    "rc = Activation(c) " + RELU,
    conv("d", "rc", WIDE, bias=False),
    "s = elemwise_add(d, b)",
    conv("e", "s", CONV1, bias=False),
    "re = Activation(e) " + RELU,
    conv("f", "re", WIDE),
    "t = elemwise_add(f, s)",
    conv("g", "t", CONV1),
    "rg = Activation(g) " + RELU,
    "return rg",
)
"""Blocks as of a MobileNet v2: the stream b, s, t is signed."""


def planned(*lines: str, **options) -> tuple[pipeline.Prepared, pipeline.Calibrated]:
    prepared = pipeline.plan(build(*lines, data=SHAPE), QuantConfig(num_calib_examples="100%", **options))
    return prepared, pipeline.calibrate(prepared, feeds(data=SHAPE)["data"], MxnetRunner(), progress=False)


def shifted(prepared: pipeline.Prepared, thresholds: Thresholds, **given) -> QuantizedNetwork:
    network = decided(prepared, thresholds, given.pop("model", None))
    return network.after(shift_streams(prepared.backend.spec, **given))


def streams(model: Model) -> set[str]:
    return {n.name for n in model.graph if n.note.offset}


def test_a_stream_is_shifted_as_a_whole_and_float_stays():
    prepared, calibrated = planned(*BLOCKS)
    network = shifted(prepared, calibrated.thresholds)
    model, plan, thresholds = network.fused, network.plan, network.thresholds
    assert streams(model) == {"b_shifted", "s_shifted", "t_shifted"}
    assert {e.node for e in network.trace.events} == {"b", "s", "t"}
    assert_same_outputs(prepared.fused, model, feeds(data=SHAPE), rtol=1e-4, atol=1e-4)
    for name in "bst":
        old, new = calibrated.thresholds.range(name), thresholds.range(f"{name}_shifted")
        assert (new.min, new.max) == (0.0, old.max - old.min)
        assert plan[f"{name}_shifted"].int8
        assert name not in plan
    assert {str(r) for r in plan.observe} == set(thresholds)
    assert network.after(shift_streams(prepared.backend.spec)).fused is network.fused


@pytest.mark.parametrize(
    "lines",
    [
        (*BLOCKS[:3], conv("c", "b", CONV3), "rc = Activation(c) " + RELU, "return rc"),
        (*BLOCKS[:4], "rc = Activation(c) " + RELU, "return rc, b"),
        (*BLOCKS[:4], "rc = Activation(c) " + RELU, "m = softmax(b)", "return rc, m"),
        (*BLOCKS[:2], conv("b", "ra", WIDE + ' num_group="2"'), conv("c", "b", CONV1), "return c"),
        (*BLOCKS[:3], fc("z", "b"), "return z"),
        (*BLOCKS[:2], conv("b", "ra"), "x = elemwise_add(b, ra)", conv("y", "x", CONV1), "return y"),
    ],
    ids=["padding", "output", "unknown reader", "not int8", "no convolution", "sum with u8"],
)
def test_what_is_left_signed(lines):
    prepared, calibrated = planned(*lines)
    assert shifted(prepared, calibrated.thresholds).fused is prepared.fused


@pytest.mark.parametrize("asked", [{"b": {"threshold": (-3.0, 3.0)}}, {"s": {"dtype": "int8"}}])
def test_what_somebody_asked_for(asked):
    prepared, calibrated = planned(*BLOCKS, overrides=asked)
    assert shifted(prepared, calibrated.thresholds).fused is prepared.fused


def test_a_shared_weight_is_not_changed():
    both = (f'{name} = Convolution({data}, w) no_bias="True" {CONV1}' for name, data in ("cb", "ec"))
    prepared, calibrated = planned(*BLOCKS[:2], conv("b", "ra"), *both, "return e")
    assert shifted(prepared, calibrated.thresholds).fused is prepared.fused


@pytest.fixture(scope="module")
def made() -> dict[str, pipeline.Quantized]:
    """By target, and without the pass."""
    found = {}
    data = feeds(data=SHAPE)
    for name, target in (("avx2", "avx2"), ("avx512_vnni", "avx512_vnni"), ("signed", "avx2")):
        prepared, calibrated = planned(*BLOCKS, target=target, range_choice="tensor", stem="int8")
        with pytest.MonkeyPatch.context() as patch:
            if name == "signed":
                patch.setattr(
                    "mxq.pipeline.shift_streams", lambda *_: NetworkPass("none", lambda network: (network, NO_EVENTS))
                )
            found[name] = pipeline.quantize(prepared, calibrated, runner=MxnetRunner(), data=[data])
    return found


def test_only_for_targets_without_vnni(made):
    assert streams(made["avx2"].model)
    assert not streams(made["avx512_vnni"].model)
    for name in "bst":
        assert made["avx2"].report.tensors[f"quantized_{name}_shifted"].dtype == "uint8"
    fast = planned(*BLOCKS, target="avx2", effort="fast")
    assert not streams(pipeline.quantize(*fast, runner=MxnetRunner(), data=[feeds(data=SHAPE)]).model)


@pytest.mark.parametrize("alike", [False, True])
def test_weights_that_no_order_parts_stay_signed(alike):
    """All of them large and of one sign: limits would cost more than the bit that is lost of s8."""
    prepared, calibrated = planned(*BLOCKS[:3], conv("c", "b", CONV1), "return c")
    weight = prepared.fused.args["c_weight"]
    even = np.random.default_rng(0).uniform(0.9, 1, weight.shape).astype(np.float32)
    model = replace(prepared.fused, args={**prepared.fused.args, "c_weight": even if alike else weight})
    look = partial(sampled, MxnetRunner(), model, feeds=[feeds(data=SHAPE)])
    found = shifted(prepared, calibrated.thresholds, model=model, look=look)
    assert streams(found.fused) == (set() if alike else {"b_shifted"})


def test_less_noise(made):
    """By the kernels of this CPU where it has none of VNNI, else as far as sums do not saturate."""
    data = feeds(data=SHAPE)
    model = build(*BLOCKS, data=SHAPE)
    (wanted,) = run(model, data)
    found = {}
    for name in ("avx2", "signed"):
        int8 = made[name].model
        found[name] = sqnr_db(wanted, run(int8 if SATURATES else exact(int8, halved=True), data)[0])
    assert found["avx2"] > found["signed"]


def test_layers_can_still_be_compared(made):
    found = verify(MxnetRunner(), build(*BLOCKS, data=SHAPE), made["avx2"].model, [feeds(data=SHAPE)], layers=True)
    layers = {layer.name: layer.sqnr for layer in found.layers}
    assert min(layers[name] for name in ("b", "s", "t")) > 30


def test_the_offset_is_in_the_biases():
    prepared, calibrated = planned(*BLOCKS)
    model = shifted(prepared, calibrated.thresholds).fused
    low = {n: -calibrated.thresholds.range(n).min for n in "bst"}
    before = prepared.fused.args
    wanted = {
        "b": low["b"],
        "c": -low["b"] * before["c_weight"].sum(axis=(1, 2, 3)),
        "s": low["s"] - low["b"],
        "e": -low["s"] * before["e_weight"].sum(axis=(1, 2, 3)),
        "t": low["t"] - low["s"],
        "g": -low["t"] * before["g_weight"].sum(axis=(1, 2, 3)),
    }
    nodes = {"c": "rc", "e": "re", "g": "rg", **{n: f"{n}_shifted" for n in "bst"}}
    for name, change in wanted.items():
        bias = model.graph[nodes[name]].inputs[2].name
        old = before.get(bias, np.float32(0))
        np.testing.assert_allclose(model.args[bias], old + change, rtol=1e-4, atol=1e-4)


def test_a_wrong_offset_is_seen(monkeypatch):
    """The tests above have teeth."""
    prepared, calibrated = planned(*BLOCKS)
    lower = {n: replace(t, range=t.range.times(0.5)) for n, t in calibrated.thresholds.items()}
    model = shifted(prepared, Thresholds(lower)).fused
    with pytest.raises(AssertionError):
        assert_same_outputs(prepared.fused, model, feeds(data=SHAPE), rtol=1e-4, atol=1e-4)
