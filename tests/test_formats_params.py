"""MXNet's parameter files: the same arrays as MXNet reads, and what is damaged refused before anything believes it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from mxq.errors import FormatError
from mxq.formats import params
from mxq.formats.params import read_params

KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, bit for bit, in the same order."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def as_mxnet_reads(path: Path) -> dict[str, Any]:
    return {name: value.asnumpy() for name, value in mx.nd.load(str(path)).items()}


def saved(path: Path, table: Any) -> Path:
    mx.nd.waitall()  # MXNet asks a sparse array for its shape before it has one
    mx.nd.save(str(path), table)
    return path


@pytest.mark.parametrize("shape", [(1,), (2, 3), (5, 1, 2, 3), (0, 3), (1,) * 6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_and_shape_as_mxnet_reads_it(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(-100, 100, shape).astype(kind)
    odd = mx.nd.array(np.arange(7), dtype="int8")  # what follows is not aligned
    file = saved(
        tmp_path / "a.params", {"arg:odd": odd, "aux:x:y": mx.nd.array(values, dtype=kind), "é": mx.nd.ones(1)}
    )
    same(read_params(file), as_mxnet_reads(file))
    assert read_params(file)["aux:x:y"].flags.aligned


def test_sparse_ones_are_unfolded(tmp_path: Path) -> None:
    dense = np.array([[0, 0, 0], [1, 0, 2], [0, 0, 0], [0, 3, 0]], np.float32)
    table = {
        "rows": mx.nd.array(dense).tostype("row_sparse"),
        "columns": mx.nd.array(dense).tostype("csr"),
        "no rows": mx.nd.sparse.zeros("row_sparse", (4, 3)),
        "no columns": mx.nd.sparse.zeros("csr", (4, 3)),
        "cubes": mx.nd.array(np.stack([dense * 0, dense]), dtype="float64").tostype("row_sparse"),
    }
    file = saved(tmp_path / "a.params", table)
    found = read_params(file)
    same(found, as_mxnet_reads(file))
    np.testing.assert_array_equal(found["rows"], dense)
    np.testing.assert_array_equal(found["columns"], dense)


def test_numpy_shapes(tmp_path: Path) -> None:
    with mx.util.np_shape(True):
        file = saved(tmp_path / "a.params", {"scalar": mx.np.array(2.5).as_nd_ndarray(), "none": mx.nd.zeros((0, 2))})
        expected = as_mxnet_reads(file)
    found = read_params(file)
    same(found, expected)
    assert found["scalar"].shape == ()


def test_bfloat16_is_the_float32_that_it_stands_for(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625, 0.0, np.inf], np.float32)  # which bfloat16 holds
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    bits = saved(tmp_path / "a.params", {"x": mx.nd.array(halves.view(np.float16), dtype="float16")}).read_bytes()
    file = tmp_path / "b.params"
    file.write_bytes(bits.replace(struct.pack("<iii", 1, 0, 2), struct.pack("<iii", 1, 0, params.BFLOAT16)))
    np.testing.assert_array_equal(read_params(file)["x"], values)


@pytest.mark.parametrize("form", ["I", "q"])
def test_files_of_the_first_releases(tmp_path: Path, form: str) -> None:
    """Sides of 32 bits and the number of axes for a magic; or the first magic."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    head = struct.pack("<I2I", 2, 2, 3) if form == "I" else struct.pack("<Ii2q", params.V1, 2, 2, 3)
    array = head + struct.pack("<iii", 1, 0, 0) + values.tobytes()
    file = tmp_path / "a.params"
    file.write_bytes(struct.pack("<QQQ", params.MARK, 0, 1) + array + struct.pack("<QQ", 1, 1) + b"x")
    same(read_params(file), as_mxnet_reads(file))
    np.testing.assert_array_equal(read_params(file)["x"], values)


@pytest.mark.data
def test_real_files_as_mxnet_reads_them(mxq_data: Path) -> None:
    files = sorted((mxq_data / "models").rglob("*.params"), key=lambda p: p.stat().st_size)[:8]
    assert files
    for file in files:
        same(read_params(file), as_mxnet_reads(file))


# ------------------------------------------------------------------------------------------------ damage

HEAD = struct.pack("<QQQ", params.MARK, 0, 1)
NAMES = struct.pack("<QQ", 1, 1) + b"x"
VALUES = np.ones(6, np.float32).tobytes()


def array(
    magic: int = params.V2,
    storage: int = 0,
    sides: tuple[int, ...] = (2, 3),
    axes: int | None = None,
    flag: int = 0,
    values: bytes = VALUES,
) -> bytes:
    """A dense array, or what calls itself so."""
    shape = struct.pack(f"<i{len(sides)}q", len(sides) if axes is None else axes, *sides)
    return struct.pack("<Ii", magic, storage) + shape + struct.pack("<iii", 1, 0, flag) + values


def sparse(storage: int, places: list[tuple[int, np.ndarray[Any, Any]]], shape: tuple[int, ...] = (4, 2)) -> bytes:
    """Two rows, or two values, with their places."""
    stored = (2, 2) if storage == 1 else (2,)
    parts = [struct.pack("<Ii", params.V2, storage)]
    parts += [struct.pack(f"<i{len(s)}q", len(s), *s) for s in (stored, shape)] + [struct.pack("<iii", 1, 0, 0)]
    parts += [struct.pack("<iiq", flag, 1, len(numbers)) for flag, numbers in places]
    parts += [np.ones(stored, np.float32).tobytes()] + [numbers.tobytes() for _, numbers in places]
    return b"".join(parts)


def places(*numbers: int) -> tuple[int, np.ndarray[Any, Any]]:
    return 6, np.array(numbers, np.int64)


