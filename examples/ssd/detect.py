"""Run a detector over uint8 images, and score it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scenes
import voc
from mxnet import nd


def detections(
    block: Callable[[nd.NDArray], Any],
    images: np.ndarray,
    batch_size: int = 32,
    normalise: Callable[[np.ndarray], np.ndarray] = scenes.normalise,
) -> list[np.ndarray]:
    """Run a detector.

    Args:
        block: Gluon block, (N, 3, side, side) float32 images to (N, n, 6) detections, or to gluoncv's
            ids, scores and corners in pixels.
        images: (N, side, side, 3) uint8 RGB.
        batch_size: images in one forward pass; the last batch may be smaller.
        normalise: turns images into the block's input.

    Returns:
        For each image (m, 6) float32, best first: class, score in [0, 1], xmin, ymin, xmax, ymax
        as fractions of the side. Unused rows (class -1) are dropped.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        result = block(nd.array(normalise(images[start : start + batch_size])))
        found.extend(rows[rows[:, 0] >= 0] for rows in _rows(result, images.shape[1]))
    return found


def _rows(result: Any, side: int) -> np.ndarray:
    """(N, n, 6) rows from what a network gives: such rows, or gluoncv's ids, scores and corners in pixels."""
    if isinstance(result, nd.NDArray):
        return result.asnumpy()
    ids, scores, corners = (part.asnumpy() for part in result[:3])
    return np.concatenate([ids, scores, corners / side], axis=2)


def mean_ap(
    found: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    classes: int = len(scenes.CLASSES),
    eleven_point: bool = True,
) -> float:
    """Score detections: VOC mean average precision at an overlap of 0.5.

    Args:
        found: what `detections` returned.
        boxes: for each image (k, 5): class, xmin, ymin, xmax, ymax as fractions of the side.
        classes: number of classes.
        eleven_point: as in VOC 2007; False takes the area under the curve.

    Returns:
        mAP in [0, 1].
    """
    return voc.mean_ap(found, boxes, classes, eleven_point=eleven_point).mean
