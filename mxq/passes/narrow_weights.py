"""Narrow weights: codes of 7 bits for layers whose sums would saturate without VNNI, in files for other runtimes.

Before:  x [-2, 3] -> conv (weights in codes up to 127; those of x, zero point 102, are multiplied as they are, 0..255)
After:   x [-2, 3] -> conv (weights in codes -64..63 of twice the step), which is exact: 2 x 255 x 64 < 32768

MXNet's kernels do this by themselves to convolutions that read s8 ("halved"). Runtimes of ONNX files do not: there a
zero point far from 0 brings every pair of weights closer to saturation, and a bit of the weights may be the smaller
loss. It also is the remedy where which channels make a pair differs between runtimes.

Conditions: the network is for a target without VNNI and has codes of other kernels than MXNet's.
Formula: the layer takes 7 bits where that costs less than the least of what saturates and of limits against it
(`mxq.saturation.remedies.remedy`): rounding to twice the step s adds ``3 s^2 / 12 sum E[x^2]`` to an output's noise. Of
both, other weights make up for all but `FEEDBACK`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from mxq.graph.ir import Array, Node
from mxq.passes.limit_saturation import Layer, saturating
from mxq.quant import NetworkPass, QuantizedNetwork
from mxq.rewrite import NO_EVENTS, Event, Trace
from mxq.saturation.limits import FEEDBACK
from mxq.saturation.remedies import rounding

NAME = "narrow_weights"
BITS = 7
Look: TypeAlias = Callable[[Sequence[Node]], Mapping[str, Array]]
"""Gives samples of what layers read, as `mxq.saturation.activity` does."""


def narrow_weights(look: Look | None = None) -> NetworkPass:
    """Gives weights 7 bits where that costs least; without ``look`` activations are assumed."""

    def run(network: QuantizedNetwork) -> tuple[QuantizedNetwork, Trace]:
        if network.exact or network.is_of_kernels or network.at_run_time:
            return network, NO_EVENTS
        names = [layer.node for layer in saturating(network, network.fused, {})]
        samples = look(names) if look is not None and names else {}
        found = [layer for layer in saturating(network, network.fused, samples) if _is_better(layer)]
        widths = {layer.node.inputs[1].name: BITS for layer in found}
        events = tuple(Event(NAME, NAME, layer.node.name) for layer in found)
        return replace(network, widths={**network.widths, **widths}), Trace(events)

    return NetworkPass(NAME, run)


def _is_better(layer: Layer) -> bool:
    """Whether weights of 7 bits serve a layer best."""
    if not layer.adding.certain:
        return True
    chosen = layer.remedy
    cost = min(chosen.unguarded, FEEDBACK * chosen.cost)
    narrow = 3 * rounding(layer.codes, layer.samples) * float(np.square(layer.step).sum())
    return FEEDBACK * narrow < cost
