"""Where examples come from: folders of images, ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mxq.data.pictures import decode
from mxq.data.preprocess import MOST_LABEL, Preprocess, whole
from mxq.errors import DataError
from mxq.formats.arrays import Header, open_npz, read_npy
from mxq.formats.reading import opened
from mxq.graph.ir import Array

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ARRAY_SUFFIXES = (".npy", ".npz")
LABEL_FILE = "labels.csv"
LABEL_KEYS = ("label", "labels")
LABEL_COLUMNS = ("label", "index")
MOST_ROWS = 1 << 22
"""Of a ``labels.csv``."""
NUMBERS = "fiub"
"""Kinds of numpy types that a network is fed."""
SIZES = "pictures of different sizes need resize, or short_side and crop"


@dataclass(frozen=True)
class Source:
    """Examples on disk, as batches of feeds. Iterating reads them anew each time; the last batch may be short.

    Attributes:
        description: one line for people.
        examples: how many there are.
        read: from example numbers to feeds: input name -> array (n, ...).
        labels: (examples,) int64, or None.
        batch_size: examples to a batch.
        picked: the numbers of the examples, where these are not all.
        pictures: whether they are pictures, which `Preprocess` makes inputs of.
    """

    description: str
    examples: int
    read: Callable[[Sequence[int]], Mapping[str, Array]]
    labels: Array | None = None
    batch_size: int = 16
    picked: tuple[int, ...] | None = None
    pictures: bool = False

    def __len__(self) -> int:
        """The number of batches."""
        return (self.examples + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return self.starting_at(0)

    def starting_at(self, batch: int) -> Iterator[Mapping[str, Array]]:
        """The batches from number ``batch`` on; those before are not read."""
        numbers = range(self.examples) if self.picked is None else self.picked
        for start in range(batch * self.batch_size, self.examples, self.batch_size):
            yield self.read(numbers[start : start + self.batch_size])

    def take(self, count: int) -> Source:
        """``count`` of the examples (all where there are fewer), spread evenly.

        Folders tend to be sorted by class; the first few would be one class.
        """
        if count >= self.examples:
            return self
        places = [i * self.examples // count for i in range(count)]
        numbers = tuple(places if self.picked is None else (self.picked[p] for p in places))
        labels = None if self.labels is None else self.labels[places]
        return replace(self, examples=count, picked=numbers, labels=labels)


def open_source(
    path: str | os.PathLike[str],
    inputs: Sequence[str] = ("data",),
    preprocess: Preprocess | None = None,
    batch_size: int = 16,
    labels: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens a data source.

    * A folder: its ``.jpg`` and ``.png`` files, also in folders within, sorted by name. ``labels.csv`` beside
      them (or ``labels``) has a column ``file`` and a column ``label`` (or ``index``); the files it lists are used.
    * ``.npy``: one array (N, ...), for a network with one input.
    * ``.npz``: an array for each input under its name, or a single array of any name; ``label`` or ``labels``.

    uint8 arrays (N, H, W, C) or (N, H, W) are pictures and go through ``preprocess``; others are fed as they are.

    Args:
        path: the folder or file.
        inputs: names of the network's inputs.
        preprocess: how pictures become inputs; as they are where None.
        batch_size: examples to a batch.
        labels: a file like ``labels.csv``, for a folder.

    Raises:
        DataError: nothing there that can be used; the message names the file.
    """
    where, settings = Path(path), preprocess or Preprocess()
    size: Any = batch_size
    size = int(size) if isinstance(size, np.integer) else size
    whole("batch_size", size, 1)
    if _is(where, Path.is_dir):
        source = _folder(where, inputs, settings, Path(labels) if labels else None)
    elif not _is(where, Path.exists):
        raise DataError(f"{where} does not exist; allowed: a folder of images, a .npy or an .npz file")
    elif where.suffix in ARRAY_SUFFIXES:
        source = _arrays(where, inputs, settings)
    else:
        raise DataError(f"{where} is a {where.suffix or 'plain'} file; allowed: a folder of images, .npy or .npz")
    shifted = None if source.labels is None else source.labels + settings.label_offset
    return replace(source, batch_size=size, labels=shifted)


