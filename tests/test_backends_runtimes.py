"""What runtimes hold beside layers: numbers of each against its simulation, and what becomes of the operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from coded_files import differences, kinds, openvino_outputs, session
from graphs import CONV1, CONV3, RELU, build, conv, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mxq import pipeline
from mxq.backends import runtimes
from mxq.config import QuantConfig
from mxq.errors import CalibrationError, ConfigError
from mxq.graph.ir import Model
from mxq.quant.hardware import HARDWARE
from mxq.runtime import load_model
from mxq.workflow import Given, quantize

HARD = 'clip(%s_plus) a_min="0.0" a_max="6.0"'
NET = (
    conv("a", "data"),
    # hard-swish, divided at its end
    'a_plus = _plus_scalar(a) scalar="3.0"', "a_clip = " + HARD % "a", "a_mul = elemwise_mul(a, a_clip)",
    'b = _div_scalar(a_mul) scalar="6.0"',
    # squeeze and excitation, by a sigmoid
    'p = Pooling(b) kernel="(1, 1)" global_pool="True" pool_type="avg"',
    conv("c", "p", CONV1), "d = Activation(c) " + RELU, conv("e", "d", CONV1),
    'f = Activation(e) act_type="sigmoid"', "g = broadcast_mul(b, f)",
    # a scale and an offset, leaky ReLU, a sum that is bounded
    'h = _mul_scalar(g) scalar="0.7"', 'i = _plus_scalar(h) scalar="-0.2"', conv("j", "i"),
    'k = LeakyReLU(j) act_type="leaky" slope="0.1"', conv("l", "k"),
    "m = elemwise_add(l, i)", 'n = clip(m) a_min="0.0" a_max="6.0"',
    # a pyramid
    'o = Pooling(n) kernel="(2, 2)" stride="(2, 2)" pool_type="max"', conv("q", "o"),
    'r = UpSampling(q) scale="2" sample_type="nearest" num_args="1"', "s = elemwise_add(r, n)",
    conv("t", "s"), "return t",
)  # fmt: skip
ALL = tuple(runtimes.RUNTIMES.items())


@pytest.fixture(scope="module")
def net() -> Model:
    return build(*NET, data=(4, 8, 12, 12))


def data(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8, 12, 12)).astype(np.float32)


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def test_rows_are_of_hardware_that_there_is() -> None:
    """And each says where it is from, and is no layer, which the table of hardware has."""
    assert {*runtimes.RUNTIMES.values()} <= {*HARDWARE.names()}
    for kernel in runtimes.KERNELS:
        assert {*kernel.runtimes} <= {*runtimes.RUNTIMES.values()}
        assert kernel.source
        assert kernel.row.role == "passthrough"
        assert kernel.row.between


class TestNumbers:
    @pytest.mark.parametrize("hardware", runtimes.RUNTIMES.values())
    def test_codes_are_those_of_the_simulation(self, net: Model, tmp_path: Path, hardware: str) -> None:
        pytest.importorskip("onnx", reason="onnx is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        made = quantize(net, Given(data()), QuantConfig(simulate=True, hardware=hardware, effort="fast"))
        found = differences(made, {"data": data(8, 1)}, tmp_path)
        assert max(most for most, _ in found.values()) <= 1, found
        assert max(share for _, share in found.values()) < 0.03, found  # a half of a gate is one of its codes

    @pytest.mark.parametrize(("name", "hardware"), ALL)
    def test_files_give_what_simulations_do(self, net: Model, tmp_path: Path, name: str, hardware: str) -> None:
        """In ONNX Runtime as it comes, and in OpenVINO."""
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        x, path = {"data": data(8, 1)}, tmp_path / "net.onnx"
        mxq.export_onnx(net, path, data(), runtime=name, effort="fast")
        simulated = mxq.simulate(net, data(), hardware=hardware, effort="fast")
        wanted = run(load_model(simulated), x)[0]
        (found,) = session(path, optimized=True).run(None, x)
        assert sqnr(wanted, found) > 30
        pytest.importorskip("openvino", reason="openvino is not installed")
        assert sqnr(wanted, openvino_outputs(path, x)[0]) > 25


NEAREST = 'scale="2" sample_type="nearest" num_args="1"'
STEPS = (
    conv("{y}", "{x}"), conv("{y}", "{x}", CONV3 + ' num_group="8"'), "{y} = Activation({x}) " + RELU,
    '{y} = Activation({x}) act_type="sigmoid"', '{y} = LeakyReLU({x}) act_type="leaky" slope="0.2"',
    '{y} = hard_sigmoid({x}) alpha="0.25" beta="0.5"', '{y} = _plus_scalar({x}) scalar="-0.7"',
    '{y} = _mul_scalar({x}) scalar="-1.3"', '{y} = clip({x}) a_min="0.0" a_max="1.5"',
    "{y} = elemwise_add({x}, {z})", "{y} = elemwise_mul({x}, {z})",
    '{y}p = Pooling({x}) kernel="(1, 1)" global_pool="True" pool_type="avg"\n{y} = broadcast_mul({z}, {y}p)',
    '{y}p = Pooling({x}) kernel="(2, 2)" stride="(2, 2)"\n{y} = UpSampling({y}p) ' + NEAREST,
    '{y}j = Concat({x}, {z}) num_args="2"\n' + conv("{y}", "{y}j", CONV1),
)  # fmt: skip
"""What a network may do next with {x}, and with {z}, an older tensor of the same shape."""


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hardware=st.sampled_from(tuple(runtimes.RUNTIMES.values())),
    steps=st.lists(st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9)), min_size=3, max_size=9),
)
def test_codes_of_any_network_are_those_of_the_simulation(
    tmp_path: Path, hardware: str, steps: list[tuple[int, int]]
) -> None:
    """Node by node; halves are rounded either way, which of a gate is one code of 256, and of few codes more."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    names, lines = ["t0"], [conv("t0", "data")]
    for i, (step, older) in enumerate(steps, start=1):
        z = names[older % len(names)]
        lines += STEPS[step].format(y=f"t{i}", x=names[-1], z=z).splitlines()
        names.append(f"t{i}")
    lines += [conv("last", names[-1]), "return last"]
    shape = (8, 6, 6)
    x = np.random.default_rng(len(steps)).normal(size=(8, *shape)).astype(np.float32)
    config = QuantConfig(simulate=True, hardware=hardware, effort="fast")
    made = quantize(build(*lines, data=(4, *shape)), Given(x), config)
    found = differences(made, {"data": x[:4]}, tmp_path)
    assert max(most for most, _ in found.values()) <= 1, found
    assert float(np.mean([share for _, share in found.values()])) < 0.03, found


