"""Clip each output channel of a weight to the range that an observer finds for it.

Formula: ``w'_c = clip(w_c, -t_c, t_c)``. The stock kernels quantize a channel with ``127.5 / max|w_c|``
(``GetQuantizeScale`` in ``quantization_utils.h``), so a clipped weight in float is all it takes for them to use
``127.5 / t_c``. Source: Nagel et al., "A white paper on neural network quantization" (arXiv:2106.08295), section 3.1,
range setting of weights per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mxq import observers
from mxq.graph.ir import Array, Model, Node
from mxq.observers import Observer
from mxq.quant import MXNET, WEIGHT, QuantSpec, Scheme
from mxq.quant.plan import WeightRecord
from mxq.quant.qparams import Floats


@dataclass(frozen=True, slots=True)
class WeightObserverRequest:
    """The spec of an observer for one layer's weight, what asked for it, and what the weight's codes are to be."""

    observer: str
    source: str
    spec: QuantSpec = WEIGHT
    scheme: Scheme = MXNET


def channel_bounds(observer: Observer[Any], weight: Array, spec: QuantSpec = WEIGHT, scheme: Scheme = MXNET) -> Floats:
    """The largest absolute value to represent in each output channel.

    Args:
        observer: any; it sees each channel as one batch.
        weight: (O, ...) float32.
        spec: what codes are to be.
        scheme: how scales will follow from ranges.

    Returns:
        (O,) float32, in units of the weight; at most the channel's largest, and 0 where all of the channel is.
    """
    rows = np.ascontiguousarray(weight, np.float32).reshape(len(weight), -1)

    def bound(row: Array) -> float:
        return observer.range(observer.update(observer.empty(), row), spec, scheme).absmax

    largest = np.abs(rows).max(axis=1)
    return np.minimum(np.array(observers.in_parallel(bound, rows), np.float32), largest)


def clip_weights(model: Model, asked: dict[str, WeightObserverRequest]) -> tuple[Model, dict[str, WeightRecord]]:
    """Clips the weights of layers.

    Args:
        model: fused, float.
        asked: layer -> its observer; a weight that several layers share follows the first.

    Returns:
        The model (the same where nothing is clipped), and for each layer that was looked at what became of its weight.
    """
    changed: dict[str, Array] = {}
    records: dict[str, WeightRecord] = {}
    seen: set[str] = set()
    for node in model.graph.operators:
        choice = asked.get(node.name)
        if choice is None or not observers.get(choice.observer).clips or _weight(node) in seen:
            continue
        seen.add(_weight(node))
        weight = model.args[_weight(node)]
        bounds = channel_bounds(observers.get(choice.observer), weight, choice.spec, choice.scheme)
        sizes = np.abs(weight).reshape(len(weight), -1)
        outside = sizes > bounds[:, None]
        if outside.any():
            limits = bounds.reshape(-1, *[1] * (weight.ndim - 1))
            changed[_weight(node)] = np.clip(weight, -limits, limits)
        records[node.name] = WeightRecord(
            observer=choice.observer,
            source=choice.source,
            channels=len(weight),
            clipped_channels=int(outside.any(axis=1).sum()),
            clipped_share=float(outside.mean()),
        )
    return (model.with_graph(model.graph, changed) if changed else model), records


def _weight(layer: Node) -> str:
    return layer.inputs[1].name
