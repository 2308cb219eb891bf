"""What training showed is what the kernels give: fake-quantized networks against their int8 form; what is refused."""

from __future__ import annotations

import copy
import pickle
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, bn, build, conv, fc
from helpers import ROOT, SATURATES, WITHOUT_MXQ, assert_close, fresh_python

import mxq
from mxq import qat
from mxq.errors import ConfigError, FormatError, QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.qat.algorithms import compiled_name, scale_name
from mxq.qat.converting import Weights, converted, learned_range, trained
from mxq.qat.network import softmax_head
from mxq.quant import AFFINE, MXNET, UINT8, QuantSpec
from mxq.quant.hardware import HARDWARE, hardware_of
from mxq.runtime import MxnetRunner, load_model, to_block

mx = pytest.importorskip("mxnet")

VNNI = pytest.mark.skipif(SATURATES, reason="without VNNI sums of products saturate, which training does not show")
SMALL = (
    conv("conv0", "data", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"', bias=False),
    bn("bn0", "conv0"),
    f"relu0 = Activation(bn0) {RELU}",
    conv("conv1", "relu0", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"', bias=False),
    bn("bn1", "conv1"),
    conv("down", "relu0", 'kernel="(1, 1)" num_filter="16"', bias=False),
    bn("bn2", "down"),
    "sum = elemwise_add(bn1, bn2)",
    f"relu1 = Activation(sum) {RELU}",
    'pool = Pooling(relu1) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
    conv("conv2", "pool", 'kernel="(3, 3)" num_filter="16"'),
    f"relu2 = Activation(conv2) {RELU}",
    fc("fc0", "relu2"),
    "return fc0",
)
"""Convolution, BatchNorm, ReLU, a sum with a projection, pooling, a fully connected layer."""
OWN_BIAS = (conv("conv0", "data", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'), fc("fc0", "conv0"), "return fc0")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8, 10, 10)).astype(np.float32)


def small(lines: tuple[str, ...] = SMALL, **settings: Any) -> Any:
    """A block of the small network, or another, after a few steps. Some factors of BatchNorm are negative at first."""
    model = build(*lines, data=(2, 8, 10, 10))
    args = {name: value * signs(value) if name.endswith("gamma") else value for name, value in model.args.items()}
    block = qat.prepare(Model(model.graph, args, model.auxs), images(32), **settings)
    train(block, images(64, 1), np.arange(64) % 10, 0.02)
    return block


def signs(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size) % 3 == 1, np.float32(-1), np.float32(1))


def train(block: Any, data: np.ndarray, labels: np.ndarray, rate: float, batch: int = 16) -> None:
    trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": rate, "momentum": 0.9})
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    block.hybridize()
    for start in range(0, len(data), batch):
        part = slice(start, start + batch)
        with mx.autograd.record():
            found = loss(block(mx.nd.array(data[part])), mx.nd.array(labels[part]))
        found.backward()
        trainer.step(batch)


def run(block: Any, data: np.ndarray, batch: int = 100) -> np.ndarray:
    parts = [block(mx.nd.array(data[i : i + batch])).asnumpy() for i in range(0, len(data), batch)]
    return np.concatenate(parts)


def agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The share of equal answers, and SQNR in dB."""
    noise = np.square((a - b).astype(np.float64)).mean()
    return float((a.argmax(1) == b.argmax(1)).mean()), 10 * np.log10(np.square(a.astype(np.float64)).mean() / noise)


class TestKernelsGiveWhatTrainingShowed:
    @VNNI
    @pytest.mark.parametrize("strategy", [-1, 0, 1, 2, 3, 4])
    def test_on_a_small_network(self, strategy: int) -> None:
        block = small(bn_strategy=strategy)
        data = images(400, 2)
        equal, decibels = agreement(run(block, data), run(qat.convert(block), data))
        assert equal >= 0.995
        assert decibels >= 40

    @VNNI
    def test_on_the_shipped_network_of_digits(self) -> None:
        block, data = digits()
        equal, decibels = agreement(run(block, data), run(qat.convert(block), data))
        assert equal >= 0.995
        assert decibels >= 40

    @VNNI
    def test_on_a_real_network(self, mxq_data: Path) -> None:
        """8 bits are 18 dB from float in these 20 layers; what kernels do otherwise is 25 dB below that."""
        block, data = cifar(mxq_data)
        equal, decibels = agreement(run(block, data), run(qat.convert(block), data))
        assert equal >= 0.995
        assert decibels >= 40

    @pytest.mark.parametrize("form", ["compiled", "operators"])
    @pytest.mark.parametrize(
        ("lines", "layer", "strategy"),
        [*((SMALL, "bn0", strategy) for strategy in range(-1, 5)), (OWN_BIAS, "conv0", -1)],
    )
    def test_a_bias_is_what_the_kernel_rounds_it_to(
        self, lines: tuple[str, ...], layer: str, strategy: int, form: str
    ) -> None:
        """What a layer makes of zeros is its bias."""
        block = small(lines, bn_strategy=strategy, form=form)
        made = converted(trained(block), "avx512_vnni", MxnetRunner(), {}).network
        assert made is not None
        node = next(node for node in made.fused.graph.operators if layer in node.origins)
        scale = made.read_as(node.inputs[0], "int8").scale * made.weights[node.inputs[1].name].scale
        bias = made.fused.args[node.inputs[2].name]
        found = MxnetRunner().compile(trained(block).model, [Ref(layer)])({"data": 0 * images(1)})[-1]
        units = np.asarray(found)[0, :, 4, 4] * scale
        assert_close(units, np.rint(bias * scale), rtol=4e-5, atol=1e-3)  # an end of a weight is moved so much
        assert np.abs(bias * scale - np.rint(units)).max() > 0.1  # it had to be moved

    def test_no_bias_is_rounded_where_kernels_do_not(self) -> None:
        assert [bias.layer for bias in small().qat.biases] == ["conv0", "conv1", "down", "conv2", "fc0"]
        assert small(hardware="tensorrt").qat.biases == ()
        assert small(OWN_BIAS, algorithm="apot", bits_w=4, bits_a=4).qat.biases == ()  # its levels have no step

    @pytest.mark.parametrize("form", ["compiled", "operators"])
    def test_a_bias_is_rounded_where_all_channels_have_one_step(
        self, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = replace(hardware_of("tvm"), name="of_one_step", rounds_biases=True)
        monkeypatch.setitem(HARDWARE._known, row.name, row)  # noqa: SLF001  (what is registered stays)
        network = trained(small(OWN_BIAS, hardware=row.name, form=form))
        bias = next(bias for bias in network.biases if bias.layer == "conv0")
        parts = bias.data, bias.weight
        scales = [Ref(scale_name(part)) if form == "operators" else Ref(compiled_name(part), 1) for part in parts]
        *_, found, one, other = MxnetRunner().compile(network.model, [Ref("conv0"), *scales])({"data": 0 * images(1)})
        assert one.shape == other.shape == (1,)
        whole = np.asarray(found)[0, :, 4, 4] * one * other
        assert_close(whole, np.rint(whole), rtol=0, atol=1e-2)  # of some 1000
        assert_close(whole, np.rint(network.source.args["conv0_bias"] * one * other), rtol=0, atol=1e-2)

    def test_gradients_pass_a_bias_that_is_rounded_straight_through(self) -> None:
        block = small()
        with mx.autograd.record():
            block(mx.nd.array(images(8))).sum().backward()
        grads = {name: p.grad().asnumpy() for name, p in block.collect_params().items() if p.grad_req != "null"}
        assert_close(grads["fc0_bias"], np.full(10, 8.0), rtol=1e-6, atol=0)
        for name in ("conv2_bias", "bn1_beta", "bn2_beta", "conv0_weight", "relu0_fq_step"):
            assert np.isfinite(grads[name]).all()
            assert np.abs(grads[name]).max() > 0

    def test_the_codes_of_weights_are_those_of_training_in_every_layer(self) -> None:
        """For all strategies, with negative factors of BatchNorm too."""
        for strategy in (-1, 1, 4):
            block = small(bn_strategy=strategy)
            network = trained(block)
            made = converted(network, "avx512_vnni", MxnetRunner(), {})
            assert made.network is not None
            weights = Weights(network, made.network.fused)
            for q in (q for q in network.quantizers if q.is_weight):
                params = made.network.weights[q.tensor.name]
                value = made.network.fused.args[q.tensor.name]
                codes, step = weights.codes(q)
                read = params.quantize(value).reshape(len(value), -1)
                np.testing.assert_array_equal(read, codes)
                assert codes.min() == -128
                assert_close(params.step, step, rtol=4e-5, atol=0)  # an end is moved so that it is read as -128

    def test_a_softmax_that_was_taken_off_is_there_again(self) -> None:
        model = build(*SMALL[:-1], 'prob = softmax(fc0) axis="-1"', "return prob", data=(2, 8, 10, 10))
        block = qat.prepare(model, images(32))
        assert run(block, images(8)).min() < 0  # logits
        for found in (qat.convert(block), qat.convert(block, simulate=True)):
            assert_close(run(found, images(8)).sum(axis=1), np.ones(8), rtol=1e-5, atol=0)


@cache
def digits() -> tuple[Any, np.ndarray]:
    sys.path.insert(0, str(ROOT / "examples"))
    scenes = pytest.importorskip("scenes")
    pictures, labels = scenes.classification(192, "train", seed=1)
    block = qat.prepare(str(ROOT / "models" / "resnet_digits" / "resnet_digits"), scenes.normalise(pictures[:64]))
    train(block, scenes.normalise(pictures), labels, 1e-4, 64)
    return block, scenes.normalise(scenes.classification(400, "test", seed=0)[0])


def cifar(root: Path) -> tuple[Any, np.ndarray]:
    with np.load(root / "cifar10" / "cifar10_test_jpeg.npz") as file:
        pixels, labels = file["images"][:1192].astype(np.float32) / 255, file["labels"]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    data = np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))
    model = softmax_head(load_model(root / "models" / "cifar_resnet20" / "cifar_resnet20"))[0]
    block = qat.prepare(model, data[:64])
    train(block, data[:192], labels[:192], 1e-4, 64)
    return block, data[192:]


class TestRanges:
    @pytest.mark.parametrize(
        "params",
        [
            MXNET.params(UINT8, 0, 3.3),
            MXNET.params(QuantSpec(bits=7, signed=False), 0, 3.3),
            MXNET.params(QuantSpec(), -3.3, 3.3),
        ],
        ids=lambda p: str(p.spec),
    )
    def test_the_kernels_turn_a_range_into_the_step_that_it_was_made_of(self, params: Any) -> None:
        found = learned_range(params)
        assert_close(MXNET.params(params.spec, found.min, found.max).scale, params.scale, rtol=2e-7, atol=0)

    def test_a_zero_point_becomes_the_end_by_which_the_tensor_is_shifted(self) -> None:
        params = AFFINE.params(QuantSpec(signed=False, symmetric=False), -1.0, 3.0)
        found = learned_range(params)
        assert_close(-found.min * params.scale, params.zero_point, rtol=1e-6, atol=0)
        assert_close(MXNET.params(UINT8, 0, found.max - found.min).scale, params.scale, rtol=2e-7, atol=0)

    def test_a_step_that_was_changed_is_the_step_of_the_int8_network(self) -> None:
        block = small()
        step = 1.5 * block.trained["relu1_fq_step"]
        block.assign({"relu1_fq_step": step})
        report = qat.convert(block).mxq_report
        record = next(r for r in report.tensors.values() if r.of == "relu1")
        assert_close(record.max, float(step[0]) * 255.5, rtol=1e-6, atol=0)
        assert report.thresholds["tensors"]["relu1"]["source"] == "training"


class TestOtherThanTheKernels:
    @pytest.mark.parametrize(
        ("settings", "what"),
        [
            ({"bits_w": 4}, "weight 'conv0_weight' was trained as int4, per channel on axis 0, narrow"),
            ({"bits_a": 4}, r"tensor 'relu0' was trained as uint4"),
            ({"hardware": "snpe"}, r"tensor 'data' was trained as uint8, zero point for Qualcomm SNPE"),
            ({"hardware": "tensorrt"}, r"tensor 'data' was trained as int8 for NVIDIA TensorRT"),
        ],
    )
    def test_what_no_kernel_holds_is_refused_by_name(self, settings: dict[str, Any], what: str) -> None:
        block = qat.prepare(build(*SMALL, data=(2, 8, 10, 10)), images(32), **settings)
        with pytest.raises(QuantizeError, match=what + r".*MXNet 1.9.1 holds int8 or uint8 .*simulate=True"):
            qat.convert(block)

    @pytest.mark.parametrize(
        "settings", [{"bits_w": 3, "bits_a": 3}, {"hardware": "tvm", "bits_w": 4}, {"hardware": "fbgemm"}]
    )
    def test_a_simulated_network_computes_what_the_block_does(self, settings: dict[str, Any]) -> None:
        block = small(**settings)
        found = qat.convert(block, simulate=True)
        assert_close(run(found, images(16)), run(block, images(16)), rtol=1e-4, atol=1e-4)
        assert "Custom" not in {node.op for node in load_model(found).graph}

    def test_stock_mxnet_loads_a_simulated_network(self, tmp_path: Path) -> None:
        block = small(bits_w=3, bits_a=3)
        found = qat.convert(block, simulate=True)
        found.hybridize()
        expected = run(found, images(4))
        found.export(str(tmp_path / "net"))
        np.save(tmp_path / "data.npy", images(4))
        code = WITHOUT_MXQ + (
            f"net = mx.gluon.SymbolBlock.imports({str(tmp_path / 'net-symbol.json')!r}, ['data'], "
            f"{str(tmp_path / 'net-0000.params')!r})\n"
            f"out = net(mx.nd.array(numpy.load({str(tmp_path / 'data.npy')!r})))\n"
            f"numpy.save({str(tmp_path / 'out.npy')!r}, out.asnumpy())"
        )
        done = fresh_python(code)
        assert done.returncode == 0, done.stderr
        assert_close(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-5)

    def test_what_is_no_block_in_training_is_refused(self) -> None:
        with pytest.raises(QuantizeError, match=r"block is a Dense; allowed: what mxq\.qat\.prepare or mxq\.qat\.load"):
            qat.convert(mx.gluon.nn.Dense(2))

    def test_a_block_whose_training_diverged(self, tmp_path: Path) -> None:
        block = small()
        block.assign({"data_fq_step": np.full(1, np.nan, np.float32)})
        for call in (qat.convert, lambda b: qat.convert(b, simulate=True), lambda b: qat.save(b, tmp_path / "x")):
            with pytest.raises(QuantizeError, match="parameter 'data_fq_step' is not finite, so that the training"):
                call(block)
        assert not list(tmp_path.iterdir())

    def test_a_parameter_that_it_has_not(self) -> None:
        with pytest.raises(ConfigError, match=r"parameter is 'data_fq_stop'; allowed: .*did you mean 'data_fq_step'"):
            small().assign({"data_fq_stop": np.ones(1, np.float32)})

    def test_simulate_is_true_or_false(self) -> None:
        with pytest.raises(ConfigError, match="simulate is 'no'; allowed: True, False"):
            qat.convert(small(), simulate="no")


class TestPairs:
    def test_the_int8_block_is_saved_as_any_other_and_loads(self, tmp_path: Path) -> None:
        found = qat.convert(small())
        mxq.save(found, tmp_path / "net")
        assert_close(run(mxq.load(tmp_path / "net"), images(8)), run(found, images(8)), rtol=0, atol=0)

    def test_converting_changes_nothing_of_the_block_which_trains_on(self) -> None:
        block = small()
        before = block.trained
        qat.convert(block)
        assert all(np.array_equal(before[name], value) for name, value in block.trained.items())
        train(block, images(16), np.arange(16) % 10, 0.01)
        assert not np.array_equal(before["conv0_weight"], block.trained["conv0_weight"])


class TestFiles:
    @pytest.mark.parametrize("settings", [{}, {"hardware": "tvm", "bits_w": 4, "bits_a": 4}, {"bn_strategy": 0}])
    def test_a_block_that_was_saved_goes_on_as_if_it_had_not_been(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        block = small(**settings)
        qat.save(block, tmp_path / "net-qat.params")
        again = qat.load(tmp_path / "net-qat.params")
        assert again.qat.config == block.qat.config
        assert again.qat.quantizers == block.qat.quantizers
        for each in (block, again):
            train(each, images(32, 3), np.arange(32) % 10, 0.02)
        for name, value in block.trained.items():
            assert_close(again.trained[name], value, rtol=0, atol=0)
        if block.qat.config.is_held:
            a, b = (qat.convert(each) for each in (block, again))
            assert_close(run(a, images(8)), run(b, images(8)), rtol=0, atol=0)

    def test_gluons_own_files_of_parameters_serve_as_well(self, tmp_path: Path) -> None:
        block, other = small(), qat.prepare(build(*SMALL, data=(2, 8, 10, 10)), images(32))
        block.save_parameters(str(tmp_path / "net.params"))
        other.load_parameters(str(tmp_path / "net.params"))
        assert_close(run(other, images(8)), run(block, images(8)), rtol=0, atol=0)

    @pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda block: pickle.loads(pickle.dumps(block))])
    def test_a_copy_trains_apart_and_alike(self, copied: Any) -> None:
        block, data, labels = small(bits_w=4), images(16), np.arange(16) % 4
        block.hybridize()
        run(block, data)  # a block of MXNet that has been hybridized and run cannot be copied
        next(iter(block.collect_params().values())).lr_mult = 0.5
        found, before = copied(block), block.trained
        train(found, data, labels, 0.05)
        assert all(np.array_equal(value, before[name]) for name, value in block.trained.items())
        train(block, data, labels, 0.05)
        for name, value in found.trained.items():
            assert_close(value, block.trained[name], rtol=0, atol=0)
        found, block = (qat.convert(each, simulate=True) for each in (found, block))
        assert_close(run(found, data), run(block, data), rtol=0, atol=0)

    def test_it_stays_float32(self) -> None:
        block = small()
        block.cast("float32")
        for dtype, shown in (("float16", "'float16'"), (np.float64, "'float64'"), ("half a float", "'half a float'")):
            with pytest.raises(ConfigError, match=f"dtype is {shown}; allowed: 'float32'"):
                block.cast(dtype)

    def test_paths_that_are_none(self) -> None:
        for call in (lambda: qat.save(small(), None), lambda: qat.load(3)):
            with pytest.raises(ConfigError, match=r"path is .*; allowed: a path"):
                call()

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=r"net\.params"):
            qat.load(tmp_path / "net.params")
        small().save_parameters(str(tmp_path / "net.params"))
        with pytest.raises(FormatError, match=r"holds no block in training; allowed: what mxq\.qat\.save wrote"):
            qat.load(tmp_path / "net.params")


def test_a_float_network_of_the_same_parameters_is_what_training_left() -> None:
    network = trained(small())
    assert_close(network.source.args["conv2_weight"], network.values["conv2_weight"], rtol=0, atol=0)
    assert run(to_block(network.source), images(2)).shape == (2, 10)
