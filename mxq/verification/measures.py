"""Running measures of two tensors: energies of signal and noise, and detections that pair up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mxq.graph.ir import Array

MIN_IOU = 0.5
MIN_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class Energy:
    """Sums over pairs of tensors (reference, other), enough for SQNR, cosine and the largest error.

    ``broken`` counts elements that are NaN or infinite in one of the two alone; they are in no sum.
    """

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    cross: float = 0.0
    largest: float = 0.0
    broken: int = 0

    def update(self, reference: Array, other: Array) -> Energy:
        """Adds one pair of tensors of equal shape."""
        x, y = (np.asarray(a, np.float64).ravel() for a in (reference, other))
        fine = np.isfinite(x) & np.isfinite(y)
        broken = 0
        if not fine.all():
            broken = int(np.sum(~(fine | (x == y) | (np.isnan(x) & np.isnan(y)))))
            x, y = x[fine], y[fine]
        error = y - x
        return Energy(
            self.signal + float(x @ x),
            self.noise + float(error @ error),
            self.other + float(y @ y),
            self.cross + float(x @ y),
            max(self.largest, float(np.max(np.abs(error), initial=0.0))),
            self.broken + broken,
        )

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, in dB: inf where both are equal, -inf where an element broke."""
        if self.broken:
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero, 0 where one is."""
        if self.signal == 0 or self.other == 0:
            return float(self.signal == self.other)
        return min(self.cross / math.sqrt(self.signal * self.other), 1.0)


@dataclass(frozen=True, slots=True)
class Boxes:
    """Detections scoring above `MIN_SCORE`, and how many of them pair up: same class, IoU at least `MIN_IOU`."""

    float_boxes: int = 0
    int8_boxes: int = 0
    matched: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of all boxes, of both models, that have a partner; None where there are no boxes."""
        total = self.float_boxes + self.int8_boxes
        return 2 * self.matched / total if total else None


def match_boxes(reference: Array, other: Array) -> Boxes:
    """Pairs the detections of one image, best score first, each used once.

    Args:
        reference: (N, 6) float, rows of class, score, and the corners x0, y0, x1, y1; class -1 is padding.
        other: (M, 6), likewise.
    """
    left, right = (_detections(rows) for rows in (reference, other))
    free = np.ones(len(right), bool)
    matched = 0
    for box in left:
        overlap = _iou(box[2:], right[:, 2:]) * (free & (right[:, 0] == box[0]))
        if overlap.size and overlap.max() >= MIN_IOU:
            free[overlap.argmax()] = False
            matched += 1
    return Boxes(len(left), len(right), matched)


def _detections(rows: Array) -> Array:
    """The boxes that count, best score first."""
    kept: Array = rows[(rows[:, 0] >= 0) & (rows[:, 1] > MIN_SCORE)]
    ranked: Array = kept[np.argsort(-kept[:, 1], kind="stable")]
    return ranked


def _iou(box: Array, others: Array) -> Array:
    """Intersection over union of one box (4,) with many (M, 4), corners x0, y0, x1, y1."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - common
    shares: Array = np.divide(common, areas, out=np.zeros_like(common), where=areas > 0)
    return shares
