"""Labelled pictures for the examples, drawn from scikit-learn's 8x8 handwritten digits.

Two tasks: one digit to classify, or several digits to detect, over cluttered backgrounds.
The pictures of a split use only that split's digits: the first 70 % of the 1797 digits are for
training, the rest is held out. A split and a seed define a sequence of pictures without end, and
picture `i` does not depend on how many are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
from mxnet import gluon
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

CLASSES = tuple("0123456789")
SPLITS = ("train", "test")
TRAIN_SHARE = 0.7
MEAN = (123.0, 123.0, 123.0)  # of each RGB channel, in 0..255
STD = (48.0, 48.0, 48.0)
MAX_OBJECTS = 6

Drawn = TypeVar("Drawn")


def classification(
    n: int, split: str = "train", seed: int = 0, size: int = 48, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures of one digit each.

    Args:
        n: number of pictures.
        split: "train" or "test".
        seed: another seed gives other pictures.
        size: side of the pictures, in pixels.
        start: number of the first picture; the sequence has no end.

    Returns:
        Images (n, size, size, 3) uint8 RGB and labels (n,) int32, the digits.
    """
    images = np.empty((n, size, size, 3), np.uint8)
    labels = np.empty(n, np.int32)
    for i, rng in enumerate(_generators(n, split, seed, start)):
        canvas = _background(rng, size)
        _clutter(rng, canvas, split, count=4)
        alpha, labels[i] = _glyph(rng, split, int(size * rng.uniform(0.4, 0.85)))
        x, y = (rng.integers(0, size - side + 1) for side in alpha.shape[::-1])
        _paste(rng, canvas, alpha, x, y)
        images[i] = _degrade(rng, canvas, blur=1.2)
    return images, labels


