"""ONNX files held against the float network: by both doors, in each runtime, by all measures, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RESIDUAL, SHAPE, build, conv, fc
from PIL import Image
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.data.preparation import Preparation
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, DataError, FormatError
from mxq.runtime import to_block, write_pair
from mxq.verification import FileVerification, Head, verify_each
from mxq.workflow import Measured, verify_file

EXAMPLE, HELD = SHAPE[1:], 24
X = np.random.default_rng(0).standard_normal((HELD, *EXAMPLE)).astype(np.float32)
LABELS = np.arange(HELD) % 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network "net", float.onnx, int8.onnx, one.onnx (batches of one alone), with data. Do not write there."""
    pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
    where = tmp_path_factory.mktemp("files")
    write_pair(build(*RESIDUAL), where / "net")
    mxq.export_onnx(where / "net", where / "float.onnx", input_shape=EXAMPLE)
    mxq.export_onnx(where / "net", where / "int8.onnx", X, effort="fast")
    mxq.export_onnx(where / "net", where / "one.onnx", input_shape=EXAMPLE, batch_size=1)
    np.savez(where / "x.npz", data=X, label=LABELS)
    return where


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "100"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout if code == 0 else result.output


def found_of(*args: Any, **more: Any) -> FileVerification:
    found = mxq.verify_onnx(*args, **{"runtimes": "onnxruntime", **more})
    assert isinstance(found, FileVerification)
    return found


def test_both_doors_and_both_references(home: Path) -> None:
    told = json.loads(command("verify", home / "net", home / "int8.onnx", "--data", home / "x.npz", "--json"))
    (first, *_) = told["runtimes"].values()
    assert next(iter(told["runtimes"])) == "onnxruntime"
    found = found_of(home / "float.onnx", home / "int8.onnx", X, labels=LABELS).runs["onnxruntime"]
    assert found.examples == first["examples"] == HELD
    assert found.agreement == first["agreement"] >= 0.9
    assert found.sqnr == pytest.approx(first["sqnr"], abs=0.5, rel=0)  # of what MXNet gives, and of ONNX Runtime
    assert found.sqnr is not None
    assert found.sqnr > 25
    assert found.accuracy is not None
    assert first["accuracy"]["float_top1"] == found.accuracy.float_top1


def test_a_float_file_is_the_network(home: Path) -> None:
    found = found_of(home / "net", home / "float.onnx", X)
    run = found.runs["onnxruntime"]
    assert (run.agreement, run.outputs[0].name) == (1.0, "fc0")
    assert run.sqnr is not None
    assert run.sqnr > 100
    assert found.reference == f"{home / 'net'} in MXNet"
    text = str(found)
    assert f"onnxruntime {found.versions['onnxruntime']}" in text
    assert "100.00 %" in text


def test_bars(home: Path) -> None:
    asked = ("verify", home / "net", home / "int8.onnx", "--data", home / "x.npz", "--runtime", "onnxruntime")
    text = command(*asked, "--min-sqnr", 90, code=1)
    assert "check failed: onnxruntime: SQNR is" in text
    assert "asked for 90 dB or more" in text
    command(*asked, "--min-sqnr", 20, "--min-agreement", 0.5)


def test_a_file_of_one_batch_size_is_fed_that(home: Path) -> None:
    assert found_of(home / "net", home / "one.onnx", X[:3]).runs["onnxruntime"].examples == 3
    with pytest.raises(DataError, match=r"takes data float32 1x8x6x6; fed is float32 2x8x6x6: feed batches of 1"):
        found_of(home / "net", home / "one.onnx", X[:3], batch_size=2)


