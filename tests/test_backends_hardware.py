"""Networks of other hardware and of fewer bits, simulated: against numpy, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import CONV1, RELU, build, conv, fc, feeds, run
from helpers import assert_close
from typer.testing import CliRunner

from mxq import pipeline
from mxq.backends.hardware import simulated
from mxq.backends.runtimes import RUNTIMES
from mxq.cli import app
from mxq.config import QuantConfig
from mxq.data.feeding import feeds as fed
from mxq.errors import ConfigError
from mxq.graph.ir import Model
from mxq.qat.config import QatConfig
from mxq.qat.kernels_placement import placed_as_planned
from mxq.qat.placement import placed
from mxq.qat.preparing import decided
from mxq.quant import QuantizedNetwork
from mxq.quant.bits import Bits
from mxq.quant.hardware import HARDWARE, hardware_of
from mxq.runtime import MxnetRunner, load_model, write_pair
from mxq.weights.coding import codes_of

NET = (
    conv("a", "data"), "r = Activation(a) " + RELU,
    conv("b", "r"), "s = Activation(b) " + RELU,
    conv("c", "s"), "t = elemwise_add(c, r)", "u = Activation(t) " + RELU,
    'm = Pooling(u) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
    conv("d", "m", CONV1),
    'p = Pooling(d) kernel="(3, 3)" global_pool="True" pool_type="avg"',
    fc("f", "p"), "return f",
)  # fmt: skip
"""A residual block between poolings, and a classifier."""

DIGITS = Path(__file__).parents[1] / "models" / "resnet_digits" / "resnet_digits"
OTHERS = tuple(name for name in HARDWARE.names() if name != "onednn")


def made(model: Model, data: np.ndarray | None = None, **options: Any) -> pipeline.Quantized:
    """The simulation, calibrated on ``data`` or one batch of noise."""
    config = QuantConfig(**{"simulate": True, "num_calib_examples": "100%", "effort": "fast", **options})
    runner, data = MxnetRunner(), feeds()["data"] if data is None else data
    prepared = pipeline.plan(model, config, runner)
    batches = list(fed(data, prepared.fused.arguments, config.budget))
    ranges = pipeline.calibrate(prepared, data, runner, progress=False)
    return pipeline.quantize(prepared, ranges, runner=runner, data=batches)


def network_of(done: pipeline.Quantized) -> QuantizedNetwork:
    assert done.network is not None
    return done.network


@pytest.mark.parametrize("hardware", ["onednn", "tensorrt", "onnx"])
@pytest.mark.parametrize("pad", ["(1, 1, 1)", "(0, 0, 0)"])
def test_a_convolution_of_three_dimensions_before_a_fully_connected_layer(hardware: str, pad: str) -> None:
    """Its blocked layout cannot be reordered into a flat tensor of ours when ranges are collected."""
    shape, layer = (4, 4, 5, 5, 5), f'kernel="(3, 3, 3)" num_filter="8" pad="{pad}"'
    model, data = build(conv("a", "data", layer), fc("b", "a"), "return b", data=shape), feeds(data=shape)
    found = run(made(model, data["data"], hardware=hardware).model, data)
    assert_close(found[0], run(model, data)[0], rtol=0.0, atol=0.1)


# ---- the whole of a network, in numpy -------------------------------------------------------------------------


def _fake(x: np.ndarray, low: Any, high: Any, bits: int, row: str, role: str) -> np.ndarray:
    """Rounding by Wu et al. (arXiv:2004.09602), eq. 1 to 8, of each library's kind, written without mxq."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    affine = row in ("snpe", "fbgemm") or (row in ("acl", *RUNTIMES.values()) and role == "activation")
    if affine:
        step = (high - low) / (2**bits - 1)
        zero = np.clip(-np.rint(low / step), 0, 2**bits - 1)
        return np.asarray((np.clip(np.rint(x / step) + zero, 0, 2**bits - 1) - zero) * step)
    unsigned = row in ("onednn", "academic") and role == "activation" and np.all(low == 0)
    top, least = (2**bits - 1, 0) if unsigned else (2 ** (bits - 1) - 1, -(2 ** (bits - 1)))
    step = np.maximum(-low, high) / (top + 0.5 * (row == "onednn"))
    if row == "tvm":
        step = 2.0 ** np.ceil(np.log2(step))
    return np.asarray(np.clip(np.rint(x / step), least, top) * step)


