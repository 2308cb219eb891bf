"""The observer protocol, and `Extent`, the part of a state that all observers keep.

An observer is a pure fold over the batches of one tensor::

    state = observer.empty()
    for x in batches:
        state = observer.update(state, x)
    threshold = observer.range(state, "auto")

A state is a frozen dataclass whose arrays are read-only: reading changes nothing, and two states of disjoint
data `merge` into the state of all of it. Many observers share a kind of state, so what one pass collected answers
for all of them. Adding an observer takes a parameter dataclass, a class and `mxq.observers.registry.register`, or in
another package an entry point of the group "mxq.observers"; one that works from a histogram derives from
`mxq.observers.histogram.HistogramObserver` and writes `threshold` alone. See docs/extending.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import CalibrationError, DataError, FormatError, one_of
from mxq.observers import kernels
from mxq.quant.thresholds import Candidate, Oddity, Range

Arrays = Mapping[str, NDArray[Any]]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
Floats = NDArray[np.float32]
S = TypeVar("S")

DTYPES: Final = ("auto", "int8", "uint8")

MOST_VALUES: Final = 1 << 53
"""Of one state; sums of a thousand of them still fit int64."""

ALL_ZERO_RANGE: Final = Range(0.0, 1.0)
"""The range of a tensor that was zero throughout. Zero is code 0 in any range but the empty one, which stock
`quantize_v2` codes as 127 (it multiplies by infinity), so a unit range stands in."""


class State(Protocol):
    """What an observer keeps of one tensor: at most 64 KiB, whatever the number of values."""

    kind: ClassVar[str]
    """What a file calls its class; see `mxq.observers.STATES`."""

    layout: ClassVar[Layout]
    """Name, type and shape of each of its arrays."""

    @property
    def statistic(self) -> str:
        """What it is: the ``statistic`` of the observers that collect it."""
        ...

    @property
    def extent(self) -> Extent: ...

    def to_arrays(self) -> Arrays:
        """Everything in the state as arrays of numbers, for a file."""
        ...


@runtime_checkable
class Observer(Protocol[S]):
    """Finds the range of one tensor from its batches; ``S`` is its state."""

    name: ClassVar[str]
    """What the registry and the provenance call it."""

    ordered: ClassVar[bool]
    """Whether the order of updates matters (a moving average); such states merge in the order of their data only."""

    in_tune: ClassVar[tuple[str, ...]]
    """The specs with which `mxq.tune` tries it for ranges of activations."""

    clips_in_tune: ClassVar[tuple[str, ...]]
    """The specs with which `mxq.tune` tries it for clipping weights."""

    @property
    def params(self) -> Any:
        """A frozen dataclass of numbers; the observer's class takes it as ``params=``."""
        ...

    @property
    def statistic(self) -> str:
        """What it collects; observers of the same statistic can use each other's states."""
        ...

    def reads(self, statistic: str) -> bool:
        """Whether `range` can answer from a state of that statistic."""
        ...

    def empty(self) -> S:
        """The state before any data."""
        ...

    def update(self, state: S, x: ArrayLike) -> S:
        """The state after one more batch.

        Args:
            state: unchanged by the call.
            x: any shape, numbers, in activation units; empty arrays add nothing.

        Raises:
            DataError: ``x`` holds NaN or Inf; the message counts them.
        """
        ...

    def merge(self, a: S, b: S) -> S:
        """The state of the data of both."""
        ...

    def range(self, state: S, dtype: str) -> Range:
        """The interval to represent, in activation units.

        Args:
            state: unchanged by the call.
            dtype: "int8", "uint8", or "auto": uint8 where no value was negative. A tensor with negative values
                gets its signed range whatever the dtype; whether uint8 may then be used is not decided here.

        Raises:
            CalibrationError: no values were observed.
            ConfigError: another dtype.
        """
        ...

    def candidates(self, state: S, dtype: str) -> tuple[Candidate, ...]:
        """For an observer that chooses among others: what each would have found, the choice first; else nothing."""
        ...

    def observed(self, state: S) -> Range | None:
        """The plain minimum and maximum; None before any data."""
        ...

    def note(self, state: S) -> str:
        """What a report should mention: "all zero", "constant", or nothing."""
        ...


