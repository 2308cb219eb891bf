"""Large arrays in pieces, so that what is computed of them takes little memory beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

WHOLE: Final = 1 << 24
"""Values up to which an array is one piece; of larger ones, half as many are."""


def pieces(length: int, each: int) -> Iterator[slice]:
    """Parts of an axis of that ``length`` whose entries have ``each`` so many values."""
    some = length if length * each <= WHOLE else max(1, WHOLE // (2 * max(each, 1)))
    for start in range(0, length, max(some, 1)):
        yield slice(start, min(start + some, length))
