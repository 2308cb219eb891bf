"""Codes in ONNX files: the numbers of the simulation, integer operators in ONNX Runtime, biases, errors."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from coded_files import differences, openvino_outputs, session
from graphs import RELU, build, fc, feeds, run
from helpers import assert_close

from mxq.backends import onnx as backend
from mxq.cli import app
from mxq.config import QuantConfig
from mxq.errors import CalibrationError, ConfigError, QuantizeError
from mxq.formats.onnx_file import read
from mxq.numerics import sqnr_db
from mxq.pipeline import fingerprint
from mxq.runtime import load_model, to_arrays, to_symbol
from mxq.workflow import Given, quantize

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

EXAMPLE = (3, 16, 16)


class Residual(mx.gluon.nn.HybridBlock):
    """Convolutions (grouped, depthwise), a sum, a Concat, poolings, and a Dense that flattens itself."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.stem = mx.gluon.nn.Conv2D(16, 3, padding=1, in_channels=3, activation="relu")
            self.one = mx.gluon.nn.Conv2D(16, 3, padding=1, groups=2, in_channels=16)
            self.norm = mx.gluon.nn.BatchNorm(in_channels=16)
            self.depth = mx.gluon.nn.Conv2D(16, 3, padding=1, groups=16, in_channels=16, activation="relu")
            self.pool, self.mean = mx.gluon.nn.MaxPool2D(2), mx.gluon.nn.AvgPool2D(2)
            self.out = mx.gluon.nn.Dense(5, in_units=32 * 16)

    def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
        x = self.stem(x)
        x = F.relu(x + self.norm(self.one(x)))
        x = F.concat(self.depth(x), x, dim=1)
        return self.out(self.mean(self.pool(x)))


@pytest.fixture(scope="module")
def net() -> Any:
    mx.random.seed(1)
    found = Residual()
    found.initialize(mx.init.Xavier(magnitude=2))
    found.hybridize()
    found(mx.nd.zeros((1, *EXAMPLE)))
    return found


