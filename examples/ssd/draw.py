"""Draw detections: the float network's left, the INT8 network's right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scenes
from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6",
    "#bfef45", "#fabed4",
)  # fmt: skip
GAP = 12  # between pictures, in pixels
TITLE = 34  # height of the title line, in pixels
TEXT = ImageFont.load_default(15)
HEADING = ImageFont.load_default(20)


def draw_detections(
    image: np.ndarray,
    found: np.ndarray,
    classes: Sequence[str] = scenes.CLASSES,
    threshold: float = 0.5,
    side: int = 480,
) -> Image.Image:
    """Draw boxes with class and score into one picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: (m, 6): class, score in [0, 1], xmin, ymin, xmax, ymax as fractions of the side.
        classes: names of the classes.
        threshold: boxes with a lower score are left out.
        side: width of the drawing, in pixels; the picture is enlarged to it.

    Returns:
        The drawing, `side` pixels wide, in the picture's proportions.
    """
    height = round(side * image.shape[0] / image.shape[1])
    picture = Image.fromarray(image).resize((side, height), Image.BICUBIC)
    pen = ImageDraw.Draw(picture)
    shown = found[(found[:, 0] >= 0) & (found[:, 1] >= threshold)]
    for label, score, *corners in shown[np.argsort(shown[:, 1])]:  # the best on top
        box = np.clip(corners, 0, 1) * [side, height, side, height]
        colour = COLOURS[int(label) % len(COLOURS)]
        pen.rectangle(box.tolist(), outline=colour, width=3)
        _label(pen, box[0], box[1], f"{classes[int(label)]}  {score:.2f}", colour, side)
    return picture


def side_by_side(
    images: np.ndarray,
    left: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
    path: Path,
    *,
    titles: tuple[str, str] = ("float32", "INT8"),
    classes: Sequence[str] = scenes.CLASSES,
    threshold: float = 0.5,
    side: int = 480,
) -> None:
    """Write one PNG: a row for each image, one network's detections left, the other's right.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        left: for each image (m, 6) detections, as `draw_detections` takes them.
        right: the same of the other network.
        path: the PNG file to write; its directory is created.
        titles: headings of the columns.
        classes: names of the classes.
        threshold: boxes with a lower score are left out.
        side: width of each picture, in pixels.

    Raises:
        ValueError: the numbers of images and detections differ.
    """
    if not len(images) == len(left) == len(right):
        raise ValueError(f"got {len(images)} images, {len(left)} left and {len(right)} right detections")
    height = round(side * images.shape[1] / images.shape[2])
    size = (2 * side + 3 * GAP, TITLE + GAP + len(images) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, detections) in enumerate(zip(titles, (left, right), strict=True)):
        x = GAP + column * (side + GAP)
        pen.text((x + side / 2, GAP), title, "black", HEADING, anchor="mt")
        for row, (image, found) in enumerate(zip(images, detections, strict=True)):
            picture = draw_detections(image, found, classes, threshold, side)
            sheet.paste(picture, (x, TITLE + GAP + row * (height + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _label(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, limit: int) -> None:
    """Write text on a coloured ground above (x, y), or below where there is no room."""
    _, _, width, height = pen.textbbox((0, 0), text, TEXT)
    width, height = width + 8, height + 6
    x = min(x, limit - width)
    y = y - height if y >= height else y
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = sum(Image.new("RGB", (1, 1), colour).getpixel((0, 0))) < 330
    pen.text((x + 4, y + 2), text, "white" if dark else "black", TEXT)
