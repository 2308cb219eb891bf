"""Blocks that train with quantization: where quantizers stand, what they start from, training, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from graphs import RELU, bn, build, conv, fc
from helpers import assert_close

import mxq
from mxq import pipeline, qat
from mxq.config import QuantConfig
from mxq.errors import ConfigError, DataError, QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.graph.layers import edges
from mxq.qat.algorithms import Site
from mxq.qat.config import QatConfig
from mxq.qat.network import QatNetwork
from mxq.qat.preparing import Seen, block_of, prepared
from mxq.qat.quantizer import Quantizer, joined
from mxq.quant import QuantSpec
from mxq.runtime import MxnetRunner, load_model

mx = pytest.importorskip("mxnet")

SHAPE = (4, 8, 8, 8)
BLOCK = (
    conv("stem", "data", 'kernel="(3, 3)" num_filter="8" pad="(1, 1)"', bias=False),
    bn("stem_bn", "stem"),
    f"stem_relu = Activation(stem_bn) {RELU}",
    conv("conv1", "stem_relu", 'kernel="(3, 3)" num_filter="8" pad="(1, 1)"', bias=False),
    bn("bn1", "conv1"),
    f"relu1 = Activation(bn1) {RELU}",
    conv("conv2", "relu1", 'kernel="(3, 3)" num_filter="8" pad="(1, 1)"', bias=False),
    bn("bn2", "conv2"),
    conv("down", "stem_relu", 'kernel="(1, 1)" num_filter="8"', bias=False),
    bn("down_bn", "down"),
    "sum = elemwise_add(down_bn, bn2)",
    f"relu2 = Activation(sum) {RELU}",
    'pool = Pooling(relu2) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
    conv("conv3", "pool", 'kernel="(3, 3)" num_filter="8" pad="(1, 1)"'),
    'gap = Pooling(conv3) global_pool="True" pool_type="avg" kernel="(1, 1)"',
    "flat = Flatten(gap)",
    fc("fc0", "flat"),
    "return fc0",
)
"""The basic block of a ResNet with a projection (MQBench, figure 4), then maximum and average pooling."""
BRANCHES = (
    conv("left", "data"),
    f"left_relu = Activation(left) {RELU}",
    conv("right", "data"),
    'both = Concat(left_relu, right) num_args="2" dim="1"',
    conv("last", "both"),
    "return last",
)


def images(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE[1:])).astype(np.float32)


def block_net() -> Model:
    return build(*BLOCK, data=SHAPE)


def network(model: Model, **settings: Any) -> QatNetwork:
    data = np.random.default_rng(0).standard_normal((8, 8, 8, 8)).astype(np.float32)
    found: QatNetwork = qat.prepare(model, data, **settings).qat
    return found


def activations(found: QatNetwork) -> dict[str, set[str]]:
    """Tensor -> the nodes that read it quantized."""
    return {str(q.tensor): {*q.readers} for q in found.quantizers if not q.is_weight}


WEIGHTS = {"stem_weight", "conv1_weight", "conv2_weight", "down_weight", "conv3_weight", "fc0_weight"}


class TestWhatWasSeenBefore:
    """Statistics of the same network take the place of the data."""

    @staticmethod
    def seen(model: Model) -> Seen:
        plan = pipeline.plan(model, QuantConfig(effort="fast"), MxnetRunner())
        return Seen(plan.fused, pipeline.calibrate(plan, images(), MxnetRunner()).statistics)

    def test_of_the_same_network(self) -> None:
        model = block_net()
        known = prepared(model, None, QatConfig(), MxnetRunner(), self.seen(model))
        assert known.calibrated == prepared(model, images(), QatConfig(), MxnetRunner()).calibrated

    def test_not_of_other_weights(self) -> None:
        model = block_net()
        args = {**model.args, "fc0_weight": 2 * model.args["fc0_weight"]}
        other = self.seen(Model(model.graph, args, model.auxs))
        plan = pipeline.plan(model, QuantConfig(effort="fast"), MxnetRunner())
        assert not other.covers(plan)
        assert self.seen(model).covers(plan)


class TestPlacement:
    def test_on_onednn_quantizers_stand_where_partition_quantizes(self) -> None:
        model = block_net()
        plan = pipeline.plan(model, QuantConfig(effort="fast"), MxnetRunner())
        found = network(model)
        assert set(activations(found)) == {str(ref) for ref in plan.plan.observe}
        assert {q.tensor.name for q in found.quantizers if q.is_weight} == WEIGHTS
        assert found.warnings == ()

    def test_what_is_quantized_from_float_is_float_for_float_readers(self) -> None:
        """A sigmoid has no int8 kernel, so it reads the input as it is; the convolution reads codes."""
        model = build("gate = sigmoid(data)", conv("conv0", "data"), "out = elemwise_mul(conv0, gate)", "return out")
        assert activations(network(model))["data"] == {"conv0"}

    def test_graph_1_quantizes_what_each_layer_reads_on_its_own(self) -> None:
        found = network(block_net(), hardware="acl")
        places = [(str(q.tensor), q.readers) for q in found.quantizers if not q.is_weight]
        assert sorted(places) == [
            ("data", ("stem",)),
            ("flat", ("fc0",)),
            ("pool", ("conv3",)),
            ("relu1", ("conv2",)),
            ("stem_relu", ("conv1",)),
            ("stem_relu", ("down",)),
        ]
        assert len({q.group for q in found.quantizers}) == len(found.quantizers)

    def test_graph_2_quantizes_one_input_of_a_sum_and_graph_3_both(self) -> None:
        common = {
            "data": {"stem"},
            "stem_relu": {"conv1", "down"},
            "relu1": {"conv2"},
            "bn2": {"sum"},
            "relu2": {"pool"},
            "conv3": {"gap"},
            "flat": {"fc0"},
        }
        assert activations(network(block_net(), hardware="tensorrt")) == common
        assert activations(network(block_net(), hardware="fbgemm")) == {**common, "down_bn": {"sum"}}

    def test_a_maximum_gives_codes_where_it_reads_codes(self) -> None:
        """What reads the pooling's result finds codes: no quantizer of it in graphs 2 and 3."""
        assert "pool" not in activations(network(block_net(), hardware="tvm"))

    @pytest.mark.parametrize("hardware", ["onednn", "tensorrt", "acl", "tvm", "snpe", "fbgemm"])
    def test_what_a_concat_joins_has_one_range_and_sign(self, hardware: str) -> None:
        found = network(build(*BRANCHES), hardware=hardware)
        joined = [q for q in found.quantizers if str(q.tensor) in ("left_relu", "right") and not q.is_weight]
        assert len(joined) == 2
        assert len({q.group for q in joined}) == len({q.spec for q in joined}) == 1
        assert joined[0].spec.signed == joined[0].spec.symmetric

    def test_papers_do_not_quantize_a_concat(self) -> None:
        assert set(activations(network(build(*BRANCHES), hardware="academic"))) == {"data", "both"}

    def test_groups_that_overlap_are_one_with_the_sign_of_any(self) -> None:
        site, signed = (Site(QuantSpec(signed=s), "activation") for s in (False, True))
        names = [("a", site), ("b", site), ("c", signed), ("d", site)]
        found = joined((Quantizer(n, Ref(n), (), s) for n, s in names), [["a", "b"], ["b", "c"]])
        assert [(q.group, q.spec.signed) for q in found] == [("a", True)] * 3 + [("d", False)]

    def test_layers_that_are_excluded_stay_in_float(self) -> None:
        for hardware in ("onednn", "tensorrt"):
            found = network(block_net(), hardware=hardware, exclude_layers=("fc*", "stem"))
            weights = {q.tensor.name for q in found.quantizers if q.is_weight}
            assert weights == WEIGHTS - {"stem_weight", "fc0_weight"}
            assert "data" not in activations(found)

    def test_first_and_last_layers_have_bits_of_their_own(self) -> None:
        model = block_net()
        names = {"stem", "conv1", "conv2", "down", "conv3", "fc0"}
        assert edges(model.graph, model.inputs, names) == {"stem", "fc0"}
        for hardware, asked in (("onednn", 8), ("tensorrt", 8), ("academic", None)):
            found = network(model, hardware=hardware, bits_w=4, bits_a=3, edge_bits=asked)
            bits = {q.tensor.name: q.spec.bits for q in found.quantizers}
            assert {bits.pop(name) for name in ("stem_weight", "fc0_weight", "data")} == {8}
            assert bits.pop("flat", 8) == bits.pop("gap", 8) == 8
            assert set(bits.values()) == {3, 4}

    def test_a_summand_that_is_shifted_has_a_zero_point(self) -> None:
        summands = [q for q in network(block_net()).quantizers if str(q.tensor) in ("bn2", "down_bn")]
        assert [q.spec for q in summands] == [QuantSpec(signed=False, symmetric=False)]


