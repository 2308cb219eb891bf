"""The forms that data may have, each opened as passes over raw batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mxq.data.feed import Feed, described, flattened, is_array
from mxq.errors import DataError

ALLOWED: Final = "an array, a tuple of arrays, a dict of arrays by input name, a DataIter, or an iterable of batches"


class Role(Enum):
    """What data is for, as messages call it."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    TRAINING = "training"

    def __str__(self) -> str:
        return self.value


class DataBatch(Protocol):
    """MXNet's ``DataBatch``: arrays, of which the last ``pad`` examples are repetitions."""

    data: Sequence[object]
    label: Sequence[object] | None
    pad: int | None


class Described(NamedTuple):
    """What a DataIter says of an array in its batches: its name, and the axis that counts examples, if any."""

    name: str
    axis: int | None


@dataclass(frozen=True, slots=True)
class Source:
    """Opens a pass over raw batches. ``examples`` and ``batches`` are None where unknown."""

    open: Callable[[], Iterator[object]]
    examples: int | None = None
    batches: int | None = None
    batch_size: int | None = None
    once: bool = False
    data: tuple[Described, ...] = ()  # of a DataIter's batch
    labels: tuple[Described, ...] = ()
    open_at: Callable[[int], Iterator[object]] | None = None  # a pass that starts at a batch
    take: Callable[[int], Source] | None = None  # so many examples, spread evenly; a few more where ``by_batch``
    by_batch: bool = False  # whether only whole batches can be taken
    role: Role = Role.CALIBRATION

    def after(self, raw: Iterator[object], batches: int) -> Iterator[object]:
        """The pass ``raw``, of which one batch has been read, where so many have."""
        if self.open_at is not None:
            return self.open_at(batches)
        for number in range(1, batches):
            if next(raw, END) is END:
                raise DataError(f"{self.role} data ends after {number} batches; {batches} were seen before")
        return raw


def source_of(data: Any, batch_size: int, role: Role = Role.CALIBRATION) -> Source:
    """Opens ``data``, see `mxq.data`; messages call it by its ``role``.

    Raises:
        DataError: as `mxq.data.feeding.feeds`.
    """
    whole: Any = batch_size
    if not isinstance(whole, int | np.integer) or isinstance(whole, bool) or whole < 1:
        raise DataError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more")
    batch_size = int(whole)
    if (whole := _whole(data, batch_size, role)) is not None:
        return _anywhere(whole, role)
    if hasattr(data, "provide_data"):
        return replace(_data_iter(data), role=role)
    if isinstance(data, list | tuple):
        return _listed(data, role)
    if isinstance(data, str | bytes) or not hasattr(data, "__iter__"):
        hint = "; wrap a dataset in a DataLoader" if hasattr(data, "__getitem__") and hasattr(data, "__len__") else ""
        raise DataError(f"{role} data is {described(data)}; allowed: {ALLOWED}{hint}")
    return Source(
        open=lambda: iter(data),
        # A DataLoader counts batches; its dataset, where it shows one, counts examples.
        examples=_length(getattr(data, "dataset", getattr(data, "_dataset", None))),
        batches=_length(data),
        once=isinstance(data, Iterator),
        open_at=getattr(data, "starting_at", None),
        role=role,
    )