def test_of_another_network(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(build(*RESIDUAL, seed=3), tmp_path / "other")
    found_of(tmp_path / "other", home / "int8.onnx", X[:4])
    assert "was not made from" in caplog.text
    write_pair(build("y = Activation(data) act_type=relu", "return y", data=SHAPE), tmp_path / "other")
    with pytest.raises(DataError, match="output 'y' has shape"):
        found_of(tmp_path / "other", home / "int8.onnx", X[:4])


@pytest.mark.parametrize(
    ("first", "second", "more", "says"),
    [
        ("int8.onnx", "int8.onnx", {}, r"int8\.onnx, given as the float network, is quantized"),
        ("net", "int8.onnx", {"runtimes": "tvm"}, "runtime is 'tvm'; allowed: 'onnxruntime', 'openvino'"),
        ("net", "int8.onnx", {"runtimes": 3}, "runtimes is 3; allowed: names"),
        (
            "net",
            "two.onnx",
            {},
            r"the inputs of .*two\.onnx are a, b, those of .*net data; allowed: inputs of the same",
        ),
    ],
)
def test_refusals(home: Path, tmp_path: Path, first: str, second: str, more: dict[str, Any], says: str) -> None:
    path = home / second
    if second == "two.onnx":
        path = tmp_path / second
        two = build("y = elemwise_add(a, b)", "return y", a=(1, 3), b=(1, 3))
        mxq.export_onnx(to_block(two), path, input_shape={"a": (3,), "b": (3,)})
    with pytest.raises(ConfigError, match=says):
        found_of(home / first, path, X, **more)


@pytest.mark.parametrize("call", [mxq.inspect_onnx, lambda path: mxq.verify_onnx("net", path, X)])
def test_what_is_no_path(call: Any) -> None:
    with pytest.raises(ConfigError, match="path is 3; allowed: a path"):
        call(3)


def test_a_batch_of_none(home: Path) -> None:
    with pytest.raises(DataError, match="batch_size is 0; allowed: a whole number, 1 or more"):
        found_of(home / "net", home / "int8.onnx", X, batch_size=0)


def test_one_input_by_any_name(home: Path, tmp_path: Path) -> None:
    """Files of other programs call it as they like."""
    (renamed := tmp_path / "torch.onnx").write_bytes(
        (home / "float.onnx").read_bytes().replace(b"\x04data", b"\x04x.12")
    )
    found = found_of(home / "net", renamed, X[:4]).runs["onnxruntime"]
    assert found.sqnr is not None
    assert found.sqnr > 100


def test_whole_numbers_for_a_file_that_takes_floats(tmp_path: Path) -> None:
    """As of words: MXNet's symbols do not say that they are whole."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
    lines = ('e = Embedding(data, table_weight) input_dim="9" output_dim="4"', fc("z", "e"), "return z")
    net, words = build(*lines, data=(1, 3)), np.random.default_rng(0).integers(0, 9, (12, 3), np.int32)
    mxq.export_onnx(to_block(net), tmp_path / "a.onnx", words, effort="fast")
    found = found_of(to_block(net), tmp_path / "a.onnx", words).runs["onnxruntime"]
    assert found.sqnr is not None
    assert found.sqnr > 20


@pytest.mark.parametrize(
    ("first", "second", "options", "says"),
    [
        ("net", "int8.onnx", ("--layers",), "layers are asked for"),
        ("net", "net", ("--runtime", "onnxruntime"), "runtimes are onnxruntime, but .*net is no ONNX file"),
        ("float.onnx", "net", (), r"float\.onnx is given as the float network, but .*net is no ONNX"),
    ],
)
def test_options_of_the_other_form(home: Path, first: str, second: str, options: tuple[str, ...], says: str) -> None:
    found = command("verify", home / first, home / second, "--data", home / "x.npz", *options, code=2)
    assert re.search(says, " ".join(found.split()))


def test_functions_for_pairs_name_those_for_files(home: Path) -> None:
    for call in (lambda: mxq.verify(home / "net", home / "int8.onnx", X), lambda: mxq.inspect(home / "int8.onnx")):
        with pytest.raises(FormatError, match=r"functions for files: verify_onnx, inspect_onnx"):
            call()


def test_several_are_compared_in_one_pass() -> None:
    """Each batch is read once, and the reference runs once; labels of each batch serve all."""
    read: list[int] = []

    def network(noise: float) -> Any:
        def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            if not noise:
                read.append(len(feeds["x"]))
            return [feeds["x"] + noise * np.float32([[1, -1, 0]])]

        return run

    batches = [{"x": np.eye(3, dtype=np.float32)}, {"x": np.eye(3, dtype=np.float32)[:2]}]
    labels = iter([np.array([0, 1, 1]), np.array([0, 1])])
    found = verify_each(
        network(0.0), {"a": network(0.01), "b": network(0.6)}, [Head("y")], iter(batches), labels=labels
    )
    assert read == [3, 2]
    assert (found["a"].agreement, found["b"].agreement) == (1.0, 3 / 5)
    assert found["a"].accuracy is not None
    assert (found["a"].accuracy.float_top1, found["a"].accuracy.int8_top1) == (4 / 5, 4 / 5)
    assert found["b"].accuracy is not None
    assert found["b"].accuracy.float_top1 == 4 / 5
    assert (found["a"].sqnr or 0) > (found["b"].sqnr or 0)
    with pytest.raises(DataError, match="the float network has 2 outputs, what was made of it 1"):
        verify_each(lambda _: [X, X], {"a": lambda _: [X]}, [Head("y"), Head("z")], batches)


class TestPixels:
    """Files that prepare pictures themselves, held against the float network, which is fed what was prepared."""

    SETTINGS = (
        {"mean": [110.0, 120, 130], "std": [50.0, 60, 70], "resize": [8, 10]},
        {"mean": [0.4, 0.5, 0.6], "std": 0.25, "scale": 1 / 255, "color": "BGR", "rotate180": True, "resize": [8, 10]},
        {"mean": 100, "std": 50, "layout": "NHWC", "resize": [8, 10]},
    )
    PIXELS = np.random.default_rng(5).integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)

    def folder(self, where: Path, settings: Mapping[str, Any] | None) -> Path:
        """A network "net" in it, and pictures of class "a"."""
        shape = (1, 8, 10, 3) if settings and settings.get("layout") == "NHWC" else (1, 3, 8, 10)
        write_pair(build(conv("c", "data"), "return c", data=shape), where / "net")
        if settings is not None:
            (where / "preprocess.json").write_text(json.dumps(settings))
        (where / "pictures" / "a").mkdir(parents=True)
        for i, one in enumerate(self.PIXELS):
            Image.fromarray(one).save(where / "pictures" / "a" / f"{i}.png")
        return where

    @pytest.mark.parametrize("settings", SETTINGS)
    def test_they_give_what_the_network_does(self, tmp_path: Path, settings: Mapping[str, Any]) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
        home, file = self.folder(tmp_path, settings), tmp_path / "pixels.onnx"
        mxq.export_onnx(home / "net", file, with_preprocess=True)
        for reference in (home / "net", file):
            run = found_of(reference, file, home / "pictures").runs["onnxruntime"]
            assert run.examples == len(self.PIXELS)
            assert run.sqnr is not None
            assert run.sqnr > 100
        prepared = np.stack([Preprocess.from_json(settings)(Image.fromarray(one)) for one in self.PIXELS])
        told = found_of(home / "net", file, prepared).runs["onnxruntime"].sqnr
        assert told is not None
        assert told > 100

    def test_by_the_command_and_as_the_file_says(self, tmp_path: Path) -> None:
        """The network has no preprocess.json: what the file does is done for it, too. At another size, it is told."""
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
        home, file, settings = self.folder(tmp_path, None), tmp_path / "pixels.onnx", dict(self.SETTINGS[0])
        more = {"preprocess": settings, "with_preprocess": True, "dynamic_size": True, "input_shape": (3, 8, 10)}
        mxq.export_onnx(home / "net", file, str(home / "pictures"), effort="fast", **more)
        asked = ("verify", home / "net", file, "--data", home / "pictures", "--runtime", "onnxruntime")
        asked = (*asked, "--min-sqnr", 25)
        command(*asked)
        command(*asked, "--resize", "12x14")

    def test_other_settings_are_seen_and_other_data_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
        home, file = self.folder(tmp_path, self.SETTINGS[0]), tmp_path / "pixels.onnx"
        mxq.export_onnx(home / "net", file, with_preprocess=True, preprocess={**self.SETTINGS[0], "mean": 0})
        seen = found_of(home / "net", file, home / "pictures").runs["onnxruntime"].sqnr
        assert seen is not None
        assert seen < 10
        noise = np.random.default_rng(0).standard_normal((2, 3, 8, 10)).astype(np.float32)
        with pytest.raises(DataError, match=r"no pictures prepared by .*'mean'.* away from whole pixels"):
            found_of(home / "net", file, noise)

    def test_a_file_says_how_pictures_of_its_calibration_were_prepared(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It takes prepared pictures: its record is used where nothing else says how, and held against what does."""
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")
        home, file = self.folder(tmp_path, self.SETTINGS[0]), tmp_path / "int8.onnx"
        mxq.export_onnx(home / "net", file, str(home / "pictures"), effort="fast")
        (home / "preprocess.json").unlink()
        size = {"resize": (8, 10)}
        for how, hint in (
            (Preparation(), ""),
            (Preparation.given(self.SETTINGS[0]), ""),
            (
                Preparation.given({**self.SETTINGS[0], "mean": 0.0}),
                r"prepared with mean \(0.0, 0.0, 0.0\) \(by preprocess\), but .*int8.onnx was made for mean \(110.0, ",
            ),
            (
                Preparation.given({**size, "scale": 1.0, "color": "BGR"}),
                r"with mean .*, std .*, color BGR .* color RGB",
            ),
        ):
            caplog.clear()
            found = verify_file(home / "net", file, Measured(home / "pictures"), how, runtimes=["onnxruntime"])
            sqnr = found.runs["onnxruntime"].sqnr
            assert sqnr is not None
            assert (sqnr > 25) == (not hint)
            assert re.search(hint, caplog.text)
            assert ("was made for" in caplog.text) == bool(hint)