class TestRanges:
    def test_they_start_from_the_calibrator_that_is_asked_for(self) -> None:
        for init in ("naive", "percentile:90"):
            found = network(block_net(), init=init, algorithm="fixed")
            q = next(q for q in found.quantizers if str(q.tensor) == "relu1")
            span = found.calibrated["relu1"].range
            assert_close(found.of(q)["step"], [span.max / 255.5], rtol=1e-6, atol=0)
        naive, clipped = (
            network(block_net(), init=i).calibrated["relu1"].range.max for i in ("naive", "percentile:90")
        )
        assert clipped < naive

    def test_weights_start_from_theirs_in_every_channel(self) -> None:
        found = network(block_net(), bits_w=4, algorithm="fixed", weight_init="percentile:95")
        q = next(q for q in found.quantizers if q.tensor.name == "conv1_weight")
        largest = np.abs(found.source.args["conv1_weight"]).reshape(8, -1).max(axis=1)
        step = found.of(q)["step"]
        assert step.shape == (8,)
        assert (step < largest / 7.5).all()

    def test_weights_of_8_bits_on_onednn_follow_the_kernel_and_others_the_algorithm(self) -> None:
        assert QatConfig().of_weights == "max"
        assert QatConfig(bits_w=4).of_weights == QatConfig(hardware="acl").of_weights == "lsq"
        assert QatConfig(weight_algorithm="fixed").of_weights == "fixed"

    def test_the_block_begins_as_the_quantized_network_answers(self) -> None:
        """Before training: the simulated int8 network of the same ranges, but for what is rounded twice."""
        model, data = block_net(), images()
        block = qat.prepare(model, data, algorithm="fixed")
        ranged = mxq.quantize_net(model, data, effort="fast", target="avx512_vnni")
        difference = block(mx.nd.array(data)).asnumpy() - ranged(mx.nd.array(data)).asnumpy()
        expected = ranged(mx.nd.array(data)).asnumpy()
        assert np.square(difference).mean() < 1e-3 * np.square(expected).mean()


