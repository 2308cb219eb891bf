"""A pass over data, up to the number of examples that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from mxq.data.budget import Budget
from mxq.data.feed import Feed, check_ranks, described, examples_in, flattened, is_array, made, segmented, taken
from mxq.data.sources import END, DataBatch, Role, Source, is_batch_object, source_of
from mxq.errors import DataError

BATCH: Final = 32
"""Examples to a batch, of whole arrays and files, where nobody says otherwise."""
LAYER_BATCH: Final = 4
"""Where every layer's tensor, of two networks, is held at once."""
LABELS: Final = ("label", "labels")
"""What labels are called among named arrays."""
_LABEL_HINT: Final = (
    "; the network computes with this label: give it too, or a symbol that ends before its loss (sym.get_internals())"
)
ALLOWED_BATCH: Final = "an array, a list or tuple of arrays, a dict of arrays by input name"


class Feeds:
    """Batches of data, ended with the one that holds the last example the budget allows.

    Iterating again reads the data again, except where it came from a generator.

    Attributes:
        examples: how many examples the latest pass has given so far.
        batches: how many batches.
        shapes: input -> the shape of one example, as the first batch had it; empty before.
        warnings: what a report should mention: that there were fewer examples than asked for.
    """

    def __init__(
        self, source: Source, inputs: Sequence[str], budget: Budget, ranks: Mapping[str, int] | None = None
    ) -> None:
        self._source = source
        self._inputs = tuple(inputs)
        self._ranks = ranks or {}
        self._budget = budget
        self._available = source.examples
        self._batch_size = source.batch_size
        self._started = False
        self.examples = 0
        self.batches = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.warnings: tuple[str, ...] = ()

    def take(self, count: int) -> Iterator[Feed]:
        """``count`` of the examples (all where there are fewer), spread evenly over those of a pass.

        Where any can be read, no other is; else each batch of a pass gives its share.
        """
        source, planned = self._source, self.planned
        if source.take is None or source.by_batch or planned is None:
            return shares(self, count)
        return self._taken(Feeds(source.take(min(count, planned)), self._inputs, ALL, self._ranks))

    def _taken(self, some: Feeds) -> Iterator[Feed]:
        for feed in some:
            self.shapes = self.shapes or some.shapes
            yield feed

    @property
    def planned(self) -> int | None:
        """The number of examples after which a pass begins no other batch; None where the end of the data ends it.

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
            raise DataError(
                f"{self._source.role} data is a generator, which can be read only once; give a list of batches"
            )
        self._started = True
        self.examples, self.batches, self.warnings = 0, 0, ()
        return self._pass(batches, examples)

    def _pass(self, batches: int, examples: int) -> Iterator[Feed]:
        raw: Iterator[object] | None = None
        ranks: dict[str, int] = {}
        while (planned := self.planned) is None or self.examples < planned:
            where = f"{self._source.role} batch {self.batches + 1}"
            try:
                raw = self._source.open() if raw is None else raw
                item = next(raw, END)
                if item is END:
                    break
                feed = segmented(self._feed(item), self._ranks)
                check_ranks(feed, ranks)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            except Exception as error:
                raise DataError(f"reading {where} failed: {type(error).__name__}: {error}") from error
            self._learn(feed.examples)
            self.shapes = self.shapes or {name: value.shape[1:] for name, value in feed.items()}
            self.examples += feed.examples
            self.batches += 1
            yield feed
            if self.batches == 1 and batches:
                raw = self._source.after(raw, batches)
                self.batches, self.examples = batches, examples
        if self.batches == 0:
            raise DataError(f"{self._source.role} data holds no batch; at least one is needed")
        self._compare()

    def _feed(self, item: object) -> Feed:
        """One raw batch, as the network takes it."""
        if isinstance(item, Feed) and all(name in item for name in self._needed):
            return item.only(self._needed)
        if is_batch_object(item):
            return self._of_batch_object(item)
        if isinstance(item, Mapping):
            return made(self._named({k: v for k, v in item.items() if v is not None}), {}, 0)
        if is_array(item):
            return made(self._in_order([item]), {}, 0)
        if isinstance(item, list | tuple):
            return made(self._in_order(list(flattened(item))), {}, 0)
        raise DataError(f"it is {described(item)}; allowed: {ALLOWED_BATCH}")

    def _of_batch_object(self, item: DataBatch) -> Feed:
        """Of a DataBatch; by the names that its DataIter gives, else in order."""
        data, labels = list(item.data), list(getattr(item, "label", None) or ())
        if not self._source.data:
            return made(self._in_order([*data, *labels]), {}, item.pad or 0)
        said = (*zip(self._source.data, data, strict=False), *zip(self._source.labels, labels, strict=False))
        arrays = {d.name: array for d, array in said}
        axes = {d.name: d.axis for d, _ in said}
        missing, name = [n for n in self._needed if n not in arrays], self._source.data[0].name
        if len(data) == len(missing) == 1 and name not in self._needed:  # an iterator calls its only array as it likes
            arrays[missing[0]], axes[missing[0]] = arrays[name], axes[name]
        return made(self._named(arrays), axes, item.pad or 0)

    def _in_order(self, arrays: Sequence[object]) -> dict[str, object]:
        least = max((i for i, name in enumerate(self._inputs, start=1) if name), default=0)
        if len(arrays) < least:
            raise DataError(f"it holds {len(arrays)} arrays; the inputs are {least}: {self._listed}")
        return {name: value for name, value in zip(self._inputs, arrays, strict=False) if name}

    def _named(self, arrays: Mapping[Any, object]) -> dict[str, object]:
        missing = [name for name in self._needed if name not in arrays]
        others = [name for name in arrays if name not in LABELS]
        if missing and len(self._needed) == len(others) == 1:
            return {missing[0]: arrays[others[0]]}  # there is no doubt which one it is
        if missing:
            found = ", ".join(repr(name) for name in arrays) or "nothing"
            raise DataError(
                f"it has no array for input {missing[0]!r}, only {found}; the inputs are {self._listed}: name the "
                f"arrays so, or give tuples in this order{_LABEL_HINT if missing[0].endswith('label') else ''}"
            )
        return {name: arrays[name] for name in self._needed}

    @property
    def _needed(self) -> list[str]:
        return [name for name in self._inputs if name]

    @property
    def _listed(self) -> str:
        return ", ".join(repr(name) for name in self._needed)

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
            self.warnings = (f"{asked} {self._source.role} examples were asked for, the data held {self.examples}",)


ALL: Final = Budget(percent=100.0)


def feeds(
    data: object,
    inputs: Sequence[str],
    budget: Budget,
    *,
    batch_size: int = BATCH,
    ranks: Mapping[str, int] | None = None,
    role: Role = Role.CALIBRATION,
) -> Feeds:
    """Reads data in any form the module's table lists.

    Args:
        data: the data.
        inputs: names of the network's arguments, in order; "" for one that the network does not read.
        budget: how many examples to use; which, says the module's text.
        batch_size: examples per batch where ``data`` is whole arrays.
        ranks: how many axes inputs have, where that is known; see `segmented`.
        role: what the data is for.

    Raises:
        DataError: a form that is not understood, an empty one, or whole arrays that do not fit the inputs.
    """
    if isinstance(data, Feeds):
        return data
    source = source_of(data, batch_size, role)
    count = budget.examples(source.examples)
    if source.take is None or count is None or source.examples is None or count >= source.examples:
        return Feeds(source, inputs, budget, ranks)
    return Feeds(source.take(count), inputs, Budget(count=count), ranks)


def peeked(data: Any, inputs: Sequence[str], batch_size: int = BATCH) -> tuple[Feed, Any]:
    """The first batch of ``data``, and ``data`` as it was before; arguments as of `feeds`.

    Raises:
        DataError: as by `feeds`.
    """
    if not isinstance(data, Iterator):
        return next(iter(feeds(data, inputs, ALL, batch_size=batch_size))), data
    first = list(islice(data, 1))
    return next(iter(feeds(iter(first), inputs, ALL))), chain(first, data)


def shares(data: Iterable[Feed], count: int) -> Iterator[Feed]:
    """``count`` examples, of each batch its share: all of it where nobody knows how many there will be.

    Batches that cannot be cut are whole.
    """
    planned, left = getattr(data, "planned", None) or 0, count
    for feed in data:
        size = examples_in(feed)
        keep = min(size if planned <= count else -(-size * count // planned), left)
        yield feed if keep == size else taken(feed, np.linspace(0, size - 1, keep).round().astype(int))
        left -= keep
        if left <= 0:
            return


def raw_batches(data: object, batch_size: int) -> Iterator[object]:
    """One pass over the batches of data in any form that the module's table lists, each as the data has it.

    Raises:
        DataError: as `feeds`.
    """
    return source_of(data, batch_size).open()
