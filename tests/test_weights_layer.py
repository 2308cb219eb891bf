"""One layer: in pieces it is what it is as a whole, and which layers are too wide for a covariance matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import build, conv, fc

from mxq.backends import the_layer_of
from mxq.calibration import patches
from mxq.calibration.patches import Geometry, Places, inputs_at
from mxq.config import QuantConfig
from mxq.graph.ir import Array, Node
from mxq.quant import QuantSpec
from mxq.refine import SWEEPS
from mxq.weights import layer as layers
from mxq.weights import lowrank
from mxq.weights import pieces as cut
from mxq.weights.grid import FULL, Grid
from mxq.weights.layer import LEAST_PLACES, Chosen, Layer, choose, choose_places, improved
from mxq.weights.lowrank import LARGEST
from mxq.weights.methods import Seen
from mxq.weights.pieces import pieces

METHODS = QuantConfig().methods


def layer_of(line: str, shape: tuple[int, ...], **changes: int) -> Layer:
    model = build(line, "return x", data=shape)
    (node,) = model.graph.operators
    weight, bias = model.args["x_weight"], model.args["x_bias"]
    return Layer(node, weight, bias, Geometry.of(the_layer_of(node)), METHODS, FULL, **changes)


def found(layer: Layer, data: Array) -> Chosen:
    noisy = np.round(data * 8) / 8
    places = choose_places(layer, [noisy], 1, np.random.default_rng(0))
    summand = np.random.default_rng(1).standard_normal((len(data), len(layer.weight), 6, 6)).astype(np.float32)
    summands = ([summand], [summand * 1.01]) if layer.geometry.kernel else None
    return improved(layer, [data], [noisy], summands, places)


def maps(channels: int) -> Array:
    return np.tanh(np.random.default_rng(0).standard_normal((20, channels, 6, 6)).cumsum(axis=2)).astype(np.float32)


def patches_of(layer: Layer, batches: list[Array], count: int | None) -> Places:
    """``count`` places of the output at random; all where None."""
    sizes = [layer.geometry.places_of(b.shape) for b in batches]
    return patches.choose_places(sizes, sum(sizes) if count is None else count, np.random.default_rng(0))


@pytest.mark.parametrize("filters", [12, 24])
def test_groups_a_few_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch, filters: int) -> None:
    """Bit by bit; depthwise, with one or two outputs of each input."""
    line = conv("x", "data", f'kernel="(3, 3)" num_filter="{filters}" num_group="12" pad="(1, 1)"')
    layer, data = layer_of(line, (20, 12, 6, 6), sweeps=1), maps(12)
    whole = found(layer, data)
    monkeypatch.setattr(layers, "SAMPLES", 5 * 9 * 720)
    assert [part.geometry.groups for part, _, _ in layer.parts(720)] == [5, 5, 2]
    some = found(layer, data)
    for name in ("weight", "values", "bias"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    assert some.moved == pytest.approx(whole.moved, rel=1e-12)


@pytest.mark.parametrize("line", [conv("x", "data"), fc("x", "data", 'num_hidden="8"')])
def test_outputs_a_few_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """But for the last bits of sums, which may turn a code in a hundred."""
    layer, data = layer_of(line, (20, 8, 6, 6)), maps(8)
    whole = found(layer, data)
    monkeypatch.setattr(cut, "WHOLE", 2 * 3 * layer.inputs)
    assert [p.stop - p.start for p in pieces(8, layer.inputs)] == [3, 3, 2]
    some = found(layer, data)
    assert (np.abs(some.values - whole.values) > 1e-6).mean() < 0.01
    np.testing.assert_allclose(some.bias, whole.bias, rtol=0, atol=0.01)
    assert some.moved == pytest.approx(whole.moved, abs=0.01)


def test_a_wide_layer_is_refined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, data = layer_of(fc("x", "data", 'num_hidden="8"'), (20, 8, 6, 6)), maps(8)
    plain = found(layer, data)
    monkeypatch.setattr(lowrank, "LARGEST", 100)
    wide = found(layer, data)
    assert layer.is_wide
    assert wide.moved == pytest.approx(plain.moved, abs=0.01)
    assert (np.abs(wide.values - plain.values) > 1e-6).mean() < 0.02


def noise_db(layer: Layer, chosen: Chosen, inputs: Array) -> float:
    """Of the layer's output for ``inputs`` (N, K) that it was not chosen for, in dB of that output."""
    weight, values = (layer.geometry.grouped(w)[0] for w in (layer.weight, chosen.values))
    off = inputs @ (values - weight).T + (chosen.bias - layer.bias)
    return float(10 * np.log10(np.square(off).mean() / (inputs @ weight.T).var()))