def _is(where: Path, what: Callable[[Path], bool]) -> bool:
    try:
        return what(where)
    except (OSError, ValueError) as error:  # a name that is too long, or with NUL in it
        raise DataError(f"{str(where)!r} cannot be read: {error}") from None


def _folder(where: Path, inputs: Sequence[str], preprocess: Preprocess, labels: Path | None) -> Source:
    if len(inputs) != 1:
        raise DataError(
            f"{where} holds images, but the network has {len(inputs)} inputs ({', '.join(inputs)}); use an .npz"
        )
    table = labels or where / LABEL_FILE
    listed = _read_labels(table) if labels or table.is_file() else None
    if listed is None:
        files = sorted(p for p in where.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    else:
        files = _listed(where, table, listed)
    if not files:
        raise DataError(f"{where} holds no images ({', '.join(IMAGE_SUFFIXES)})")

    def read(numbers: Sequence[int]) -> Mapping[str, Array]:
        examples = [read_picture(files[i], str(files[i]), preprocess) for i in numbers]
        return {inputs[0]: stacked(examples, [files[i].name for i in numbers])}

    values = None if listed is None else np.asarray(list(listed.values()), np.int64)
    return Source(f"{len(files)} images in {where}", len(files), read, values, pictures=True)


def _listed(where: Path, table: Path, names: Iterable[str]) -> list[Path]:
    """The files that a table names: in the folder, and nowhere else."""
    root = where.resolve()
    files, absent = [], list[str]()
    for name in names:
        file = where / name
        if not _is(file, Path.is_file):
            absent.append(name)
        elif not file.resolve().is_relative_to(root):
            raise DataError(f"{table} lists {name!r}, which lies outside {where}; allowed: files within")
        files.append(file)
    if absent:
        raise DataError(f"{table} lists {absent[0]!r} and {len(absent) - 1} others that {where} does not hold")
    return files


def _read_labels(table: Path) -> dict[str, int]:
    with opened(table, DataError) as (stream, _), io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        try:
            return _rows_of(table, csv.DictReader(text))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{table} cannot be read as a table: {error}") from None


def _rows_of(table: Path, reader: csv.DictReader[str]) -> dict[str, int]:
    names, listed = reader.fieldnames or [], dict[str, int]()
    column = next((c for c in LABEL_COLUMNS if c in names), None)
    if "file" not in names or column is None:
        raise DataError(f"{table} has columns {', '.join(names) or 'none'}; needed: file, and label or index")
    for row in reader:
        name, label = row["file"] or "", _label(row[column], column, f"{table} line {reader.line_num}")
        if listed.setdefault(name, label) != label:
            raise DataError(f"{table} line {reader.line_num}: {name!r} has label {listed[name]} further up")
        if len(listed) > MOST_ROWS:
            raise DataError(f"{table} lists more than {MOST_ROWS} files")
    return listed


def _label(text: str | None, column: str, where: str) -> int:
    try:
        label = int(text or "")
    except ValueError:
        label = MOST_LABEL + 1
    if abs(label) > MOST_LABEL:
        raise DataError(f"{where}: {column} is {text!r}, not a whole number up to {MOST_LABEL}")
    return label


def _arrays(where: Path, inputs: Sequence[str], preprocess: Preprocess) -> Source:
    if where.suffix == ".npy":
        array = read_npy(where)
        return _source(where, dict.fromkeys(_match(where, {"": array}, inputs), array), None, preprocess)
    with open_npz(where) as archive:
        archive.check(*inputs)
        chosen = _match(where, archive.headers, inputs)
        feeds = {name: archive[held] for name, held in chosen.items()}
        key = next((k for k in LABEL_KEYS if k in archive and k not in inputs), None)
        return _source(where, feeds, None if key is None else _labels(where, archive[key]), preprocess)


def _source(where: Path, feeds: Mapping[str, Array], labels: Array | None, preprocess: Preprocess) -> Source:
    lengths = {k: len(v) for k, v in feeds.items()}
    examples = min(lengths.values())
    if len(set(lengths.values())) != 1 or not all(v.size for v in feeds.values()):
        raise DataError(f"{where} holds {lengths} examples; the arrays must be equally long and not empty")
    if labels is not None and labels.shape != (examples,):
        raise DataError(f"{where}: labels have shape {labels.shape}; needed: {(examples,)}")

    def read(numbers: Sequence[int]) -> Mapping[str, Array]:
        return {k: _rows(v, numbers, preprocess) for k, v in feeds.items()}

    pictures = any(map(_are_pictures, feeds.values()))
    return Source(f"{examples} examples in {where}", examples, read, labels, pictures=pictures)


def _match(where: Path, arrays: Mapping[str, Array | Header], inputs: Sequence[str]) -> dict[str, str]:
    """Which array feeds which input: input -> array."""
    if all(name in arrays for name in inputs):
        found = {name: name for name in inputs}
    else:
        # A list of class names and the like (strings, one-dimensional) may ride along.
        able = [k for k, v in arrays.items() if v.dtype.kind in NUMBERS and v.shape and k not in LABEL_KEYS]
        if len(inputs) != 1 or len(able) != 1:
            held = ", ".join(f"{k} {v.shape}".strip() for k, v in arrays.items()) or "nothing"
            raise DataError(f"{where} holds {held}; needed: an array for each of {', '.join(inputs)}")
        found = {inputs[0]: able[0]}
    for name, array in ((name, arrays[key]) for name, key in found.items()):
        if not array.shape:
            raise DataError(f"{where}: {name or 'the array'} is a single number; the first axis must count examples")
        if array.dtype.kind not in NUMBERS:
            raise DataError(f"{where}: {name or 'the array'} has type {array.dtype}; allowed: floats and integers")
    return found


def _are_pictures(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim in (3, 4) and (array.ndim == 3 or array.shape[-1] in (1, 3))


def _labels(where: Path, labels: Array) -> Array:
    """Labels as (n,) int64.

    Raises:
        DataError: they are no whole numbers.
    """
    if labels.dtype.kind in NUMBERS:
        with np.errstate(invalid="ignore"):
            whole_numbers = labels.astype(np.int64)
        if np.array_equal(whole_numbers, labels) and (np.clip(whole_numbers, -MOST_LABEL, MOST_LABEL) == labels).all():
            return whole_numbers
    raise DataError(f"{where}: labels have type {labels.dtype}; allowed: whole numbers up to {MOST_LABEL}")


def _rows(array: Array, numbers: Sequence[int], preprocess: Preprocess) -> Array:
    rows = np.asarray(array[list(numbers)])
    if _are_pictures(rows):
        images = (Image.fromarray(r[..., 0] if r.ndim == 3 and r.shape[-1] == 1 else r) for r in rows)
        return stacked([preprocess(image) for image in images], [f"example {i}" for i in numbers])
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which whoever reads it reports
        return rows.astype(np.float32) if rows.dtype.kind in "fub" and rows.dtype != np.float32 else rows


def read_picture(source: Path | bytes, name: str, preprocess: Preprocess) -> Array:
    """An encoded picture, a file or bytes, as one example (C, H, W) or (H, W, C) float32.

    Raises:
        DataError: it cannot be read whole, or does not fit; the message has its ``name``.
    """
    image = decode(source, name)
    try:
        return preprocess(image)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def stacked(parts: Sequence[Array], names: Sequence[str], needed: str = SIZES) -> Array:
    """Arrays of one shape as (n, ...).

    Raises:
        DataError: their shapes differ; the message names two, and says what is ``needed``.
    """
    for name, part in zip(names, parts, strict=True):
        if part.shape != parts[0].shape:
            raise DataError(f"{name} has shape {part.shape}, {names[0]} {parts[0].shape}; {needed}")
    return np.stack(parts)
