"""`mxq.saturation.adding`: sums of two products in 16 bits, of ONNX files for CPUs without VNNI.

ONNX Runtime's kernels cannot be held at AVX2 on a CPU with VNNI, so that their sums are computed here: rows of im2col
with channels last, cut into pairs (``MlasGemm`` of u8 and s8; ``session.x64quantprecision`` says that it overflows).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, build, conv, fc, run

import mxq
from mxq.config import QuantConfig
from mxq.formats.onnx_file import read
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.passes.narrow_weights import BITS
from mxq.saturation.kernels import lost, summed
from mxq.workflow import Given, quantize

onnx = pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SHAPE = (3, 12, 12)
WIDE = 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'
LINES = (
    conv("a", "data", WIDE),
    "r = Activation(a) " + RELU,
    conv("b", "r", WIDE),
    conv("c", "b", WIDE),
    "t = Activation(c) " + RELU,
    conv("g", "t", WIDE + ' num_group="2"'),
    conv("w", "g", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)" num_group="16"'),
    'p = Pooling(w) global_pool="True" kernel="(1, 1)" pool_type="avg"',
    fc("z", "p"),
    "return z",
)
"""Layers that read a zero point of 0 and others, an odd number of channels, groups, a depthwise one, a dense one."""


@pytest.fixture(scope="module")
def model() -> Model:
    """Its weights are large, those of neighbours of one sign, so that sums of pairs are large."""
    found, rng = build(*LINES, data=(1, *SHAPE)), np.random.default_rng(0)
    args = {name: np.zeros_like(value) for name, value in found.args.items()}
    for name in (name for name in args if name.endswith("weight")):
        shape = args[name].shape
        signs = np.repeat(rng.choice([-1, 1], (*shape[:1], -(-shape[1] // 2), *shape[2:])), 2, axis=1)[:, : shape[1]]
        args[name] = (signs * rng.uniform(0.5, 1, shape) / np.sqrt(args[name][0].size)).astype(np.float32)
    return found.with_graph(found.graph, args)


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("targets"), {}
    for target in ("avx512_vnni", "avx2"):
        (found[target],) = mxq.export_onnx(
            model, folder / f"{target}.onnx", pictures(32, 0), target=target, stem="int8"
        )
    return found


# ---- sums of pairs -------------------------------------------------------------------------------------------


def tapped(path: Path, names: list[str], batch: np.ndarray) -> dict[str, np.ndarray]:
    """What tensors of a file hold, without optimizations."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"data": batch}), strict=True))


def layers(path: Path, batch: np.ndarray) -> Iterator[tuple[str, Any, np.ndarray, np.ndarray]]:
    """Name of each integer layer, its node, the codes of its weight and those that it reads."""
    graph = onnx.load(path).graph
    made = {name: node for node in graph.node for name in node.output}
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = [
        (node, made[node.input[0]], values[made[node.input[1]].input[0]])
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
    ]
    assert len(found) == 6
    read_ = tapped(path, [dq.input[0] for _, dq, _ in found], batch)
    for node, dq, weight in found:
        yield node.output[0], node, weight, read_[dq.input[0]]


def rows(node: Any, weight: np.ndarray, codes: np.ndarray, zero: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each group: weights (O, K) and rows of im2col (N, K), channels last; a Gemm has its rows already."""
    if node.op_type == "Gemm":
        yield weight if weight.shape[1] == codes.reshape(len(codes), -1).shape[1] else weight.T, codes
        return
    groups = {a.name: a.i for a in node.attribute}.get("group", 1)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zero)
    fields = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # (N, C, H, W, 3, 3)
    each, outputs = codes.shape[1] // groups, len(weight) // groups
    for g in range(groups):
        part = fields[:, g * each : (g + 1) * each].transpose(0, 2, 3, 4, 5, 1)
        mine = weight[g * outputs : (g + 1) * outputs].transpose(0, 2, 3, 1)
        yield mine.reshape(outputs, -1), part.reshape(-1, 9 * each)


def in_16_bits(weight: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(O, N) each: sums as they should be, and with those of pairs held to 16 bits."""
    weight, data = (np.pad(a.astype(np.int64), ((0, 0), (0, a.shape[1] % 2))) for a in (weight, data))
    products = weight[:, None, :] * data[None]
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=3)
    return pairs.sum(axis=2), np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=2)


