"""Files with weights of 4 bits: packed codes, newer operators, the numbers of the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import build, conv, fc, run

import mxq
from mxq.backends import onnx as backend
from mxq.backends.onnx import file as onnx_file
from mxq.errors import ConfigError
from mxq.formats.onnx_file import read
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.runtime import load_model, tensors_of

onnx = pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

EXAMPLE = (3, 8, 8)
WIDE = 'kernel="(3, 3)" num_filter="64" pad="(1, 1)"'
LINES = (
    conv("a", "data", WIDE),
    "r = relu(a)",
    conv("b", "r", WIDE),
    'm = max(b) axis="2"',
    'n = mean(m) axis="2"',
    fc("z", "n", 'num_hidden="5"'),
    "return z",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return build(*LINES, data=(1, *EXAMPLE))


def data(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *EXAMPLE)).astype(np.float32)


def outputs(path: Path, batch: np.ndarray, *, optimized: bool = False) -> np.ndarray:
    options, level = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"data": batch})[0])


def simulated(model: Model, **options: Any) -> np.ndarray:
    found = mxq.simulate(model, data(), hardware="onnx", effort="fast", **options)
    return run(load_model(found), {"data": data(4, 1)})[0]


@pytest.mark.parametrize(
    ("options", "opset"),
    [
        ({"bits": "W4A8"}, 21),
        ({"overrides": {"b": {"bits": "W4A8"}}}, 21),
        ({"bits": "W5A8"}, 17),
        ({"bits": 8}, 17),
    ],
)
def test_it_computes_what_the_simulation_does(
    model: Model, tmp_path: Path, options: dict[str, Any], opset: int
) -> None:
    mxq.export_onnx(model, tmp_path / "net.onnx", data(), effort="fast", **options)
    found = read(tmp_path / "net.onnx")
    assert (found.opset, found.ir_version, found.intact) == (opset, {17: 8, 21: 10}[opset], True)
    wanted = simulated(model, **options)
    for optimized in (False, True):
        assert sqnr_db(wanted, outputs(tmp_path / "net.onnx", data(4, 1), optimized=optimized)) > 35


def test_an_eighth_of_the_size(model: Model, tmp_path: Path) -> None:
    sizes = {}
    for bits in (None, 8, "W4A8"):
        more = {"input_shape": EXAMPLE} if bits is None else {"calib_data": data(), "bits": bits, "effort": "fast"}
        (path,) = mxq.export_onnx(model, tmp_path / f"{bits}.onnx", **more)
        sizes[bits] = path.stat().st_size
    assert sizes[8] - sizes["W4A8"] > 0.45 * model.args["b_weight"].size
    assert sizes["W4A8"] < 0.2 * sizes[None]


@pytest.mark.parametrize("size", [7, 4096])
def test_codes_are_packed_as_onnx_reads_them(size: int) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, size).astype(np.int8)
    tensor = onnx_file.Stored.of("w", codes, narrow=True).tensor(onnx)
    assert len(tensor.raw_data) == -(-size // 2)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_beside_the_file(model: Model, tmp_path: Path) -> None:
    network = mxq.quantize_net(model, data(), backend="onnx", bits="W4A8", effort="fast").mxq_planned.network
    coded = backend.Coded.of(network)
    lowering = backend.lower(coded.model, tensors_of(coded.model, {"data": EXAMPLE}), backend.CodeFeed(coded))
    whole = backend.write(lowering, tmp_path / "a.onnx")
    parts = backend.write(lowering, tmp_path / "b.onnx", largest=4096)
    assert (len(whole), len(parts)) == (1, 2)
    found = [outputs(files[0], data(4, 1)) for files in (whole, parts)]
    np.testing.assert_array_equal(*found)


def test_other_bits_are_refused(model: Model, tmp_path: Path) -> None:
    for bits in ("W3A8", "W4A4", 7):
        with pytest.raises(ConfigError, match="for an ONNX file; allowed: W4A8 to W8A8"):
            mxq.export_onnx(model, tmp_path / "net.onnx", data(), bits=bits)
    for bits in ("W3A8", "W8A4"):
        with pytest.raises(ConfigError, match=f"overrides 'b': bits is '{bits}' for an ONNX file; allowed: W4A8"):
            mxq.export_onnx(model, tmp_path / "net.onnx", data(), effort="fast", overrides={"b": {"bits": bits}})
    assert not [*tmp_path.iterdir()]
