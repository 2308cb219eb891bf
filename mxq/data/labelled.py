"""Data with labels: feeds as `mxq.data` makes them, each with the labels of its examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mxq.data.examples import Source
from mxq.data.feed import Feed, examples_in, flattened, is_array
from mxq.data.feeding import ALL, LABELS, Feeds, feeds
from mxq.data.sources import Role
from mxq.errors import DataError
from mxq.graph.ir import Array


def labelled(
    data: object,
    inputs: Sequence[str],
    labels: Any = None,
    batch_size: int = 32,
    role: Role = Role.EVALUATION,
) -> Iterator[tuple[Feed, Any]]:
    """Feeds with their labels, (n, ...) or None where the data has none.

    Args:
        data: see `mxq.evaluation`.
        inputs: names of the network's arguments, see `mxq.data.feeding.feeds`.
        labels: (examples, ...) instead of those in the data.
        batch_size: how whole arrays are cut.
        role: what the data is for.

    Raises:
        DataError: the data is not understood, or there are more or fewer labels than examples.
    """
    source = feeds(data, inputs, ALL, batch_size=batch_size, role=role)
    apart = _apart(data, inputs) if labels is None else _numpy(labels)
    if apart is not None and apart.ndim == 0:
        raise DataError(f"labels is {labels!r:.60}; allowed: an array with one for each example")
    if apart is not None:
        return _joined(source, apart)
    return _with_labels(data, inputs, batch_size, role)


def _joined(source: Feeds, labels: Array) -> Iterator[tuple[Feed, Any]]:
    """Labels in the order of the examples, cut as the feeds are."""
    at = 0
    for feed in source:
        size = examples_in(feed)
        if at + size > len(labels):
            raise DataError(f"there are {len(labels)} labels but more examples")
        yield feed, labels[at : at + size]
        at += size
    if at != len(labels):
        raise DataError(f"there are {len(labels)} labels for {at} examples")


def _with_labels(data: Any, inputs: Sequence[str], batch_size: int, role: Role) -> Iterator[tuple[Feed, Any]]:
    """Each batch with the labels in it."""
    if isinstance(data, Feeds | Source) or is_whole(data):
        for feed in feeds(data, inputs, ALL, batch_size=batch_size, role=role):
            yield feed, None
        return
    seen = _Seen(data)
    for number, feed in enumerate(feeds(seen, inputs, ALL, batch_size=batch_size, role=role), start=1):
        labels, size = _labels_in(seen.last, inputs), examples_in(feed)
        if labels is not None and (labels.ndim == 0 or len(labels) != size):
            raise DataError(f"batch {number} holds labels of shape {labels.shape} for {size} examples")
        yield feed, labels


class _Seen:
    """Batches as they come from ``data``, the ``last`` of them kept; all else is as ``data`` has it."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.last: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Any]:
        for item in self._data:
            self.last = item
            yield item


def _apart(data: Any, inputs: Sequence[str]) -> Array | None:
    """The labels of all examples, where the data is whole arrays or tells them."""
    if isinstance(data, Source):
        return data.labels
    if isinstance(data, Mapping):
        return next((_numpy(data[k]) for k in LABELS if k in data and k not in inputs), None)
    if isinstance(data, tuple) and is_whole(data) and len(data) > len(inputs):
        return _numpy(data[len(inputs)])
    return None


def _labels_in(item: Any, inputs: Sequence[str]) -> Array | None:
    """The labels in one raw batch."""
    if isinstance(item, Mapping):
        return next((_numpy(item[k]) for k in LABELS if k in item and k not in inputs), None)
    if isinstance(item, list | tuple):
        flat = list(flattened(item))
        return _numpy(flat[len(inputs)]) if len(flat) > len(inputs) else None
    if not is_array(item) and getattr(item, "label", None):
        labels = _numpy(item.label[0])
        return labels[: len(labels) - (getattr(item, "pad", 0) or 0)]
    return None


def is_whole(data: Any) -> bool:
    """Whether it is all examples at once, not batches."""
    return is_array(data) or isinstance(data, Mapping) or (isinstance(data, tuple) and all(map(is_array, data)))


def _numpy(value: Any) -> Array:
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
