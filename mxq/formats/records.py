"""RecordIO, as ``im2rec`` writes it: records of a label and an encoded picture, in pieces of up to 512 MB.

The format is that of dmlc (``dmlc/recordio.h``): the mark 0xCED7230A, a word whose upper three bits say which part of a
record this is and whose lower 29 how many bytes follow, those, and zeros up to a multiple of four. A record whose
content has the mark in it is cut there, and the mark left out. The content begins with a header of MXNet's
(``mxnet/recordio.py``): a count of labels (uint32), a label (float32), two numbers (uint64); where the count is not 0,
so many float32 labels follow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from mxq.errors import DataError
from mxq.formats.reading import opened, read_text

MARK: Final = 0xCED7230A
WHOLE, FIRST, MIDDLE, LAST = range(4)
MOST_INDEX: Final = 1 << 27
"""Bytes of the longest index: some six million records."""
_LENGTH: Final = (1 << 29) - 1
_HEADER: Final = struct.Struct("<IfQQ")


def records(
    path: str | os.PathLike[str], first: int = 0, count: int | None = None
) -> Iterator[tuple[NDArray[np.float32], bytes]]:
    """The records of a ``.rec`` file, in its order.

    Args:
        path: the file.
        first: how many records to leave out; its ``.idx`` beside it tells where the next one is.
        count: how many to read; all where None.

    Yields:
        The label, () or (k,) float32, and the content.

    Raises:
        DataError: no such file, damaged, or shorter than that.
    """
    positions = read_index(Path(path).with_suffix(".idx")) if first or count is not None else [0]
    if first >= len(positions):
        raise DataError(f"the index of {str(path)!r} lists {len(positions)} records; asked for is number {first}")
    with opened(path, DataError) as (stream, size):
        file, read = _File(stream, size, sorted(positions)[first] if first else 0), 0
        while (count is None or read < count) and file.at < size:
            try:
                yield _unpacked(file.record())
            except _Damage as damage:
                raise DataError(f"record {first + read} of {str(path)!r} is damaged: {damage}") from None
            read += 1
    if count is not None and read < count:
        raise DataError(f"{str(path)!r} ends after record {first + read}; its index promises {first + count}")


def read_index(path: str | os.PathLike[str]) -> list[int]:
    """Where the records begin, in the order of an ``.idx`` file: "KEY TAB POSITION" on each line.

    Raises:
        DataError: no such file, or another one.
    """
    lines = read_text(path, DataError, MOST_INDEX).splitlines()
    odd = next((line for line in lines if _position(line) is None), None)
    if odd is not None or not lines:
        raise DataError(f"{str(path)!r} is no index of records: it has {odd!r}; needed: a key, a tab, a position")
    return [int(line.split("\t")[1]) for line in lines]


def _position(line: str) -> int | None:
    parts = line.split("\t")
    able = len(parts) == 2 and parts[1].isascii() and parts[1].isdecimal() and len(parts[1]) < 20
    return int(parts[1]) if able else None


class _Damage(Exception):
    """What is wrong with a record; never leaves this module."""


@dataclass
class _File:
    """A ``.rec``, about to be read at byte ``at``."""

    stream: BinaryIO
    size: int
    at: int

    def record(self) -> bytes:
        """The next record, its parts joined by the mark that was cut out between them."""
        part, content = self._part()
        if part == WHOLE:
            return content
        if part != FIRST:
            raise _Damage(f"it begins with part {part}")
        parts = [content]
        while part != LAST:
            part, content = self._part()
            if part not in (MIDDLE, LAST):
                raise _Damage(f"part {part} comes within it")
            parts.append(content)
        return struct.pack("<I", MARK).join(parts)

    def _part(self) -> tuple[int, bytes]:
        mark, word = struct.unpack("<II", self._take(8))
        if mark != MARK:
            raise _Damage(f"at byte {self.at - 8} is {mark:#x}, not the mark {MARK:#x}")
        length = word & _LENGTH
        content = self._take(length)
        self.at += -length % 4
        return word >> 29, content

    def _take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Damage(f"it needs {count} bytes at byte {self.at}, but the file has {self.size}")
        self.stream.seek(self.at)
        self.at += count
        return self.stream.read(count)


def _unpacked(content: bytes) -> tuple[NDArray[Any], bytes]:
    """Label and picture of a record."""
    if len(content) < _HEADER.size:
        raise _Damage(f"it has {len(content)} bytes, fewer than its header")
    labels, label, _, _ = _HEADER.unpack_from(content)
    end = _HEADER.size + 4 * labels
    if end > len(content):
        raise _Damage(f"it claims {labels} labels in {len(content)} bytes")
    if labels == 0:
        return np.asarray(label, np.float32), content[_HEADER.size :]
    return np.frombuffer(content, "<f4", labels, _HEADER.size).astype(np.float32), content[end:]
