"""Files from elsewhere: what may be opened, JSON, arrays and records; damage is refused before a library sees it."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxq.calibration.statistics import Statistics
from mxq.data.examples import open_source
from mxq.data.preprocess import read_preprocess
from mxq.errors import DataError, FormatError, MxqError
from mxq.formats import arrays
from mxq.formats.arrays import open_npz, read_npy
from mxq.formats.documents import DEEPEST, converted, parse_json, read_json
from mxq.formats.params import read_params
from mxq.formats.reading import MOST_BEYOND, opened, read_text
from mxq.formats.records import read_index, records


def socket(path: Path) -> None:
    os.mknod(path, 0o140600)


# ------------------------------------------------------------------------------------------------ which files

NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is a pipe; allowed: a file"),
    "a folder": (Path.mkdir, "is a folder; allowed: a file"),
    "a socket": (socket, "cannot be read|is a socket; allowed: a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device; allowed: a file"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "nothing": (lambda path: None, "no file"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "text": read_text,
    "json": read_json,
    "params": read_params,
    "npy": read_npy,
    "preprocess": read_preprocess,
    "statistics": Statistics.load,
    "index": read_index,
    "records": lambda path: list(records(path)),
    "labels": lambda path: open_source(path.parent, labels=path),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_only_files_are_opened(tmp_path: Path, kind: str, reader: str) -> None:
    """A pipe would wait for a writer, a device have no end."""
    make, says = NO_FILES[kind]
    make(tmp_path / "x")
    with pytest.raises(MxqError, match=says):
        READERS[reader](tmp_path / "x")


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_names_that_no_file_can_have(name: str) -> None:
    for read in (read_params, open_source):
        with pytest.raises(MxqError, match=r"cannot be read|does not exist"):
            read(name)


def test_a_reader_that_is_let_down(tmp_path: Path) -> None:
    """An error of the disk while the file is read."""
    (tmp_path / "x").write_text("x")
    with pytest.raises(DataError, match="x cannot be read: Input/output error"), opened(tmp_path / "x", DataError):
        raise OSError(5, "Input/output error")


def test_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "x") == "é"
    with pytest.raises(FormatError, match="has 5 bytes; a text of this kind has at most 4"):
        read_text(tmp_path / "x", most=4)
    (tmp_path / "x").write_bytes(b"a\xff")
    with pytest.raises(DataError, match="x is not UTF-8 text: invalid start byte at byte 1"):
        read_text(tmp_path / "x", DataError)


# ------------------------------------------------------------------------------------------------ JSON

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_any_document_is_read_as_it_was_written(document: Any) -> None:
    assert parse_json(json.dumps(document)) == document
    assert parse_json(json.dumps(document, ensure_ascii=False).encode()) == document


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON: Expecting value"),
        ("{", "is not JSON: "),
        ("[1] 2", "is not JSON: Extra data"),
        ("NaN", "is not JSON: it holds NaN, for which JSON has no word"),
        ("[-Infinity]", "it holds -Infinity"),
        ('{"a": 1e999}', "holds a number beyond those of float64"),
        ("1" + "0" * 30, "holds the whole number 10000000000000000000\\.\\.\\. of 31 digits; allowed: 64 bits"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: the key 'c' is given twice in one object"),
        ('["\\ud800"]', r"holds '\\ud800', which is no Unicode text"),
        ('{"\\udfff": 1}', "which is no Unicode text"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "is nested too deep; allowed: 100 levels"),
        ("[" * 100_000, "is nested too deep"),
        ('{"a":' * 100_000, "is nested too deep"),
        (b"\xff", "is not UTF-8 text"),
        (b'"\0"', "is not JSON: Invalid control character"),
        ('"a\tb"', "is not JSON: Invalid control character"),
    ],
)
def test_what_is_no_document(text: str | bytes, says: str) -> None:
    with pytest.raises(DataError, match=f"^it .*{says}"):
        parse_json(text, "it", DataError)


def test_as_deep_as_is_allowed() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


def test_many_keys_twice_are_found_at_once() -> None:
    """Whoever counts every key for every key takes minutes."""
    with pytest.raises(FormatError, match="given twice"):
        parse_json("{" + ",".join(f'"{i}":0' for i in (*range(300_000), 7)) + "}")


@dataclass(frozen=True)
class Inner:
    number: float
    note: str = ""


@dataclass(frozen=True)
class Outer:
    inner: dict[str, Inner]
    pair: tuple[str, int] | None = None


def test_dataclasses_from_documents() -> None:
    data = {"inner": {"a": {"number": 1}}, "pair": ["x", 2]}
    assert converted(data, Outer, "it") == Outer({"a": Inner(1.0)}, ("x", 2))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "Expected `object`, got `array`"),
        ({}, "Object missing required field `inner`"),
        ({"inner": {"a": {"number": "1"}}}, r"Expected `float`, got `str` - at `\$.inner\[...\].number`"),
        ({"inner": {"a": {"number": True}}}, "Expected `float`, got `bool`"),
        ({"inner": {}, "pair": ["x"]}, "Expected `array` of length 2, got 1"),
        ({"inner": {"a": {"number": 1, "nota": "x"}}}, r"it has an unknown field `\$.inner.a.nota`"),
    ],
)
def test_other_types_are_named(data: Any, says: str) -> None:
    with pytest.raises(FormatError, match=f"^it is damaged: {says}"):
        converted(data, Outer, "it")


# ------------------------------------------------------------------------------------------------ .npy and .npz

ARRAYS = {
    "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "turned": np.arange(4, dtype=">i4"),
    "text": np.array(["a", "bcd"]),
    "one": np.array(3.5),
    "bools": np.array([True, False]),
    "none": np.zeros((0, 3)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_npy_as_numpy_reads_it(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[kind])
    found = read_npy(tmp_path / "a.npy")
    assert (found.dtype, found.shape) == (ARRAYS[kind].dtype, ARRAYS[kind].shape)
    np.testing.assert_array_equal(found, ARRAYS[kind])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_numpy_reads_it(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    with open_npz(tmp_path / "a.npz") as archive:
        assert {name: header.shape for name, header in archive.headers.items()} == {
            n: a.shape for n, a in ARRAYS.items()
        }
        for name, array in ARRAYS.items():
            assert archive[name].dtype == array.dtype
            np.testing.assert_array_equal(archive[name], array)
        with pytest.raises(KeyError):
            archive["other"]


def npy(header: str | bytes, values: bytes = b"", version: bytes = b"\1\0", length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version[0] < 2 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + values


def said(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object))
    return stream.getvalue()


NO_ARRAYS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no array as numpy writes it"),
    "text": (b"hello, here are numbers", "is no array as numpy writes it"),
    "a version to come": (npy(said("(1,)"), bytes(4), b"\4\0"), "is no array as numpy writes it"),
    "a header cut short": (npy(said("(1,)"))[:40], "ends within its header"),
    "a header that is long": (npy(" " * 20_000, version=b"\2\0"), "has a header of 20000 bytes; allowed: 10000"),
    "a header that claims to be": (
        npy(said("(1,)"), version=b"\3\0", length=2**31),
        "has a header of 2147483648 bytes",
    ),
    "objects": (pickled(), "no objects"),
    "a record": (npy(said("(1,)", "[('a', '|O')]")), "no objects"),
    "an open bracket": (npy(said("(1, ")), "no objects"),
    "nested brackets": (npy("(" * 9000), "no objects"),
    "a call": (npy("__import__('os').abort()"), "no objects"),
    "a side below none": (npy(said("(-1,)")), "no objects"),
    "a type that is none": (npy(said("(1,)", "'<f3'"), bytes(4)), "has a type '<f3' that is not known"),
    "a type without a size": (npy(said("(4,)", "'|S0'")), "has a type '|S0' without a size"),
    "many axes": (npy(said(f"({'1,' * 33})"), bytes(4)), "more than any memory holds"),
    "sides that overflow": (npy(said("(4294967296, 4294967296)"), bytes(4)), "more than any memory holds"),
    "and vanish": (npy(said("(4294967296, 0, 4294967296)")), "more than any memory holds"),
    "values cut short": (npy(said("(2, 3)"), bytes(20)), r"claims shape \(2, 3\), 24 bytes, but only 20 follow"),
    "much": (npy(said("(1000000000, 3)"), bytes(20)), "12000000000 bytes, but only 20 follow"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array(tmp_path: Path, kind: str) -> None:
    content, says = NO_ARRAYS[kind]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=f"a.npy cannot be read as arrays: it .*{says}"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with open_npz(tmp_path / "a.npz", FormatError, "states") as held:
        assert list(held) == ["x"]
        with pytest.raises(FormatError, match=f"a.npz cannot be read as states: 'x' .*{says}"):
            held["x"]


def test_headers_of_other_writers(tmp_path: Path) -> None:
    """In another order, without the last comma, with Python 2's long integers, in the later versions."""
    for header in ('{"shape": (2L, 3L), "fortran_order": True, "descr": "<f4"}', said("(2,3)", order="True")):
        for version in (b"\1\0", b"\2\0", b"\3\0"):
            (tmp_path / "a.npy").write_bytes(npy(header, np.arange(6, dtype=np.float32).tobytes(), version))
            np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), [[0, 2, 4], [1, 3, 5]])


