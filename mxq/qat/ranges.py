"""Where ranges start: calibrated ones of activations, those of weights themselves, and what algorithms make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mxq import observers
from mxq.calibration.statistics import Statistics
from mxq.graph.ir import Array
from mxq.qat.network import QatNetwork
from mxq.qat.quantizer import Quantizer
from mxq.quant import QuantSpec
from mxq.quant.qparams import Floats
from mxq.quant.thresholds import Range


def activation_ranges(
    quantizers: Sequence[Quantizer], statistics: Statistics, init: str
) -> tuple[tuple[Quantizer, ...], dict[str, Range]]:
    """The range of each group of quantizers of activations, of all its tensors; and settled quantizers.

    Args:
        quantizers: also of weights, which stay as they are.
        statistics: of their tensors, by ``str`` of each; of a group that of one is enough.
        init: the observer.

    Returns:
        The quantizers, and group -> range.

    Raises:
        CalibrationError: a tensor had no values.
    """
    observer, found = observers.get(init), dict[str, Range]()
    for q in quantizers:
        name = str(q.tensor)
        if q.is_weight or name not in statistics.states:
            continue
        span = statistics.thresholds({name: observer}, {name: q.spec}, q.site.scheme)[name].range
        found[q.group] = found[q.group].union(span) if q.group in found else span
    specs = {q.group: q.spec.settled(found[q.group].min) for q in quantizers if not q.is_weight}
    return tuple(q if q.is_weight else _of_spec(q, specs[q.group]) for q in quantizers), found


def _of_spec(quantizer: Quantizer, spec: QuantSpec) -> Quantizer:
    return replace(quantizer, site=replace(quantizer.site, spec=spec))


def with_initial(network: QatNetwork, ranges: Mapping[str, Range]) -> QatNetwork:
    """``network`` with the parameters that its algorithms start from.

    Args:
        network: its quantizers settled.
        ranges: group of activations -> its range.

    Raises:
        ConfigError: an algorithm is not for a tensor of that spec.
    """
    found: dict[str, Array] = {}
    for q in network.quantizers:
        algorithm = network.algorithm(q)
        algorithm.check(q.site)
        if q.group == q.name:
            low, high, values = _weight_range(network, q) if q.is_weight else (*_ends(ranges[q.group]), None)
            found |= {q.parameter(k): v for k, v in algorithm.initial(q.site, low, high, values).items()}
    return replace(network, parameters=found)


def _ends(span: Range) -> tuple[Floats, Floats]:
    return np.array([span.min], np.float32), np.array([span.max], np.float32)


def _weight_range(network: QatNetwork, quantizer: Quantizer) -> tuple[Floats, Floats, Floats]:
    """The ends of the range of each channel of a weight (C,), as its observer has it, and the weight (A, C, B)."""
    weight = network.weight(quantizer)
    folded = np.ascontiguousarray(weight, np.float32).reshape(quantizer.site.folded(weight.shape))
    observer, site = observers.get(network.config.weight_calibrator), quantizer.site
    rows = folded.transpose(1, 0, 2).reshape(folded.shape[1], -1)

    def one(row: Array) -> Range:
        return observer.range(observer.update(observer.empty(), row), site.spec, site.scheme)

    spans = observers.in_parallel(one, rows)
    low, high = np.array([s.min for s in spans], np.float32), np.array([s.max for s in spans], np.float32)
    return low, high, folded
