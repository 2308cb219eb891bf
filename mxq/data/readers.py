"""What reads a partition, in the process that needs it: callable, frozen, and small when pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeAlias

from mxq.data.examples import Source, open_source, read_picture, stacked
from mxq.data.feeding import raw_batches
from mxq.data.preprocess import Preprocess
from mxq.errors import DataError
from mxq.formats.records import read_index, records
from mxq.graph.ir import Array

BATCH: Final = 32
ONE_SHAPE: Final = "one shape is needed"
Batch: TypeAlias = list[Array]
"""The inputs (n, ...) in order, then the labels (n, ...) where there are any."""


@dataclass(frozen=True, slots=True)
class Files:
    """Batches of file after file, each read by ``load``."""

    load: Callable[[Path], Iterable[Any]]

    def __call__(self, paths: Sequence[Path]) -> Any:
        if len(paths) == 1:
            return self.load(paths[0])  # in any form: the caller cuts whole arrays into batches
        return chain.from_iterable(map(self._batches, paths))

    def _batches(self, path: Path) -> Iterator[Any]:
        return raw_batches(self.load(path), BATCH)


@dataclass(frozen=True, slots=True)
class Examples:
    """Spans of the examples of a folder or file.

    Attributes:
        where, inputs, preprocess, batch_size, labels: as for `mxq.images.open_source`.
        held: how many examples there were when the partitions were made.
        used: how many of them are used, spread evenly.
    """

    where: Path
    inputs: tuple[str, ...]
    preprocess: Preprocess
    batch_size: int
    labels: Path | None
    held: int
    used: int

    def __call__(self, span: tuple[int, int]) -> Iterator[Batch]:
        source = _opened(self.where, self.inputs, self.preprocess, self.labels)
        if source.examples != self.held:
            raise DataError(f"{self.where} holds {source.examples} examples, not the {self.held} that were partitioned")
        source = source.take(self.used)
        for start in range(span[0], span[1], self.batch_size):
            places = range(start, min(start + self.batch_size, span[1]))
            feed = source.read(places if source.picked is None else [source.picked[i] for i in places])
            labels = [] if source.labels is None else [source.labels[places.start : places.stop]]
            yield [*(feed[name] for name in self.inputs), *labels]


@lru_cache(maxsize=4)
def _opened(where: Path, inputs: tuple[str, ...], preprocess: Preprocess, labels: Path | None) -> Source:
    """A folder is listed once in a process, not for each of its partitions."""
    return open_source(where, inputs, preprocess, labels=labels)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Image files, without labels."""

    preprocess: Preprocess
    batch_size: int

    def __call__(self, paths: Sequence[Path]) -> Iterator[Batch]:
        for start in range(0, len(paths), self.batch_size):
            group = paths[start : start + self.batch_size]
            yield [stacked([read_picture(path, str(path), self.preprocess) for path in group], list(map(str, group)))]


@dataclass(frozen=True, slots=True)
class Records:
    """Labelled pictures in RecordIO files."""

    preprocess: Preprocess
    batch_size: int

    def __call__(self, payload: tuple[Path, int, int | None]) -> Iterator[Batch]:
        path, first, count = payload
        found, at = records(path, first, count), first
        while group := list(islice(found, self.batch_size)):
            names = [f"record {at + i} of {str(path)!r}" for i in range(len(group))]
            encoded = zip(group, names, strict=True)
            pixels = [read_picture(content, name, self.preprocess) for (_, content), name in encoded]
            labels = stacked([label for label, _ in group], [f"the label of {name}" for name in names], ONE_SHAPE)
            yield [stacked(pixels, names), labels + self.preprocess.label_offset if labels.ndim == 1 else labels]
            at += len(group)


def record_count(index: Path) -> int:
    """How many records an ``.idx`` file lists: "KEY TAB POSITION" on each line.

    Raises:
        DataError: no such file, or another one.
    """
    try:
        return len(read_index(index))
    except DataError as error:
        raise DataError(f"{error}; without it a shard is one partition") from None
