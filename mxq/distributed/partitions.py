"""Data in parts: each is read where it is needed, by a function, from a short description of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mxq.data.examples import open_source
from mxq.data.preprocess import RAW, Preprocess
from mxq.data.readers import BATCH, Examples, Files, Pictures, Records, record_count
from mxq.errors import ConfigError, DataError
from mxq.logs import LOG

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Partitions:
    """Data cut into parts that any process can read on its own.

    Attributes:
        name: what messages call the whole.
        items: (key, payload) of each part, in the data's order. The key is what files of statistics and messages
            call it; the payload says where it is (paths, numbers): it travels, the data does not.
        load: from a payload to batches, in any form that `mxq.data` understands, such as a generator of arrays;
            for evaluation with their labels (`mxq.evaluation`). It and the payloads are pickled.
    """

    name: str
    items: tuple[tuple[str, Any], ...]
    load: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not self.items:
            raise ConfigError(f"{self.name} has no partitions; at least one is needed")
        if not callable(self.load):
            raise ConfigError(f"load is {self.load!r:.60}; allowed: a function from a partition to batches")
        odd = next((key for key, _ in self.items if not isinstance(key, str) or not key), None)
        if odd is not None:
            raise ConfigError(f"{self.name} has a partition called {odd!r}; allowed: a text that is not empty")
        key, count = Counter(self.keys).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"{self.name} has {count} partitions called {key!r}; the keys must differ")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.items)

    @staticmethod
    def of(function: Callable[[Any], Any], items: Iterable[Any], name: str = "data") -> Partitions:
        """``function`` makes batches of each of the ``items``, which are called by their text, ``str(item)``."""
        return Partitions(name, tuple((str(item), item) for item in items), function)

    @staticmethod
    def files(
        paths: Iterable[PathLike], load: Callable[[Any], Any], per_partition: int = 1, name: str = "files"
    ) -> Partitions:
        """Files that ``load`` reads, one at a time: from a `Path` to batches.

        Args:
            paths: the files, in order; workers find them under the same (absolute) paths.
            load: see the class.
            per_partition: how many files make a partition.
            name: see the class.

        Raises:
            ConfigError: there are none, or one is listed twice.
        """
        return Partitions(name, _cut_files(paths, per_partition, name), Files(load))

    @staticmethod
    def images(
        where: PathLike | Sequence[PathLike],
        inputs: Sequence[str] = ("data",),
        preprocess: Preprocess | None = None,
        batch_size: int = BATCH,
        per_partition: int = 512,
        *,
        labels: PathLike | None = None,
        examples: int | None = None,
    ) -> Partitions:
        """Pictures or arrays, read as `mxq.images.open_source` does, with their labels where there are any.

        Args:
            where: a folder, a ``.npy`` or ``.npz`` file, which every worker sees; or a list of image files.
            inputs: names of the network's inputs, where there are several.
            preprocess: how pictures become inputs; as 0..255, with a warning, where None.
            batch_size: examples to a batch.
            per_partition: examples to a partition.
            labels: a file like ``labels.csv``, for a folder.
            examples: use so many, spread evenly; all where None.

        Raises:
            DataError: nothing there that can be used.
            ConfigError: a count that is not positive, or no files.
        """
        batch_size, per_partition = _count("batch_size", batch_size), _count("per_partition", per_partition)
        settings = preprocess or Preprocess()
        if not isinstance(where, str | os.PathLike):
            _warn_of_raw(preprocess)
            return Partitions("images", _cut_files(where, per_partition, "images"), Pictures(settings, batch_size))
        path = Path(where).absolute()
        table = None if labels is None else Path(labels).absolute()
        source = open_source(path, inputs, settings, batch_size, table)
        if source.pictures:
            _warn_of_raw(preprocess)
        held = source.examples
        used = held if examples is None else min(_count("examples", examples), held)
        read = Examples(path, tuple(inputs), settings, batch_size, table, held, used)
        spans = [(start, min(start + per_partition, used)) for start in range(0, used, per_partition)]
        return Partitions(path.name, tuple((f"{path.name}[{a}:{b}] of {used}/{held}", (a, b)) for a, b in spans), read)

    @staticmethod
    def recordio(
        shards: PathLike | Iterable[PathLike],
        preprocess: Preprocess | None = None,
        batch_size: int = BATCH,
        per_partition: int | None = None,
    ) -> Partitions:
        """RecordIO files of labelled pictures, as MXNet's ``im2rec`` makes them.

        Args:
            shards: ``.rec`` files.
            preprocess: how pictures become inputs.
            batch_size: examples to a batch.
            per_partition: records to a partition, which needs the ``.idx`` beside each shard; a shard where None.

        Raises:
            DataError: no such file, or an index that is none.
            ConfigError: a count that is not positive, or no shards.
        """
        batch_size = _count("batch_size", batch_size)
        _warn_of_raw(preprocess)
        paths = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
        items: list[tuple[str, Any]] = []
        for shard in map(str, paths):
            path = Path(shard).absolute()
            if not path.is_file():
                raise DataError(f"no file {shard!r}")
            if per_partition is None:
                items.append((shard, (path, 0, None)))
                continue
            size, total = _count("per_partition", per_partition), record_count(path.with_suffix(".idx"))
            spans = ((start, min(start + size, total)) for start in range(0, total, size))
            items += [(f"{shard}[{a}:{b}]", (path, a, b - a)) for a, b in spans]
        return Partitions("records", tuple(items), Records(preprocess or Preprocess(), batch_size))


def _cut_files(paths: Iterable[PathLike], size: int, name: str) -> tuple[tuple[str, tuple[Path, ...]], ...]:
    """Groups of files, called by the first of them."""
    size = _count("per_partition", size)
    listed = list(map(str, paths))
    if not listed:
        raise ConfigError(f"{name} has no partitions; at least one is needed")
    twice, count = Counter(listed).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{name} lists {twice!r} {count} times; it would count as often")
    groups = [listed[start : start + size] for start in range(0, len(listed), size)]
    absolute = [tuple(Path(path).absolute() for path in group) for group in groups]
    names = [group[0] if len(group) == 1 else f"{group[0]} +{len(group) - 1}" for group in groups]
    return tuple(zip(names, absolute, strict=True))


def _warn_of_raw(preprocess: Preprocess | None) -> None:
    if preprocess is None:
        LOG.warning(RAW)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from 1")
    return int(value)
