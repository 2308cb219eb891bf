"""Training data in epochs: labelled batches, in an order that the seed and the epoch's number alone decide."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mxq.calibration.collect import checksum
from mxq.data.examples import Source
from mxq.data.feed import Feed, check_finite, is_array
from mxq.data.labelled import is_whole, labelled
from mxq.data.sources import Role
from mxq.errors import DataError
from mxq.graph.ir import Array

_LABELS: Final = "(labels)"
"""What labels are called beside inputs."""


@dataclass(frozen=True)
class Epochs:
    """Labelled data that is read once for each epoch.

    Whole arrays, files and lists of batches are put into another order for each; what comes as a loader or an iterator
    shuffles itself, by numpy's or Python's generator, which training seeds before each epoch.

    Attributes:
        data: see `mxq.data`; with labels, unless ``labels`` has them.
        inputs: names of the network's arguments.
        labels: (examples, ...) in the order of the data.
        batch_size: examples to a batch of whole arrays and files.
        seed: of the order; None keeps that of the data.

    Raises:
        DataError: the data can be read only once.
    """

    data: Any
    inputs: Sequence[str]
    labels: Any = None
    batch_size: int = 32
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator) and not hasattr(self.data, "provide_data"):
            raise DataError(
                f"train_data is a {type(self.data).__name__}, which can be read only once; allowed: arrays, a loader, "
                "a list of batches, a DataIter, or a folder"
            )

    def epoch(self, number: int) -> Iterator[tuple[Feed, Array]]:
        """The batches of an epoch with their labels.

        Raises:
            DataError: the data is not understood, or has no labels.
        """
        data, labels = self.data, self.labels
        if self.seed is not None:
            data, labels = shuffled(data, labels, np.random.default_rng([self.seed, number]))
        batches = labelled(data, self.inputs, labels, self.batch_size, Role.TRAINING)
        for batch, (feed, truth) in enumerate(batches, start=1):
            if truth is None:
                raise DataError(
                    "train_data has no labels; allowed: batches of inputs and labels, whole arrays (data, labels), a "
                    "folder with labels.csv, or labels="
                )
            check_finite(feed, f"train_data, batch {batch}")
            yield feed, numbers(truth, f"train_data, batch {batch}")

    def steps(self) -> int:
        """How many batches an epoch has; where nothing tells, they are counted."""
        size = self.batch_size
        if is_array(self.data):
            return -(-len(self.data) // size)
        if is_whole(self.data):
            parts = self.data.values() if hasattr(self.data, "values") else self.data
            return -(-len(next(iter(parts))) // size)
        known = 0 if hasattr(self.data, "provide_data") else operator.length_hint(self.data)
        return known or sum(1 for _ in self.epoch(0))

    @property
    def is_kept(self) -> bool:
        """Whether an epoch is the same each time, as the seed alone puts the data in order."""
        return isinstance(self.data, Source | list) or is_whole(self.data)

    def fingerprint(self, feed: Feed, labels: Array) -> dict[str, Any]:
        """What tells the data from other data, JSON-ready, of the first batch of `epoch` 0.

        Of data that shuffles itself, which may give another batch each time, these are types and shapes alone.
        """
        arrays = {**feed, _LABELS: labels}
        said = {name: f"{value.dtype}{list(value.shape)}" for name, value in arrays.items()}
        return {"batch": said, "sha256": checksum(arrays) if self.is_kept else None}


def numbers(labels: Array, where: str) -> Array:
    """Labels as MXNet takes them: those of true and false are float32.

    Raises:
        DataError: they are no numbers.
    """
    if labels.dtype.kind not in "fiub":
        raise DataError(f"{where}: labels are of type {labels.dtype}; allowed: numbers")
    return labels.astype(np.float32) if labels.dtype.kind == "b" else labels


def shuffled(data: Any, labels: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Data, and labels beside it, in another order where any can be had; else as they are.

    Raises:
        DataError: there are more or fewer labels than examples.
    """
    if isinstance(data, Source):
        order = rng.permutation(data.examples)
        return _picked(data, order), None if labels is None else _rows(labels, order)
    if is_array(data):
        order = rng.permutation(len(data))
        return _rows(data, order), None if labels is None else _rows(labels, order)
    if is_whole(data):
        named = hasattr(data, "items")
        parts = list(data.values()) if named else list(data)
        order = rng.permutation(len(parts[0]))
        rows = [_rows(part, order) for part in parts]
        mixed = dict(zip(data, rows, strict=True)) if named else tuple(rows)
        return mixed, None if labels is None else _rows(labels, order)
    if isinstance(data, list) and labels is None:
        return [data[i] for i in rng.permutation(len(data))], None
    return data, labels


def _rows(values: Any, order: Array) -> Array:
    given: Array = np.asarray(values.asnumpy() if hasattr(values, "asnumpy") else values)
    if given.shape[:1] != order.shape:
        raise DataError(
            f"train_data has {len(order)} examples, an array or labels of it the shape {given.shape}; allowed: as many"
        )
    rows: Array = given[order]
    return rows


def _picked(source: Source, order: Array) -> Source:
    numbers = range(source.examples) if source.picked is None else source.picked
    labels = None if source.labels is None else source.labels[order]
    return replace(source, picked=tuple(int(numbers[i]) for i in order), labels=labels)
