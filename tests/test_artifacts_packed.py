"""Packed pairs: every bit comes back, by mxq and by the script; what is damaged is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from typer.testing import CliRunner

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq.artifacts import packed as packing
from mxq.artifacts.packing import packed
from mxq.cli import app
from mxq.errors import ConfigError, FormatError
from mxq.formats.params import read_params
from mxq.weights.grid import FULL, HALVED, extremes, nearest, steps, written

PAIR = ("-symbol.json", "-0000.params", "-mxq.json")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def on_a_grid(shape: tuple[int, ...], grid: object, seed: int = 0, size: float = 1.0) -> np.ndarray:
    rows = size * np.random.default_rng(seed).normal(size=(1, shape[0], int(np.prod(shape[1:])))).astype(np.float32)
    step = steps(rows, np.ones((1, rows.shape[2])), grid)
    return written(nearest(rows, step, extremes(rows, grid), grid), step, grid).reshape(shape)


class TestParts:
    @pytest.mark.parametrize("grid", [FULL, HALVED], ids=["full", "halved"])
    @pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
    def test_weights_of_the_grid_are_codes_but_for_one_a_row(self, grid: object, size: float) -> None:
        weight = on_a_grid((32, 16, 3, 3), grid, size=size)
        found = packed(weight)
        assert found is not None
        assert same_bits(found.restored(), weight)
        assert len(found.places) <= 40  # 32 extreme weights, and few that round to them
        assert found.nbytes < 0.29 * weight.nbytes

    def test_one_step_for_all(self) -> None:
        weight = np.rint(np.random.default_rng(1).normal(size=(20, 50)) * 30).clip(-127, 127).astype(int) * 0.0123
        weight[3, 4] = 127.5 * 0.0123
        found = packed(weight.astype(np.float32))
        assert found is not None
        assert same_bits(found.restored(), weight.astype(np.float32))
        assert len(found.places) == 1

    def test_zeros_dead_rows_and_negative_zeros(self) -> None:
        weight = on_a_grid((8, 4, 3, 3), FULL)
        weight[2] = 0
        weight[3, 0, 0, 0] = -0.0
        found = packed(weight)
        assert found is not None
        assert same_bits(found.restored(), weight)
        assert same_bits(packed(np.zeros((8, 8), np.float32)).restored(), np.zeros((8, 8), np.float32))

    def test_what_is_no_codes_has_no_parts(self) -> None:
        rng = np.random.default_rng(0)
        assert packed(rng.normal(size=(16, 64)).astype(np.float32)) is None
        for other in (rng.normal(size=64).astype(np.float32), np.ones((8, 8)), np.ones((0, 8), np.float32)):
            assert packed(other) is None

    @given(arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(width=32)))
    def test_any_array_comes_back(self, array: np.ndarray) -> None:
        found = packed(array)
        assert found is None or same_bits(found.restored(), array)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized pair."""
    mx.random.seed(0)
    net = mx.gluon.nn.HybridSequential()
    net.add(
        mx.gluon.nn.Conv2D(32, 3, in_channels=3, activation="relu"),
        mx.gluon.nn.Conv2D(64, 3, in_channels=32, activation="relu"),
        mx.gluon.nn.Dense(10),
    )
    net.initialize(mx.init.Xavier())
    data = np.random.default_rng(0).normal(size=(16, 3, 12, 12)).astype(np.float32)
    net.hybridize()
    net(mx.nd.array(data))
    prefix = tmp_path_factory.mktemp("pair") / "net-int8"
    mxq.save(mxq.quantize_net(net, data), prefix)
    return prefix


def contents(prefix: Path, endings: tuple[str, ...] = PAIR) -> list[bytes]:
    return [Path(f"{prefix}{ending}").read_bytes() for ending in endings]


