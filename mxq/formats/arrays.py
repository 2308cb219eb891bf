"""``.npy`` and ``.npz``, their headers read here: numpy evaluates them, and takes what they claim for what is there.

A ``.npy`` is a magic, a version, the length of a header, the header (a dictionary of Python with the type, the order
and the shape) and the values; a ``.npz`` is a zip file of them. A ``.npy`` is mapped, so its values are read where
they are used; what an ``.npz`` holds is unfolded when it is asked for, and may take `MOST_BEYOND` bytes beyond the size
of its file.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxq.errors import DataError, MxqError
from mxq.formats.reading import MOST_BEYOND, opened, understood

Array: TypeAlias = NDArray[Any]

MAGIC: Final = b"\x93NUMPY"
LONGEST_HEADER: Final = 10_000
MOST_AXES: Final = 32
_PIECE: Final = 1 << 20
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FIELDS: Final = (
    re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[?a-zA-Z]\d{0,9}(?:\[\w+\])?)['"]"""),
    re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)\b"""),
    re.compile(r"""['"]shape['"]\s*:\s*\(((?:\s*\d{1,19}L?\s*,)*(?:\s*\d{1,19}L?)?)\s*\)"""),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a ``.npy`` says of its values, which begin at byte ``start``."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def order(self) -> Any:
        return "F" if self.fortran else "C"


def read_npy(path: str | os.PathLike[str], error: type[MxqError] = DataError) -> Array:
    """The array in a ``.npy``, mapped: read-only, and read from disk where it is used.

    Raises:
        MxqError: of type ``error``; there is no such file, or it is damaged or holds objects.
    """
    with opened(path, error) as (stream, size):
        name = f"{os.fspath(path)} cannot be read as arrays"
        header = _header(stream, size, f"{name}: it", error)
        if header.nbytes == 0:
            return np.zeros(header.shape, header.dtype)
        with understood(name, error):
            found = np.memmap(stream, header.dtype, "r", header.start, header.shape, header.order)
        return _of_unicode(found, name, error)


@dataclass(frozen=True)
class Archive(Mapping[str, Array]):
    """The arrays of an open ``.npz`` by name, each read when it is asked for.

    Attributes:
        name: how messages begin.
        headers: name -> what its member says.
        faults: name -> why its member is no array, or none that can be read.
    """

    name: str
    headers: Mapping[str, Header]
    faults: Mapping[str, MxqError]
    error: type[MxqError]
    _zip: zipfile.ZipFile = field(repr=False)
    _members: Mapping[str, zipfile.ZipInfo] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        """The array ``name``.

        Raises:
            KeyError: there is none.
            MxqError: it is damaged, or no array.
        """
        self.check(name)
        info = self._members[name]
        what = f"{self.name}: {name!r}"
        with understood(what, self.error), self._zip.open(info) as stream:
            header = _header(stream, info.file_size, what, self.error)
            values = np.empty(header.nbytes, np.uint8)
            _fill(values, stream, what, self.error)
        if not header.nbytes:
            return _none(header)
        found = values.view(header.dtype).reshape(header.shape, order=header.order)
        return _of_unicode(found, what, self.error)

    def check(self, *names: str) -> None:
        """Raises what is wrong with any of these members; a name that there is not is no fault."""
        for name in names:
            if name in self.faults:
                raise self.faults[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@contextmanager
def open_npz(
    path: str | os.PathLike[str], error: type[MxqError] = DataError, kind: str = "arrays"
) -> Iterator[Archive]:
    """The arrays of an ``.npz``, as long as it is open.

    Raises:
        MxqError: of type ``error``; there is no such file, it is damaged, or would unfold to too much.
    """
    with opened(path, error) as (stream, size):
        name = f"{os.fspath(path)} cannot be read as {kind}"
        archive = _zip_of(stream, size, name, error)
        with archive:
            members = _members(archive, name, error)
            unfolded = sum(info.file_size for info in members.values())
            if unfolded > size + MOST_BEYOND:
                raise error(
                    f"{name}: its {size} bytes would take {unfolded} unfolded; allowed: {MOST_BEYOND} beyond its size "
                    "(a .npy is not unfolded)"
                )
            found = {
                array: _member_header(archive, info, f"{name}: {array!r}", error) for array, info in members.items()
            }
            headers = {array: header for array, header in found.items() if isinstance(header, Header)}
            faults = {array: fault for array, fault in found.items() if isinstance(fault, MxqError)}
            yield Archive(name, headers, faults, error, archive, members)


def _zip_of(stream: BinaryIO, size: int, name: str, error: type[MxqError]) -> zipfile.ZipFile:
    if size < 4 or not stream.read(4).startswith(b"PK"):
        raise error(f"{name}: it is no archive of arrays, or cut short")
    with understood(name, error):
        return zipfile.ZipFile(stream)


def _members(archive: zipfile.ZipFile, name: str, error: type[MxqError]) -> dict[str, zipfile.ZipInfo]:
    """Array name -> member."""
    found = dict[str, zipfile.ZipInfo]()
    for info in archive.infolist():
        array = info.filename.removesuffix(".npy")
        if array in found:
            raise error(f"{name}: it holds {array!r} twice")
        if info.compress_type not in _METHODS or info.flag_bits & 1:
            raise error(f"{name}: it holds {array!r} encrypted or packed in a way that numpy does not write")
        found[array] = info
    return found


def _member_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str, error: type[MxqError]
) -> Header | MxqError:
    """What a member says; or what is wrong with it, which concerns only who asks for it."""
    try:
        with understood(what, error), archive.open(info) as stream:
            return _header(stream, info.file_size, what, error)
    except error as fault:
        return fault


