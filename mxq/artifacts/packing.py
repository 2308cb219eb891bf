"""Float weights as the codes and steps that they were written from.

A pair holds weights as float32, because MXNet's kernels quantize them when they load. The methods of `mxq.weights`
write code k of a row as ``fl(k * step)``, and its extreme weight so that the kernel finds that step again (see
`mxq.weights.grid`). So codes, one step a row and the few values that are no multiple give every weight back, bit for
bit. A step is not in the file: any number will do for which all products round to the weights that are there. They are
an interval for each weight, and the steps of a row what these have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.formats.unpack import restored
from mxq.graph.ir import Array

SPANS: Final = (127.5, 63.75)
"""What the extreme weight is in steps: of the kernels' grid, and of that of kernels that halve codes."""
MOST: Final = 127
WORTH: Final = 0.5
"""Packed in more than this share of its bytes, an array stays as it is."""


@dataclass(frozen=True)
class Packed:
    """A float32 array (O, ...) in parts.

    Attributes:
        codes: of its shape, int8.
        steps: (O,) float64.
        places: (E,) int64, flat, of what is no code times its row's step.
        values: (E,) float32, what stands there.
    """

    codes: Array
    steps: Array
    places: Array
    values: Array

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in (self.codes, self.steps, self.places, self.values))

    def restored(self) -> Array:
        """The array."""
        found: Array = restored(self.codes, self.steps, self.places, self.values)
        return found


def packed(array: Array) -> Packed | None:
    """The parts of an array, which give it back bit for bit; None where they would not be much smaller.

    Args:
        array: (O, ...) of any type; float32 with two axes or more may have parts.
    """
    if array.dtype != np.float32 or array.ndim < 2 or not array.size:
        return None
    found = min((_packed(array, scale) for scale in _scales(array)), key=lambda parts: parts.nbytes)
    return found if found.nbytes <= WORTH * array.nbytes else None


def _scales(array: Array) -> Iterator[Array]:
    """Steps to begin with, (O,): by the extreme weight of the row, or of all."""
    largest = np.abs(array.reshape(len(array), -1)).max(axis=1).astype(np.float64)
    for extreme in (largest, np.full_like(largest, largest.max())):
        for span in SPANS:
            yield np.where(extreme > 0, extreme / span, 1.0)


def _packed(array: Array, scale: Array) -> Packed:
    rows = array.reshape(len(array), -1)
    with np.errstate(invalid="ignore", over="ignore"):  # values that are no number are kept as they are
        ratios = rows / scale[:, None]
        codes = np.nan_to_num(np.clip(np.rint(ratios), -MOST, MOST)).astype(np.int8)
        steps = _steps(rows, codes, np.abs(ratios) <= MOST + 0.25, scale)
        off = (codes * steps[:, None]).astype(np.float32).view(np.uint32) != rows.view(np.uint32)
    places = np.flatnonzero(off)
    return Packed(codes.reshape(array.shape), steps, places, array.reshape(-1)[places])


def _steps(rows: Array, codes: Array, inner: Array, scale: Array) -> Array:
    """For each row a step whose products round to its weights, where there is one for all that are ``inner``."""
    used = inner & (codes != 0)
    sizes, counts = np.abs(rows), np.abs(codes.astype(np.float64))
    ends = [(np.nextafter(sizes, np.float32(end)).astype(np.float64) + sizes) / 2 for end in (0, np.inf)]
    with np.errstate(divide="ignore"):
        low, high = (end / counts for end in ends)
    low, high = np.where(used, low, 0).max(axis=1), np.where(used, high, np.inf).min(axis=1)
    return np.where(used.any(axis=1), (low + np.where(np.isfinite(high), high, low)) / 2, scale)
