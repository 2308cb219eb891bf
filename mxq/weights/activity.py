"""Values of tensors at places of calibration data, all channels of a place together, as `remedies` needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from mxq.ir import Array, Model, Ref, Runner

PLACES: Final = 512
"""Places of each tensor that are kept in all."""


def sampled(
    runner: Runner, model: Model, refs: Sequence[Ref], feeds: Iterable[Mapping[str, Array]], places: int = PLACES
) -> dict[Ref, Array]:
    """Runs ``model`` over ``feeds`` and keeps some places of each tensor.

    Args:
        runner: what runs the model.
        model: float, fused.
        refs: tensors (N, C) or (N, C, ...); those of another rank, or without channels, are left out.
        feeds: batches, small ones: all tensors of one are held at once. A few are enough; each gives as many places.
        places: how many to keep, drawn at random, the same ones each time.

    Returns:
        Tensor -> (at most ``places``, C) float32.
    """
    call, heads, batches = runner.compile(model, refs), len(model.graph.heads), list(feeds)
    each, rng = -(-places // max(len(batches), 1)), np.random.default_rng(0)
    found: dict[Ref, list[Array]] = {}
    for batch in batches:
        made = call(batch)
        for i, ref in enumerate(refs):
            value = made[heads + i]
            if value.ndim >= 2:
                rows = np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
                chosen = np.sort(rng.choice(len(rows), min(each, len(rows)), replace=False))
                found.setdefault(ref, []).append(np.array(rows[chosen], np.float32))
    return {ref: np.concatenate(parts)[:places] for ref, parts in found.items()}
