"""Calibrated ranges: `Range`, `Threshold` (a range with its provenance) and `Thresholds`, their table, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from mxq.errors import CalibrationError, FormatError
from mxq.formats.documents import Count, converted, parse_json

FORMAT = "mxq-thresholds/1"
LARGEST: Final = (2 - 2**-23) * 2.0**127
"""The largest float32."""


@dataclass(frozen=True, slots=True)
class Range:
    """The interval that 8 bits will cover: ``min`` and ``max`` in activation units.

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


@dataclass(frozen=True, slots=True)
class Threshold:
    """One tensor's range and where it came from.

    ``observer`` is the spec of the calibrator ("naive", "percentile:99.9", "fixed", ...), ``source`` says what asked
    for it ("calib_mode", "overrides 'stage1_*'", ...), ``examples`` and ``batches`` say how much data it saw,
    ``observed`` is the plain minimum and maximum of that data, ``note`` anything worth reporting (the tensor was
    constant, clipped by hand, ...). Where "auto" chose, ``candidates`` are what it chose from, the best first.
    """

    range: Range
    observer: str
    examples: Count = 0
    batches: Count = 0
    observed: Range | None = None
    note: str = ""
    source: str = ""
    candidates: tuple[Candidate, ...] = ()

    def ranged(self, span: Range, note: str) -> Threshold:
        """This with another range, and a ``note`` on why after any that is there."""
        return replace(self, range=span, note="; ".join(filter(None, (self.note, note))))


@dataclass(frozen=True)
class Thresholds(Mapping[str, Threshold]):
    """Tensor name (``str(Ref)``: "node" or "node:1") -> `Threshold`."""

    table: Mapping[str, Threshold] = field(default_factory=dict)

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
        tensors = {k: {**asdict(v), "candidates": [asdict(c) for c in v.candidates]} for k, v in self.table.items()}
        return {"format": FORMAT, "tensors": dict(sorted(tensors.items()))}

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
        return Thresholds(converted(data, _Document, "the table of thresholds").tensors)


@dataclass(frozen=True, slots=True)
class _Document:
    """Thresholds as JSON."""

    tensors: dict[str, Threshold]
    format: str
