"""Samples of what a layer multiplies with its weights: receptive fields of a convolution, rows of a dense layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mxq.graph.ir import Array, Node
from mxq.graph.layers import groups_of


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        groups: of a convolution; 1 for a dense layer.
        kernel, stride, dilate, pad: per spatial axis; empty for a dense layer.
        flatten: whether a dense layer takes all axes but the first as one.
    """

    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilate: tuple[int, ...] = ()
    pad: tuple[int, ...] = ()
    flatten: bool = True

    @staticmethod
    def of(layer: Node) -> Geometry:
        """Of a Convolution or FullyConnected node."""
        if layer.op == "FullyConnected":
            return Geometry(flatten=layer.flag("flatten", default=True))
        kernel = layer.ints("kernel")
        ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
        return Geometry(
            groups_of(layer),
            kernel,
            layer.ints("stride") or ones,
            layer.ints("dilate") or ones,
            layer.ints("pad") or zeros,
        )

    @property
    def channel_axis(self) -> int:
        """Which axis of the output holds its channels."""
        return 1 if self.kernel else -1

    def places_of(self, shape: tuple[int, ...]) -> int:
        """How many output places an input (examples, ...) of that shape has."""
        if self.kernel:
            return int(np.prod((shape[0], *self.sides(shape))))
        return shape[0] if self.flatten else int(np.prod(shape[:-1]))

    def sides(self, shape: tuple[int, ...]) -> list[int]:
        """The spatial sides of a convolution's output for an input of that shape."""
        axes = zip(shape[2:], self.kernel, self.stride, self.dilate, self.pad, strict=True)
        return [(size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, d, pad in axes]

    def grouped(self, weight: Array) -> Array:
        """The weight (O, I / groups, ...) as (groups, O / groups, K), K over taps, then channels, as in `inputs_at`."""
        if not self.kernel:
            return weight[None]
        taps_first = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 1, 2)
        return np.ascontiguousarray(taps_first.reshape(self.groups, len(weight) // self.groups, -1))

    def ungrouped(self, weight: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `grouped`; ``shape`` is that of the weight."""
        if not self.kernel:
            return weight.reshape(shape)
        taps_first = weight.reshape(shape[0], -1, shape[1])
        return np.ascontiguousarray(np.moveaxis(taps_first, 2, 1)).reshape(shape)


Places = Sequence[Array]
"""Of each batch, which (example, position) pairs are looked at: (n,) integers into its flattened output places."""


def choose_places(counts: Sequence[int], most: int, rng: np.random.Generator) -> Places:
    """At most ``most`` of a layer's output places, of which batches have ``counts``; at random within each batch."""
    share = min(1.0, most / max(sum(counts), 1))
    return [
        np.sort(rng.choice(c, max(1, round(c * share)), replace=False)) if share < 1 else np.arange(c) for c in counts
    ]


def outputs_at(tensors: Sequence[Array], places: Places, geometry: Geometry) -> Array:
    """(groups, N, O / groups): the values of the layer's outputs at the places."""
    last = [np.moveaxis(t, geometry.channel_axis, -1) for t in tensors]
    stacked = np.concatenate([t[np.unravel_index(c, t.shape[:-1])] for t, c in zip(last, places, strict=True)])
    return np.ascontiguousarray(stacked.reshape(len(stacked), geometry.groups, -1).transpose(1, 0, 2))


def inputs_at(tensors: Sequence[Array], places: Places, geometry: Geometry) -> Array:
    """(groups, N, K) float32: what is multiplied with the weights for the outputs at the places."""
    if not geometry.kernel:
        rows = [_rows(t, geometry.flatten)[c] for t, c in zip(tensors, places, strict=True)]
        whole: Array = np.concatenate(rows)[None]
        return whole
    fields = np.concatenate([_fields(t, c, geometry) for t, c in zip(tensors, places, strict=True)])
    count, taps, channels = fields.shape
    split = fields.reshape(count, taps, geometry.groups, channels // geometry.groups)
    found: Array = np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(geometry.groups, count, -1)
    return found


def _rows(tensor: Array, flatten: bool) -> Array:
    return tensor.reshape(len(tensor), -1) if flatten else tensor.reshape(-1, tensor.shape[-1])


def _fields(tensor: Array, chosen: Array, geometry: Geometry) -> Array:
    """(n, taps, C): receptive fields in ``tensor`` (examples, C, ...)."""
    margins = [(0, 0), (0, 0), *((p, p) for p in geometry.pad)]
    padded = np.pad(tensor, margins) if any(geometry.pad) else tensor
    last = np.moveaxis(padded, 1, -1)
    example, *position = np.unravel_index(chosen, (len(tensor), *geometry.sides(tensor.shape)))
    corner = [p * s for p, s in zip(position, geometry.stride, strict=True)]
    taps = []
    for tap in itertools.product(*map(range, geometry.kernel)):
        at = (example, *(c + t * d for c, t, d in zip(corner, tap, geometry.dilate, strict=True)))
        taps.append(last[at])
    return np.stack(taps, axis=1)