def _header(stream: Any, size: int, what: str, error: type[MxqError]) -> Header:
    """The header of a ``.npy`` of ``size`` bytes, the stream then being at the values."""
    text, start = _header_text(stream, what, error)
    found = [pattern.search(text) for pattern in _FIELDS]
    kind, order, sides = (match[1] if match else "" for match in found)
    if not all(found) or kind.lstrip("<>|=")[0] in "OV":
        raise error(f"{what} has the header {text.strip()[:200]!r}; allowed: plain numbers or text, no objects")
    with understood(f"{what} has a type {kind!r} that is not known", error):
        dtype = np.dtype(kind)
    if not dtype.itemsize:
        raise error(f"{what} has a type {kind!r} without a size")
    shape = tuple(int(side.strip().rstrip("L")) for side in sides.split(",") if side.strip())
    header = Header(dtype, order == "True", shape, start)
    if len(shape) > MOST_AXES or prod(s for s in shape if s) * dtype.itemsize >= 1 << 62:
        raise error(f"{what} has shape {shape}, which is more than any memory holds")
    if header.nbytes > size - start:
        raise error(f"{what} claims shape {shape}, {header.nbytes} bytes, but only {size - start} follow")
    return header


def _header_text(stream: Any, what: str, error: type[MxqError]) -> tuple[str, int]:
    """The header as text, and where the values begin."""
    head = stream.read(8)
    if len(head) < 8 or head[:6] != MAGIC or head[6] not in (1, 2, 3):
        raise error(f"{what} is no array as numpy writes it")
    form = "<H" if head[6] == 1 else "<I"
    packed = stream.read(struct.calcsize(form))
    (length,) = struct.unpack(form, packed) if len(packed) == struct.calcsize(form) else (LONGEST_HEADER + 1,)
    if length > LONGEST_HEADER:
        raise error(f"{what} has a header of {length} bytes; allowed: {LONGEST_HEADER}")
    text = stream.read(length)
    if len(text) < length:
        raise error(f"{what} ends within its header")
    return text.decode("latin-1"), 8 + len(packed) + length


def _fill(values: Array, stream: Any, what: str, error: type[MxqError]) -> None:
    """Reads as many bytes, piece by piece, and to the end of the member, where its checksum is compared."""
    at = 0
    while at < len(values):
        piece = stream.read(min(_PIECE, len(values) - at))
        if not piece:
            raise error(f"{what} ends {len(values) - at} bytes too early")
        values[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    while stream.read(_PIECE):
        pass


def _of_unicode(values: Array, what: str, error: type[MxqError]) -> Array:
    """``values``, in whose text there are no characters but Unicode's: Python has none for others."""
    if values.dtype.kind == "U" and values.size:
        codes = np.frombuffer(values.tobytes(), np.dtype(f"{values.dtype.byteorder}u4"))
        if codes.max() > sys.maxunicode:
            raise error(f"{what} has a character {int(codes.max()):#x}; allowed: up to {sys.maxunicode:#x}, as Unicode")
    return values


def _none(header: Header) -> Array:
    """An array without bytes."""
    return np.zeros(header.shape, header.dtype)
