"""From a picture to a network's input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from PIL import Image

from mxq.errors import ConfigError, DataError, FormatError, one_of
from mxq.formats.documents import read_json
from mxq.graph.ir import Array

COLORS = ("RGB", "BGR", "GRAY")
LAYOUTS = ("NCHW", "NHWC")
REMARKS = ("classes", "output")
"""Fields of a ``preprocess.json`` that describe the network and are not read."""
LARGEST: Final = 1e12
"""The bound of ``mean``, ``std`` and ``scale``, and of what they are divided into: any result is finite in float32."""
MOST_PIXELS: Final = 1 << 24
"""Of one example, 4096 x 4096: 200 MB in float32."""
LARGEST_RESIZED: Final = 1 << 26
NEAR: Final = 0.02
"""How far from a whole number a pixel may be that float32 has held prepared."""
MOST_LABEL: Final = 1 << 31
VALUES: Final = ("mean", "std", "scale", "color", "layout", "rotate180")
"""Fields on which the numbers of a picture of given size depend."""

RAW: Final = (
    "pictures go in as 0..255, as nothing says otherwise; ranges and answers will be wrong where the network was "
    "trained on normalised ones. Give --mean and --std, or preprocess.json beside the network, in Python "
    "preprocess={'mean': ..., 'std': ...}; or --scale 1, scale 1 in either, if 0..255 is right"
)
"""What to say where pictures are read and nothing says by which settings."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From a picture to a network's input: resize, crop, then ``(pixel * scale - mean) / std`` per channel.

    Attributes:
        short_side: the shorter side becomes this long, in pixels; the picture keeps its proportions.
        crop: (height, width) cut from the middle.
        resize: (height, width) to stretch to, instead of ``short_side`` and ``crop``.
        mean, std: per channel, in units of ``pixel * scale``; one number stands for all channels.
        scale: multiplies the pixels (0..255) first; 1/255 where mean and std are in 0..1.
        color: channel order "RGB" or "BGR", or "GRAY" for one channel.
        layout: "NCHW" or "NHWC".
        rotate180: turn the picture upside down.
        label_offset: added to labels, 1 where the network's class 0 is the background.
    """

    short_side: int | None = None
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    color: str = "RGB"
    layout: str = "NCHW"
    rotate180: bool = False
    label_offset: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("color", COLORS), ("layout", LAYOUTS)):
            if getattr(self, name) not in allowed:
                raise one_of(name, getattr(self, name), allowed)
        for name in ("crop", "resize"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        if self.short_side is not None:
            whole("short_side", self.short_side, 1)
        whole("label_offset", self.label_offset, -MOST_LABEL, MOST_LABEL)
        if not isinstance(self.rotate180, bool):
            raise one_of("rotate180", self.rotate180, (True, False))
        if self.resize and (self.crop or self.short_side):
            raise ConfigError(f"resize is {self.resize} beside short_side or crop; allowed: one way or the other")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name))
        if not all(s >= 1 / LARGEST for s in self.std):
            raise ConfigError(f"std is {self.std}; allowed: numbers from {1 / LARGEST:g} to {LARGEST:g}")
        if not (_is_number(self.scale) and self.scale >= 1 / LARGEST):
            raise ConfigError(f"scale is {self.scale!r}; allowed: a number from {1 / LARGEST:g} to {LARGEST:g}")
        object.__setattr__(self, "scale", float(self.scale))  # also one of numpy's, which JSON has no word for

    @property
    def channels(self) -> int:
        return 1 if self.color == "GRAY" else 3

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the network's input; None where it depends on the picture."""
        return self.resize or self.crop

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one example in ``layout``, without the batch; None where it depends on the picture."""
        if self.size is None:
            return None
        return (self.channels, *self.size) if self.layout == "NCHW" else (*self.size, self.channels)

    def __call__(self, image: Image.Image) -> Array:
        """One picture to one example: float32, (C, H, W) or (H, W, C) by ``layout``.

        Raises:
            DataError: the crop does not fit.
        """
        example = self.normalized(self.pixels(image))
        if self.layout == "NCHW":
            example = example.transpose(2, 0, 1)
        return np.ascontiguousarray(example, np.float32)

    def pixels(self, image: Image.Image) -> Array:
        """One picture as it is before ``mean``, ``std`` and ``scale`` have their say: (H, W, C) uint8, 0..255.

        Raises:
            DataError: the crop does not fit.
        """
        mode = "L" if self.color == "GRAY" else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if self.resize:
            image = _resized(image, self.resize)
        if self.short_side:
            ratio = self.short_side / min(image.size)
            image = _resized(image, (round(image.height * ratio), round(image.width * ratio)))
        if self.crop:
            image = _centre(image, self.crop)
        if image.width * image.height > MOST_PIXELS:
            raise DataError(f"an example of {image.height}x{image.width} pixels is too large; set short_side or resize")
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, self.channels)
        if self.rotate180:
            pixels = pixels[::-1, ::-1]
        if self.color == "BGR":
            pixels = pixels[..., ::-1]
        return pixels

    def normalized(self, pixels: Array) -> Array:
        """``(pixel * scale - mean) / std``: (..., C) of any type becomes (..., C) float32."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values: Array = pixels.astype(np.float32)
        values *= np.float32(self.scale)  # in place: a picture may be large
        values -= mean
        values /= std
        return values

    def restored(self, values: Array) -> Array:
        """The pixels that a batch was made from: (N, C, H, W) or (N, H, W, C) by ``layout``; float64, not rounded."""
        shape = (-1, 1, 1) if self.layout == "NCHW" else (-1,)
        mean, std = (np.asarray(v).reshape(shape) for v in (self.mean, self.std))
        found: Array = (np.asarray(values, np.float64) * std + mean) / self.scale
        return found

    def as_fed(self, values: Array) -> Array:
        """The pictures that a batch was made from, as files take them that prepare pictures themselves.

        Args:
            values: (N, C, H, W) or (N, H, W, C) by ``layout``, made by these settings.

        Returns:
            (N, H, W, C) uint8, the channels red, green, blue.

        Raises:
            DataError: they were not made of pixels so.
        """
        pixels = self.restored(values)
        codes = np.rint(np.clip(pixels, 0, 255))
        odd = np.abs(pixels - codes).max(initial=0)
        if not odd <= NEAR:
            raise DataError(
                f"the data is no pictures prepared by {self.to_json()}: it is {odd:.3g} away from whole pixels of 0 to "
                "255; allowed: pictures, or arrays that these settings made of some"
            )
        codes = codes.transpose(0, 2, 3, 1) if self.layout == "NCHW" else codes
        codes = codes[..., ::-1] if self.color == "BGR" else codes
        codes = codes[:, ::-1, ::-1] if self.rotate180 else codes
        return np.ascontiguousarray(codes, np.uint8)

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON-ready dictionary, those that say nothing left out."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}

    @staticmethod
    def from_json(data: Any, source: str = "preprocess") -> Preprocess:
        """Reads a dictionary with the fields above; ``width`` and ``height`` may stand for ``resize``.

        Raises:
            FormatError: an unknown field; the message names it and the allowed ones.
            ConfigError: a field has a value that is not allowed.
        """
        if not isinstance(data, dict):
            raise FormatError(f"{source} is a {type(data).__name__}; it should be a table of settings")
        table = {k: v for k, v in data.items() if k not in REMARKS}
        if "width" in table and "height" in table:
            how = str(table.pop("resize", "stretch"))
            if not how.startswith("stretch"):
                raise ConfigError(f"{source}: resize is {how!r} beside width and height; allowed: 'stretch'")
            table["resize"] = (table.pop("height"), table.pop("width"))
        known = [f.name for f in fields(Preprocess)]
        for name in table:
            if name not in known:
                raise FormatError(f"{source} has an unknown field {name!r}; allowed: {', '.join(known)}")
        try:
            return Preprocess(**table)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def _per_channel(self, name: str) -> tuple[float, ...]:
        value = getattr(self, name)
        numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if len(numbers) not in (1, self.channels) or not all(map(_is_number, numbers)):
            raise ConfigError(
                f"{name} is {value!r}; allowed: one number, or {self.channels} for color {self.color!r}, "
                f"up to {LARGEST:g}"
            )
        found = tuple(map(float, numbers))
        return found * self.channels if len(found) == 1 else found