class TestOnnxRuntime:
    @pytest.mark.parametrize("name", ["onnxruntime", "portable"])
    def test_all_but_the_last_layer_is_integer(self, net: Model, tmp_path: Path, name: str) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        mxq.export_onnx(net, tmp_path / "net.onnx", data(), runtime=name, effort="fast")
        found = kinds(tmp_path / "net.onnx", tmp_path)
        assert found["QLinearConv"] == 6
        assert found["QLinearMul"] == 3
        assert found["QLinearAdd"] == 4
        assert found["QLinearSigmoid"] == found["QLinearLeakyRelu"] == found["QLinearGlobalAveragePool"] == 1
        assert found["Conv"] == 1  # what the network gives is no code
        assert found["QuantizeLinear"] == 1
        assert not {"FusedConv", "Mul", "Add", "Clip", "Relu", "Sigmoid", "LeakyRelu", "HardSigmoid"} & found.keys()


class TestOpenVino:
    def test_activations_stay_behind_their_convolutions(self, net: Model) -> None:
        """As it computes them there, a QuantizeLinear between would make an operator of each."""
        made = quantize(net, Given(data()), QuantConfig(simulate=True, hardware="openvino", effort="fast"))
        assert made.network is not None
        graph = made.network.fused.graph
        floats = {graph[d.node].op for d in made.report.plan.decisions if not d.int8}
        assert floats >= {"hard_sigmoid", "elemwise_mul", "Activation"}
        assert {"broadcast_mul", "UpSampling"} <= {graph[name].op for name in made.network.operations}


