"""Mutations of files of arrays: their parts are taken apart, changed and put together again."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import numpy as np

from fuzzing.trees import bytes_mutated

HEADERS: Final = (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 8, 8), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 8, 8, }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3, 8, 8), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }",
    b"{'descr': '<f4', 'fortran_order': 1, 'shape': (2,), }",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': [('a', '<f4', (1000000,))], 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '|V8', 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '<U1000000', 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '|S0', 'fortran_order': False, 'shape': (4,), }",
    b"{'descr': '<c16', 'fortran_order': False, 'shape': (4, 3), }",
    b"{'descr': '>f4', 'fortran_order': True, 'shape': (4, 3, 8, 8), }",
    b"{'descr': 'nosuch', 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': ('<f4', (2, 2)), 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': 2, }",
    b"{'descr': '<f4', 'fortran_order': False}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
    b"[1, 2]",
    b"(" * 5000,
    b"-" * 9000 + b"1",
    b"__import__('os')",
    b"\xff\xfe",
)


# ---- .npy and .npz -----------------------------------------------------------------------------------------------


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_mutated(data: bytes, rng: Random) -> bytes:
    """Another header before the same values, or bytes changed."""
    if rng.random() < 0.4 or not data.startswith(b"\x93NUMPY"):
        return bytes_mutated(data, rng)
    head = 10 + int.from_bytes(data[8:10], "little")
    kind = rng.randrange(4)
    if kind == 0:
        return npy(_other_array(rng))
    if kind == 1:
        return data[: rng.randrange(min(head, len(data)), len(data) + 1)]
    if kind == 2:
        text = data[10:head].replace(b"(", b"(" + rng.choice((b"0, ", b"-1, ", b"9, ", b"1e3, ", b"99999999, ")), 1)
    else:
        text = rng.choice(HEADERS)
    version = rng.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\0\0"))
    size = struct.pack("<H" if version[0] < 2 else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text + b"\n" + data[head:]


def _other_array(rng: Random) -> Any:
    return rng.choice(
        (
            *(
                np.zeros((8, 0, 8, 8), np.float32),
                np.zeros(0),
                np.array(3.5),
                np.full((8, 3, 8, 8), np.nan, np.float32),
            ),
            *(np.full((8, 3, 8, 8), 3e38), np.array(list("abcdefgh")), np.zeros((8, 3), [("a", "f4"), ("b", "i8")])),
            *(
                np.zeros((8, 3, 8, 8), complex),
                np.zeros(8, "M8[s]"),
                np.zeros((8, 3, 8, 8), bool),
                np.zeros((9, 3, 8, 8)),
            ),
            *(
                np.zeros((8, 8, 8, 3), np.uint8),
                np.zeros((8, 3, 8, 8), np.int64) + 2**62,
                np.zeros((1,) * 32),
                np.zeros((8, 3, 9)),
            ),
            *(
                np.arange(8) * 10**15,
                np.full(8, -1),
                np.full(8, np.inf),
                np.full(8, np.uint64(2**64 - 1)),
                np.zeros((8, 1), int),
            ),
            *(
                np.zeros((4, 0, 0, 3), np.uint8),
                np.zeros((8, 3, 8, 8), np.float16),
                np.array(b"bytes"),
                np.array("text"),
            ),
        )
    )


@dataclass(frozen=True)
class Archive:
    """A zip file in parts: (name, content) of each member, and whether they are compressed."""

    members: tuple[tuple[str, bytes], ...]
    packed: bool = False

    @staticmethod
    def of(data: bytes) -> Archive:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            packed = any(i.compress_type for i in infos)
            return Archive(tuple((i.filename, archive.read(i)) for i in infos), packed)

    def bytes(self) -> bytes:
        stream = io.BytesIO()
        import warnings

        with (
            warnings.catch_warnings(),
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if self.packed else 0) as archive,
        ):
            warnings.simplefilter("ignore")  # two members of one name
            for name, content in self.members:
                archive.writestr(zipfile.ZipInfo(name.replace("\0", "")), content, archive.compression)
        return stream.getvalue()


def archive_mutated(document: Archive | bytes, rng: Random) -> Archive | bytes:
    """A member changed, renamed, removed, added; or the bytes of the whole file."""
    if isinstance(document, bytes):
        return bytes_mutated(document, rng)
    members, at = list(document.members), rng.randrange(max(1, len(document.members)))
    kind = rng.randrange(9)
    if kind <= 2 or not members:
        return archive_bytes_mutated(document.bytes(), rng)
    if kind <= 5:
        members[at] = (members[at][0], npy_mutated(members[at][1], rng))
    elif kind == 6:
        name = rng.choice(
            (
                "x",
                "data",
                "label",
                "../x.npy",
                "data.npy",
                "",
                "0.counts.npy",
                "a/b.npy",
                "é",
                "about.npy",
                "data.npy.npy",
            )
        )
        members[at] = (name, members[at][1])
    elif kind == 7:
        del members[at]
    else:
        members.append(rng.choice((members[at], ("extra.npy", b""), ("notes.txt", b"hello"), bomb(rng))))
    return replace(document, members=tuple(members), packed=document.packed or kind == 8)


def bomb(rng: Random) -> tuple[str, bytes]:
    """Much in little: a megabyte of zeros behind a header that claims more."""
    claimed = rng.choice((700_000, 70_000_000, 10**12))
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({claimed}, 3), }}\n".encode()
    return "data.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(1 << 20)


def archive_bytes_mutated(data: bytes, rng: Random) -> bytes:
    """Changes in the directory at the end and in the headers of members, as often as anywhere."""
    marks = [i for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for i in _places(data, mark)]
    if not marks or rng.random() < 0.3:
        return bytes_mutated(data, rng)
    at = rng.choice(marks) + rng.randrange(4, 46)
    value = rng.choice((0, 1, 8, 9, 12, 14, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    packed = value.to_bytes(rng.choice((1, 2, 4)) if value < 256 else 2 if value < 65536 else 4, "little")
    return data[:at] + packed + data[at + len(packed) :]


def _places(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


# ---- .params -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Params:
    """A parameter file as fields: (what it is, format of `struct` or "", value) one after the other."""

    fields: tuple[tuple[str, str, Any], ...]

    def bytes(self) -> bytes:
        return b"".join(value if form == "" else _packed(form, value) for _, form, value in self.fields)


def _packed(form: str, value: int) -> bytes:
    size = struct.calcsize("<" + form)
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.fields = data, 0, list[tuple[str, str, Any]]()

    def take(self, what: str, form: str) -> int:
        size = struct.calcsize("<" + form)
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        self.fields.append((what, form, value))
        return int(value)

    def block(self, what: str, size: int) -> None:
        self.fields.append((what, "", self.data[self.at : self.at + size]))
        self.at += size

    def shape(self, what: str) -> int:
        sides = [self.take(f"{what} side", "q") for _ in range(self.take(f"{what} ndim", "i"))]
        return int(np.prod(sides, dtype=np.int64))


SIZES: Final = (4, 8, 2, 1, 4, 1, 8, 1, 2, 2, 4, 8, 2)


def params_of(data: bytes) -> Params:
    """A valid file of MXNet's present format, apart."""
    r = _Reader(data)
    r.take("mark", "Q")
    r.take("reserved", "Q")
    for _ in range(r.take("count", "Q")):
        r.take("magic", "I")
        storage = r.take("storage", "i")
        parts = {0: 0, 1: 1, 2: 2}[storage]
        held = r.shape("storage") if parts else 0
        size = r.shape("shape")
        r.take("device", "i")
        r.take("device number", "i")
        kind = r.take("type", "i")
        sizes = []
        for _ in range(parts):
            own = r.take("part type", "i")
            sizes.append(r.shape("part") * SIZES[own])
        r.block("values", (held if parts else size) * SIZES[kind])
        for own in sizes:
            r.block("part values", own)
    for _ in range(r.take("names", "Q")):
        r.block("name", r.take("length", "Q"))
    return Params(tuple(r.fields))


