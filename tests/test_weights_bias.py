"""Biases that make up for what rounding does to a layer's output, after its activation."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, conv, fc
from helpers import assert_close

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Node
from mxq.weights.bias import Activation, correction

RELU, RELU6, NONE = Activation(0.0), Activation(0.0, 6.0), Activation()


def outputs(seed: int = 0, mean: float = -0.5) -> tuple[np.ndarray, np.ndarray]:
    """(2, 500, 4) of a float layer and of a quantized one, whose error depends on the value: both (G, N, O)."""
    rng = np.random.default_rng(seed)
    target = (2 * rng.standard_normal((2, 500, 4)) + mean).astype(np.float32)
    made = 0.9 * target + 0.3 + 0.1 * rng.standard_normal(target.shape)
    return target, made.astype(np.float32)


def error(target: np.ndarray, made: np.ndarray, added: np.ndarray, f: Activation) -> np.ndarray:
    """The mean square after the activation: (G, O)."""
    found: np.ndarray = ((f(target) - f(made + added[:, None])) ** 2).mean(axis=1)
    return found


def test_without_an_activation_it_is_the_mean_of_the_difference() -> None:
    target, made = outputs()
    found = correction(target, made, NONE)
    assert found.dtype == np.float64
    assert_close(found, (target.astype(np.float64) - made).mean(axis=1), rtol=0, atol=1e-6)
    assert np.abs(found).min() > 0.1


@pytest.mark.parametrize("f", [RELU, RELU6, Activation(-1.0, 1.0)], ids=["relu", "relu6", "clip"])
@pytest.mark.parametrize("mean", [-2.5, 0.0, 4.0])
def test_it_improves_the_error_after_the_activation(f: Activation, mean: float) -> None:
    target, made = outputs(mean=mean)
    mine = error(target, made, correction(target, made, f), f)
    assert (mine <= error(target, made, np.zeros((2, 4)), f) * (1 + 1e-6)).all()
    assert (mine <= error(target, made, correction(target, made, NONE), f) * (1 + 1e-2)).all()


def test_the_flat_part_says_nothing() -> None:
    """Nine tenths of the values are below a ReLU, and wrong by much; what passes is wrong by 0.25."""
    target = np.concatenate([np.full(900, -5.0), np.linspace(1, 3, 100)]).astype(np.float32)[None, :, None]
    made = target + np.where(target > 0, 0.25, -20).astype(np.float32)
    assert_close(correction(target, made, RELU), [[-0.25]], rtol=0, atol=1e-4)
    assert correction(target, made, NONE)[0, 0] > 15
    mine = error(target, made, correction(target, made, RELU), RELU)
    assert mine < 1e-6
    assert error(target, made, np.zeros((1, 1)), RELU) > 1e-3


def test_what_is_cut_off_does_not_pull() -> None:
    """Far below the ReLU where the float layer is above it: no small step of the bias changes that."""
    target = np.array([2.0] * 50 + [1.0] * 100, np.float32)[None, :, None]
    made = np.array([-5.0] * 50 + [1.0] * 100, np.float32)[None, :, None]
    assert correction(target, made, RELU)[0, 0] == 0
    assert correction(target, made, NONE)[0, 0] == pytest.approx(7 / 3, rel=1e-5)


@pytest.mark.parametrize("off", [0.0, 2.0, 3.0])
def test_it_is_close_to_the_best_there_is(off: float) -> None:
    """However far it begins: what is active changes with each step."""
    target, made = outputs(mean=-0.5)
    made += np.float32(off)
    mine = error(target, made, correction(target, made, RELU), RELU)
    tried = [error(target, made, np.full((2, 4), d - off), RELU) for d in np.linspace(-1, 1, 201)]
    assert (mine <= 1.02 * np.min(tried, axis=0)).all()


@pytest.mark.parametrize(("active", "left"), [(3, 1.001), (7, 1.001), (8, 1.2), (20, 0.6)])
def test_a_channel_that_is_hardly_active_keeps_its_bias(active: int, left: float) -> None:
    """A few examples of what varies three times as much as it is off say less of others than nothing does: their mean
    is off by 0.3 / sqrt(n), as much as without at n = 9."""
    rng = np.random.default_rng(0)
    target = np.full((1, 200, 300), -9.0, np.float32)
    target[0, :active] = 5.0
    made = (target + 0.1 + 0.3 * rng.standard_normal(target.shape)).astype(np.float32)
    found = correction(target, made, RELU)
    assert found.any() == (active > 7)
    assert np.square(0.1 + np.delete(found, 0)).mean() < 0.1**2 * left


def test_nothing_to_do() -> None:
    target, _ = outputs()
    for f in (NONE, RELU, RELU6):
        assert_close(correction(target, target, f), np.zeros((2, 4)), rtol=0, atol=0)


def test_each_channel_is_by_itself() -> None:
    target, made = outputs()
    whole = correction(target, made, RELU6)
    for g in range(2):
        for o in range(4):
            alone = correction(target[g : g + 1, :, o : o + 1], made[g : g + 1, :, o : o + 1], RELU6)
            assert alone[0, 0] == pytest.approx(whole[g, o], abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([conv("c", "data"), "return c"], NONE),
        ([conv("c", "data"), 'r = Activation(c) act_type="relu"', "return r"], RELU),
        ([conv("c", "data"), 'r = clip(c) a_min="0.0" a_max="6.0"', "return r"], RELU6),
        ([conv("c", "data"), 'r = Activation(c) act_type="sigmoid"', "return r"], NONE),
        ([conv("c", "data"), "s = elemwise_add(c, data)", 'r = Activation(s) act_type="relu"', "return r"], RELU),
        ([fc("c", "data"), "return c"], NONE),
        ([fc("c", "data"), 'r = Activation(c) act_type="relu"', "return r"], RELU),
    ],
)
def test_the_activation_of_a_fused_layer(lines: list[str], wanted: Activation) -> None:
    model = pipeline.plan(build(*lines), QuantConfig()).fused
    layer = next(n for n in model.graph.operators if n.op.startswith("_sg_"))
    assert Activation.of(layer) == wanted


def test_the_activation_of_a_plain_operator() -> None:
    assert Activation.of(Node("a", "Activation", {"act_type": "relu"})) == RELU
    assert Activation.of(Node("a", "Activation", {"act_type": "tanh"})) == NONE
    assert RELU6.active(np.array([-1, 0, 1, 6, 7.0])).tolist() == [False, False, True, False, False]