def _convolved(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    k = w.shape[2] // 2
    padded, (height, width) = np.pad(x, ((0, 0), (0, 0), (k, k), (k, k))), x.shape[2:]
    found = np.zeros((len(x), len(w), height, width))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            found += np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], w[:, :, i, j])
    return np.asarray(found + b[:, None, None])


class Numpy:
    """`NET` by a library, in float64; ``tensors`` are those that it rounded, as they were before."""

    def __init__(self, model: Model, row: str, bits: int, exact: Mapping[str, np.ndarray]) -> None:
        self.args, self.row, self.bits, self.exact = model.args, row, bits, exact
        self.rounded: dict[str, np.ndarray] = {}

    def act(self, name: str, x: np.ndarray, bits: int | None = None) -> np.ndarray:
        span = self.exact[name]
        self.rounded[name] = _fake(x, span.min(), span.max(), bits or self.bits, self.row, "activation")
        return self.rounded[name]

    def weight(self, name: str, bits: int | None = None) -> np.ndarray:
        w = self.args[f"{name}_weight"].astype(np.float64)
        rows = w.reshape(len(w), -1)
        axis = None if self.row in ("tvm", "snpe", "academic") else 1
        low, high = rows.min(axis=axis, keepdims=True), rows.max(axis=axis, keepdims=True)
        return _fake(rows, low, high, bits or self.bits, self.row, "weight").reshape(w.shape)

    def conv(self, name: str, x: np.ndarray, bits: int | None = None) -> np.ndarray:
        return _convolved(x, self.weight(name, bits), self.args[f"{name}_bias"])

    def __call__(self, data: np.ndarray) -> np.ndarray:
        graph = {"acl": 1, "academic": 1, "tensorrt": 2, "onednn": 2}.get(self.row, 3)
        edge = 8 if self.row == "academic" else self.bits
        r = np.maximum(self.conv("a", self.act("data", data, edge), edge), 0)
        s = self.act("s", np.maximum(self.conv("b", self.act("r", r)), 0))
        c = self.conv("c", s)
        if graph == 3:
            c = self.act("c", c)
        u = np.maximum(c + (r if graph == 1 else self.rounded["r"]), 0)
        if graph > 1:
            u = self.act("u", u)
        m = u.reshape(*u.shape[:2], 3, 2, 3, 2).max(axis=(3, 5))
        d = self.conv("d", self.act("m", m) if graph == 1 else m)
        if graph > 1:
            d = self.act("d", d)
        p = self.act("p", d.mean(axis=(2, 3)), edge)
        return p @ self.weight("f", edge).T + self.args["f_bias"]