def parts_of(net: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Symbol, parameters and states of a block."""
    symbol = net(mx.sym.var("data"))
    table = {name: value.data() for name, value in net.collect_params().items()}
    states = symbol.list_auxiliary_states()
    args = {name: value for name, value in table.items() if name not in states}
    return symbol, args, {name: table[name] for name in states}


def data(count: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *EXAMPLE)).astype(np.float32)


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


class TestNumbers:
    @pytest.mark.parametrize("effort", ["fast", "default"])
    def test_it_computes_what_the_simulation_does(self, net: Any, tmp_path: Path, effort: str) -> None:
        """Node by node, codes differ by one at most, and few of them: where a sum is near a half."""
        given, config = Given(data()), QuantConfig(simulate=True, hardware="onnx", effort=effort)
        made = quantize(net, given, config)
        for ref, (most, share) in differences(made, {"data": data(16, seed=1)}, tmp_path).items():
            assert most <= 1, ref
            assert share < 0.01, ref

    def test_as_it_is_run(self, net: Any, tmp_path: Path) -> None:
        """Close to float, and as close as the pair of MXNet."""
        mxq.export_onnx(net, tmp_path / "net.onnx", data())
        x = data(64, seed=2)
        wanted = run(load_model(net), {"data": x})[0]
        for optimized in (False, True):
            (found,) = session(tmp_path / "net.onnx", optimized=optimized).run(None, {"data": x})
            assert sqnr(wanted, found) > 28

    def test_all_of_it_is_integer_in_onnx_runtime(self, net: Any, tmp_path: Path) -> None:
        mxq.export_onnx(net, tmp_path / "net.onnx", data(), effort="fast")
        session(tmp_path / "net.onnx", optimized=True, saved=tmp_path / "fused.onnx")
        kinds = collections.Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
        assert kinds["QLinearConv"] == 3
        assert kinds["QLinearAdd"] == kinds["QLinearConcat"] == kinds["QGemm"] == 1
        assert kinds["QLinearAveragePool"] == kinds["NhwcMaxPool"] + kinds["MaxPool"] == 1
        assert not {"Conv", "FusedConv", "Gemm", "Add", "Concat"} & kinds.keys()
        assert kinds["QuantizeLinear"] == 1

    def test_layers_on_the_last_axis_add_their_biases_themselves(self, tmp_path: Path) -> None:
        """Codes are reshaped, not floats; GELU is one operator; and both runtimes give the same."""
        more = 'flatten="False" num_hidden='
        model = build(
            fc("a", "data", f'{more}"32"'), 'g = LeakyReLU(a) act_type="gelu"', fc("b", "g", f'{more}"8"', bias=False),
            fc("c", "b", f'{more}"8"'), "return c", data=(2, 6, 8),
        )  # fmt: skip
        triple = (to_symbol(model.graph), to_arrays(model.args), {})
        x = np.random.default_rng(1).normal(size=(16, 6, 8)).astype(np.float32)
        mxq.export_onnx(triple, tmp_path / "net.onnx", x, effort="fast")
        opened = session(tmp_path / "net.onnx", optimized=True, saved=tmp_path / "fused.onnx")
        kinds = collections.Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
        assert kinds == {"QuantizeLinear": 2, "QGemm": 3, "Gelu": 1, "Reshape": kinds["Reshape"]}
        (found,) = opened.run(None, {"data": x})
        assert sqnr(run(model, {"data": x})[0], found) > 28
        pytest.importorskip("openvino", reason="openvino is not installed (mxq[runtimes])")
        assert sqnr(found, openvino_outputs(tmp_path / "net.onnx", {"data": x})[0]) > 40

    def test_a_quarter_of_the_size(self, tmp_path: Path) -> None:
        wide = mx.gluon.nn.HybridSequential()
        wide.add(mx.gluon.nn.Conv2D(128, 3, in_channels=3), mx.gluon.nn.Conv2D(128, 3, in_channels=128))
        wide.initialize(mx.init.Xavier())
        wide.hybridize()
        (int8,) = mxq.export_onnx(wide, tmp_path / "int8.onnx", data(8), effort="fast")
        (whole,) = mxq.export_onnx(wide, tmp_path / "float.onnx", input_shape=EXAMPLE)
        assert int8.stat().st_size < 0.28 * whole.stat().st_size

    def test_any_batch_size_and_what_the_file_says(self, net: Any, tmp_path: Path) -> None:
        mxq.export_onnx(net, tmp_path / "net.onnx", data(), effort="fast", target="avx512_vnni")
        opened = session(tmp_path / "net.onnx", optimized=True)
        for count in (1, 7):
            assert opened.run(None, {"data": data(count)})[0].shape == (count, 5)
        record = read(tmp_path / "net.onnx").record
        assert record is not None
        assert (record.kind, record.runtime, record.target) == ("int8", "portable", "avx512_vnni")
        assert (record.inputs, record.config["effort"]) == ({"data": EXAMPLE}, "fast")
        assert record.source == fingerprint(load_model(net))


class TestBiases:
    def test_a_nearly_dead_channel_does_not_overflow(self, tmp_path: Path) -> None:
        layer = mx.gluon.nn.Conv2D(8, 1, in_channels=3)
        layer.initialize()
        layer.hybridize()
        layer(mx.nd.zeros((1, *EXAMPLE)))
        weight = np.random.default_rng(0).normal(size=(8, 3, 1, 1))
        weight[3] *= 1e-9
        layer.weight.set_data(mx.nd.array(weight))
        layer.bias.set_data(mx.nd.array(np.full(8, 5.0)))
        mxq.export_onnx(layer, tmp_path / "net.onnx", data(), effort="fast")
        for optimized in (False, True):
            (found,) = session(tmp_path / "net.onnx", optimized=optimized).run(None, {"data": data(4, 1)})
            assert np.allclose(found[:, 3], 5.0, atol=1e-3)

    def test_a_weight_of_two_layers_has_room_for_both(self, tmp_path: Path) -> None:
        """The first reads smaller steps, so that its bias has more of them."""
        model = build(
            'small = _mul_scalar(data) scalar="0.01"',
            'a = FullyConnected(small, w_weight, w_bias) num_hidden="5"',
            'b = FullyConnected(data, w_weight, w_bias) num_hidden="5"',
            "return a, b",
            data=(4, 8),
        )
        weight = model.args["w_weight"] * np.float32([1, 1, 1, 1e-9, 1])[:, None]
        model = model.with_graph(model.graph, {"w_weight": weight, "w_bias": np.full(5, 5.0, np.float32)})
        examples = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
        mxq.export_onnx(model, tmp_path / "net.onnx", examples, effort="fast")
        for found in session(tmp_path / "net.onnx", optimized=False).run(None, {"data": examples}):
            assert np.allclose(found[:, 3], 5.0, atol=1e-3)

    @pytest.mark.parametrize("bias", [True, False])
    def test_layers_without_one_in_openvino(self, tmp_path: Path, bias: bool) -> None:
        """One after the other, in a file of one batch size, on one thread, it took sums for floats."""
        pytest.importorskip("openvino", reason="openvino is not installed (mxq[runtimes])")
        lines = [fc("f", "data", 'num_hidden="32"', bias=bias), "r = Activation(f) " + RELU]
        model = build(*lines, fc("g", "r", 'num_hidden="10"', bias=bias), "return g", data=(1, 64))
        model = model.with_graph(model.graph, {n: 0 * v for n, v in model.args.items() if n.endswith("bias")})
        x = feeds(data=(32, 64))["data"]
        triple = (to_symbol(model.graph), to_arrays(model.args), {})
        mxq.export_onnx(triple, tmp_path / "a.onnx", x, effort="fast", batch_size=1)
        given = {"data": x[:1]}
        (wanted,) = session(tmp_path / "a.onnx", optimized=True).run(None, given)
        (found,) = openvino_outputs(tmp_path / "a.onnx", given)
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        (exact,) = run(model, given)
        assert sqnr_db(exact, wanted) > 30


def test_the_hardware_may_be_named(net: Any, tmp_path: Path) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    mxq.export_onnx(net, files[0], data(8), effort="fast")
    mxq.export_onnx(net, files[1], data(8), effort="fast", hardware="onnx")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_network_of_one_batch_size_is_calibrated_with_batches_of_it(tmp_path: Path) -> None:
    lines = ('f = Reshape(data) shape="(4, 8)"', 'y = FullyConnected(f, w_weight, w_bias) num_hidden="5"', "return y")
    mxq.export_onnx(build(*lines, data=(4, 2, 4)), tmp_path / "net.onnx", noise(8), batch_size=4, effort="fast")
    (found,) = session(tmp_path / "net.onnx", optimized=False).run(None, {"data": noise(4)})
    assert found.shape == (4, 5)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 2, 4)).astype(np.float32)


class TestShapes:
    @pytest.mark.parametrize("effort", ["fast", "default"])
    def test_of_data_that_is_read_once(self, net: Any, tmp_path: Path, effort: str) -> None:
        """A generator, a DataIter: the same file as of an array, without input_shape."""
        x = data(16)
        mxq.export_onnx(net, tmp_path / "whole.onnx", [x[:8], x[8:]], effort=effort)
        for name, once in (("gen", iter([x[:8], x[8:]])), ("iter", mx.io.NDArrayIter(x, batch_size=8))):
            mxq.export_onnx(net, tmp_path / f"{name}.onnx", once, effort=effort)
            assert (tmp_path / f"{name}.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()

    def test_missing_ones_are_said_before_calibration(self, net: Any, tmp_path: Path, caplog: Any) -> None:
        symbol, args, aux = parts_of(net)
        ranges = mxq.calibrate(net, data(8), simulate=True, hardware="onnx")
        caplog.clear()
        with pytest.raises(ConfigError, match="shape of input 'data' is not known; give input_shape"):
            mxq.export_onnx((symbol, args, aux), tmp_path / "net.onnx", thresholds=ranges)
        assert not [record for record in caplog.records if "simulated" in record.message]
        mxq.export_onnx((symbol, args, aux), tmp_path / "net.onnx", thresholds=ranges, input_shape=EXAMPLE)


class TestErrors:
    def test_ranges_of_a_pair(self, net: Any, tmp_path: Path) -> None:
        """A pair has other codes; the error says how to calibrate."""
        found = mxq.calibrate(net, data(8))
        with pytest.raises(CalibrationError, match=r"that calibrate\(simulate=True, hardware='onnx'\) finds"):
            mxq.export_onnx(net, tmp_path / "net.onnx", thresholds=found, input_shape=EXAMPLE)

    def test_statistics_of_a_pair(self, net: Any, tmp_path: Path) -> None:
        mxq.calibrate(net, data(8), stats=tmp_path / "stats.npz")
        with pytest.raises(
            CalibrationError, match=r"statistics lack .*calibrate\(simulate=True, hardware='onnx'\) finds"
        ):
            mxq.export_onnx(net, tmp_path / "net.onnx", statistics=tmp_path / "stats.npz", input_shape=EXAMPLE)

    def test_settings(self, net: Any, tmp_path: Path) -> None:
        target = tmp_path / "net.onnx"
        for options, match in (
            ({"bits": 4}, "bits is .* for an ONNX file"),
            ({"hardware": "tvm"}, "hardware is 'tvm' for an ONNX file"),
            ({"input_dtype": "uint8"}, "input_dtype is 'uint8' for an ONNX file"),
        ):
            with pytest.raises(ConfigError, match=match):
                mxq.export_onnx(net, target, data(), **options)
        with pytest.raises(ConfigError, match="settings are given without calibration data"):
            mxq.export_onnx(net, target, effort="fast", input_shape=EXAMPLE)
        assert not list(tmp_path.iterdir())

    def test_networks(self, net: Any, tmp_path: Path) -> None:
        with pytest.raises(QuantizeError, match="is quantized already"):
            mxq.export_onnx(mxq.quantize_net(net, data(8), effort="fast"), tmp_path / "a.onnx", data(8))
        plain = mx.gluon.nn.HybridSequential()
        plain.add(mx.gluon.nn.Activation("tanh"))
        plain.hybridize()
        with pytest.raises(QuantizeError, match=r"no operator of the network can be int8.*allowed: the float file"):
            mxq.export_onnx(plain, tmp_path / "a.onnx", data(8))

    def test_other_widths_are_refused_by_name(self, net: Any) -> None:
        made = quantize(net, Given(data(8)), QuantConfig(simulate=True, hardware="onnx", effort="fast", bits=4))
        assert made.network is not None
        with pytest.raises(QuantizeError, match=r"tensor '.*' is .*; allowed in an ONNX file: 8 bits"):
            backend.Coded.of(made.network)


class TestCommand:
    def export(self, *arguments: object, code: int = 0) -> str:
        ran = CliRunner().invoke(app, ["export", *map(str, arguments)])
        assert ran.exit_code == code, ran.output
        return ran.output

    def test_as_python_does(self, net: Any, tmp_path: Path) -> None:
        net.export(str(tmp_path / "net"))
        np.save(tmp_path / "data.npy", data())
        self.export(tmp_path / "net", "--data", tmp_path / "data.npy", "--out", tmp_path / "a.onnx", "--effort", "fast")
        mxq.export_onnx(str(tmp_path / "net"), tmp_path / "b.onnx", str(tmp_path / "data.npy"), effort="fast")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_what_does_not_go_together(self, tmp_path: Path) -> None:
        found = self.export(tmp_path / "net", "--out", tmp_path / "a.onnx", code=2)
        assert "--float is missing, so are --data and --stats" in " ".join(found.split())
        found = self.export(tmp_path / "n", "--float", "--data", tmp_path, "--out", tmp_path / "a.onnx", code=2)
        assert "--float is beside --data or --stats" in " ".join(found.split())

    def test_settings_of_codes_for_a_float_file(self, net: Any, tmp_path: Path) -> None:
        net.export(str(tmp_path / "net"))
        arguments = ("--float", "--effort", "fast", "--input-shape", "3x16x16", "--out", tmp_path / "a.onnx")
        found = self.export(tmp_path / "net", *arguments, code=2)
        assert "settings are given without calibration data" in " ".join(found.split())
        assert not (tmp_path / "a.onnx").exists()
