"""The observer protocol, and `MinMax`, the part of a state that all observers keep.

An observer is a pure fold over the batches of one tensor::

    state = observer.empty()
    for x in batches:
        state = observer.update(state, x)
    found = observer.range(state, spec)

A state is a frozen dataclass whose arrays are read-only: reading changes nothing, and two states of disjoint
data `merge` into the state of all of it. Many observers share a kind of state, so what one pass collected answers
for all of them. Adding an observer takes a parameter dataclass, a class and `mxq.observers.registry.register`, or in
another package an entry point of the group "mxq.observers"; one that works from a histogram derives from
`mxq.observers.histogram.HistogramObserver` and writes `threshold` alone. See docs/extending.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import CalibrationError, DataError, FormatError
from mxq.observers import kernels
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Candidate, Oddity, Range

Arrays = Mapping[str, NDArray[Any]]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
Floats = NDArray[np.float32]
S = TypeVar("S")
E = TypeVar("E", float, NDArray[np.float64])

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
    def extent(self) -> MinMax: ...

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

    clips: ClassVar[bool]
    """Whether values that were observed may lie outside of the range."""

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

    def range(self, state: S, spec: QuantSpec, scheme: Scheme = MXNET) -> Range:
        """The interval to represent, in activation units.

        Args:
            state: unchanged by the call.
            spec: what codes are to be, of all values together whatever its axis. A tensor with negative values gets
                its signed range also where they are to be unsigned without a zero point; whether that may be is not
                decided here.
            scheme: how scales will follow from the range.

        Raises:
            CalibrationError: no values were observed.
            ConfigError: the spec is not of the scheme.
        """
        ...

    def candidates(self, state: S, spec: QuantSpec, scheme: Scheme = MXNET) -> tuple[Candidate, ...]:
        """For an observer that chooses among others: what each would have found, the choice first; else nothing."""
        ...

    def observed(self, state: S) -> Range | None:
        """The plain minimum and maximum; None before any data."""
        ...

    def note(self, state: S, spec: QuantSpec) -> str:
        """What a report should mention: "all zero", "constant", or nothing."""
        ...


@dataclass(frozen=True)
class StateObserver:
    """What observers have in common: what they say of a state beside its range is in the state's extent."""

    ordered: ClassVar[bool] = False
    in_tune: ClassVar[tuple[str, ...]] = ()
    clips_in_tune: ClassVar[tuple[str, ...]] = ()
    clips: ClassVar[bool] = True
    params: Any = None

    def candidates(self, state: Any, spec: QuantSpec, scheme: Scheme = MXNET) -> tuple[Candidate, ...]:
        return ()

    def observed(self, state: Any) -> Range | None:
        found: Range | None = state.extent.range
        return found

    def note(self, state: Any, spec: QuantSpec) -> str:
        found: str = state.extent.note
        return found


@dataclass(frozen=True, slots=True)
class MinMax:
    """How many values were seen and between which bounds (exact, in activation units)."""

    kind: ClassVar[str] = "extent"
    layout: ClassVar[Layout] = MappingProxyType({"count": ("int64", ()), "bounds": ("float32", (2,))})
    statistic: ClassVar[str] = kind
    count: int = 0
    min: float = math.inf
    max: float = -math.inf

    def update(self, x: Floats) -> MinMax:
        """The extent of these values and those of ``x`` ((n,) float32, contiguous).

        Raises:
            DataError: ``x`` holds NaN or Inf.
        """
        if x.size == 0:
            return self
        low, high = kernels.extremes(x)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _not_finite(x)
        return self.merge(MinMax(x.size, low, high))

    def merge(self, other: MinMax) -> MinMax:
        """The extent of both."""
        return MinMax(self.count + other.count, min(self.min, other.min), max(self.max, other.max))

    @property
    def extent(self) -> MinMax:
        return self

    @property
    def bounds(self) -> Floats:
        """(min, max) as (2,) float32, which is what they were."""
        return np.array([self.min, self.max], np.float32)

    def to_arrays(self) -> Arrays:
        return {"count": np.array(self.count, np.int64), "bounds": self.bounds}

    @staticmethod
    def from_arrays(arrays: Arrays) -> MinMax:
        return MinMax.from_bounds(int(arrays["count"]), arrays["bounds"])

    @staticmethod
    def from_bounds(count: int, bounds: NDArray[Any]) -> MinMax:
        """The extent of ``count`` values between ``bounds``, (2,) float32.

        Raises:
            FormatError: there is no such extent.
        """
        low, high = (float(b) for b in bounds)
        if not 0 <= count <= MOST_VALUES or (count > 0 and not -math.inf < low <= high < math.inf):
            raise damaged(f"{count} values between {low} and {high}")
        return MinMax(count, low, high) if count else MinMax()

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

    def settled(self, spec: QuantSpec) -> QuantSpec:
        """``spec`` with the sign that a search for a range is for.

        That is unsigned where no value was negative and ``spec`` allows it. With a zero point a sign says only where
        codes begin; it is that of the values, so that `QuantSpec.highest` is how many codes one side of zero has.
        """
        signed = self.min < 0 or (spec.symmetric and spec.signed is True)
        return replace(spec, signed=signed, narrow=spec.narrow and signed)

    def ends(self, bound: E, spec: QuantSpec) -> tuple[E, E]:
        """The range in which no absolute value exceeds ``bound``, or each of many, for codes of a settled ``spec``.

        Without a zero point it is [-bound, bound] (arXiv:2004.09602, eq. 6), or [0, bound] of unsigned codes; with one
        it ends where the values do, if that is nearer (eq. 1).
        """
        if spec.symmetric:
            return (-bound if spec.signed else bound * 0.0), bound
        return np.maximum(-bound, min(self.min, 0.0)), np.minimum(bound, max(self.max, 0.0))

    @property
    def usable(self) -> Range:
        """The observed range, with `ALL_ZERO_RANGE` in place of an empty one around zero.

        Raises:
            CalibrationError: no values were observed.
        """
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
