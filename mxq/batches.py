"""Calibration data in any of its forms, as an iterable of feeds ``{input name: array}``.

What is understood, told apart by what an object offers (nothing here imports a framework):

=============================  ======================================================================================
an array (numpy, NDArray)      all examples along the first axis, cut into batches
a tuple of arrays              (data, ..., label ...): whole arrays, cut into batches together
a dict name -> array           whole arrays by input name, cut into batches together
a DataIter                     has ``provide_data``; reset before reading; padded examples are dropped
any other iterable             of batches: a list, a DataLoader, a generator
=============================  ======================================================================================

A *list* is always a list of batches, a *tuple of arrays* always one set of whole arrays. A batch is an array, a
list or tuple of arrays (nested or not; the first ones are the inputs in order, the rest labels, ignored), a dict by
input name (other names ignored), or a DataBatch. Floats become float32; integers stay as they are.

Which examples are used, where not all are: data may be sorted by class, so they are spread evenly wherever that costs
nothing. Of whole arrays and of files (`mxq.images.Source`) example ``i * held // used`` for each i, and no other is
read; of a list of batches as many whole ones as hold enough. Of what can only be read in order (a DataLoader, a
DataIter, a generator) the first ones: there the data has to be shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mxq.config import Budget
from mxq.errors import DataError

Array = NDArray[Any]
Feed: TypeAlias = dict[str, Array]

BATCH: Final = 32
"""Examples to a batch, of whole arrays and files, where nobody says otherwise."""

ALLOWED: Final = "an array, a tuple of arrays, a dict of arrays by input name, a DataIter, or an iterable of batches"
ALLOWED_BATCH: Final = "an array, a list or tuple of arrays, a dict of arrays by input name"


class _DataBatch(Protocol):
    """MXNet's ``DataBatch``: arrays, of which the last ``pad`` examples are repetitions."""

    data: Sequence[object]
    pad: int | None


@dataclass(frozen=True, slots=True)
class _Source:
    """Opens a pass over raw batches. ``examples`` and ``batches`` are None where unknown."""

    open: Callable[[], Iterator[object]]
    examples: int | None = None
    batches: int | None = None
    batch_size: int | None = None
    once: bool = False
    names: tuple[str, ...] | None = None  # of the arrays of a DataIter's batch
    open_at: Callable[[int], Iterator[object]] | None = None  # a pass that starts at a batch
    take: Callable[[int], _Source] | None = None  # so many examples, spread evenly; a few more where ``by_batch``
    by_batch: bool = False  # whether only whole batches can be taken

    def after(self, raw: Iterator[object], batches: int) -> Iterator[object]:
        """The pass ``raw``, of which one batch has been read, where so many have."""
        if self.open_at is not None:
            return self.open_at(batches)
        for number in range(1, batches):
            if next(raw, _END) is _END:
                raise DataError(f"calibration data ends after {number} batches; {batches} were seen before")
        return raw


