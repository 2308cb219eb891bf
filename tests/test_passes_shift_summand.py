"""Shifting a summand: the float network stays the same, the int8 one gets better, and when it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import (
    CONV1,
    GOLDENS,
    RELU,
    assert_same_outputs,
    build,
    conv,
    decided,
    feeds,
    numbers,
    quantized,
    reasons,
    run,
)
from helpers import TARGETS, assert_close, assert_golden, has_vnni

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.graph.serde import write_text
from mxq.numerics import sqnr_db
from mxq.passes import shift_summand
from mxq.passes.shift_summand import shift_summands
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Range
from mxq.runtime import MxnetRunner

pytestmark = pytest.mark.kernels

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""The offset is added and subtracted again in float32."""


def block(*, bias: bool = True, act: str = "r = Activation(s) " + RELU) -> Model:
    return build(
        conv("y", "data", CONV1, bias=bias),
        conv("c", "data", bias=bias),
        "s = elemwise_add(c, y)",
        act,
        conv("e", "r"),
        "return e",
    )


def calibrated(model: Model, **options):
    """Prepared network and thresholds, of one batch."""
    prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%", **options))
    found = pipeline.calibrate(prepared, feeds()["data"], MxnetRunner(), progress=False)
    return prepared, found.thresholds


def shifted(model: Model, **options):
    """The prepared network, its thresholds, and what is decided of it once it is shifted."""
    prepared, thresholds = calibrated(model, **options)
    return prepared, thresholds, decided(prepared, thresholds).after(shift_summands(prepared.backend.spec))


def refusals(network: QuantizedNetwork) -> list[str]:
    return reasons(network.trace, "shift_summand")


@pytest.mark.parametrize("bias", [True, False])
def test_structure_and_numbers(bias, update_goldens):
    model = block(bias=bias)
    prepared, thresholds, network = shifted(model)
    result, plan, ranges = network.fused, network.plan, network.thresholds
    assert sum(e.fired for e in network.trace.events) == 1
    name = f"shift_summand_{'bias' if bias else 'no_bias'}.txt"
    assert_golden(write_text(result.graph), GOLDENS / name, update=update_goldens)
    assert_same_outputs(model, result, **CLOSE)
    assert "y_shifted" in plan.quantized
    assert "y" not in plan
    assert [str(r) for r in plan.observe] == [str(r).replace("y", "y_shifted") for r in prepared.plan.observe]
    old, new = thresholds.range("y"), ranges.range("y_shifted")
    assert (new.min, new.max) == (0.0, old.max - old.min)
    assert ranges["y_shifted"].note.startswith(f"shifted up by {-old.min:.6g}")
    assert "y" not in ranges


def test_no_second_application():
    prepared, _, network = shifted(block())
    assert network.after(shift_summands(prepared.backend.spec)).fused is network.fused


def test_the_offset_is_in_the_biases():
    prepared, thresholds, network = shifted(block())
    offset = -thresholds.range("y").min
    for name, sign in (("y_bias", 1), ("c_bias", -1)):
        assert_close(network.fused.args[name], prepared.fused.args[name] + sign * offset, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(3))
def test_int8_gains_over_half_the_range(seed, target):
    lines = (
        conv("y", "data", CONV1),
        conv("c", "data"),
        "s = elemwise_add(c, y)",
        "r = Activation(s) " + RELU,
        "return r",
    )
    model = build(*lines, seed=seed)
    prepared, thresholds = calibrated(model)
    without = prepared.backend.lower(decided(prepared, thresholds)).model
    made = quantized(model, target=target).model
    (wanted,), (better,), (worse,) = run(model), numbers(made, target), numbers(without, target)
    gain = 0.5 if has_vnni(target) else 0.2  # of weights with even codes there is more noise that stays
    assert sqnr_db(wanted, better) > max(38 if has_vnni(target) else 34, sqnr_db(wanted, worse) + gain)


def test_the_result_is_u8_in_the_summands_memory():
    found = quantized(block())
    assert found.report.tensors["quantized_y_shifted"].dtype == "uint8"
    assert "range doubled" not in found.report.tensors["quantized_r"].note


def wrong_offset(factor):
    good = vars(shift_summand)["with_bias"]

    def wrong(model, conv_node, offset):
        return good(model, conv_node, offset * (factor if offset > 0 else 1.0))

    return wrong


