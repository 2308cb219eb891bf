"""Encoded pictures, decoded: the one place that gives bytes to Pillow.

A picture has up to `MOST_PIXELS`, and one of the formats in `FORMATS`, whatever its file is called. 16 bits a channel
become 8 (the upper ones, as OpenCV does too). Transparency is dropped, CMYK and palettes become RGB, of an animation
the first picture is taken, and a rotation that is noted in EXIF is not applied, as in torchvision and in MXNet's
datasets that Pillow reads.
"""

from __future__ import annotations

import io
import os
import warnings
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import Final

import numpy as np
from PIL import Image, ImageFile

from mxq.errors import DataError
from mxq.formats.reading import opened, understood

FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Decoders of Pillow that are used; it has others, that call programs."""
MOST_PIXELS: Final = 1 << 26
"""67 million: 268 MB, four bytes each in Pillow, and as much again for the conversion to RGB."""
_PLAIN: Final = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of 8 bits a channel, or fewer."""


def decode(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    """An encoded picture, a file or bytes, in a mode of 8 bits a channel.

    Raises:
        DataError: it cannot be read whole, is too large, or has values that are not 8 or 16 bits; the message has its
            ``name``.
    """
    if isinstance(source, bytes):
        return _decoded(io.BytesIO(source), name)
    with opened(source, DataError) as (stream, _):
        return _decoded(stream, name)


def _decoded(stream: io.BufferedIOBase | object, name: str) -> Image.Image:
    with STRICT, understood(f"{name} cannot be read as an image", DataError):
        image = Image.open(stream, formats=FORMATS)  # type: ignore[arg-type]
        if image.width * image.height > MOST_PIXELS:
            raise DataError(f"{name} has {image.width} x {image.height} pixels; allowed: {MOST_PIXELS} in all")
        image.load()
        return _eight_bits(image, name)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _PLAIN:
        return image
    values = np.asarray(image)
    # Pillow holds 16 bits of a PNG or PGM in 32, depending on its version.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((values >> 8).astype(np.uint8))
    raise DataError(f"{name} has values of {values.dtype.itemsize * 8} bits ({image.mode}); allowed: 8 or 16 bits")


class Strict(AbstractContextManager[None]):
    """Makes Pillow refuse truncated files, whatever others set: gluoncv allows them for the whole process.

    Its bound of pixels gives way to ours, which is a matter of memory. Both are settings of the process, so of threads
    that decode at once the first one changes them, and the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.close()


STRICT: Final = Strict()
