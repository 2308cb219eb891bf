"""Calibrated ranges: `Range`, `Threshold` (a range with its provenance) and `Thresholds`, their table, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from mxq.errors import CalibrationError, FormatError
from mxq.formats.documents import Count, converted, parse_json
from mxq.graph.ir import reduced
from mxq.numerics import LARGEST
from mxq.text import Shown

FORMAT = "mxq-thresholds/1"
FIXED: Final = "fixed"
"""What files, and who makes a `Threshold`, call the observer of a range that nobody is to change; before any ":"."""


@dataclass(frozen=True, slots=True)
class Range:
    """The interval that codes will cover: ``min`` and ``max`` in activation units.

    Raises:
        CalibrationError: a bound is NaN, infinite or beyond float32, or ``min`` > ``max``.
    """

    min: float
    max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max)):
            raise CalibrationError(f"range [{self.min}, {self.max}] is not finite")
        if max(abs(self.min), abs(self.max)) > LARGEST:
            raise CalibrationError(f"range [{self.min}, {self.max}] is beyond float32; allowed: up to {LARGEST:.4g}")
        if self.min > self.max:
            raise CalibrationError(f"range [{self.min}, {self.max}] has its minimum above its maximum")

    @property
    def absmax(self) -> float:
        return max(abs(self.min), abs(self.max))

    def union(self, other: Range) -> Range:
        return Range(min(self.min, other.min), max(self.max, other.max))

    def times(self, factor: float) -> Range:
        return Range(self.min * factor, self.max * factor)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one calibrator, by its spec, would have chosen, and its expected error (see `mxq.observers.auto`)."""

    observer: str
    range: Range
    error: float


class RangeKind(Enum):
    """What a range is, and so what may be done with it."""

    CALIBRATED = "calibrated"
    """Found in data; it may be changed."""
    FIXED = "fixed"
    """Given; nobody changes it, and nobody scales the tensor's channels. One whose tensor is shifted moves with it."""
    DERIVED = "derived"
    """Of other values than were observed: the tensor was scaled or shifted since, or is made of what was observed."""


class Oddity(Enum):
    """What is odd about the values of a tensor: a sign of broken data or a dead layer."""

    ALL_ZERO = "all zero"
    CONSTANT = "constant"

    @staticmethod
    def between(low: float, high: float) -> Oddity | None:
        """Of values between these bounds, both of which occur; None where there is nothing odd."""
        if low != high:
            return None
        return Oddity.ALL_ZERO if low == 0 else Oddity.CONSTANT


@dataclass(frozen=True, slots=True)
class Threshold:
    """One tensor's range and where it came from.

    ``observer`` is the spec of the calibrator ("naive", "percentile:99.9", "fixed", ...), ``source`` says what asked
    for it ("calib_mode", "overrides 'stage1_*'", ...), ``examples`` and ``batches`` say how much data it saw,
    ``observed`` is the plain minimum and maximum of that data, ``note`` anything worth reporting (the tensor was
    constant, clipped by hand, ...). Where "auto" chose, ``candidates`` are what it chose from, the best first.
    ``kind`` is in no file; the observer `FIXED`, whatever its parameters, makes it fixed.
    """

    range: Range
    observer: str
    examples: Count = 0
    batches: Count = 0
    observed: Range | None = None
    note: str = ""
    source: str = ""
    candidates: tuple[Candidate, ...] = ()
    kind: RangeKind = RangeKind.CALIBRATED

    def __post_init__(self) -> None:
        if self.observer.partition(":")[0] == FIXED:
            object.__setattr__(self, "kind", RangeKind.FIXED)

    @property
    def is_fixed(self) -> bool:
        """Whether nobody is to change the range."""
        return self.kind is RangeKind.FIXED

    @property
    def oddity(self) -> Oddity | None:
        """What is odd about the values that were observed."""
        return None if self.observed is None else Oddity.between(self.observed.min, self.observed.max)

    def unobserved(self) -> Threshold:
        """This for a tensor of other values than were observed."""
        return replace(self, observed=None, kind=self.kind if self.is_fixed else RangeKind.DERIVED)

    def ranged(self, span: Range, note: str) -> Threshold:
        """This with another range, and a ``note`` on why after any that is there."""
        return replace(self, range=span, note="; ".join(filter(None, (self.note, note))))


@dataclass(frozen=True)
class Thresholds(Shown, Mapping[str, Threshold]):
    """Tensor name (``str(Ref)``: "node" or "node:1") -> `Threshold`."""

    table: Mapping[str, Threshold] = field(default_factory=dict)

    __reduce__ = reduced

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", MappingProxyType(dict(self.table)))

    def __getitem__(self, tensor: str) -> Threshold:
        return self.table[tensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def range(self, tensor: str) -> Range:
        """The range of ``tensor``.

        Raises:
            CalibrationError: there is none; the message lists how many are known.
        """
        if tensor not in self.table:
            raise CalibrationError(f"no range was calibrated for tensor {tensor!r} ({len(self)} others were)")
        return self.table[tensor].range

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, ``{"format": ..., "tensors": {name: {...}}}``."""
        return {"format": FORMAT, "tensors": {k: _written(self.table[k]) for k in sorted(self.table)}}

    @staticmethod
    def from_json(data: Any) -> Thresholds:
        """Reads what `to_json` wrote (a dictionary or its text).

        Raises:
            FormatError: not that format; the message says what was found.
        """
        if isinstance(data, str | bytes):
            data = parse_json(data, "the text of thresholds")
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != FORMAT:
            raise FormatError(f"thresholds have format {found!r}; this version reads {FORMAT!r}")
        tensors = converted(data, _Document, "the table of thresholds").tensors
        return Thresholds({name: _of_kind(threshold) for name, threshold in tensors.items()})


def _written(threshold: Threshold) -> dict[str, Any]:
    """JSON-ready, without its kind."""
    found = {**asdict(threshold), "candidates": [asdict(c) for c in threshold.candidates]}
    del found["kind"]
    return found


def _of_kind(read: Threshold) -> Threshold:
    """A threshold with the kind that files leave to be told from the rest: what is of other values has a note on it."""
    derived = read.observed is None and not read.is_fixed and read.note
    return replace(read, kind=RangeKind.DERIVED) if derived else read


@dataclass(frozen=True, slots=True)
class _Document:
    """Thresholds as JSON."""

    tensors: dict[str, Threshold]
    format: str
