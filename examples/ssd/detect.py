"""Run a detector over uint8 images, and score it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scenes
import voc
from mxnet import nd


def detections(
    block: Callable[[nd.NDArray], nd.NDArray], images: np.ndarray, batch_size: int = 32
) -> list[np.ndarray]:
    """Run a detector.

    Args:
        block: Gluon block, (N, 3, 300, 300) float32 normalised images to (N, n, 6) detections.
        images: (N, 300, 300, 3) uint8 RGB.
        batch_size: images in one forward pass; the last batch may be smaller.

    Returns:
        For each image (m, 6) float32, best first: class, score in [0, 1], xmin, ymin, xmax, ymax
        as fractions of the side. Unused rows (class -1) are dropped.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        batch = nd.array(scenes.normalise(images[start : start + batch_size]))
        found.extend(rows[rows[:, 0] >= 0] for rows in block(batch).asnumpy())
    return found


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
