"""Receptive fields: times the weights they are what MXNet's layers compute at the chosen places."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, run
from helpers import assert_close

from mxq.calibration.patches import Geometry, choose_places, inputs_at, outputs_at
from mxq.graph.ir import Model, Node, Ref

LAYERS = {
    "plain": ('Convolution(x, w) kernel="(3, 3)" num_filter="6" no_bias="True"', (3, 4, 7, 6), (6, 4, 3, 3)),
    "pad": ('Convolution(x, w) kernel="(3, 3)" num_filter="6" pad="(1, 2)" no_bias="True"', (2, 4, 5, 6), (6, 4, 3, 3)),
    "stride": (
        'Convolution(x, w) kernel="(3, 2)" num_filter="5" stride="(2, 3)" pad="(1, 0)" no_bias="True"',
        (2, 3, 8, 9),
        (5, 3, 3, 2),
    ),
    "dilate": (
        'Convolution(x, w) kernel="(3, 3)" num_filter="4" dilate="(2, 1)" pad="(2, 1)" no_bias="True"',
        (2, 3, 7, 6),
        (4, 3, 3, 3),
    ),
    "groups": (
        'Convolution(x, w) kernel="(3, 3)" num_filter="6" num_group="2" pad="(1, 1)" no_bias="True"',
        (2, 4, 5, 5),
        (6, 2, 3, 3),
    ),
    "depthwise": (
        'Convolution(x, w) kernel="(3, 3)" num_filter="4" num_group="4" stride="(2, 2)" no_bias="True"',
        (2, 4, 7, 7),
        (4, 1, 3, 3),
    ),
    "multiplier": (
        'Convolution(x, w) kernel="(1, 3)" num_filter="8" num_group="4" no_bias="True"',
        (2, 4, 3, 7),
        (8, 1, 1, 3),
    ),
    "one_axis": (
        'Convolution(x, w) kernel="(3,)" num_filter="5" stride="(2,)" pad="(1,)" no_bias="True"',
        (2, 3, 9),
        (5, 3, 3),
    ),
    "dense": ('FullyConnected(x, w) num_hidden="5" no_bias="True"', (4, 7), (5, 7)),
    "flatten": ('FullyConnected(x, w) num_hidden="5" no_bias="True"', (4, 2, 3, 2), (5, 12)),
    "last_axis": ('FullyConnected(x, w) num_hidden="5" no_bias="True" flatten="False"', (4, 3, 7), (5, 7)),
}


class Layer:
    """One of `LAYERS` with random values, and its output in MXNet, of two batches."""

    def __init__(self, name: str) -> None:
        line, shape, weight = LAYERS[name]
        rng = np.random.default_rng(len(name))
        net = graph(f"y = {line}", "return y")
        self.geometry = Geometry.of(net["y"])
        self.weight = rng.standard_normal(weight).astype(np.float32)
        self.inputs = [rng.standard_normal((n, *shape[1:])).astype(np.float32) for n in (shape[0], 1)]
        self.outputs = [run(Model(net, {"w": self.weight}), {"x": x})[0] for x in self.inputs]
        self.counts = [self.geometry.places_of(x.shape) for x in self.inputs]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("most", [5, 10**6])
def test_times_the_weight_it_is_the_layers_output(name: str, most: int) -> None:
    layer = Layer(name)
    places = choose_places(layer.counts, most, np.random.default_rng(0))
    fields = inputs_at(layer.inputs, places, layer.geometry)
    wanted = outputs_at(layer.outputs, places, layer.geometry)
    weight = layer.geometry.grouped(layer.weight)
    assert fields.dtype == np.float32
    assert fields.shape[:2] == wanted.shape[:2] == (layer.geometry.groups, sum(map(len, places)))
    assert_close(fields @ np.swapaxes(weight, 1, 2), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_counts_the_places_of_the_output(name: str) -> None:
    layer = Layer(name)
    channels = [y.shape[layer.geometry.channel_axis] for y in layer.outputs]
    assert channels == [len(layer.weight)] * 2
    assert layer.counts == [y.size // len(layer.weight) for y in layer.outputs]


@pytest.mark.parametrize("name", LAYERS)
def test_all_places_are_the_whole_output(name: str) -> None:
    layer = Layer(name)
    found = outputs_at(layer.outputs, [np.arange(c) for c in layer.counts], layer.geometry)
    channels_last = [np.moveaxis(y, layer.geometry.channel_axis, -1) for y in layer.outputs]
    rows = np.concatenate([y.reshape(-1, len(layer.weight)) for y in channels_last])
    np.testing.assert_array_equal(found.transpose(1, 0, 2).reshape(len(rows), -1), rows)


@pytest.mark.parametrize("name", LAYERS)
def test_ungrouped_is_the_inverse_of_grouped(name: str) -> None:
    layer = Layer(name)
    between = layer.geometry.grouped(layer.weight)
    groups, per_group = layer.geometry.groups, len(layer.weight) // layer.geometry.groups
    assert between.shape == (groups, per_group, layer.weight[0].size)
    np.testing.assert_array_equal(layer.geometry.ungrouped(between, layer.weight.shape), layer.weight)


class TestPlaces:
    def test_all_where_there_are_few(self) -> None:
        found = choose_places([3, 5], 8, np.random.default_rng(0))
        assert [p.tolist() for p in found] == [[0, 1, 2], [0, 1, 2, 3, 4]]

    def test_no_place_twice_and_in_order(self) -> None:
        for places, count in zip(choose_places([100, 300], 80, np.random.default_rng(0)), (100, 300), strict=True):
            assert len(places) == count // 5
            assert (np.diff(places) > 0).all()
            assert places.min() >= 0
            assert places.max() < count
            assert places.max() > 0.7 * count  # from all of the batch

    def test_every_batch_has_one(self) -> None:
        assert [len(p) for p in choose_places([1, 1000], 10, np.random.default_rng(0))] == [1, 10]

    def test_follows_from_its_generator(self) -> None:
        one, same, other = (choose_places([200], 20, np.random.default_rng(s))[0].tolist() for s in (1, 1, 2))
        assert one == same
        assert one != other


def test_defaults_of_a_convolution() -> None:
    node = Node("c", "Convolution", {"kernel": "(3, 1)", "num_filter": "2"}, (Ref("x"), Ref("w")))
    assert Geometry.of(node) == Geometry(1, (3, 1), (1, 1), (1, 1), (0, 0))
