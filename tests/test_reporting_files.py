"""ONNX files as ``mxq inspect`` shows them: kind, target, settings, operators; by either door."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import RESIDUAL, SHAPE, build, conv
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.errors import ConfigError, FormatError
from mxq.reporting.files import FileInspection

pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")

import onnx

EXAMPLE = SHAPE[1:]
X = np.random.default_rng(0).standard_normal((16, *EXAMPLE)).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as float.onnx and int8.onnx. Do not write there."""
    where, model = tmp_path_factory.mktemp("files"), build(*RESIDUAL)
    mxq.export_onnx(model, where / "float.onnx", input_shape=EXAMPLE)
    mxq.export_onnx(model, where / "int8.onnx", X, effort="fast", calib_mode="mse", target="avx512_vnni")
    return where


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "100"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_an_int8_file(home: Path) -> None:
    found = mxq.inspect_onnx(home / "int8.onnx")
    assert isinstance(found, FileInspection)
    shown = lines(str(found))
    assert f"file {home / 'int8.onnx'} (int8, by mxq {mxq.__version__})" in " ".join(shown)
    for line in (
        "for avx512_vnni, portable kernels",
        "settings calib_mode mse, effort fast",
        "opset 17, IR 8",
        "input data float32 batchx8x6x6",
        "output fc0 float32 batchx10",
        "layers 3 on codes, 0 in float",
        "Gemm 1",
    ):
        assert line in shown
    assert lines(command("inspect", home / "int8.onnx"))[-5:] == shown[-5:]


def test_as_json(home: Path) -> None:
    found = json.loads(command("inspect", home / "float.onnx", "--json"))
    assert found == json.loads(json.dumps(mxq.inspect_onnx(home / "float.onnx").to_json()))
    assert (found["kind"], found["opset"], found["layers_int8"], found["layers_float"]) == ("float", 17, 0, 3)
    assert found["inputs"] == [{"name": "data", "dtype": "float32", "shape": ["batch", *EXAMPLE], "maker": ""}]
    assert found["record"]["inputs"] == {"data": [*EXAMPLE]}
    assert (found["operators"]["Conv"], found["intact"], found["problems"]) == (2, True, [])


def test_of_another_program(home: Path, tmp_path: Path) -> None:
    model = onnx.load(home / "int8.onnx")
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "", ""
    onnx.save(model, tmp_path / "a.onnx")
    shown = lines(str(mxq.inspect_onnx(tmp_path / "a.onnx")))
    assert "(int8, by an unknown program)" in " ".join(shown)
    assert "layers 3 on codes, 0 in float" in shown
    assert not [line for line in shown if line.startswith(("for ", "settings ", "made of "))]


def test_one_that_takes_pixels(home: Path, tmp_path: Path) -> None:
    """It says so."""
    model = build(conv("y", "data"), "return y", data=(1, 3, 8, 8))
    settings = {"mean": [1.0, 2, 3]}
    file = tmp_path / "pixels.onnx"
    mxq.export_onnx(model, file, input_shape=(3, 8, 8), with_preprocess=True, preprocess=settings)
    assert "takes pixels, which it prepares: " in " ".join(lines(str(mxq.inspect_onnx(file))))


def test_one_that_was_edited_is_a_failed_check(home: Path, tmp_path: Path) -> None:
    model = onnx.load(home / "int8.onnx")
    model.graph.node[0].name = "other"
    onnx.save(model, tmp_path / "a.onnx")
    assert "check failed: a.onnx has changed since it was written" in command("inspect", tmp_path / "a.onnx", code=1)
    (problem,) = mxq.inspect_onnx(tmp_path / "a.onnx").to_json()["problems"]
    assert problem == {"file": "a.onnx", "problem": "changed"}


def test_refusals(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"none")
    with pytest.raises(FormatError, match=r"a\.onnx is damaged, or no ONNX file"):
        mxq.inspect_onnx(tmp_path / "a.onnx")
    assert "a.onnx is damaged, or no ONNX file" in command("inspect", tmp_path / "a.onnx", code=2)
    with pytest.raises(ConfigError, match=r"settings are given for .*int8\.onnx"):
        FileInspection.of(home / "int8.onnx", mxq.QuantConfig(effort="fast"))
    with pytest.raises(FormatError, match=r"int8\.onnx' is an ONNX file, which MXNet does not run"):
        mxq.explain(home / "int8.onnx", "fc0")
