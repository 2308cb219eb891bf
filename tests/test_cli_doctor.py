"""``mxq doctor`` of an ONNX file: target, runtimes, checksum."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graphs import RESIDUAL, SHAPE, build
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.host import machine

pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")

import onnx

EXAMPLE = SHAPE[1:]
X = np.random.default_rng(0).standard_normal((16, *EXAMPLE)).astype(np.float32)
VNNI = machine.AVX512 | {"avx2", "avx512_vnni"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as float.onnx and int8.onnx. Do not write there."""
    where, model = tmp_path_factory.mktemp("files"), build(*RESIDUAL)
    mxq.export_onnx(model, where / "float.onnx", input_shape=EXAMPLE)
    mxq.export_onnx(model, where / "int8.onnx", X, effort="fast", target="avx512_vnni")
    return where


def doctor(path: Path, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", str(path), "--json"])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def on(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], usable: frozenset[str] | None = None) -> None:
    """A machine with these ``flags``, of which MXNet's kernels use those that are ``usable``."""
    here = replace(machine.detect(), flags=flags, usable=flags if usable is None else usable)
    monkeypatch.setattr(machine, "detect", lambda: here)


def runtimes(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    for name, version in versions.items():
        monkeypatch.setitem(sys.modules, name, None if version is None else SimpleNamespace(__version__=version))


def test_a_target_that_this_machine_lacks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "it was quantized for avx512_vnni, but this CPU (avx2) adds products in pairs in 16 bits"
    on(monkeypatch, frozenset({"avx2"}))
    assert any(says in hint for hint in doctor(home / "int8.onnx")["advice"])
    assert not any(says in hint for hint in doctor(home / "float.onnx")["advice"])
    on(monkeypatch, VNNI)
    assert not any(says in hint for hint in doctor(home / "int8.onnx")["advice"])


def test_a_limit_for_mxnet_is_none_for_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, VNNI, frozenset({"avx2"}))
    assert not any("16 bits" in hint for hint in doctor(home / "int8.onnx")["advice"])


def test_runtimes_that_are_missing_or_too_old(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes(monkeypatch, onnxruntime="1.10.0", openvino=None)
    found = doctor(home / "int8.onnx")
    assert found["runtimes"] == {}
    assert 'ONNX Runtime is 1.10.0; allowed: 1.19 or later: pip install "onnxruntime>=1.19"' in found["advice"]
    assert 'OpenVINO is not installed: pip install "openvino>=2024.4"' in found["advice"]
    runtimes(monkeypatch, onnxruntime="1.32.0", openvino="2026.4.1-22982-e213a147257")
    found = doctor(home / "int8.onnx")
    assert found["runtimes"] == {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}
    assert not any("pip install" in hint for hint in found["advice"])


def test_one_that_was_edited_is_a_failed_check(home: Path, tmp_path: Path) -> None:
    model = onnx.load(home / "int8.onnx")
    model.graph.node[0].name = "other"
    onnx.save(model, tmp_path / "a.onnx")
    assert "a.onnx has changed since it was written" in doctor(tmp_path / "a.onnx", code=1)["advice"]


def test_what_is_shown(home: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(home / "int8.onnx")], env={"COLUMNS": "200"})
    assert "int8, for avx512_vnni" in result.stdout
    assert "for ONNX files" in result.stdout
    broken = CliRunner().invoke(app, ["doctor", str(home / "gone.onnx")])
    assert (broken.exit_code, "no file" in broken.stderr) == (2, True)