PARAMS_VALUES: Final = (
    0,
    1,
    -1,
    2,
    3,
    12,
    13,
    32,
    255,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
MAGICS: Final = (0xF993FAC8, 0xF993FAC9, 0xF993FACA, 0xF993FACB, 2, 0, 5)


def params_mutated(document: Params | bytes, rng: Random) -> Params | bytes:
    """A field with another value, fields lost or given twice; or the bytes."""
    if isinstance(document, bytes):
        return bytes_mutated(document, rng)
    if rng.random() < 0.15:
        return bytes_mutated(document.bytes(), rng)
    fields = list(document.fields)
    what = rng.choice(sorted({f[0] for f in fields}))  # each kind of field as often as any other
    at = rng.choice([i for i, f in enumerate(fields) if f[0] == what])
    name, form, value = fields[at]
    kind = rng.randrange(8)
    if kind == 0:
        fields[at : at + 1] = []
    elif kind == 1:
        fields[at : at + 1] = [fields[at]] * 2
    elif form == "":
        fields[at] = (name, form, bytes_mutated(value, rng))
    elif name == "magic":
        fields[at] = (name, form, rng.choice(MAGICS))
    else:
        fields[at] = (name, form, rng.choice((*PARAMS_VALUES, value + 1, value - 1, value * 2)))
    return Params(tuple(fields))
