"""Data that is looked at many times: what can be read only once is kept, and all of it can be told from other data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mxq.data.budget import Budget
from mxq.data.feed import Feed
from mxq.data.feeding import Feeds, feeds
from mxq.distributed import Partitions
from mxq.evaluation import ALL, labelled
from mxq.graph.ir import Array

MOST_BYTES: Final = 1 << 29
"""How much data `Remembered` keeps."""

LABEL: Final = "label"
"""What labels are called in a batch, see `mxq.evaluation`."""


@dataclass(frozen=True)
class Loaded:
    """The batches of partitions, without labels, read in this process each time they are iterated."""

    partitions: Partitions
    inputs: tuple[str, ...]

    def __iter__(self) -> Iterator[Feed]:
        for _, payload in self.partitions.items:
            yield from feeds(self.partitions.load(payload), self.inputs, ALL)


class Remembered(Iterable[Feed]):
    """Batches that are read once: kept in memory where all of them fit, so that pictures are not decoded again."""

    def __init__(self, source: Iterable[Feed]) -> None:
        self._source = source
        self._kept: list[Feed] | None = None

    def __iter__(self) -> Iterator[Feed]:
        return self._pass() if self._kept is None else iter(self._kept)

    def _pass(self) -> Iterator[Feed]:
        kept, size = [], 0
        for batch in self._source:
            size += sum(array.nbytes for array in batch.values())
            if size <= MOST_BYTES:
                kept.append(batch)
            yield batch
        if size <= MOST_BYTES:
            self._kept = kept


@dataclass(frozen=True)
class WithLabels:
    """Labelled data in any form, as batches that hold their labels under `LABEL`."""

    data: Any
    inputs: tuple[str, ...]
    labels: Any
    batch_size: int

    def __iter__(self) -> Iterator[Feed]:
        for feed, truth in labelled(self.data, self.inputs, self.labels, self.batch_size):
            yield feed if truth is None else feed.with_arrays({LABEL: as_numpy(truth)})


def listed(data: Any) -> Any:
    """``data``, a generator as a list of its batches."""
    return list(data) if isinstance(data, Iterator) else data


def repeatable(
    data: Any, inputs: tuple[str, ...], budget: Budget, batch_size: int, ranks: Mapping[str, int] | None = None
) -> Feeds | Loaded:
    """Calibration data in any form, as batches that can be iterated again; a generator is read only as far as needed.

    Raises:
        DataError: see `mxq.data.feeding.feeds`.
    """
    if isinstance(data, Partitions):
        return Loaded(data, inputs)
    found = feeds(data, inputs, budget, batch_size=batch_size, ranks=ranks)
    return feeds(list(found), inputs, ALL) if isinstance(data, Iterator) else found


def has_labels(data: Any, inputs: tuple[str, ...], batch_size: int) -> bool:
    """Whether there are labels in the first batch."""
    return next(iter(labelled(data, inputs, None, batch_size)))[1] is not None


def data_digest(data: Any, inputs: tuple[str, ...], batch_size: int) -> Mapping[str, object]:
    """What tells data from other data: its first batch, and how much there is where that is known."""
    if isinstance(data, Partitions):
        return {"name": data.name, "partitions": list(data.keys)}
    return digest(feeds(data, inputs, ALL, batch_size=batch_size))


def digest(batches: Iterable[Feed]) -> Mapping[str, object]:
    """As `data_digest`, of batches."""
    if isinstance(batches, Loaded):
        return data_digest(batches.partitions, batches.inputs, 1)
    first = next(iter(batches))
    arrays = [array for _, array in sorted(first.items())]
    return {"first": sha256(arrays), "batch": len(arrays[0]), "examples": getattr(batches, "planned", None)}


def sha256(arrays: Iterable[Array]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def as_numpy(value: Any) -> Array:
    """An array of numpy, of one of MXNet or a list."""
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