def detection(
    n: int, split: str = "train", seed: int = 0, size: int = 300, start: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw pictures of one to six digits each, of 10 % to 60 % of the side.

    Args:
        n: number of pictures.
        split: "train" or "test".
        seed: another seed gives other pictures.
        size: side of the pictures, in pixels.
        start: number of the first picture; the sequence has no end.

    Returns:
        Images (n, size, size, 3) uint8 RGB and, for each, its boxes (k, 5) float32: class, xmin,
        ymin, xmax, ymax, the last four as fractions of the side.
    """
    images = np.empty((n, size, size, 3), np.uint8)
    boxes = []
    for i, rng in enumerate(_generators(n, split, seed, start)):
        canvas = _background(rng, size)
        _clutter(rng, canvas, split, count=10)
        found: list[tuple[float, ...]] = []
        for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
            side = size * np.exp(rng.uniform(np.log(0.1), np.log(0.6)))
            alpha, label = _glyph(rng, split, int(side))
            place = _free_place(rng, alpha.shape, size, found)
            if place is not None:
                _paste(rng, canvas, alpha, *place[:2])
                found.append((label, *place))
        boxes.append(np.array(found, np.float32) / np.float32([1, size, size, size, size]))
        images[i] = _degrade(rng, canvas, blur=1.5)
    return images, boxes


def normalise(images: np.ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> np.ndarray:
    """Turn (N, H, W, 3) uint8 RGB images into network input, (N, 3, H, W) float32."""
    scaled = (images.astype(np.float32) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def pad_boxes(boxes: list[np.ndarray], length: int = MAX_OBJECTS) -> np.ndarray:
    """Stack boxes, N arrays (k, 5), as (N, length, 5) float32; rows of -1 fill up."""
    stacked = np.full((len(boxes), length, 5), -1.0, np.float32)
    for row, each in zip(stacked, boxes, strict=True):
        row[: len(each)] = each
    return stacked


def stream(draw: Callable[..., Drawn], steps: int, batch_size: int, seed: int) -> Iterator[Drawn]:
    """Draw training batches, each while the one before is in use.

    Args:
        draw: `classification` or `detection`.
        steps: number of batches.
        batch_size: pictures in a batch.
        seed: as `draw` takes it.

    Yields:
        What `draw` returns, for `batch_size` new pictures of the training split.
    """
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(draw, batch_size, "train", seed)
        for step in range(1, steps + 1):
            batch = job.result()
            if step < steps:
                job = pool.submit(draw, batch_size, "train", seed, start=step * batch_size)
            yield batch


def loader(images: np.ndarray, labels: np.ndarray, batch_size: int, shuffle: bool = False) -> gluon.data.DataLoader:
    """Batches of normalised images and labels, as Gluon trains and calibrates with.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        labels: (N, ...), for example classes or padded boxes.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: draw in random order.

    Returns:
        A loader of (data (B, 3, H, W) float32, label (B, ...)) pairs.
    """
    dataset = gluon.data.ArrayDataset(normalise(images), labels)
    return gluon.data.DataLoader(dataset, batch_size, shuffle=shuffle)


def _generators(n: int, split: str, seed: int, start: int) -> list[np.random.Generator]:
    """One random generator for each picture."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return [np.random.default_rng((seed, SPLITS.index(split), i)) for i in range(start, start + n)]


@cache
def _digits(split: str) -> tuple[list[Image.Image], list[int]]:
    """The split's digits as 12x12 greyscale pictures (a border of 2), and their classes."""
    bunch = load_digits()
    cut = int(len(bunch.target) * TRAIN_SHARE)
    chosen = slice(0, cut) if split == "train" else slice(cut, None)
    pixels = np.pad(bunch.images[chosen] * (255 / 16), ((0, 0), (2, 2), (2, 2)))
    pictures = [Image.fromarray(p.astype(np.uint8)) for p in pixels]
    return pictures, bunch.target[chosen].tolist()


def _glyph(rng: np.random.Generator, split: str, side: int) -> tuple[np.ndarray, int]:
    """Draw a random digit, rotated, stretched and sheared.

    Returns:
        Opacity (h, w) float32 in [0, 1], cropped to the ink, max(h, w) == side; and the class.
    """
    pictures, labels = _digits(split)
    index = int(rng.integers(len(pictures)))
    angle, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    big = 96  # working resolution, in pixels
    inverse = rotation @ np.array([[stretch, shear], [0, 1 / stretch]]) * (12 / big)
    offset = 6 - inverse @ [big / 2, big / 2]
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    picture = pictures[index].transform((big, big), Image.AFFINE, matrix, Image.BICUBIC)
    level = rng.uniform(0.35, 0.55) * 255  # darker ink than this belongs to the stroke
    left, top, right, bottom = picture.point(lambda v: 255 * (v > level)).getbbox()
    scale = side / max(right - left, bottom - top)
    shape = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    picture = picture.resize(shape, Image.BILINEAR, (left, top, right, bottom))
    softness = rng.uniform(0.05, 0.2) * 255
    alpha = (np.asarray(picture, np.float32) - level) / softness + 0.5
    return alpha.clip(0, 1), labels[index]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth colour noise at three scales: (size, size, 3) float32 in 0..255."""
    coarse = np.full((48, 48, 3), rng.uniform(60, 190, 3), np.float32)
    for cells, strength in ((3, 40), (7, 25), (24, 15)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        smooth = np.asarray(noise.resize((48, 48), Image.BICUBIC), np.float32)
        coarse += (smooth - 128) * (strength * rng.uniform(0.2, 1) / 74)
    picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.array(picture.resize((size, size), Image.BICUBIC), np.float32)


def _clutter(rng: np.random.Generator, canvas: np.ndarray, split: str, count: int) -> None:
    """Draw up to `count` distractors: strokes, arcs, and pieces of digits."""
    size = len(canvas)
    for _ in range(rng.integers(count // 2, count + 1)):
        side = int(size * rng.uniform(0.08, 0.4))
        if rng.random() < 0.4:
            alpha, _ = _glyph(rng, split, side)
            keep = int(alpha.shape[0] * rng.uniform(0.2, 0.4))
            alpha = alpha[:keep] if rng.random() < 0.5 else alpha[-keep:]
        else:
            sketch = Image.new("L", (side, side))
            corners = sorted(rng.integers(0, side, 2)), sorted(rng.integers(0, side, 2))
            box = [corners[0][0], corners[1][0], corners[0][1] + 1, corners[1][1] + 1]
            start, width = rng.uniform(0, 360), max(1, side // 10)
            if rng.random() < 0.5:
                ImageDraw.Draw(sketch).line(rng.permutation(box).tolist(), 255, width)
            else:
                ImageDraw.Draw(sketch).arc(box, start, start + rng.uniform(60, 200), 255, width)
            alpha = np.asarray(sketch, np.float32) / 255
        height, width = alpha.shape
        if height and width:
            x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
            _paste(rng, canvas, alpha, x, y)


def _paste(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray, x: int, y: int) -> None:
    """Blend a random colour, unlike what is there, into the canvas at (x, y) pixels."""
    patch = canvas[y : y + alpha.shape[0], x : x + alpha.shape[1]]
    colours = rng.uniform(0, 255, (4, 3)).astype(np.float32)
    contrast = np.abs((colours - patch.mean((0, 1))).mean(1))
    opacity = alpha[..., None] * np.float32(rng.uniform(0.8, 1))
    patch += opacity * (colours[contrast.argmax()] - patch)


def _free_place(
    rng: np.random.Generator, shape: tuple[int, int], size: int, taken: list[tuple[float, ...]]
) -> tuple[int, int, int, int] | None:
    """Find xmin, ymin, xmax, ymax in pixels that hardly touches the boxes in `taken`."""
    height, width = shape
    for _ in range(20):
        x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        for _, left, top, right, bottom in taken:
            overlap = max(0, min(right, x + width) - max(left, x)) * max(0, min(bottom, y + height) - max(top, y))
            if overlap > 0.15 * min(width * height, (right - left) * (bottom - top)):
                break
        else:
            return x, y, x + width, y + height
    return None


def _degrade(rng: np.random.Generator, canvas: np.ndarray, blur: float) -> np.ndarray:
    """Blur (radius up to `blur` pixels), change contrast and brightness, add noise: uint8."""
    picture = Image.fromarray(canvas.astype(np.uint8))
    picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0, blur)))
    noise = rng.standard_normal(canvas.shape[:2], np.float32)[..., None]
    noise *= np.float32(rng.uniform(2, 12))
    contrast, brightness = rng.uniform(0.5, 1.1), rng.uniform(-30, 30)
    pixels = np.asarray(picture, np.float32) * np.float32(contrast)
    pixels += noise + np.float32(128 * (1 - contrast) + brightness)
    return pixels.clip(0, 255, out=pixels).astype(np.uint8)