def _exact(model: Model, data: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of `NET` in float."""
    a = {k: v.astype(np.float64) for k, v in model.args.items()}
    found = {"data": data}
    found["r"] = np.maximum(_convolved(data, a["a_weight"], a["a_bias"]), 0)
    found["s"] = np.maximum(_convolved(found["r"], a["b_weight"], a["b_bias"]), 0)
    found["c"] = _convolved(found["s"], a["c_weight"], a["c_bias"])
    found["u"] = np.maximum(found["c"] + found["r"], 0)
    found["m"] = found["u"].reshape(*found["u"].shape[:2], 3, 2, 3, 2).max(axis=(3, 5))
    found["d"] = _convolved(found["m"], a["d_weight"], a["d_bias"])
    found["p"] = found["d"].mean(axis=(2, 3))
    return found


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("row", OTHERS)
def test_a_whole_network_is_that_of_numpy(row: str, bits: int) -> None:
    """But where float32 takes the other side of a tie, after which a few values are a code off."""
    model = build(*NET)
    data = feeds(3, data=(16, 8, 6, 6))["data"]
    oracle = Numpy(model, row, bits, _exact(model, data))
    wanted = oracle(data.astype(np.float64))
    done = made(model, data, hardware=row, bits=bits)
    assert {ref.name for ref in network_of(done).refs} - {"m"} == oracle.rounded.keys() - {"m"}
    found = run(done.model, {"data": data})[0]
    near = np.isclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert near.mean() > 0.7, near.mean()
    assert_close(found, wanted, rtol=0, atol=0.1 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("row", OTHERS)
def test_the_oracle_tells_libraries_apart(row: str) -> None:
    model, data = build(*NET), feeds(3, data=(16, 8, 6, 6))["data"]
    exact = _exact(model, data)
    mine = Numpy(model, row, 4, exact)(data.astype(np.float64))
    alike = {*RUNTIMES.values()} if row in RUNTIMES.values() else {row}  # what they differ in, this network has not
    for other in {*OTHERS} - alike:
        theirs = Numpy(model, other, 4, exact)(data.astype(np.float64))
        assert np.isclose(mine, theirs, rtol=1e-4, atol=1e-4).mean() < 0.5, other


def _placed_in_training(model: Model, row: str, backend: Any, example: tuple[int, ...]) -> set[str]:
    config, runner = QatConfig(hardware=row), MxnetRunner()
    if hardware_of(row).planned:
        plan = pipeline.plan(model, config.planning, runner)
        calibrated = pipeline.calibrate(plan, feeds(3, data=(16, *example)), runner)
        found = placed_as_planned(model, decided(plan, calibrated), config).quantizers
    else:
        prepared, _ = pipeline.prepare(model, runner, backend)
        found = placed(prepared, config)
    return {str(q.tensor) for q in found if not q.is_weight}


def unrounded_of(model: Model) -> set[str]:
    """What the last convolution of each residual branch makes, in `NET` and in the shipped network."""
    names = {node.name for node in model.graph.operators}
    return {"c"} if "c" in names else {f"stage{s}_block{b}_bn2_fwd" for s in (1, 2, 3) for b in (1, 2)}


@pytest.mark.parametrize("row", OTHERS)
def test_training_quantizes_the_same_tensors(row: str) -> None:
    """Where a sum's operands are both made by convolutions, too, and behind what only moves values."""
    for model, example in ((build(*NET), (8, 6, 6)), (load_model(DIGITS), (3, 32, 32))):
        prepared = pipeline.plan(model, QuantConfig(simulate=True, hardware=row), MxnetRunner())
        mine = {str(ref) for ref in prepared.plan.observe} - {"m"}  # codes that a pooling moves are rounded again
        in_training = _placed_in_training(model, row, prepared.backend, example) - {"m"}
        unrounded = mine - in_training  # OpenVINO adds what a convolution makes for a sum within the convolution
        assert in_training <= mine
        assert unrounded == (unrounded_of(model) if row == "openvino" else set())


# ---- oneDNN ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["avx512_vnni", "avx2"])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_onednn_of_8_bits_is_what_the_kernels_give(effort: str, target: str) -> None:
    model = build(*NET)
    int8 = made(model, simulate=False, effort=effort, target=target)
    simulation = made(model, hardware="oneDNN", bits=8, effort=effort, target=target)
    wanted = simulated("onednn").lower(network_of(int8)).model
    assert simulation.model.graph == wanted.graph
    for name, value in wanted.args.items():
        np.testing.assert_array_equal(simulation.model.args[name], value)


def test_onednn_of_fewer_bits_is_worse() -> None:
    model, exact = build(*NET), run(build(*NET))[0]
    off = [np.square(run(made(model, bits=b).model)[0] - exact).mean() for b in (2, 3, 4, 6, 8)]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-3 * np.square(exact).mean()


# ---- methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", HARDWARE.names())
def test_methods_help_on_all_hardware(row: str) -> None:
    model, data = build(*NET), feeds(3, data=(32, 8, 6, 6))["data"]
    wanted = run(model, {"data": data})[0]
    noise = {
        effort: float(np.square(run(made(model, data, hardware=row, bits=4, effort=effort).model, {"data": data})[0]
                                - wanted).mean())
        for effort in ("fast", "default")
    }  # fmt: skip
    assert noise["default"] < noise["fast"]


@pytest.mark.parametrize("row", HARDWARE.names())
def test_what_cannot_be_done_is_left_out_and_said(row: str) -> None:
    report = made(build(*NET), hardware=row, bits=4, effort="default").report
    weights = hardware_of(row).weights
    fits = weights.symmetric
    for record in report.weights.values():
        assert record.rounding == ("reconstruction" if fits else "nearest")
        assert ("methods for rounding take no codes with a zero point" in record.note) is not fits
        assert record.bias_correction == "empirical"


@pytest.mark.parametrize("row", HARDWARE.names())
def test_methods_round_tensors_as_the_network_does(row: str) -> None:
    for bits in ("W4A4", "W8A5"):
        network = network_of(made(build(*NET), hardware=row, bits=bits))
        spans = {name: threshold.range for name, threshold in network.thresholds.items()}
        codes = codes_of(network, spans)
        assert len(codes) > 3
        for ref, code in codes.items():
            assert code.params(spans[str(ref)]) == network.tensors[ref], str(ref)


def test_weights_are_codes_of_the_hardware() -> None:
    for row in OTHERS:
        network = network_of(made(build(*NET), hardware=row, bits=3, effort="default"))
        for name, params in network.weights.items():
            assert params.spec == hardware_of(row).weight(8 if row == "academic" and name[0] in "af" else 3)
            codes = params.quantize(network.fused.args[name])
            assert len(np.unique(codes)) <= 2**params.spec.bits


# ---- bits of single layers ------------------------------------------------------------------------------------


def test_bits_of_a_layer_are_those_of_its_weight_and_of_what_it_reads() -> None:
    done = made(build(*NET), hardware="tensorrt", bits=4, overrides={"s": {"bits": "W3A8"}, "op:Fully*": {"bits": 8}})
    network = network_of(done)
    tensors = {ref.name: params.spec.bits for ref, params in network.tensors.items()}
    weights = {name: params.spec.bits for name, params in network.weights.items()}
    assert tensors == {"data": 4, "r": 8, "s": 4, "u": 4, "m": 4, "d": 8, "p": 8}  # d: through the pooling
    assert weights == {"a_weight": 4, "b_weight": 3, "c_weight": 4, "d_weight": 4, "f_weight": 8}
    assert done.report.summary["simulation"] == {
        "of": "NVIDIA TensorRT", "graph": 2, "bits": "W4A4", "layers": {"s": "W3A8", "f": "W8A8"},
    }  # fmt: skip


def test_papers_keep_8_bits_at_the_edges_unless_told() -> None:
    weights = network_of(made(build(*NET), hardware="academic", bits=4)).weights
    assert {name: p.spec.bits for name, p in weights.items()} == {
        "a_weight": 8, "b_weight": 4, "c_weight": 4, "d_weight": 4, "f_weight": 8,
    }  # fmt: skip
    told = network_of(made(build(*NET), hardware="academic", bits=4, overrides={"f": {"bits": 2}})).weights
    assert told["f_weight"].spec.bits == 2


def test_a_layer_of_other_bits_on_onednn() -> None:
    """At 8 bits otherwise, so that the codes are no longer the kernels'."""
    model = build(*NET)
    plain, other = made(model), made(model, overrides={"d": {"bits": 2}})
    assert network_of(plain).weight is None
    assert network_of(other).weights["d_weight"].spec.bits == 2
    assert network_of(other).weights["b_weight"].spec.bits == 8


# ---- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hardware": "tensorrt"}, "hardware is 'tensorrt', but MXNet's int8 kernels are oneDNN's of 8 bits; "),
        ({"bits": 4}, "bits is 'W4A4', but MXNet's int8 kernels are oneDNN's of 8 bits; allowed: simulate=True"),
        ({"overrides": {"d": {"bits": (4, 8)}}}, "overrides 'd': bits is 'W4A8', but MXNet's int8 kernels"),
    ],
)  # fmt: skip
def test_codes_without_kernels_need_simulate(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        mxq.quantize_net(build(*NET), feeds()["data"], **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hardware": "tensorflow"}, "hardware is 'tensorflow'; allowed: 'onednn', 'tensorrt', 'acl', 'tvm', 'snpe', "),
        ({"hardware": 8}, "hardware is 8; allowed: 'onednn'"),
        ({"bits": 9}, r"bits is 9; allowed: 2 to 8, of weights and activations alike or of each, such as 4"),
        ({"bits": 1}, "bits is 1; allowed: 2 to 8"),
        ({"bits": "W4"}, "bits is 'W4'; allowed: 2 to 8"),
        ({"bits": (4, 4, 4)}, r"bits is \(4, 4, 4\); allowed: 2 to 8"),
        ({"bits": 4.0}, "bits is 4.0; allowed: 2 to 8"),
        ({"bits": True}, "bits is True; allowed: 2 to 8"),
        ({"calib_mode": "none"}, "calib_mode is 'none' beside simulate and hardware 'onednn'; allowed: 'naive'"),
        ({"input_dtype": "int8"}, "input_dtype is 'int8' beside simulate and hardware 'onednn'; allowed: 'float32'"),
        ({"quantized_dtype": "int8", "hardware": "acl"}, "quantized_dtype is 'int8' beside simulate and"),
        ({"overrides": {"m": {"bits": 4}}}, "overrides 'm': bits are 'W4A4', but it names no layer; allowed"),
        ({"simulate": 1}, "simulate is 1; allowed: True, False"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(build(*NET), **options)


@pytest.mark.parametrize("given", [4, "4", " 4", "W4A4", "w4a4", (4, 4), [4, 4], Bits(4, 4)])
def test_forms_of_bits(given: Any) -> None:
    assert Bits.parse(given) == Bits(4, 4)
    assert QuantConfig(bits=given).width == Bits(4, 4)
    assert str(Bits.parse("W3A8")) == "W3A8"


# ---- both doors -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network "net" and its data. Do not write there."""
    where = tmp_path_factory.mktemp("hardware")
    write_pair(build(*NET), where / "net")
    rng = np.random.default_rng(5)
    np.savez(where / "x.npz", data=rng.standard_normal((32, 8, 6, 6)).astype(np.float32), label=np.arange(32) % 10)
    return where


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def test_both_doors_give_the_same(home: Path, tmp_path: Path) -> None:
    with np.load(home / "x.npz") as file:
        data = file["data"]
    block = mxq.simulate(home / "net", data, hardware="tensorrt", bits="W4A4")
    args = ("--hardware", "tensorrt", "--bits", "W4A4", "--simulate")
    text = command("quantize", home / "net", "--out", tmp_path / "q", "--data", home / "x.npz", *args)
    assert "simulates  NVIDIA TensorRT, W4A4; all of it is float" in text
    assert "7 quantized" in text
    for seen in (command("inspect", tmp_path / "q"), command("inspect", home / "net", *args)):
        assert "simulates" in seen
        assert "NVIDIA TensorRT, W4A4; all of it is float" in seen
    assert "is float" not in command("verify", home / "net", tmp_path / "q", "--data", home / "x.npz")
    mine, written = load_model(block), load_model(tmp_path / "q")
    assert mine.graph == written.graph
    for name, value in mine.args.items():
        np.testing.assert_array_equal(written.args[name], value)
    report = json.loads((tmp_path / "q-mxq.json").read_text(encoding="utf-8"))
    assert {name: report["config"][name] for name in ("hardware", "bits", "simulate")} == {
        "hardware": "tensorrt", "bits": "W4A4", "simulate": True,
    }  # fmt: skip
    assert report["summary"]["simulation"]["of"] == "NVIDIA TensorRT"


def test_a_recipe_names_the_hardware(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: mxq-recipe/1\nsimulate: true\nhardware: acl\nbits: 4\n", encoding="utf-8")
    args = ("--out", tmp_path / "q", "--data", home / "x.npz", "--recipe", recipe)
    assert "simulates  Huawei ACL, W4A4" in command("quantize", home / "net", *args)


def test_the_command_refuses_without_simulate(home: Path, tmp_path: Path) -> None:
    args = ("--out", tmp_path / "q", "--data", home / "x.npz", "--bits", "W4A4")
    assert "bits is 'W4A4', but MXNet's int8 kernels" in command("quantize", home / "net", *args, code=2)
    assert not list(tmp_path.iterdir())
