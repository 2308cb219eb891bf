"""MXNet's parameter files, decoded here: MXNet's own reader believes what a file says of its sizes.

The format is that of ``src/ndarray/ndarray.cc``, little-endian throughout: the mark 0x112 and a reserved word, a count
(uint64 each), as many arrays, a count again, as many names (a uint64 length, UTF-8). An array is

* a magic (uint32): V2, or V3 for an array saved with numpy's shapes, of which a scalar has no axis and 0 is a side;
* its storage (int32): dense, row_sparse or csr; for the latter two the shape of the stored values;
* its shape: the number of axes (int32), the sides (int64);
* the device (two int32), which is of no account here, and the type flag (int32);
* of row_sparse the type and shape of the row numbers, of csr those of the row pointers and column numbers;
* the values, then those numbers.

V1, and files older still (where the number of axes stands for the magic, before sides of uint32), are dense and have
no storage.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxq.errors import FormatError
from mxq.formats.reading import MOST_BEYOND, decoded, opened

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

MARK: Final = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
BFLOAT16: Final = 12
TYPES: Final = MappingProxyType(
    {
        **dict(enumerate(("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1"))),
        BFLOAT16: "<u2",
    }
)
"""Type flag -> how numpy calls it; those that MXNet 1.9.1 gives to Python."""
STORAGES: Final = ("dense", "row_sparse", "csr")
MOST_AXES: Final = 32
"""What numpy can hold."""
MOST_ARRAYS: Final = 1 << 20


def read_params(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Name -> array, of every array in the file. Sparse ones are unfolded, and bfloat16 becomes float32, exactly.

    Raises:
        FormatError: there is no such file, it is damaged or cut short, or no parameter file; the message says what
            was found.
    """
    with opened(path) as (stream, size):
        try:
            return _named(_Bytes(stream, size))
        except _Damage as damage:
            raise FormatError(f"{os.fspath(path)!r} is no parameter file, or damaged: {damage}") from None


LARGEST: Final = 2**31 - 1
"""Values in an array: MXNet counts them in 32 bits."""


class _Damage(Exception):
    """What is wrong with a file; never leaves this module."""


@dataclass
class _Bytes:
    """A stream whose rest is known: nothing is taken that is not there."""

    stream: BinaryIO
    left: int
    dense: int = MOST_BEYOND
    """Bytes that sparse arrays may still take when they are unfolded."""

    def numbers(self, form: str, what: str) -> tuple[int, ...]:
        content = self.bytes(struct.calcsize("<" + form), what)
        return struct.unpack("<" + form, content)

    def number(self, form: str, what: str) -> int:
        return self.numbers(form, what)[0]

    def bytes(self, count: int, what: str) -> bytes:
        self._claim(count, what)
        content = self.stream.read(count)
        if len(content) != count:
            raise _Damage(f"it ends within {what}")
        return content

    def values(self, shape: Shape, dtype: str, what: str) -> Array:
        count = prod(shape)
        if not count and prod(side for side in shape if side) > LARGEST:
            raise _Damage(f"{what} has the shape {list(shape)}; allowed: sides whose product is up to {LARGEST}")
        self._claim(count * np.dtype(dtype).itemsize, what)
        found = np.fromfile(self.stream, dtype, count)
        if len(found) != count:
            raise _Damage(f"it ends within {what}")
        return found.reshape(shape)

    def count(self, what: str) -> int:
        """A number of things, each of which takes 8 bytes or more."""
        found = self.number("Q", f"the number of {what}")
        if found * 8 > self.left or found > MOST_ARRAYS:
            raise _Damage(f"it claims {found} {what}, but {self.left} bytes follow; allowed: up to {MOST_ARRAYS}")
        return found

    def _claim(self, count: int, what: str) -> None:
        if count > self.left:
            raise _Damage(f"{what} takes {count} bytes, but only {self.left} follow")
        self.left -= count


def _named(file: _Bytes) -> dict[str, Array]:
    mark, _ = file.numbers("QQ", "the head")
    if mark != MARK:
        raise _Damage(f"it begins with {mark:#x}, not {MARK:#x}")
    arrays = [_array(file, f"array {i}") for i in range(file.count("arrays"))]
    names = list(_names(file))
    if arrays and not names:
        raise _Damage(f"it holds {len(arrays)} arrays without names; allowed: named parameters")
    if len(names) != len(arrays):
        raise _Damage(f"it has {len(names)} names for {len(arrays)} arrays")
    table = dict[str, Array]()
    for name, array in zip(names, arrays, strict=True):
        if name in table:
            raise _Damage(f"it holds {name!r} twice")
        table[name] = array
    return table


def _names(file: _Bytes) -> Iterator[str]:
    for i in range(file.count("names")):
        length = file.number("Q", f"the length of name {i}")
        try:
            yield decoded(file.bytes(length, f"name {i}"), f"name {i}")
        except FormatError as error:
            raise _Damage(str(error)) from None


