"""Run a classifier over uint8 images, and score it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scenes
from mxnet import nd


def logits(
    block: Callable[[nd.NDArray], nd.NDArray],
    images: np.ndarray,
    batch_size: int = 64,
    normalise: Callable[[np.ndarray], np.ndarray] = scenes.normalise,
) -> np.ndarray:
    """Run a classifier.

    Args:
        block: Gluon block, (N, 3, H, W) float32 normalised images to (N, classes).
        images: (N, H, W, 3) uint8 RGB.
        batch_size: images in one forward pass; the last batch may be smaller.
        normalise: turns images into the block's input.

    Returns:
        (N, classes) float32.
    """
    starts = range(0, len(images), batch_size)
    batches = (nd.array(normalise(images[i : i + batch_size])) for i in starts)
    return np.concatenate([block(batch).asnumpy() for batch in batches])


def accuracy(
    block: Callable[[nd.NDArray], nd.NDArray],
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 64,
) -> float:
    """Measure top-1 accuracy.

    Args:
        block: Gluon block, (N, 3, H, W) float32 normalised images to (N, classes).
        images: (N, H, W, 3) uint8 RGB.
        labels: (N,) integers.
        batch_size: images in one forward pass.

    Returns:
        Share of right answers, in [0, 1].
    """
    return float((logits(block, images, batch_size).argmax(1) == labels).mean())