def rows(count: int, inputs: int, seed: int) -> Array:
    """(count, inputs) after a ReLU: four causes, and some noise of each input's own."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((count, 4)) @ np.random.default_rng(99).standard_normal((4, inputs))
    return np.maximum(causes + 0.3 * rng.standard_normal((count, inputs)), 0).astype(np.float32)


@pytest.mark.parametrize(("inputs", "count", "least"), [(128, 64, 8.0), (64, 128, 7.5)], ids=["few", "enough"])
def test_other_data_gains_by_rounding(inputs: int, count: int, least: float) -> None:
    """Also where places are fewer than inputs: damping keeps rounding from following what they show by chance, a tenth
    of it less well. Thirty times as much would lose what correlated inputs make up for; twice or half is no matter."""
    layer = layer_of(fc("x", "data", 'num_hidden="16"'), (4, inputs))
    nearest = replace(layer, methods=replace(METHODS, rounding="nearest"))
    gains = []
    for seed in range(4):
        given, other = rows(count, inputs, seed), rows(4000, inputs, seed + 50)
        data = Seen(given[None], (given @ layer.weight.T)[None])
        gains.append(noise_db(layer, choose(nearest, data), other) - noise_db(layer, choose(layer, data), other))
    assert np.mean(gains) > least


def test_no_channel_is_worse_than_by_rounding_to_the_nearest() -> None:
    """One input after the other is not always better: where it is not, a channel has the nearest codes."""
    layer = layer_of(fc("x", "data", 'num_hidden="256"'), (4, 16))
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal((500, 16)) + rng.standard_normal((500, 1))).astype(np.float32)
    data = Seen(inputs[None], (inputs @ layer.weight.T)[None])
    both = (choose(replace(layer, methods=replace(METHODS, rounding=r)), data) for r in ("nearest", "reconstruction"))
    nearest, found = ((inputs @ (c.values - layer.weight).T).var(axis=0) for c in both)
    assert (found <= 1.03 * nearest).all()  # but for damping, which is part of what is compared
    assert found.sum() < 0.8 * nearest.sum()


def test_more_places_would_tell_no_more() -> None:
    """As many as twice its inputs are too few for a small layer; an eighth of `LEAST_PLACES` is, too."""
    layer = layer_of(conv("x", "data"), (20, 8, 6, 6))
    found = []
    for seed in range(4):
        data = np.tanh(np.random.default_rng(seed).standard_normal((200, 8, 6, 6)).cumsum(axis=2)).astype(np.float32)
        given, other = [data[:150]], [data[150:]]
        (held_out,) = inputs_at(other, patches_of(layer, other, None), layer.geometry)
        noise = [
            noise_db(layer, improved(layer, given, given, None, patches_of(layer, given, n)), held_out)
            for n in (2 * layer.inputs, layer.places(1), None)
        ]
        found.append(noise)
    few, chosen, every = np.mean(found, axis=0)
    assert few > every + 0.7
    assert chosen < every + 0.1


def test_rounding_gains_by_as_many_sweeps_as_the_best_effort_has() -> None:
    """Weights of 4 bits: of fewer sweeps there is less, and of more no more."""
    layer, found = replace(layer_of(conv("x", "data"), (20, 8, 6, 6)), levels=Grid(QuantSpec(4, axis=0))), []
    most = SWEEPS["best"]
    for seed in range(3):
        data = np.tanh(np.random.default_rng(seed).standard_normal((200, 8, 6, 6)).cumsum(axis=2)).astype(np.float32)
        given, other = [data[:150]], [data[150:]]
        (held_out,) = inputs_at(other, patches_of(layer, other, None), layer.geometry)
        places = patches_of(layer, given, layer.places(1))
        swept = (replace(layer, sweeps=n) for n in (most // 2, most, 4 * most))
        found.append([noise_db(one, improved(one, given, given, None, places), held_out) for one in swept])
    fewer, chosen, more = np.mean(found, axis=0)
    assert fewer > chosen + 0.12
    assert abs(more - chosen) < 0.06


def test_places() -> None:
    def places(inputs: int, factor: int = 1) -> int:
        node = Node("x", "FullyConnected", {"num_hidden": "1"})
        weight = np.zeros((1, inputs), np.float32)
        return Layer(node, weight, np.zeros(1, np.float32), Geometry(), METHODS, FULL).places(factor)

    assert places(10) == LEAST_PLACES
    assert places(10, 4) == 4 * LEAST_PLACES
    assert places(LARGEST) == 2 * LARGEST
    assert places(LARGEST + 1) == 2048
    assert places(150_528) < 300


@pytest.mark.parametrize(("length", "each"), [(0, 5), (7, 0), (1, 1 << 30), (4096, 25_088), (3, 4)])
def test_pieces_are_the_whole(length: int, each: int) -> None:
    parts = [np.arange(length)[part] for part in pieces(length, each)]
    np.testing.assert_array_equal(np.concatenate([np.arange(0), *parts]), np.arange(length))
    assert all(len(part) * each <= cut.WHOLE or len(part) == 1 for part in parts)