LONG = 1 << 40
DAMAGE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the head takes 16 bytes, but only 0 follow"),
    "text": (b"thresholds of a net", "it begins with 0x6c6f687365726874, not 0x112"),
    "many arrays": (
        struct.pack("<QQQ", params.MARK, 0, LONG) + array(),
        "it claims 1099511627776 arrays, but 64 bytes",
    ),
    "an array less": (struct.pack("<QQQ", params.MARK, 0, 2) + array(), "array 1 takes 4 bytes"),
    "many axes": (HEAD + array(axes=33, sides=(1,) * 33) + NAMES, "array 0 has 33 axes; allowed: up to 32"),
    "claimed axes": (HEAD + array(axes=30) + NAMES, "array 0 takes 240 bytes"),
    "axes below none": (HEAD + array(axes=-1) + NAMES, "array 0 has -1 axes, so it has no value"),
    "no axes": (HEAD + array(axes=0, sides=()) + NAMES, "array 0 has 0 axes, so it has no value"),
    "a side below none": (HEAD + array(sides=(-2, 3)) + NAMES, r"shape \(-2, 3\); allowed: sides from 0"),
    "long sides": (HEAD + array(sides=(LONG, 3)) + NAMES, "array 0 takes 13194139533312 bytes, but only"),
    "sides that overflow": (HEAD + array(sides=(LONG, LONG)) + NAMES, "more than any memory holds"),
    "and vanish": (HEAD + array(sides=(LONG, 0, LONG)) + NAMES, "more than any memory holds"),
    "another type": (HEAD + array(flag=8) + NAMES, "has type flag 8; allowed: 0, 1, 2, 3, 4, 5, 6, 7, 12"),
    "another storage": (HEAD + array(storage=3) + NAMES, r"storage 3; allowed: 0 to 2 \(dense, row_sparse, csr\)"),
    "values cut short": (HEAD + array(values=b"abc"), "array 0 takes 24 bytes, but only 3 follow"),
    "no names": (HEAD + array() + struct.pack("<Q", 0), "it holds 1 arrays without names"),
    "names for others": (HEAD + array() + struct.pack("<QQ", 2, 1) + b"x" + struct.pack("<QQ", 1, 0), "2 names for 1"),
    "a long name": (HEAD + array() + struct.pack("<QQ", 1, 4 * 10**9) + b"x", "name 0 takes 4000000000 bytes"),
    "a name in no alphabet": (HEAD + array() + struct.pack("<QQ", 1, 1) + b"\xff", "name 0 is not UTF-8 text"),
    "a name twice": (
        struct.pack("<QQQ", params.MARK, 0, 2) + array() * 2 + struct.pack("<QQ", 2, 1) + b"x" + NAMES[8:],
        "it holds 'x' twice",
    ),
    "rows beyond": (HEAD + sparse(1, [places(1, 4)]) + NAMES, "rows that do not fit"),
    "rows below none": (HEAD + sparse(1, [places(-1, 2)]) + NAMES, "rows that do not fit"),
    "rows out of order": (HEAD + sparse(1, [places(2, 1)]) + NAMES, "rows that do not fit"),
    "rows that are no numbers": (
        HEAD + sparse(1, [(1, np.array([1.0, 2.0]))]) + NAMES,
        "row_sparse with places that are no integers",
    ),
    "too much unfolded": (HEAD + sparse(1, [places(0, 1)], (LONG, 2)) + NAMES, "takes 8796093022208 bytes when unf"),
    "pointers that do not begin": (HEAD + sparse(2, [places(1, 1, 1, 2, 2), places(0, 1)]) + NAMES, "do not fit"),
    "pointers that go back": (HEAD + sparse(2, [places(0, 2, 1, 2, 2), places(0, 1)]) + NAMES, "do not fit"),
    "a pointer less": (HEAD + sparse(2, [places(0, 1, 1, 2), places(0, 1)]) + NAMES, "do not fit"),
    "columns beyond": (HEAD + sparse(2, [places(0, 1, 1, 2, 2), places(0, 2)]) + NAMES, "do not fit"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    content, says = DAMAGE[kind]
    file = tmp_path / "a.params"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=f"a.params' is no parameter file, or damaged: .*{says}"):
        read_params(file)


def test_what_is_damaged_above_is_whole_without_its_damage(tmp_path: Path) -> None:
    file = tmp_path / "a.params"
    rows, columns = [places(1, 2)], [places(0, 1, 1, 2, 2), places(0, 1)]
    for part in (array(), sparse(1, rows), sparse(2, columns)):
        file.write_bytes(HEAD + part + NAMES)
        same(read_params(file), as_mxnet_reads(file))


def test_cut_anywhere(tmp_path: Path) -> None:
    table = {
        "arg:a": mx.nd.ones((2, 3)),
        "aux:b": mx.nd.ones((2,), dtype="int8"),
        "c": mx.nd.sparse.zeros("csr", (2, 2)),
    }
    file = saved(tmp_path / "a.params", table)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="is no parameter file, or damaged"):
            read_params(file)


@pytest.mark.parametrize("shape", [(0, 2**33), (0, 2**20, 2**20), (4, 51539607553, 0)])
def test_sides_that_no_array_has_where_there_are_no_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """numpy and MXNet fail over them in ways of their own."""
    head = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiI", 0xF993FAC9, 0, len(shape))
    path = tmp_path / "m.params"
    path.write_bytes(head + struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<iii", 1, 0, 0) + bytes(64))
    with pytest.raises(FormatError, match=r"array 0 has the shape .*; allowed: sides whose product is up to 214748"):
        read_params(path)