def zipped(members: list[tuple[str, bytes]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


WHOLE = npy(said("(2, 3)"), np.ones(6, np.float32).tobytes())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is no archive of arrays, or cut short"),
        (pickled(), "it is no archive of arrays, or cut short"),
        (zipped([("x.npy", WHOLE)])[:-30], "File is not a zip file"),
        (zipped([("x.npy", WHOLE), ("x", WHOLE)]), "it holds 'x' twice"),
        (zipped([("x.npy", WHOLE)], compression=zipfile.ZIP_LZMA), "packed in a way that numpy does not write"),
        (zipped([("x.npy", WHOLE)]).replace(WHOLE[-4:], b"abcd"), "Bad CRC-32 for file 'x.npy'"),
        (zipped([("x.npy", WHOLE + b"more")]).replace(b"more", b"some"), "Bad CRC-32 for file 'x.npy'"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with (
        pytest.raises(DataError, match=f"a.npz cannot be read as arrays: .*{says}"),
        open_npz(tmp_path / "a.npz") as held,
    ):
        held["x"]


def test_an_archive_that_would_unfold_to_too_much(tmp_path: Path) -> None:
    """The sizes in the directory are compared with the file's before anything is unfolded."""
    packed = zipped([("x.npy", npy(said("(250000000,)"), bytes(1_000_000)))], compression=zipfile.ZIP_DEFLATED)
    claimed = MOST_BEYOND + 2 * len(packed)
    at = packed.index(b"PK\1\2") + 24  # the unfolded size, in the directory
    (tmp_path / "a.npz").write_bytes(packed[:at] + struct.pack("<I", claimed) + packed[at + 4 :])
    with pytest.raises(DataError, match=rf"would take {claimed} unfolded; allowed: {MOST_BEYOND} beyond its size"):
        open_npz(tmp_path / "a.npz").__enter__()


def test_what_is_not_asked_for_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(zipped([("x.npy", WHOLE), ("notes.txt", b"hello"), ("y.npy", pickled())]))
    with open_npz(tmp_path / "a.npz") as held:
        np.testing.assert_array_equal(held["x"], np.ones((2, 3)))
        assert sorted(held.faults) == ["notes.txt", "y"]


# ------------------------------------------------------------------------------------------------ RecordIO


def shard(path: Path, contents: list[tuple[Any, bytes]]) -> Path:
    file = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tostring", DeprecationWarning)  # MXNet's
        for i, (label, content) in enumerate(contents):
            file.write_idx(i, mx.recordio.pack(mx.recordio.IRHeader(0, label, i, 0), content))
    file.close()
    return path


MARK = struct.pack("<I", 0xCED7230A)
CONTENTS = [
    (1.0, b"abc"),
    ([2.0, 3.0], b""),
    (4.0, MARK + b"x" + MARK * 3),
    (5.0, bytes(8) + MARK + bytes(20)),
    (6, b"12345"),
]


def test_records_as_mxnet_writes_them(tmp_path: Path) -> None:
    """Also those with the mark in them, which are cut at it."""
    file = shard(tmp_path / "a.rec", CONTENTS)
    for first, count in ((0, None), (1, None), (3, 2), (0, 2)):
        wanted = CONTENTS[first : None if count is None else first + count]
        found = list(records(file, first, count))
        assert [content for _, content in found] == [content for _, content in wanted]
        for (label, _), (expected, _) in zip(found, wanted, strict=True):
            assert label.dtype == np.float32
            np.testing.assert_array_equal(label, expected)


def part(content: bytes, flag: int = 0, length: int | None = None, mark: bytes = MARK) -> bytes:
    size = len(content) if length is None else length
    return mark + struct.pack("<I", flag << 29 | size) + content + bytes(-len(content) % 4)


HEADER = struct.pack("<IfQQ", 0, 1.0, 0, 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"abc", "it needs 8 bytes at byte 36, but the file has 39"),
        (part(HEADER, mark=b"none"), "at byte 36 is 0x656e6f6e, not the mark 0xced7230a"),
        (part(HEADER, length=1 << 28), "it needs 268435456 bytes at byte 44"),
        (part(b"short"), "it has 5 bytes, fewer than its header"),
        (part(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0)), "it claims 4294967295 labels in 24 bytes"),
        (part(HEADER, 2), "it begins with part 2"),
        (part(HEADER, 1), "it needs 8 bytes at byte 68"),
        (part(HEADER, 1) + part(HEADER), "part 0 comes within it"),
    ],
)
def test_damaged_records(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.rec").write_bytes(part(HEADER + b"ok") + content)
    found = records(tmp_path / "a.rec")
    assert next(found)[1] == b"ok"
    with pytest.raises(DataError, match=f"record 1 of '.*a.rec' is damaged: {says}"):
        next(found)


FIVE = "\N{ARABIC-INDIC DIGIT FIVE}"
NO_INDICES = (
    "",
    "0 0\n",
    "0\t-4\n",
    "0\t0\t0\n",
    "0\t1e3\n",
    "0\t" + "9" * 400,
    f"0\t{FIVE}\n",
    "\0",
)


@pytest.mark.parametrize("text", NO_INDICES)
def test_what_is_no_index(tmp_path: Path, text: str) -> None:
    shard(tmp_path / "a.rec", CONTENTS)
    (tmp_path / "a.idx").write_text(text)
    with pytest.raises(DataError, match=r"a\.idx' is no index of records"):
        list(records(tmp_path / "a.rec", 1))


def test_an_index_that_points_elsewhere(tmp_path: Path) -> None:
    shard(tmp_path / "a.rec", CONTENTS)
    (tmp_path / "a.idx").write_text("0\t0\n1\t99999999\n2\t3\n")
    with pytest.raises(DataError, match=r"record 1 of '.*' is damaged: at byte 3 is"):
        list(records(tmp_path / "a.rec", 1))
    with pytest.raises(DataError, match=r"ends after record 2; its index promises 3"):
        list(records(tmp_path / "a.rec", 2, 1))
    with pytest.raises(DataError, match="lists 3 records; asked for is number 3"):
        list(records(tmp_path / "a.rec", 3))


def test_an_index_in_another_order(tmp_path: Path) -> None:
    """As of a shuffled list: records are counted in the order of the file, in which they are read on."""
    file = shard(tmp_path / "a.rec", CONTENTS)
    index = tmp_path / "a.idx"
    index.write_text("".join(reversed(index.read_text().splitlines(keepends=True))))
    for first in range(len(CONTENTS)):
        wanted = [content for _, content in CONTENTS[first:]]
        assert [content for _, content in records(file, first)] == wanted
        assert [content for _, content in records(file, first, 1)] == wanted[:1]


def test_a_record_that_ends_without_its_padding(tmp_path: Path) -> None:
    """The last one of a file that was cut there; its content is whole."""
    whole = part(HEADER + b"ok") + part(HEADER + b"abcde")
    (tmp_path / "a.rec").write_bytes(whole[:-3])
    assert [content for _, content in records(tmp_path / "a.rec")] == [b"ok", b"abcde"]


def test_the_modules_share_what_a_file_may_take() -> None:
    assert arrays.MOST_BEYOND == MOST_BEYOND < 1 << 30


@pytest.mark.parametrize("order", ["<", ">"])
def test_text_in_arrays_is_of_unicode(tmp_path: Path, order: str) -> None:
    good, path = np.array(["ab", "c"], f"{order}U2"), tmp_path / "a.npz"
    np.savez(path, text=good)
    with open_npz(path) as archive:
        np.testing.assert_array_equal(archive["text"], good)
    bad = good.copy()
    bad.view(f"{order}u4")[0] = 0x100006F
    np.savez(path, text=bad)
    np.save(tmp_path / "a.npy", bad)
    with (
        open_npz(path) as archive,
        pytest.raises(DataError, match="a character 0x100006f; allowed: up to 0x10ffff"),
    ):
        _ = archive["text"]
    with pytest.raises(DataError, match="has a character 0x100006f"):
        read_npy(tmp_path / "a.npy")
