"""What is known of tensors before a network runs: their types, and shapes in which the batch size may be left open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias


@dataclass(frozen=True, slots=True, order=True)
class PerBatch:
    """A size that follows the number of examples in a batch: ``times * batch + plus``."""

    times: int = 1
    plus: int = 0

    def __str__(self) -> str:
        product = "batch" if self.times == 1 else f"{self.times}*batch"
        return f"{product}{self.plus:+d}" if self.plus else product


@dataclass(frozen=True, slots=True, order=True)
class Open:
    """A size that follows that of pictures of any size, by a rule that is not said; equal ones have one ``name``."""

    name: str

    def __str__(self) -> str:
        return self.name


Side: TypeAlias = int | PerBatch | Open
Shape: TypeAlias = tuple[Side, ...]

BATCH: Final = PerBatch()


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a network: its ``shape``, and its ``dtype`` by numpy's name."""

    shape: Shape
    dtype: str = "float32"


def size_of(shape: Iterable[Side]) -> Side | None:
    """The number of values, or None where that is no multiple of the batch size."""
    sides = tuple(shape)
    if any(isinstance(side, Open) for side in sides):
        return None
    fixed = math.prod(side for side in sides if isinstance(side, int))
    open_ = [side for side in sides if isinstance(side, PerBatch)]
    if not open_ or not fixed:
        return fixed
    (one, *more) = open_
    return None if more else PerBatch(fixed * one.times, fixed * one.plus)


def affine(batches: Sequence[int], sizes: Sequence[int]) -> Side | None:
    """The side that has these ``sizes`` at these two or more ``batches``; None where it is not affine in them."""
    times, rest = divmod(sizes[1] - sizes[0], batches[1] - batches[0])
    plus = sizes[0] - times * batches[0]
    if rest or any(times * batch + plus != size for batch, size in zip(batches, sizes, strict=True)):
        return None
    return PerBatch(times, plus) if times else plus
