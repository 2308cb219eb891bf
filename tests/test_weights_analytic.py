"""Bias correction from BatchNorm's statistics: the mean of a clipped normal variable, and what a network gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import bn, build, conv, fc, quantized, run
from helpers import assert_close

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Array, Model
from mxq.weights.analytic import clipped_mean, expected
from mxq.weights.bias import Activation

CONV1 = 'kernel="(1, 1)" num_filter="8"'
RELU = 'r1 = Activation(n1) act_type="relu"'


@pytest.mark.parametrize("activation", [Activation(), Activation(0.0), Activation(0.0, 6.0), Activation(-1.0, 0.5)])
def test_the_mean_of_a_clipped_normal_variable(activation: Activation) -> None:
    rng = np.random.default_rng(0)
    mean, spread = np.array([-2.0, 0.0, 0.3, 7.0]), np.array([0.5, 1.0, 3.0, 2.0])
    drawn = np.clip(mean + spread * rng.normal(size=(400_000, 4)), activation.low, activation.high)
    assert_close(clipped_mean(mean, spread, activation), drawn.mean(axis=0), rtol=0, atol=0.02)


def network(last: str = conv("c2", "r1", CONV1)) -> tuple[Model, Array]:
    """A network whose BatchNorm tells the truth about its data, and that data; ``last`` reads 8 maps of 6x6."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=(64, 8, 6, 6)).astype(np.float32)
    made = build(conv("c1", "data", CONV1, bias=False), bn("n1", "c1"), RELU, last, "return c2")
    coarse = made.args["c2_weight"].copy()
    coarse[:, : coarse.shape[1] // 8] *= 100  # of channel 0, which the step follows: all others are rounded coarsely
    turned = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)[:, :, None, None]
    quiet = made.args["n1_beta"].copy()
    quiet[0] = -9.0  # and its channel is silent, so that it is the rounding that counts
    args = {**made.args, "c1_weight": turned, "c2_weight": coarse, "n1_beta": quiet}
    auxs = {"n1_moving_mean": np.zeros(8, np.float32), "n1_moving_var": np.ones(8, np.float32)}
    return replace(made, args=args, auxs=auxs), data


def test_what_batch_norm_expects_is_what_comes() -> None:
    model, data = network()
    prepared = pipeline.plan(model, QuantConfig())
    node = prepared.fused.graph["r1"]
    mean = expected(model, node)
    assert mean is not None
    (seen,) = run(model.with_graph(replace(model.graph, heads=(model.graph["r1"].out,))), {"data": data})
    assert_close(mean, seen.mean(axis=(0, 2, 3)), rtol=0, atol=0.05)


def test_the_mean_of_the_output_comes_closer() -> None:
    model, data = network()
    (wanted,) = run(model, {"data": data})

    def off(**options: str) -> float:
        (found,) = run(quantized(model, data, effort="fast", **options).model, {"data": data})
        return float(np.abs((found - wanted).mean(axis=(0, 2, 3))).mean())

    assert off(bias_correction="analytic") < 0.5 * off(bias_correction="none")


def test_of_maps_that_are_flattened_too() -> None:
    """Whose places stand in a row for each channel."""
    model, data = network(fc("c2", "r1", 'num_hidden="40"'))
    (wanted,) = run(model, {"data": data})

    def off(**options: str) -> float:
        (found,) = run(quantized(model, data, effort="fast", target="avx512_vnni", **options).model, {"data": data})
        return float(np.abs((found - wanted).mean(axis=0)).mean())

    assert off(bias_correction="analytic") < 0.5 * off(bias_correction="none")


def test_a_layer_over_the_last_axis_reads_no_channels_of_maps() -> None:
    """Here the maps are as wide as they are many."""
    lines = (conv("c1", "data", CONV1, bias=False), bn("n1", "c1"), RELU)
    model = build(*lines, fc("c2", "r1", 'num_hidden="9" flatten="False"'), "return c2", data=(4, 8, 3, 8))
    data = np.random.default_rng(0).standard_normal((4, 8, 3, 8)).astype(np.float32)
    kinds = [quantized(model, data, effort="fast", bias_correction=kind).model for kind in ("analytic", "none")]
    one, other = (made.args["c2_bias"] for made in kinds)
    np.testing.assert_array_equal(one, other)


def test_without_batch_norm_nothing_is_expected() -> None:
    model = build(
        conv("c1", "data", CONV1), 'r1 = Activation(c1) act_type="relu"', conv("c2", "r1", CONV1), "return c2"
    )
    prepared = pipeline.plan(model, QuantConfig())
    assert expected(model, prepared.fused.graph["r1"]) is None