def noise(path: Path, batch: np.ndarray) -> dict[str, float]:
    """Of what saturation takes from each layer, in shares of the variance of its result."""
    found = {}
    for name, node, weight, codes in layers(path, batch):
        if {a.name: a.i for a in node.attribute}.get("group", 1) == 16:  # depthwise kernels are exact
            continue
        zero = zero_of(path, node)
        parts = [in_16_bits(w, d[:: max(1, len(d) // 200)]) for w, d in rows(node, weight, codes, zero)]
        gone = sum(float(np.square(exact - held).mean()) for exact, held in parts)
        found[name] = gone / sum(float(exact.var(axis=1).mean()) for exact, _ in parts)
    return found


def zero_of(path: Path, node: Any) -> int:
    graph = onnx.load(path).graph
    dq = next(one for one in graph.node if node.input[0] in one.output)
    return int(next(onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name == dq.input[2]))


def test_a_file_for_avx2_hardly_saturates_and_one_for_vnni_does(files: dict[str, Path]) -> None:
    batch = pictures(8, 1)
    plain, guarded = (noise(files[target], batch) for target in ("avx512_vnni", "avx2"))
    assert max(plain.values()) > 0.1
    assert max(guarded.values()) < 1e-3


def test_what_is_done_to_which_layer(model: Model) -> None:
    config = QuantConfig(simulate=True, hardware="onnx", target="avx2", effort="fast")
    network = quantize(model, Given(pictures(32, 0)), config).network
    assert network is not None
    assert not network.exact
    assert network.weight_of("a_weight").bits == BITS  # three channels: runtimes differ in what makes a pair
    assert network.weight_of("w_weight").bits == 8  # depthwise kernels are exact
    assert {"a", "w"}.isdisjoint(network.saturation)
    narrow = {name for name, bits in network.widths.items() if bits == BITS}
    assert narrow | {f"{name}_weight" for name in network.saturation} >= {f"{n}_weight" for n in "abcg"}
    assert {"b"} <= network.saturation.keys()  # it reads a zero point of 0


def test_a_target_with_vnni_and_other_hardware_change_nothing(model: Model) -> None:
    for options in ({"hardware": "onnx", "target": "avx512_vnni"}, {"hardware": "tensorrt", "target": "avx2"}):
        config = QuantConfig(simulate=True, effort="fast", **options)
        network = quantize(model, Given(pictures(8, 0)), config).network
        assert network is not None
        assert network.exact
        assert not network.widths
        assert not network.saturation


def test_fewer_bits_are_exact(model: Model) -> None:
    """Of 4 bits no product is large; the guard leaves such weights alone."""
    config = QuantConfig(simulate=True, hardware="onnx", target="avx2", effort="fast", bits="W4A8")
    network = quantize(model, Given(pictures(8, 0)), config).network
    assert network is not None
    assert not network.saturation
    assert not network.widths


@pytest.mark.parametrize("shift", [0, 7, 114, 128, 255])
def test_sums_with_a_zero_point(shift: int) -> None:
    """Codes less their zero point, as the guard has them, and the codes that kernels multiply."""
    rng = np.random.default_rng(shift)
    weight, codes = rng.integers(-127, 128, (8, 6)), rng.integers(0, 256, (200, 6))
    exact, held = in_16_bits(weight, codes)
    gone, samples = exact - held, (codes - shift).astype(np.float32)
    assert (gone != 0).any()
    made = summed(weight.astype(np.int8), samples[:, :, None], "shifted", shift)
    np.testing.assert_array_equal(made, weight @ samples.T.astype(np.int64) - gone)
    found = lost(weight.astype(np.int8), samples[:, :, None], kernel="shifted", shift=shift)
    np.testing.assert_allclose(found, np.square(gone.astype(np.float64)).mean(axis=1), rtol=1e-5)


def test_a_file_says_its_target(files: dict[str, Path]) -> None:
    for target, path in files.items():
        record = read(path).record
        assert record is not None
        assert record.target == target


# ---- the real thing ------------------------------------------------------------------------------------------

RUN = """
import sys, numpy as np, openvino
core = openvino.Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_NUM_THREADS": 1})
np.save(sys.argv[3], model(np.load(sys.argv[2]))[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_openvino_held_below_vnni(model: Model, files: dict[str, Path], tmp_path: Path, isa: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    batch = pictures(16, 2)
    np.save(tmp_path / "in.npy", batch)
    found = {}
    for target, path in files.items():
        arguments = [sys.executable, "-c", RUN, str(path), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
        subprocess.run(arguments, check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa})
        found[target] = sqnr_db(run(model, {"data": batch})[0], np.load(tmp_path / "out.npy"))
    assert found["avx2"] > 17  # exact sums of the other file: 19.1
    assert found["avx512_vnni"] < found["avx2"] - 10