class Feeds:
    """Batches of calibration data, ended at exactly the number of examples the budget allows.

    Iterating again reads the data again, except where it came from a generator.

    Attributes:
        examples: how many examples the latest pass has given so far.
        batches: how many batches.
        warnings: what a report should mention: that there were fewer examples than asked for.
    """

    def __init__(self, source: _Source, inputs: Sequence[str], budget: Budget) -> None:
        self._source = source
        self._inputs = tuple(inputs)
        self._budget = budget
        self._available = source.examples
        self._batch_size = source.batch_size
        self._started = False
        self.examples = 0
        self.batches = 0
        self.warnings: tuple[str, ...] = ()

    def take(self, count: int) -> Iterator[Feed]:
        """``count`` of the examples (all where there are fewer), spread evenly over those of a pass.

        Where any can be read, no other is; else each batch of a pass gives its share.
        """
        source, planned = self._source, self.planned
        if source.take is None or source.by_batch or planned is None:
            return shares(self, count)
        return iter(Feeds(source.take(min(count, planned)), self._inputs, ALL))

    @property
    def planned(self) -> int | None:
        """The number of examples a pass will use at most; None where only the end of the data ends it.

        For a loader that tells its batches but not its examples it is an estimate from the first batch.
        """
        return self._budget.examples(self._available)

    def __length_hint__(self) -> int:
        """The number of batches a pass will have, for progress; 0 where unknown."""
        planned, known = self.planned, self._source.batches
        if planned is None or self._batch_size is None:
            return known or 0
        needed = -(-planned // self._batch_size)
        return needed if known is None else min(needed, known)

    def resumed(self, batches: int, examples: int) -> Iterator[Feed]:
        """A pass that gives the first batch, then those after the first ``batches``, which held ``examples``.

        A source that can start anywhere (`mxq.images.Source`) does not read what is left out.

        Raises:
            DataError: as by iterating; also where the data ends before.
        """
        return self._begin(batches, examples)

    def __iter__(self) -> Iterator[Feed]:
        """One pass over the data.

        Raises:
            DataError: a batch does not fit the inputs, reading it failed (the cause is chained), there was no
                batch, or a generator is read a second time.
        """
        return self._begin()

    def _begin(self, batches: int = 0, examples: int = 0) -> Iterator[Feed]:
        if self._started and self._source.once:
            raise DataError("calibration data is a generator, which can be read only once; give a list of batches")
        self._started = True
        self.examples, self.batches, self.warnings = 0, 0, ()
        return self._pass(batches, examples)

    def _pass(self, batches: int, examples: int) -> Iterator[Feed]:
        raw: Iterator[object] | None = None
        ranks: dict[str, int] = {}
        while (planned := self.planned) is None or self.examples < planned:
            where = f"calibration batch {self.batches + 1}"
            try:
                raw = self._source.open() if raw is None else raw
                item = next(raw, _END)
                if item is _END:
                    break
                feed = self._feed(item)
                size = _size(feed, ranks)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            except Exception as error:
                raise DataError(f"reading {where} failed: {type(error).__name__}: {error}") from error
            self._learn(size)
            keep = size if self.planned is None else min(size, self.planned - self.examples)
            self.examples += keep
            self.batches += 1
            yield feed if keep == size else {name: array[:keep] for name, array in feed.items()}
            if self.batches == 1 and batches:
                raw = self._source.after(raw, batches)
                self.batches, self.examples = batches, examples
        if self.batches == 0:
            raise DataError("calibration data holds no batch; at least one is needed")
        self._compare()

    def _feed(self, item: object) -> Feed:
        """One raw batch as ``{input name: array}``."""
        if _is_batch_object(item):
            arrays = list(item.data)
            names = self._source.names
            if names is not None:
                return self._by_name(dict(zip(names, arrays, strict=False)), item.pad or 0)
            return self._in_order(arrays, item.pad or 0)
        if isinstance(item, Mapping):
            return self._by_name(item)
        if is_array(item):
            return self._in_order([item])
        if isinstance(item, list | tuple):
            return self._in_order(list(flattened(item)))
        raise DataError(f"it is {_described(item)}; allowed: {ALLOWED_BATCH}")

    def _in_order(self, arrays: Sequence[object], pad: int = 0) -> Feed:
        if len(arrays) < len(self._inputs):
            raise DataError(f"it holds {len(arrays)} arrays; the inputs are {len(self._inputs)}: {self._listed}")
        return {name: _array(name, value, pad) for name, value in zip(self._inputs, arrays, strict=False)}

    def _by_name(self, arrays: Mapping[Any, object], pad: int = 0) -> Feed:
        missing = [name for name in self._inputs if name not in arrays]
        if missing and self._source.names is not None and len(arrays) == len(self._inputs) == 1:
            return self._in_order(list(arrays.values()), pad)  # an iterator calls its only array as it likes
        if missing:
            found = ", ".join(repr(name) for name in arrays) or "nothing"
            raise DataError(f"it has no array for input {missing[0]!r}, only {found}; the inputs are {self._listed}")
        return {name: _array(name, arrays[name], pad) for name in self._inputs}

    @property
    def _listed(self) -> str:
        return ", ".join(repr(name) for name in self._inputs)

    def _learn(self, size: int) -> None:
        """What the first batch tells about the whole."""
        if self._batch_size is None:
            self._batch_size = size
        if self._available is None and self._source.batches is not None:
            self._available = self._source.batches * self._batch_size

    def _compare(self) -> None:
        """Records a warning where the data ended early. An estimated total is no promise."""
        asked = self._budget.count
        if asked is None and self._source.examples is not None:
            asked = self.planned
        if asked is not None and self.examples < asked:
            self.warnings = (f"{asked} calibration examples were asked for, the data held {self.examples}",)


ALL: Final = Budget(percent=100.0)


def feeds(calib_data: object, inputs: Sequence[str], budget: Budget, *, batch_size: int = BATCH) -> Feeds:
    """Reads calibration data in any form the module's table lists.

    Args:
        calib_data: the data.
        inputs: names of the network's inputs, in order.
        budget: how many examples to use; which, says the module's text.
        batch_size: examples per batch where ``calib_data`` is whole arrays.

    Raises:
        DataError: a form that is not understood, an empty one, or whole arrays that do not fit the inputs.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; allowed: 1 or more")
    if isinstance(calib_data, Feeds):
        return calib_data
    source = _source(calib_data, batch_size)
    count = budget.examples(source.examples)
    if source.take is None or count is None or source.examples is None or count >= source.examples:
        return Feeds(source, inputs, budget)
    return Feeds(source.take(count), inputs, Budget(count=count))


def shares(data: Iterable[Feed], count: int) -> Iterator[Feed]:
    """``count`` examples, of each batch its share: all of it where nobody knows how many there will be."""
    planned, left = getattr(data, "planned", None) or 0, count
    for feed in data:
        size = len(next(iter(feed.values())))
        keep = min(size if planned <= count else -(-size * count // planned), left)
        chosen = np.linspace(0, size - 1, keep).round().astype(int)
        yield feed if keep == size else {name: array[chosen] for name, array in feed.items()}
        left -= keep
        if left <= 0:
            return


def raw_batches(data: object, batch_size: int) -> Iterator[object]:
    """One pass over the batches of data in any form that the module's table lists, each as the data has it.

    Raises:
        DataError: as `feeds`.
    """
    return _source(data, batch_size).open()


def _source(data: Any, batch_size: int) -> _Source:
    if (whole := _whole(data, batch_size)) is not None:
        return _anywhere(whole)
    if hasattr(data, "provide_data"):
        return _data_iter(data)
    if isinstance(data, list | tuple):
        return _listed(data)
    if isinstance(data, str | bytes) or not hasattr(data, "__iter__"):
        hint = "; wrap a dataset in a DataLoader" if hasattr(data, "__getitem__") and hasattr(data, "__len__") else ""
        raise DataError(f"calibration data is {_described(data)}; allowed: {ALLOWED}{hint}")
    return _Source(
        open=lambda: iter(data),
        # A DataLoader counts batches; its dataset, where it shows one, counts examples.
        examples=_length(getattr(data, "dataset", getattr(data, "_dataset", None))),
        batches=_length(data),
        once=isinstance(data, Iterator),
        open_at=getattr(data, "starting_at", None),
    )


def _whole(data: Any, batch_size: int) -> Any:
    """What can be read at any example: whole arrays, or a `mxq.images.Source`; else None."""
    if is_array(data):
        return _Arrays((data,), lambda parts: next(iter(parts)), batch_size)
    if isinstance(data, Mapping):
        keys = tuple(data)
        return _Arrays(tuple(data.values()), lambda parts: dict(zip(keys, parts, strict=True)), batch_size)
    if isinstance(data, tuple) and data and all(map(is_array, data)):
        return _Arrays(data, tuple, batch_size)
    return data if hasattr(data, "starting_at") and hasattr(data, "take") else None


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Whole arrays, cut along the first axis; ``pack`` makes a batch of their parts. ``picked`` are the examples."""

    arrays: Sequence[Any]
    pack: Callable[[Iterable[Any]], object]
    batch_size: int
    picked: tuple[int, ...] | None = None

    @property
    def examples(self) -> int:
        """How many there are.

        Raises:
            DataError: they are no arrays of equally many examples.
        """
        for array in self.arrays:
            if not is_array(array):
                raise DataError(f"calibration data holds {_described(array)}; allowed: arrays")
            if not array.shape:
                raise DataError(
                    "calibration data has rank 0; allowed: rank 1 or more, the first axis counting examples"
                )
        sizes = {array.shape[0] for array in self.arrays}
        if len(sizes) > 1:
            raise DataError(f"calibration arrays hold {sorted(sizes)} examples; allowed: one number for all")
        held = sizes.pop() if sizes else 0
        if held == 0:
            raise DataError("calibration data holds no examples; at least one is needed")
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


def _rows(array: Any, numbers: Sequence[int]) -> Array:
    """Some rows; of arrays of other libraries, which may know no more than slices, one at a time."""
    if isinstance(array, np.ndarray):
        return np.asarray(array[list(numbers)])
    return np.concatenate([array[i : i + 1].asnumpy() for i in numbers])


def evenly(count: int, held: int) -> tuple[int, ...]:
    """Places of ``count`` examples of as many as are ``held``, in order; of all where there are not more."""
    return tuple(i * held // count for i in range(count)) if count < held else tuple(range(held))


def _anywhere(data: Any) -> _Source:
    """Examples that can be read wherever they are: `_Arrays`, `mxq.images.Source`."""
    return _Source(
        lambda: data.starting_at(0),
        examples=data.examples,
        batches=len(data),
        batch_size=min(data.batch_size, data.examples),
        open_at=data.starting_at,
        take=lambda count: _anywhere(data.take(count)),
    )


def _listed(items: Sequence[object]) -> _Source:
    if not items:
        raise DataError(f"calibration data is an empty {type(items).__name__}; at least one batch is needed")
    sizes = [_examples_in(item) for item in items]
    known = [size for size in sizes if size is not None]

    def take(count: int) -> _Source:
        tried = (evenly(batches, len(items)) for batches in range(1, len(items) + 1))
        enough = next((places for places in tried if sum(known[p] for p in places) >= count), range(len(items)))
        return _listed([items[p] for p in enough])

    return _Source(
        open=lambda: iter(items),
        examples=sum(known) if len(known) == len(sizes) else None,
        batches=len(items),
        batch_size=sizes[0],
        open_at=lambda batch: iter(items[batch:]),
        take=take,
        by_batch=True,
    )


def _data_iter(source: Any) -> _Source:
    def open_() -> Iterator[object]:
        if hasattr(source, "reset"):
            source.reset()
        return iter(source) if hasattr(source, "__iter__") else _called(source.next)

    names = tuple(str(d.name if hasattr(d, "name") else d[0]) for d in source.provide_data or ())
    total = getattr(source, "num_data", None)  # NDArrayIter tells; most do not
    size = getattr(source, "batch_size", None)
    return _Source(
        open_,
        examples=total if isinstance(total, int) else None,
        batch_size=size if isinstance(size, int) and size > 0 else None,
        names=names or None,
    )


def _called(step: Callable[[], object]) -> Iterator[object]:
    while True:
        try:
            item = step()
        except StopIteration:
            return
        yield item


_END: Final = object()


def is_array(value: object) -> bool:
    """Whether it is an array of numpy or of MXNet."""
    return isinstance(value, np.ndarray) or hasattr(value, "asnumpy")


def _is_batch_object(value: Any) -> TypeGuard[_DataBatch]:
    return not is_array(value) and hasattr(value, "data") and hasattr(value, "pad")


def flattened(items: Iterable[object]) -> Iterator[object]:
    """What is in lists and tuples within lists and tuples, in order."""
    for item in items:
        if isinstance(item, list | tuple):
            yield from flattened(item)
        else:
            yield item


def _array(name: str, value: Any, pad: int) -> Array:
    """``value`` as numpy without its last ``pad`` examples: float32, or an integer type as it is."""
    if not is_array(value):
        raise DataError(f"input {name!r} is {_described(value)}; allowed: an array")
    array: Array = value if isinstance(value, np.ndarray) else value.asnumpy()
    if array.dtype.kind not in "fiu":
        raise DataError(f"input {name!r} has dtype {array.dtype}; allowed: floats and integers")
    if array.ndim == 0:
        raise DataError(f"input {name!r} has rank 0; allowed: rank 1 or more, the first axis counting examples")
    if pad:
        array = array[: max(len(array) - pad, 0)]
    if len(array) == 0:
        raise DataError(f"input {name!r} holds no examples; its shape is {array.shape}")
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _size(feed: Feed, ranks: dict[str, int]) -> int:
    """The number of examples in a feed; ranks must stay what the first batch made them."""
    for name, array in feed.items():
        if ranks.setdefault(name, array.ndim) != array.ndim:
            raise DataError(f"input {name!r} has rank {array.ndim}; the batches before it had rank {ranks[name]}")
    sizes = {name: len(array) for name, array in feed.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"its inputs hold different numbers of examples: {sizes}")
    return next(iter(sizes.values()))


def _examples_in(item: Any) -> int | None:
    """The examples of a raw batch, without converting it; None where that does not show."""
    if _is_batch_object(item):
        inside = _examples_in(list(item.data))
        return None if inside is None else inside - (item.pad or 0)
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, list | tuple):
        return _examples_in(item[0]) if item else None
    return int(item.shape[0]) if is_array(item) and item.shape else None


def _length(value: object) -> int | None:
    try:
        return len(value)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _described(value: object) -> str:
    text = repr(value) if isinstance(value, str | bytes | int | float) or value is None else ""
    return f"{type(value).__name__} {text[:60]}".rstrip()