class TestWhatLiesBetween:
    def test_what_layers_do_not_read_again_stays_float(self) -> None:
        """As the arithmetic of boxes at a detector's end, which 8 bits would not serve."""
        lines = (conv("a", "data"), 'b = Activation(a) act_type="sigmoid"', "c = broadcast_mul(b, a)", "return c")
        options = QuantConfig(simulate=True, hardware="onnxruntime", effort="fast")
        made = quantize(build(*lines, data=(4, 8, 12, 12)), Given(data()), options)
        whys = {d.node: d.reason for d in made.report.plan.decisions if not d.int8}
        assert "does not lie between two int8 layers" in whys["b"]
        assert "does not lie between two int8 layers" in whys["c"]

    @pytest.mark.parametrize("hardware", ["onednn", "onnx"])
    def test_a_parameter_as_data_is_no_tensor_to_calibrate(self, hardware: str) -> None:
        lines = (conv("a", "data"), "s = elemwise_add(a, a_other)", conv("b", "s"), "return b")
        model = build(*lines, data=(1, 8, 12, 12))
        given = np.ones((1, 8, 12, 12), np.float32)
        model = model.with_graph(model.graph, {"a_other": given})
        config = QuantConfig(simulate=True, hardware=hardware, effort="fast")
        made = quantize(model, Given(data()[:1], batch_size=1), config)
        reason = next(d.reason for d in made.report.plan.decisions if "elemwise_add" in d.op or d.node == "s")
        assert "'a_other' as data, which is a parameter" in reason


class TestErrors:
    def test_of_names(self, net: Model, tmp_path: Path) -> None:
        pytest.importorskip("onnx", reason="onnx is not installed")
        path = tmp_path / "net.onnx"
        with pytest.raises(ConfigError, match="runtime is 'tensorrt'; allowed: 'portable', 'onnxruntime', 'openvino'"):
            mxq.export_onnx(net, path, data(), runtime="tensorrt")
        with pytest.raises(
            ConfigError, match="hardware is 'onnx' for an ONNX file of runtime 'openvino'; allowed: 'openvino'"
        ):
            mxq.export_onnx(net, path, data(), runtime="openvino", hardware="onnx")
        with pytest.raises(ConfigError, match="settings are given without calibration data"):
            mxq.export_onnx(net, path, runtime="openvino", input_shape=(8, 12, 12))
        assert not path.exists()

    def test_ranges_of_another_runtime(self, net: Model, tmp_path: Path) -> None:
        pytest.importorskip("onnx", reason="onnx is not installed")
        found = mxq.calibrate(net, data(), simulate=True, hardware="openvino")
        with pytest.raises(CalibrationError, match=r"calibrate\(simulate=True, hardware='onnxruntime'\) finds"):
            mxq.export_onnx(
                net, tmp_path / "net.onnx", runtime="onnxruntime", thresholds=found, input_shape=(8, 12, 12)
            )


@pytest.mark.parametrize(
    ("end", "int8"),
    [
        (("s = elemwise_add(b, a)", conv("c", "s"), "return c"), True),
        (('s = elemwise_add(b, a)', 'n = LayerNorm(s, n_gamma, n_beta) axis="1"', "return n"), False),
        (("s = elemwise_add(b, a)", "return s"), False),
    ],
    ids=["layer", "LayerNorm", "output"],
)  # fmt: skip
@pytest.mark.parametrize("hardware", runtimes.RUNTIMES.values())
def test_a_sum_is_codes_where_a_layer_reads_it(end: tuple[str, ...], int8: bool, hardware: str) -> None:
    """What is read as float is rounded for nothing: the stream of sums of a transformer, say."""
    model = build(conv("a", "data"), conv("b", "a"), *end)
    config = QuantConfig(simulate=True, hardware=hardware)
    assert pipeline.plan(model, config).plan["s"].int8 is int8


def test_other_hardware_quantizes_every_sum() -> None:
    model = build(conv("a", "data"), conv("b", "a"), "s = elemwise_add(b, a)", "return s")
    assert pipeline.plan(model, QuantConfig(simulate=True, hardware="snpe")).plan["s"].int8