def _array(file: _Bytes, what: str) -> Array:
    magic = file.number("I", what)
    if magic not in (V2, V3):
        shape = _shape(file, what) if magic == V1 else _sides(file, magic, "I", what)
        return _dense(file, shape, what)
    storage = file.number("i", what)
    if storage not in range(len(STORAGES)):
        raise _Damage(f"{what} has storage {storage}; allowed: 0 to {len(STORAGES) - 1} ({', '.join(STORAGES)})")
    if storage == 0:
        return _dense(file, _shape(file, what, scalar=magic == V3), what)
    return _sparse(file, STORAGES[storage], what)


def _dense(file: _Bytes, shape: Shape, what: str) -> Array:
    flag = _type(file, what)
    return _plain(file.values(shape, TYPES[flag], what), flag)


def _type(file: _Bytes, what: str, device: bool = True) -> int:
    flag = file.numbers("iii" if device else "i", what)[-1]
    if flag not in TYPES:
        raise _Damage(f"{what} has type flag {flag}; allowed: {', '.join(map(str, TYPES))}")
    return flag


def _shape(file: _Bytes, what: str, scalar: bool = False) -> Shape:
    axes = file.number("i", what)
    if axes < 0 or (axes == 0 and not scalar):
        raise _Damage(f"{what} has {axes} axes, so it has no value")
    return _sides(file, axes, "q", what)


def _sides(file: _Bytes, axes: int, form: str, what: str) -> Shape:
    if axes > MOST_AXES:
        raise _Damage(f"{what} has {axes} axes; allowed: up to {MOST_AXES}")
    if axes == 0 and form == "I":
        raise _Damage(f"{what} has no axes, so it has no value")
    sides = file.numbers(f"{axes}{form}", what)
    if any(side < 0 for side in sides):
        raise _Damage(f"{what} has shape {sides}; allowed: sides from 0")
    if prod(side for side in sides if side) >= 1 << 62:  # which numpy cannot count, whatever side is 0
        raise _Damage(f"{what} has shape {sides}, which is more than any memory holds")
    return sides


def _plain(values: Array, flag: int) -> Array:
    """bfloat16 is the upper half of a float32."""
    if flag != BFLOAT16:
        return values
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---- sparse storage ----------------------------------------------------------------------------------------------


def _sparse(file: _Bytes, storage: str, what: str) -> Array:
    stored, shape = _shape(file, what), _shape(file, what)
    flag = _type(file, what)
    parts = [(TYPES[_type(file, what, device=False)], _shape(file, what)) for _ in range(STORAGES.index(storage))]
    if any(np.dtype(kind).kind not in "iu" for kind, _ in parts):
        raise _Damage(f"{what} is {storage} with places that are no integers")
    values = _plain(file.values(stored, TYPES[flag], what), flag)
    places = [file.values(part, kind, what) for kind, part in parts]
    size = prod(shape) * values.itemsize
    if size > file.dense:
        raise _Damage(f"{what} is {storage} and takes {size} bytes when unfolded; allowed: {MOST_BEYOND} in all")
    file.dense -= size
    unfold = _rows if storage == "row_sparse" else _columns
    return unfold(values, places, shape, what)


def _rows(values: Array, places: list[Array], shape: Shape, what: str) -> Array:
    """row_sparse: ``values`` (n, ...) are the rows ``places[0]`` (n,), ascending; all others are zero."""
    (rows,) = places
    if rows.ndim != 1 or values.shape != (len(rows), *shape[1:]) or not _ascending(rows, shape[0]):
        raise _Damage(f"{what} of shape {shape} has rows that do not fit: {values.shape} at {rows.shape} places")
    dense = np.zeros(shape, values.dtype)
    dense[rows] = values
    return dense


def _columns(values: Array, places: list[Array], shape: Shape, what: str) -> Array:
    """csr: row i of a matrix has ``values[a:b]`` in the columns ``columns[a:b]``, from ``pointers[i:i + 2]``."""
    pointers, columns = places
    fits = (
        len(shape) == 2
        and pointers.shape == (shape[0] + 1,)
        and columns.ndim == 1
        and values.shape == columns.shape
        and pointers[0] == 0
        and pointers[-1] == len(columns)
        and bool(np.all(pointers[1:] >= pointers[:-1]))
        and bool(np.all((columns >= 0) & (columns < shape[1])))
    )
    if not fits:
        raise _Damage(f"{what} of shape {shape} has row pointers or columns that do not fit")
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(pointers.astype(np.int64))), columns] = values
    return dense


def _ascending(rows: Array, count: int) -> bool:
    return len(rows) == 0 or bool(rows[0] >= 0 and rows[-1] < count and np.all(rows[1:] > rows[:-1]))