@pytest.mark.parametrize("factor", [0.0, 0.99, -1.0])
def test_wrong_offsets_are_noticed(factor, monkeypatch):
    monkeypatch.setattr(shift_summand, "with_bias", wrong_offset(factor))
    model = block()
    result = shifted(model)[2].fused
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_outputs(model, result, **CLOSE)


SUM_RELU = ("s = elemwise_add(c, y)", "r = Activation(s) " + RELU)
REFUSED = {
    "signed result": (
        (conv("y", "data"), conv("c", "data"), "s = elemwise_add(c, y)", conv("e", "s"), "return e"),
        "its result is s8, as its summand",
    ),
    "leaky result": (
        (
            conv("y", "data"),
            conv("c", "data"),
            "s = elemwise_add(c, y)",
            'r = LeakyReLU(s) act_type="leaky" slope="0.1"',
            "return r",
        ),
        "its result is s8, as its summand",
    ),
    "not a convolution": (
        (conv("c", "data"), "s = elemwise_add(c, data)", SUM_RELU[1], "return r"),
        "its summand 'data' is not an int8 convolution",
    ),
    "a post-op of its own": (
        (conv("b", "data"), "y = Activation(b) " + RELU, conv("c", "data"), *SUM_RELU, "return r"),
        "its summand 'y' has a sum or post-op of its own",
    ),
    "read elsewhere": (
        (conv("y", "data"), conv("c", "data"), *SUM_RELU, conv("e", "y"), "return r, e"),
        "its summand 'y' is read elsewhere too",
    ),
    "an output": (
        (conv("y", "data"), conv("c", "data"), *SUM_RELU, "return r, y"),
        "its summand 'y' is read elsewhere too",
    ),
    "data as well": ((conv("y", "data"), conv("c", "y"), *SUM_RELU, "return r"), "its summand 'y' is its data too"),
    "shared bias": (
        (
            "y = Convolution(data, y_weight, v) " + CONV1,
            "c = Convolution(data, c_weight, v) " + CONV1,
            *SUM_RELU,
            "return r",
        ),
        "the bias 'v' is not a parameter of 'r' alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    lines, reason = REFUSED[name]
    model = build(*lines)
    prepared, thresholds, network = shifted(model)
    assert network.fused is prepared.fused
    assert network.plan is prepared.plan
    assert network.thresholds is thresholds
    assert reason in refusals(network)
    assert sqnr_db(run(model)[0], run(quantized(model).model)[0]) > 30


def test_refuses_what_was_asked_to_be_int8():
    prepared, _, network = shifted(block(), overrides={"y": {"dtype": "int8"}})
    assert network.fused is prepared.fused
    assert refusals(network) == ["its summand 'y' was asked to be int8"]


def test_refuses_what_stays_in_float():
    prepared, _, network = shifted(block(), exclude_layers="y")
    assert network.fused is prepared.fused


def test_refuses_what_is_never_negative():
    prepared, thresholds = calibrated(block())
    table = {**thresholds, "y": replace(thresholds["y"], range=Range(0.0, 1.0))}
    network = decided(prepared, type(thresholds)(table)).after(shift_summands(prepared.backend.spec))
    assert network.fused is prepared.fused
    assert refusals(network) == ["its summand 'y' is never negative"]


def test_two_blocks_in_a_row():
    model = build(
        conv("y1", "data"),
        conv("c1", "data"),
        "s1 = elemwise_add(c1, y1)",
        "r1 = Activation(s1) " + RELU,
        conv("y2", "r1"),
        conv("c2", "r1"),
        "s2 = elemwise_add(c2, y2)",
        "r2 = Activation(s2) " + RELU,
        "return r2",
    )
    network = shifted(model)[2]
    assert sum(e.fired for e in network.trace.events) == 2
    assert_same_outputs(model, network.fused, **CLOSE)
    assert sqnr_db(run(model)[0], run(quantized(model).model)[0]) > 30


def test_beyond_the_calibrated_range_it_clips():
    """The one difference: what would be lower than the calibrated minimum is taken for it."""
    model = block()
    result = shifted(model)[2].fused
    far = {"data": 3 * feeds()["data"]}
    assert np.abs(run(model, far)[0] - run(result, far)[0]).max() > 1e-3