class TestFiles:
    def test_all_bits_come_back(self, pair: Path, tmp_path: Path) -> None:
        file, script = mxq.pack(pair, tmp_path / "small")
        assert [p.name for p in (file, script)] == ["small-packed.npz", "small-unpack.py"]
        assert {p.name for p in mxq.unpack(file, tmp_path / "back")} == {f"back{ending}" for ending in PAIR}
        assert contents(tmp_path / "back") == contents(pair)
        mxq.load(tmp_path / "back")
        assert file.stat().st_size < 0.3 * Path(f"{pair}-0000.params").stat().st_size

    def test_a_script_does_it_without_mxq(self, pair: Path, tmp_path: Path) -> None:
        file, script = mxq.pack(pair, tmp_path / "net")
        alone = "import sys; sys.modules['mxq'] = sys.modules['mxnet'] = None; import runpy; "
        run = f"sys.argv = ['unpack', {str(file)!r}]; runpy.run_path({str(script)!r}, run_name='__main__')"
        subprocess.run([sys.executable, "-c", alone + run], check=True, cwd=tmp_path)
        assert contents(tmp_path / "net") == contents(pair)
        assert len([line for line in script.read_text().splitlines() if line.strip()]) < 60

    def test_the_script_alone_says_how_it_is_run(self, pair: Path, tmp_path: Path) -> None:
        _, script = mxq.pack(pair, tmp_path / "net")
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "python NAME-unpack.py NAME-packed.npz [PREFIX]" in ran.stderr

    def test_the_script_writes_beside_its_prefix_alone(self, pair: Path, tmp_path: Path) -> None:
        file, script = mxq.pack(pair, tmp_path / "net")
        with np.load(file) as archive:
            sums = json.loads(archive["about"].tobytes())["sha256"]
        away = {"params": "/../x.params", "sha256": {**sums, "/../x.params": sums["-0000.params"]}}
        del away["sha256"]["-0000.params"]
        (tmp_path / "net").mkdir()
        run = subprocess.run([sys.executable, script, changed(file, about=away)], capture_output=True, check=False)
        assert run.returncode == 1
        assert b"is damaged" in run.stderr
        assert not list(tmp_path.rglob("*x.params"))

    def test_saved_at_once(self, pair: Path, tmp_path: Path) -> None:
        files = mxq.save(mxq.load(pair), tmp_path / "net-int8", packed=True)
        assert sorted(tmp_path.iterdir()) == sorted(files)
        mxq.unpack(files[0])
        assert contents(tmp_path / "net-int8", PAIR[:2]) == contents(pair, PAIR[:2])

    def test_of_another_epoch_without_a_record(self, pair: Path, tmp_path: Path) -> None:
        symbol, params, _ = contents(pair)
        (tmp_path / "a-symbol.json").write_bytes(symbol)
        (tmp_path / "a-0012.params").write_bytes(params)
        mxq.unpack(mxq.pack(tmp_path / "a")[0], tmp_path / "b")
        assert (tmp_path / "b-0012.params").read_bytes() == params
        assert not (tmp_path / "b-mxq.json").exists()

    def test_types_scalars_and_numpy_shapes(self, tmp_path: Path) -> None:
        table = {
            f"arg:{kind}": mx.nd.array(np.arange(6).reshape(2, 3) % 2, dtype=kind)
            for kind in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
        }
        (tmp_path / "a-symbol.json").write_text("{}")
        for names in ({}, table):
            with mx.util.np_shape(bool(names)):
                mx.nd.save(str(tmp_path / "a-0000.params"), names)
            mxq.unpack(mxq.pack(tmp_path / "a")[0], tmp_path / "b")
            assert contents(tmp_path / "b", PAIR[:2]) == contents(tmp_path / "a", PAIR[:2])

    def test_weights_that_are_no_codes_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "a-symbol.json").write_text("{}")
        weight = np.random.default_rng(0).normal(size=(16, 64))
        mx.nd.save(str(tmp_path / "a-0000.params"), {"arg:w": mx.nd.array(weight)})
        mxq.pack(tmp_path / "a")
        assert "arg:w: no codes of 8 bits, packed as float32" in caplog.text


