"""What layers multiply with their weights at places of calibration data, as `remedies` needs it.

A convolution multiplies receptive fields, a fully connected layer rows: all axes but the first as one, or the last axis
(``flatten=False``). Which axis of a tensor are a layer's inputs is that layer's matter, so samples are kept for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from mxq.backends import the_layer_of
from mxq.calibration.patches import Geometry, inputs_at
from mxq.graph.ir import Array, Model, Node, Runner

PLACES: Final = 512
"""Places of each layer's output that are looked at in all."""
VALUES: Final = 1 << 23
"""Values that are kept for a layer: fewer places of one with more inputs."""


def sampled(
    runner: Runner, model: Model, nodes: Sequence[Node], feeds: Iterable[Mapping[str, Array]], places: int = PLACES
) -> dict[str, Array]:
    """Runs ``model`` over ``feeds`` and keeps what some places of each layer's output are made from.

    Args:
        runner: what runs the model.
        model: float, fused.
        nodes: layers of ``model``; of one with groups, what each group reads counts as a place of its own.
        feeds: batches, small ones: all tensors of one are held at once. A few are enough; each gives as many places.
        places: how many to keep, drawn at random, the same ones each time.

    Returns:
        Name of a layer -> (at most ``places``, I, K) float32: I inputs as in the weight's axis 1, K kernel positions.
    """
    refs = list(dict.fromkeys(n.inputs[0] for n in nodes))
    call, heads, batches = runner.compile(model, refs), len(model.graph.heads), list(feeds)
    rng, found = np.random.default_rng(0), dict[str, list[Array]]()
    most = {n.name: _most(model, n, places) for n in nodes}
    for batch in batches:
        made = dict(zip(refs, list(call(batch))[heads:], strict=True))
        for node in nodes:
            each = -(-most[node.name] // len(batches))
            found.setdefault(node.name, []).append(_fields(node, made[node.inputs[0]], each, rng))
    return {name: np.concatenate(parts)[: most[name]] for name, parts in found.items()}


def _most(model: Model, node: Node, places: int) -> int:
    """How many places of a layer are kept."""
    return min(places, max(1, VALUES // int(model.args[node.inputs[1].name][0].size)))


def _fields(node: Node, value: Array, count: int, rng: np.random.Generator) -> Array:
    """(n, I, K): what ``count`` places of a layer's output are made from, all where there are fewer."""
    geometry = Geometry.of(the_layer_of(node))
    total = geometry.places_of(value.shape)
    chosen = np.sort(rng.choice(total, min(count, total), replace=False))
    groups = inputs_at([value], [chosen], geometry)  # taps, then channels
    rows, taps = groups.reshape(-1, groups.shape[2]), int(np.prod(geometry.kernel))
    rows = rows[np.sort(rng.choice(len(rows), count, replace=False))] if len(rows) > count else rows
    return np.ascontiguousarray(rows.reshape(len(rows), taps, -1).swapaxes(1, 2), np.float32)