@dataclass(frozen=True)
class StateObserver:
    """What observers have in common: what they say of a state beside its range is in the state's extent."""

    ordered: ClassVar[bool] = False
    in_tune: ClassVar[tuple[str, ...]] = ()
    clips_in_tune: ClassVar[tuple[str, ...]] = ()
    params: Any = None

    def candidates(self, state: Any, dtype: str) -> tuple[Candidate, ...]:
        return ()

    def observed(self, state: Any) -> Range | None:
        found: Range | None = state.extent.range
        return found

    def note(self, state: Any) -> str:
        found: str = state.extent.note
        return found


@dataclass(frozen=True, slots=True)
class Extent:
    """How many values were seen and between which bounds (exact, in activation units)."""

    kind: ClassVar[str] = "extent"
    layout: ClassVar[Layout] = MappingProxyType({"count": ("int64", ()), "bounds": ("float32", (2,))})
    statistic: ClassVar[str] = kind
    count: int = 0
    min: float = math.inf
    max: float = -math.inf

    def update(self, x: Floats) -> Extent:
        """The extent of these values and those of ``x`` ((n,) float32, contiguous).

        Raises:
            DataError: ``x`` holds NaN or Inf.
        """
        if x.size == 0:
            return self
        low, high = kernels.extremes(x)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _not_finite(x)
        return self.merge(Extent(x.size, low, high))

    def merge(self, other: Extent) -> Extent:
        """The extent of both."""
        return Extent(self.count + other.count, min(self.min, other.min), max(self.max, other.max))

    @property
    def extent(self) -> Extent:
        return self

    @property
    def bounds(self) -> Floats:
        """(min, max) as (2,) float32, which is what they were."""
        return np.array([self.min, self.max], np.float32)

    def to_arrays(self) -> Arrays:
        return {"count": np.array(self.count, np.int64), "bounds": self.bounds}

    @staticmethod
    def from_arrays(arrays: Arrays) -> Extent:
        return Extent.from_bounds(int(arrays["count"]), arrays["bounds"])

    @staticmethod
    def from_bounds(count: int, bounds: NDArray[Any]) -> Extent:
        """The extent of ``count`` values between ``bounds``, (2,) float32.

        Raises:
            FormatError: there is no such extent.
        """
        low, high = (float(b) for b in bounds)
        if not 0 <= count <= MOST_VALUES or (count > 0 and not -math.inf < low <= high < math.inf):
            raise damaged(f"{count} values between {low} and {high}")
        return Extent(count, low, high) if count else Extent()

    @property
    def range(self) -> Range | None:
        """Both bounds; None before any data."""
        return Range(self.min, self.max) if self.count else None

    @property
    def absmax(self) -> float:
        """The largest absolute value; 0 before any data."""
        return max(abs(self.min), abs(self.max)) if self.count else 0.0

    @property
    def note(self) -> str:
        """What is odd about the values: "all zero", "constant", or nothing."""
        odd = Oddity.between(self.min, self.max) if self.count else None
        return "" if odd is None else odd.value

    def unsigned(self, dtype: str) -> bool:
        """Whether uint8 codes are wanted and fit: no value was negative and ``dtype`` allows them."""
        return self.min >= 0 and dtype in {"auto", "uint8"}

    def usable(self, dtype: str) -> Range:
        """The observed range, with `ALL_ZERO_RANGE` in place of an empty one around zero.

        Raises:
            CalibrationError: no values were observed.
            ConfigError: an unknown dtype.
        """
        if dtype not in DTYPES:
            raise one_of("dtype", dtype, DTYPES)
        seen = self.range
        if seen is None:
            raise CalibrationError("no values were observed, so there is no range; at least one batch is needed")
        return seen if seen.absmax else ALL_ZERO_RANGE


def flat(x: ArrayLike) -> Floats:
    """``x`` as (n,) float32, contiguous, without a copy where it is that already."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise DataError(f"values have dtype {array.dtype}; allowed: floats and integers")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf and is reported as such
        return np.ascontiguousarray(array, dtype=np.float32).reshape(-1)


def _not_finite(x: Floats) -> DataError:
    nans = int(np.isnan(x).sum())
    infinite = int(np.isinf(x).sum())
    return DataError(f"{nans + infinite} of {x.size} values are not finite ({nans} NaN, {infinite} Inf)")


def damaged(found: str) -> FormatError:
    """The error for a state that no observer wrote."""
    return FormatError(f"statistics are damaged: {found}")
