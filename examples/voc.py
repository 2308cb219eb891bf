"""Average precision as Pascal VOC defines it, and reading of VOC-layout directories.

Boxes are continuous: a box covers xmin..xmax, and its width is xmax - xmin. VOC files hold the
numbers of the first and last pixel, counted from 1; `read` turns them into edges, which makes
the overlap equal to the VOC development kit's, where one is added to every width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class Sample(NamedTuple):
    """One annotated picture.

    Attributes:
        path: the JPEG file.
        boxes: (k, 5) float32: class, xmin, ymin, xmax, ymax, as fractions of width and height.
        difficult: (k,) bool, objects that are neither rewarded nor punished.
    """

    path: Path
    boxes: np.ndarray
    difficult: np.ndarray


class Score(NamedTuple):
    """Result of `mean_ap`.

    Attributes:
        mean: mean of the classes that occur; NaN where none does.
        classes: (C,) float64 average precision, NaN for classes without objects.
    """

    mean: float
    classes: np.ndarray


def read(root: Path, classes: Sequence[str] = CLASSES, image_set: str | None = None) -> list[Sample]:
    """List the pictures of a directory with `JPEGImages` and `Annotations`.

    Args:
        root: the directory.
        classes: names in the order of their numbers; objects of other classes are left out.
        image_set: name of a list in `ImageSets/Main`, for example "test"; None takes every
            annotation.

    Returns:
        Samples, sorted by name or in the order of the list.

    Raises:
        FileNotFoundError: nothing was found, or a listed picture is missing.
    """
    if image_set is None:
        names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    else:
        lines = (root / "ImageSets" / "Main" / f"{image_set}.txt").read_text().splitlines()
        names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise FileNotFoundError(f"no annotated pictures in {root}")
    samples = []
    for name in names:
        path = root / "JPEGImages" / f"{name}.jpg"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is annotated but missing")
        samples.append(Sample(path, *_objects(root / "Annotations" / f"{name}.xml", classes)))
    return samples


def load_images(samples: Sequence[Sample], size: int) -> np.ndarray:
    """Read pictures, stretched to a square: (N, size, size, 3) uint8 RGB."""
    images = np.empty((len(samples), size, size, 3), np.uint8)
    for image, sample in zip(images, samples, strict=True):
        with Image.open(sample.path) as picture:
            image[:] = picture.convert("RGB").resize((size, size), Image.BILINEAR)
    return images


def mean_ap(
    detections: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    classes: int,
    *,
    difficult: Sequence[np.ndarray] | None = None,
    overlap: float = 0.5,
    eleven_point: bool = True,
) -> Score:
    """Compute mean average precision.

    Args:
        detections: for each picture (m, 6): class, score, xmin, ymin, xmax, ymax. Rows with a
            negative class are ignored. Any unit of length, the same as in `truths`.
        truths: for each picture (k, 5): class, xmin, ymin, xmax, ymax.
        classes: number of classes.
        difficult: for each picture (k,) bool; None means that no object is difficult.
        overlap: a detection is right from this intersection over union on.
        eleven_point: True as in VOC 2007, False for the area under the curve (from VOC 2010 on).

    Returns:
        Mean and values by class, in [0, 1].

    Raises:
        ValueError: the numbers of pictures differ.
    """
    if difficult is None:
        difficult = [np.zeros(len(truth), bool) for truth in truths]
    if not len(detections) == len(truths) == len(difficult):
        raise ValueError(
            f"{len(detections)} detections, {len(truths)} truths and {len(difficult)} difficult "
            "flags: give one of each per picture"
        )
    values = np.full(classes, np.nan)
    for label in range(classes):
        scores, hits, objects = [], [], 0
        for found, truth, hard in zip(detections, truths, difficult, strict=True):
            mine, targets = found[found[:, 0] == label], truth[:, 0] == label
            mine = mine[np.argsort(-mine[:, 1], kind="stable")]
            hit, counts = _match(mine[:, 2:], truth[targets, 1:], hard[targets], overlap)
            scores.append(mine[counts, 1])
            hits.append(hit[counts])
            objects += int((~hard[targets]).sum())
        if objects:
            values[label] = _average_precision(np.concatenate(scores), np.concatenate(hits), objects, eleven_point)
    known = values[~np.isnan(values)]
    return Score(float(known.mean()) if len(known) else float("nan"), values)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (m, 4) and (k, 4), corners in one unit: (m, k)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.maximum(high - low, 0), axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b[None] - inner
    return inner / np.maximum(union, np.finfo(np.float32).tiny)


def _objects(path: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read one annotation: boxes and difficult flags as in `Sample`."""
    tree = ET.parse(path).getroot()  # noqa: S314  (the user's own files)
    width, height = (float(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError(f"{path}: width and height must be positive, got {width} x {height}")
    boxes, difficult = [], []
    for item in tree.iter("object"):
        name = item.findtext("name", "").strip()
        if name not in classes:
            continue
        corners = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(item.findtext(f"bndbox/{c}", "nan")) for c in corners)
        edges = ((left - 1) / width, (top - 1) / height, right / width, bottom / height)
        boxes.append((classes.index(name), *edges))
        difficult.append(item.findtext("difficult", "0").strip() == "1")
    return np.array(boxes, np.float32).reshape(-1, 5), np.array(difficult, bool)


def _match(
    boxes: np.ndarray, truths: np.ndarray, difficult: np.ndarray, overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Match one picture's boxes of one class to its objects, best score first.

    Args:
        boxes: (m, 4), in order of falling score.
        truths: (k, 4).
        difficult: (k,) bool.
        overlap: least intersection over union.

    Returns:
        (m,) bool, the box is the first to find its object; and (m,) bool, the box counts (it
        did not find a difficult object).
    """
    hit, counts = np.zeros(len(boxes), bool), np.ones(len(boxes), bool)
    if not len(boxes) or not len(truths):
        return hit, counts
    overlaps = iou(boxes, truths)
    taken = np.zeros(len(truths), bool)
    for i, target in enumerate(overlaps.argmax(axis=1)):
        if overlaps[i, target] < overlap:
            continue
        counts[i] = not difficult[target]
        hit[i] = counts[i] and not taken[target]
        taken[target] = True
    return hit, counts


def _average_precision(scores: np.ndarray, hits: np.ndarray, objects: int, eleven_point: bool) -> float:
    """Average precision of one class, from (m,) scores and (m,) hits of all pictures."""
    found = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    recall = found / objects
    precision = found / np.arange(1, len(found) + 1)
    if eleven_point:
        levels = np.arange(0.0, 1.1, 0.1)
        return float(np.mean([precision[recall >= t].max(initial=0.0) for t in levels]))
    recall = np.concatenate([[0.0], recall])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))