class TestErrors:
    def test_no_pair(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="has no parameter file"):
            mxq.pack(tmp_path / "none")
        with pytest.raises(FormatError, match="no file"):
            mxq.unpack(tmp_path / "none-packed.npz")
        with pytest.raises(ConfigError, match=r"does not end in PREFIX-packed\.npz"):
            mxq.unpack(tmp_path / "none.npz")

    def test_a_pair_that_has_changed(self, pair: Path, tmp_path: Path) -> None:
        for ending, content in zip(PAIR, contents(pair), strict=True):
            Path(f"{tmp_path / 'a'}{ending}").write_bytes(content)
        (tmp_path / "a-symbol.json").write_bytes(b"{}")
        with pytest.raises(FormatError, match="has changed since it was written"):
            mxq.pack(tmp_path / "a")
        assert not list(tmp_path.glob("*packed*"))

    def test_sparse_parameters(self, tmp_path: Path) -> None:
        (tmp_path / "a-symbol.json").write_text("{}")
        sparse = mx.nd.ones((4, 4)).tostype("row_sparse")
        sparse.wait_to_read()  # mx.nd.save does not
        mx.nd.save(str(tmp_path / "a-0000.params"), {"arg:w": sparse})
        with pytest.raises(FormatError, match="cannot be packed bit for bit"):
            mxq.pack(tmp_path / "a")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"format": "other/1"}, "its format is 'other/1'"),
            ({"params": "-0000.params/../x"}, "damaged"),
            ({"texts": ["-symbol.json", "/etc/passwd"]}, "damaged"),
            ({"magic": 5}, "damaged"),
            ({"names": ["arg:none"] * 99}, "has no"),
            ({"sha256": {}}, "is damaged: .* is not what it was"),
            ({"names": 3}, "names"),
        ],
    )
    def test_damaged(self, pair: Path, tmp_path: Path, change: dict[str, object], match: str) -> None:
        file = changed(mxq.pack(pair, tmp_path / "a")[0], about=change)
        with pytest.raises(FormatError, match=match):
            mxq.unpack(file, tmp_path / "b")
        assert not list(tmp_path.glob("b*"))

    @pytest.mark.parametrize("part", ["codes", "steps", "places", "values"])
    def test_parts_that_do_not_fit(self, pair: Path, tmp_path: Path, part: str) -> None:
        file = mxq.pack(pair, tmp_path / "a")[0]
        with np.load(file) as archive:
            number = next(name.partition(".")[0] for name in archive if name.endswith(".codes"))
            found = archive[f"{number}.{part}"]
        other = {"codes": found[1:], "steps": found[1:], "places": found + 2**40, "values": found[1:]}[part]
        with pytest.raises(FormatError, match="do not fit each other"):
            mxq.unpack(changed(file, {f"{number}.{part}": other}), tmp_path / "b")
        with pytest.raises(FormatError, match=rf"'{number}.{part}' is complex64; allowed: "):
            mxq.unpack(changed(file, {f"{number}.{part}": found.astype(np.complex64)}), tmp_path / "b")

    def test_cut_short_anywhere(self, pair: Path, tmp_path: Path) -> None:
        file = mxq.pack(pair, tmp_path / "a")[0]
        whole = file.read_bytes()
        for share in range(0, 100, 7):
            (tmp_path / "c-packed.npz").write_bytes(whole[: len(whole) * share // 100])
            with pytest.raises(FormatError):
                mxq.unpack(tmp_path / "c-packed.npz")
        assert not list(tmp_path.glob("c-s*"))


@pytest.mark.parametrize("name", ["net", "net-packed.npz"])
def test_a_packed_pair_in_place_of_a_pair_is_named(pair: Path, tmp_path: Path, name: str) -> None:
    mxq.pack(pair, tmp_path / "net")
    for read in (mxq.load, mxq.inspect):
        with pytest.raises(FormatError, match=r"net-packed.npz' is a packed pair; allowed: the pair, after mxq unpack"):
            read(tmp_path / name)


def changed(file: Path, arrays: dict[str, np.ndarray] | None = None, about: dict[str, object] | None = None) -> Path:
    """The packed file with other members, or another document."""
    with np.load(file) as archive:
        members = {name: archive[name] for name in archive} | (arrays or {})
    document = json.loads(members["about"].tobytes()) | (about or {})
    members["about"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez_compressed(file, **members)
    return file


class TestCommands:
    def test_there_and_back(self, pair: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["pack", f"{pair}-symbol.json", "--out", str(tmp_path / "a")])
        assert result.exit_code == 0, result.output
        assert "% of" in result.output
        result = CliRunner().invoke(app, ["unpack", str(tmp_path / "a-packed.npz"), "--json"])
        assert result.exit_code == 0, result.output
        assert sorted(json.loads(result.stdout)["files"]) == sorted(f"{tmp_path / 'a'}{ending}" for ending in PAIR)
        assert contents(tmp_path / "a") == contents(pair)

    def test_json(self, pair: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["pack", str(pair), "--out", str(tmp_path / "a"), "--json"])
        found = json.loads(result.stdout)
        assert found["packed"] == Path(found["files"][0]).stat().st_size
        assert found["unpacked"] == sum(map(len, contents(pair)))
        assert found["whole"] == []


def test_members_are_what_numpy_reads(pair: Path, tmp_path: Path) -> None:
    file = mxq.pack(pair, tmp_path / "a")[0]
    table = read_params(Path(f"{pair}-0000.params"))
    assert zipfile.ZipFile(file).testzip() is None
    about = json.loads(np.load(file)["about"].tobytes())
    assert about["format"] == packing.FORMAT
    assert about["names"] == list(table)