def _whole(data: Any, batch_size: int, role: Role) -> Any:
    """What can be read at any example: whole arrays, or a `mxq.images.Source`; else None."""
    if is_array(data):
        return _Arrays((data,), lambda parts: next(iter(parts)), batch_size, role)
    if isinstance(data, Mapping):
        keys = tuple(data)
        return _Arrays(tuple(data.values()), lambda parts: dict(zip(keys, parts, strict=True)), batch_size, role)
    if isinstance(data, tuple) and data and all(map(is_array, data)):
        return _Arrays(data, tuple, batch_size, role)
    return data if hasattr(data, "starting_at") and hasattr(data, "take") else None


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Whole arrays, cut along the first axis; ``pack`` makes a batch of their parts. ``picked`` are the examples."""

    arrays: Sequence[Any]
    pack: Callable[[Iterable[Any]], object]
    batch_size: int
    role: Role
    picked: tuple[int, ...] | None = None

    @property
    def examples(self) -> int:
        """How many there are.

        Raises:
            DataError: they are no arrays of equally many examples.
        """
        for array in self.arrays:
            if not is_array(array):
                raise DataError(f"{self.role} data holds {described(array)}; allowed: arrays")
            if not array.shape:
                raise DataError(
                    f"{self.role} data has rank 0; allowed: rank 1 or more, the first axis counting examples"
                )
        sizes = {array.shape[0] for array in self.arrays}
        if len(sizes) > 1:
            raise DataError(f"{self.role} arrays hold {sorted(sizes)} examples; allowed: one number for all")
        held = sizes.pop() if sizes else 0
        if held == 0:
            raise DataError(f"{self.role} data holds no examples; at least one is needed")
        return held if self.picked is None else len(self.picked)

    def __len__(self) -> int:
        return len(range(0, self.examples, self.batch_size))

    def starting_at(self, batch: int) -> Iterator[object]:
        for start in range(batch * self.batch_size, self.examples, self.batch_size):
            span = slice(start, start + self.batch_size)
            if self.picked is None:
                yield self.pack(array[span] for array in self.arrays)
            else:
                yield self.pack(_rows(array, self.picked[span]) for array in self.arrays)

    def take(self, count: int) -> _Arrays:
        places = evenly(count, self.examples)
        return replace(self, picked=places if self.picked is None else tuple(self.picked[p] for p in places))


def _rows(array: Any, numbers: Sequence[int]) -> NDArray[Any]:
    """Some rows; of arrays of other libraries, which may know no more than slices, one at a time."""
    if isinstance(array, np.ndarray):
        return np.asarray(array[list(numbers)])
    return np.concatenate([array[i : i + 1].asnumpy() for i in numbers])


def evenly(count: int, held: int) -> tuple[int, ...]:
    """Places of ``count`` examples of as many as are ``held``, in order; of all where there are not more."""
    return tuple(i * held // count for i in range(count)) if count < held else tuple(range(held))


def _anywhere(data: Any, role: Role) -> Source:
    """Examples that can be read wherever they are: `_Arrays`, `mxq.images.Source`."""
    return Source(
        lambda: data.starting_at(0),
        examples=data.examples,
        batches=len(data),
        batch_size=min(data.batch_size, data.examples),
        open_at=data.starting_at,
        take=lambda count: _anywhere(data.take(count), role),
        role=role,
    )


def _listed(items: Sequence[object], role: Role) -> Source:
    if not items:
        raise DataError(f"{role} data is an empty {type(items).__name__}; at least one batch is needed")
    sizes = [_examples_in(item) for item in items]
    known = [size for size in sizes if size is not None]

    def take(count: int) -> Source:
        tried = (evenly(batches, len(items)) for batches in range(1, len(items) + 1))
        enough = next((places for places in tried if sum(known[p] for p in places) >= count), range(len(items)))
        return _listed([items[p] for p in enough], role)

    return Source(
        open=lambda: iter(items),
        examples=sum(known) if len(known) == len(sizes) else None,
        batches=len(items),
        batch_size=sizes[0],
        open_at=lambda batch: iter(items[batch:]),
        take=take,
        by_batch=True,
        role=role,
    )


def _data_iter(source: Any) -> Source:
    def open_() -> Iterator[object]:
        if hasattr(source, "reset"):
            source.reset()
        return iter(source) if hasattr(source, "__iter__") else _called(source.next)

    total = getattr(source, "num_data", None)  # NDArrayIter tells; most do not
    size = getattr(source, "batch_size", None)
    return Source(
        open_,
        examples=total if isinstance(total, int) else None,
        batch_size=size if isinstance(size, int) and size > 0 else None,
        data=_descriptions(source.provide_data),
        labels=_descriptions(getattr(source, "provide_label", None)),
    )


def _descriptions(given: Iterable[Any] | None) -> tuple[Described, ...]:
    """Of what a DataIter provides: ``DataDesc`` with a layout such as "TNC", or plain ``(name, shape)``."""
    return tuple(
        Described(str(d.name if hasattr(d, "name") else d[0]), _batch_axis(getattr(d, "layout", None)))
        for d in given or ()
    )


def _batch_axis(layout: str | None) -> int | None:
    """Where N is in a layout, as ``DataDesc.get_batch_axis`` has it; None where it is not."""
    return 0 if not layout else layout.find("N") if "N" in layout else None


def _called(step: Callable[[], object]) -> Iterator[object]:
    while True:
        try:
            item = step()
        except StopIteration:
            return
        yield item


END: Final = object()


def is_batch_object(value: Any) -> TypeGuard[DataBatch]:
    return not is_array(value) and hasattr(value, "data") and hasattr(value, "pad")


def _examples_in(item: Any) -> int | None:
    """The examples of a raw batch, without converting it; None where that does not show, as where arrays disagree."""
    if isinstance(item, Feed):
        return item.examples
    if is_batch_object(item):
        inside = _examples_in(list(item.data))
        return None if inside is None else inside - (item.pad or 0)
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, list | tuple):
        sizes = {size for part in flattened(item) if (size := _examples_in(part)) is not None}
        return sizes.pop() if len(sizes) == 1 else None
    return int(item.shape[0]) if is_array(item) and item.shape else None


def _length(value: object) -> int | None:
    try:
        return len(value)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
