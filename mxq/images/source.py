"""Where examples come from: folders of images, ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from mxq.errors import DataError
from mxq.images.preprocess import Preprocess, whole
from mxq.ir import Array

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ARRAY_SUFFIXES = (".npy", ".npz")
LABEL_FILE = "labels.csv"
LABEL_KEYS = ("label", "labels")
LABEL_COLUMNS = ("label", "index")
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
    whole("batch_size", batch_size, 1)
    if where.is_dir():
        source = _folder(where, inputs, settings, Path(labels) if labels else None)
    elif not where.exists():
        raise DataError(f"{where} does not exist; allowed: a folder of images, a .npy or an .npz file")
    elif where.suffix in ARRAY_SUFFIXES:
        source = _arrays(where, inputs, settings)
    else:
        raise DataError(f"{where} is a {where.suffix or 'plain'} file; allowed: a folder of images, .npy or .npz")
    shifted = None if source.labels is None else source.labels + settings.label_offset
    return replace(source, batch_size=batch_size, labels=shifted)


def _folder(where: Path, inputs: Sequence[str], preprocess: Preprocess, labels: Path | None) -> Source:
    if len(inputs) != 1:
        raise DataError(
            f"{where} holds images, but the network has {len(inputs)} inputs ({', '.join(inputs)}); use an .npz"
        )
    table = labels or where / LABEL_FILE
    listed = _read_labels(table) if labels or table.is_file() else None
    if listed is None:
        files = sorted(p for p in where.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    else:
        files = [where / name for name in listed]
        absent = [f for f in files if not f.is_file()]
        if absent:
            raise DataError(f"{table} lists {absent[0].name!r} and {len(absent) - 1} others that {where} does not hold")
    if not files:
        raise DataError(f"{where} holds no images ({', '.join(IMAGE_SUFFIXES)})")

    def read(numbers: Sequence[int]) -> Mapping[str, Array]:
        examples = [read_picture(files[i], str(files[i]), preprocess) for i in numbers]
        return {inputs[0]: stacked(examples, [files[i].name for i in numbers])}

    values = None if listed is None else np.asarray(list(listed.values()), np.int64)
    return Source(f"{len(files)} images in {where}", len(files), read, values, pictures=True)


def _read_labels(table: Path) -> dict[str, int]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            column = next((c for c in LABEL_COLUMNS if c in names), None)
            if "file" not in names or column is None:
                raise DataError(f"{table} has columns {', '.join(names) or 'none'}; needed: file, and label or index")
            listed = {}
            for row in reader:
                try:
                    listed[row["file"]] = int(row[column])
                except (TypeError, ValueError):
                    raise DataError(
                        f"{table} line {reader.line_num}: {column} is {row[column]!r}, not a whole number"
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read: {error}") from None
    return listed


def _arrays(where: Path, inputs: Sequence[str], preprocess: Preprocess) -> Source:
    try:
        loaded = np.load(where, allow_pickle=False, mmap_mode="r" if where.suffix == ".npy" else None)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{where} cannot be read as arrays: {error}") from None
    labels = next((np.asarray(arrays[k], np.int64) for k in LABEL_KEYS if k in arrays and k not in inputs), None)
    feeds = _match(where, arrays, inputs)
    lengths = {k: len(v) for k, v in feeds.items()}
    examples = min(lengths.values())
    if examples == 0 or len(set(lengths.values())) != 1:
        raise DataError(f"{where} holds {lengths} examples; the arrays must be equally long and not empty")
    if labels is not None and labels.shape != (examples,):
        raise DataError(f"{where}: labels have shape {labels.shape}; needed: {(examples,)}")

    def read(numbers: Sequence[int]) -> Mapping[str, Array]:
        return {k: _rows(v, numbers, preprocess) for k, v in feeds.items()}

    pictures = any(map(_are_pictures, feeds.values()))
    return Source(f"{examples} examples in {where}", examples, read, labels, pictures=pictures)


def _match(where: Path, arrays: Mapping[str, Array], inputs: Sequence[str]) -> dict[str, Array]:
    """Which array feeds which input."""
    if all(name in arrays for name in inputs):
        found = {name: arrays[name] for name in inputs}
    else:
        # A list of class names and the like (strings, one-dimensional) may ride along.
        able = [k for k, v in arrays.items() if v.dtype.kind in "fiub" and v.ndim > 0 and k not in LABEL_KEYS]
        if len(inputs) != 1 or len(able) != 1:
            held = ", ".join(f"{k} {v.shape}" if k else str(v.shape) for k, v in arrays.items()) or "nothing"
            raise DataError(f"{where} holds {held}; needed: an array for each of {', '.join(inputs)}")
        found = {inputs[0]: arrays[able[0]]}
    for name, array in found.items():
        if array.ndim == 0:
            raise DataError(f"{where}: {name or 'the array'} is a single number; the first axis must count examples")
    return found


def _are_pictures(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim in (3, 4) and (array.ndim == 3 or array.shape[-1] in (1, 3))


def _rows(array: Array, numbers: Sequence[int], preprocess: Preprocess) -> Array:
    rows = np.asarray(array[list(numbers)])
    if _are_pictures(rows):
        images = (Image.fromarray(r[..., 0] if r.ndim == 3 and r.shape[-1] == 1 else r) for r in rows)
        return stacked([preprocess(image) for image in images], [f"example {i}" for i in numbers])
    return rows.astype(np.float32) if rows.dtype.kind in "fub" and rows.dtype != np.float32 else rows


@contextmanager
def _whole_images() -> Iterator[None]:
    """Makes Pillow refuse truncated files, whatever others set: gluoncv allows them for the whole process."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_picture(source: Path | bytes, name: str, preprocess: Preprocess) -> Array:
    """An encoded picture, a file or bytes, as one example (C, H, W) or (H, W, C) float32.

    Raises:
        DataError: it cannot be read whole, or does not fit; the message has its ``name``.
    """
    try:
        with _whole_images(), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return preprocess(image)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise DataError(f"{name} cannot be read as an image: {error}") from None


def stacked(parts: Sequence[Array], names: Sequence[str], needed: str = SIZES) -> Array:
    """Arrays of one shape as (n, ...).

    Raises:
        DataError: their shapes differ; the message names two, and says what is ``needed``.
    """
    for name, part in zip(names, parts, strict=True):
        if part.shape != parts[0].shape:
            raise DataError(f"{name} has shape {part.shape}, {names[0]} {parts[0].shape}; {needed}")
    return np.stack(parts)