class Trainer:
    """A few steps on random labels."""

    def __init__(self, block: Any, rate: float = 0.02) -> None:
        self.block = block
        self.trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": rate, "momentum": 0.9})
        self.loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step(self, data: np.ndarray) -> float:
        labels = mx.nd.array(np.arange(len(data)) % 10)
        with mx.autograd.record():
            found = self.loss(self.block(mx.nd.array(data)), labels)
        found.backward()
        self.trainer.step(len(data))
        return float(found.mean().asscalar())


class TestTraining:
    @pytest.mark.parametrize(
        "settings", [{}, {"bits_w": 3, "bits_a": 3}, {"hardware": "tvm", "bits_w": 4, "bits_a": 4}]
    )
    @pytest.mark.parametrize("hybridized", [False, True])
    def test_the_loss_falls_and_ranges_and_statistics_move(self, settings: dict[str, Any], hybridized: bool) -> None:
        block = qat.prepare(block_net(), images(), **settings)
        before = block.trained
        if hybridized:
            block.hybridize()
        trainer = Trainer(block)
        losses = [trainer.step(images()) for _ in range(12)]
        assert losses[-1] < 0.9 * losses[0]
        after = block.trained
        moved = {name for name, value in after.items() if not np.array_equal(value, before[name])}
        assert {name for name in block.qat.learned if name.endswith("step")} <= moved
        assert {"bn1_moving_mean", "bn1_gamma", "conv1_weight"} <= moved

    def test_two_runs_give_the_same_numbers(self) -> None:
        """Wide enough for oneDNN's own layouts, which no operator in Python may read."""
        model = build(*(line.replace('num_filter="8"', 'num_filter="32"') for line in BLOCK), data=(4, 8, 16, 16))
        data = np.random.default_rng(0).standard_normal((32, 8, 16, 16)).astype(np.float32)
        found = []
        for _ in range(3):
            block = qat.prepare(model, data, bits_w=4, bits_a=4)
            block.hybridize()
            trainer = Trainer(block)
            for _ in range(4):
                trainer.step(data)
            found.append(block.trained)
        for other in found[1:]:
            assert all(np.array_equal(value, other[name]) for name, value in found[0].items())

    def test_compiled_and_plain_operators_train_alike(self) -> None:
        found = []
        for form in ("compiled", "operators"):
            block = qat.prepare(block_net(), images(), bits_w=4, bits_a=4, form=form)
            trainer = Trainer(block)
            found.append([trainer.step(images()) for _ in range(3)])
        assert_close(found[0], found[1], rtol=1e-3, atol=0)

    def test_within_a_block_of_the_users_own(self) -> None:
        class Own(mx.gluon.HybridBlock):
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner, self.extra = inner, mx.gluon.nn.Dense(10, in_units=10)

            def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803 - MXNet calls it so
                return self.extra(F.relu(self.inner(x)))

        block = Own(qat.prepare(block_net(), images(), bits_w=4, bits_a=4))
        block.extra.initialize()
        block.hybridize()
        before = block.inner.trained
        trainer = Trainer(block)
        for _ in range(3):
            trainer.step(images())
        assert not np.array_equal(before["conv1_weight"], block.inner.trained["conv1_weight"])

    @pytest.mark.filterwarnings("ignore")  # of the estimator
    def test_by_gluons_estimator(self) -> None:
        from mxnet.gluon.contrib.estimator import Estimator

        block = qat.prepare(block_net(), images(), bits_w=4, bits_a=4)
        before = block.trained
        data = mx.gluon.data.DataLoader(
            mx.gluon.data.ArrayDataset(images(32), (np.arange(32) % 10).astype(np.float32)), batch_size=16
        )
        trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.01})
        estimator = Estimator(block, mx.gluon.loss.SoftmaxCrossEntropyLoss(), trainer=trainer, context=mx.cpu())
        estimator.fit(data, epochs=1)
        assert not np.array_equal(before["conv1_weight"], block.trained["conv1_weight"])

    def test_weight_decay_leaves_ranges_alone_unless_it_is_asked_for(self) -> None:
        parameters = qat.prepare(block_net(), images(), bits_w=4).collect_params()
        assert parameters["relu1_fq_step"].wd_mult == 0
        assert parameters["conv1_weight"].wd_mult == 1

    def test_statistics_that_an_exported_network_froze_move_again(self) -> None:
        lines = [line.replace('fix_gamma="False"', 'fix_gamma="False" use_global_stats="True"') for line in BLOCK]
        block = qat.prepare(build(*lines, data=SHAPE), images())
        before = block.trained
        Trainer(block).step(images())
        assert not np.array_equal(before["bn1_moving_mean"], block.trained["bn1_moving_mean"])

    def test_dropout_drops_while_it_trains(self) -> None:
        lines = (*BLOCK[:-2], 'drop = Dropout(flat) p="0.5"', fc("fc0", "drop"), "return fc0")
        block = qat.prepare(build(*lines, data=SHAPE), images())
        x = mx.nd.array(images())
        with mx.autograd.train_mode():
            a, b = block(x).asnumpy(), block(x).asnumpy()
        assert not np.array_equal(a, b)
        assert np.array_equal(block(x).asnumpy(), block(x).asnumpy())

    def test_the_network_that_was_given_is_not_changed(self) -> None:
        net = mx.gluon.nn.HybridSequential()
        net.add(
            mx.gluon.nn.Conv2D(8, 3), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Activation("relu"), mx.gluon.nn.Dense(10)
        )
        net.initialize()
        block = qat.prepare(net, images())  # whose parameters wait for shapes
        before = load_model(net)
        trainer = Trainer(block, 0.1)
        trainer.step(images())
        after = load_model(net)
        assert all(np.array_equal(value, after.args[name]) for name, value in before.args.items())


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"bits_w": 1}, "bits_w is 1; allowed: 2 to 8"),
            ({"bits_a": 9}, "bits_a is 9; allowed: 2 to 8"),
            ({"bits_a": 4.0}, "bits_a is 4.0; allowed: 2 to 8"),
            ({"edge_bits": 0}, "edge_bits is 0; allowed: 2 to 8"),
            ({"hardware": "ncnn"}, "hardware is 'ncnn'; allowed: 'onednn', 'tensorrt'"),
            ({"algorithm": "lsqq"}, "algorithm is 'lsqq'; allowed: .*'lsq'"),
            ({"weight_algorithm": "none"}, "weight_algorithm is 'none'; allowed"),
            ({"weight_algorithm": 3}, "weight_algorithm is 3; allowed: 'lsq'"),
            ({"algorithm": None}, "^algorithm is None; allowed: 'lsq'"),
            ({"bn_strategy": 5}, "bn_strategy is 5; allowed: -1, 0, 1, 2, 3, 4"),
            ({"init": "median"}, "init is 'median'; allowed"),
            ({"weight_init": "ema_minmax"}, "weight_init is 'ema_minmax', an average over batches"),
            ({"form": "fast"}, "form is 'fast'; allowed: 'compiled', 'operators'"),
            ({"exclude_layers": ("nothing*",), "hardware": "tvm"}, r"exclude_layers: 'nothing\*' selects no operator"),
            ({"bits": 4}, "field is 'bits'; allowed: 'bits_w'"),
            ({"algorithm": "max"}, "max is asked for an activation"),
        ],
    )
    def test_a_setting_that_is_not_allowed_is_named(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            qat.prepare(block_net(), images(), **settings)

    def test_networks_and_data_that_do_not_serve(self) -> None:
        with pytest.raises(DataError, match="calib_data is None; allowed: data that the ranges start from"):
            qat.prepare(block_net(), None)
        with pytest.raises(DataError, match="calib_data is 'folder', a path; allowed: arrays"):
            qat.prepare(block_net(), "folder")
        with pytest.raises(QuantizeError, match="the network has no parameters, so there is nothing to train"):
            qat.prepare(build(f"relu0 = Activation(data) {RELU}", "return relu0"), images())
        with pytest.raises(QuantizeError, match="the network is quantized already"):
            qat.prepare(mxq.quantize_net(block_net(), images(), effort="fast"), images())
        for hardware in ("onednn", "tvm"):
            with pytest.raises(QuantizeError, match=r"trains with quantization already: .* fake-quantizes 'data"):
                qat.prepare(qat.prepare(block_net(), images()), images(), hardware=hardware)
        with pytest.raises(QuantizeError, match="no operator of the network can be"):
            qat.prepare(build(bn("bn0", "data"), "return bn0"), images(), hardware="tvm")
        with pytest.raises(ConfigError, match="config is 8; allowed: a QatConfig"):
            qat.prepare(block_net(), images(), 8)  # type: ignore[arg-type]


class TestRecords:
    def test_settings_are_read_as_they_were_written(self) -> None:
        config = QatConfig(bits_w=4, hardware="TVM", exclude_layers=("fc*",), bn_strategy="rescaled", edge_bits=8)
        assert QatConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        assert config.hardware == "tvm"
        with pytest.raises(ConfigError, match="field is 'bit'"):
            QatConfig.from_json({"bit": 4})

    def test_quantizers_are_read_as_they_were_written(self) -> None:
        for q in network(block_net()).quantizers:
            assert Quantizer.from_json(json.loads(json.dumps(q.to_json()))) == q

    def test_a_network_tells_its_parameters_apart(self) -> None:
        found = network(block_net(), bits_w=4, hardware="acl")
        assert "conv1_data_fq_zero_point" in found.learned
        assert found.weights == WEIGHTS
        assert {"bn1_gamma", "bn1_beta"} <= found.batch_norms
        assert {"bn1_moving_mean"} <= found.constant
        names = set(block_of(found).collect_params())
        assert found.learned | found.weights | found.batch_norms | found.constant <= names