def read_preprocess(path: str | os.PathLike[str]) -> Preprocess:
    """Reads a ``preprocess.json``.

    Raises:
        FormatError: no such file, not JSON, or an unknown field.
        ConfigError: a field has a value that is not allowed.
    """
    return Preprocess.from_json(read_json(path), os.fspath(path))


def _is_number(value: Any) -> bool:
    """Whether it is a number of moderate size: not NaN, and no truth value."""
    return isinstance(value, int | float | np.number) and value is not True and value is not False and _moderate(value)


def _moderate(value: Any) -> bool:
    return bool(-LARGEST <= value <= LARGEST)  # compared before it is a float, which 400 digits cannot become


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if height * width > LARGEST_RESIZED:
        raise DataError(
            f"a picture of {image.height}x{image.width} would become {height}x{width}, which is too large; set resize"
        )
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if height > image.height or width > image.width:
        raise DataError(f"crop {height}x{width} does not fit a picture of {image.height}x{image.width}; set short_side")
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def _size(name: str, value: Any) -> tuple[int, int] | None:
    """One number is a square, two are (height, width)."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2:
        raise ConfigError(f"{name} is {value!r}; allowed: a side, or (height, width)")
    for side in pair:
        whole(name, side, 1)
    if pair[0] * pair[1] > MOST_PIXELS:
        raise ConfigError(f"{name} is {value!r}; allowed: up to {MOST_PIXELS} pixels")
    return pair[0], pair[1]


def whole(name: str, value: Any, least: int, most: int = 1 << 31) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from {least}" + _up_to(value, most))


def _up_to(value: Any, most: int) -> str:
    return f" to {most}" if isinstance(value, int) and value > most else ""
