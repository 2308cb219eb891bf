"""mxq by the names and arguments of ``mxnet.contrib.quantization``: a change of import, and nothing else."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from helpers import assert_close
from mxnet.contrib import quantization as contrib

from mxq.contrib import Collector
from mxq.mxnet_arguments import excluded, own_options, shapes_of

SIDE, CLASSES, EXAMPLES = 12, 5, 16
X = np.random.default_rng(0).uniform(-1, 1, (EXAMPLES, 3, SIDE, SIDE)).astype(np.float32)
FAST = {"effort": "fast"}
ERROR = 0.03
"""Largest difference from float in shares of the largest output; that of these networks is 0.01."""


def small(*, deferred: bool = False, prefix: str = "net_") -> Any:
    """Convolution, BatchNorm, ReLU, convolution, flattened, fully connected."""
    mx.random.seed(3)
    nn = mx.gluon.nn
    known = {} if deferred else {"in_channels": 3}
    net = nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(nn.Conv2D(8, 3, **known), nn.BatchNorm(), nn.Activation("relu"), nn.Conv2D(8, 3, strides=2))
        net.add(nn.Flatten(), nn.Dropout(0.5), nn.Dense(CLASSES))
    net.initialize(mx.init.Xavier())
    if not deferred:
        net.hybridize()
        net(mx.nd.array(X[:1]))
    return net


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    prefix = str(tmp_path_factory.mktemp("contrib") / "net")
    small().export(prefix, 0)
    return mx.model.load_checkpoint(prefix, 0)  # type: ignore[no-any-return]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="mxq")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def loader(batch: int = 8) -> Any:
    data = mx.gluon.data.ArrayDataset(mx.nd.array(X), mx.nd.zeros(EXAMPLES))
    return mx.gluon.data.DataLoader(data, batch_size=batch)


def close(found: Any, wanted: np.ndarray) -> None:
    assert_close(found.asnumpy(), wanted, rtol=0, atol=ERROR * float(np.abs(wanted).max()))


def forward(parts: Any) -> Any:
    """What a symbol with its parameters makes of X, bound as MXNet's users do."""
    symbol, args, auxs = parts
    return symbol.bind(mx.cpu(), {**args, "data": mx.nd.array(X)}, aux_states=auxs).forward()[0]


class TestBlocks:
    @pytest.mark.parametrize(
        "options",
        [
            {"quantized_dtype": "auto", "exclude_layers": [], "exclude_layers_match": ["flatten"]},  # verify_pretrained
            {
                "quantized_dtype": "auto",
                "exclude_layers": [],
                "exclude_layers_match": ["flatten", "concat"],
            },  # eval_ssd
            {"quantized_dtype": "auto", "exclude_layers": [], "exclude_operators": ["Concat"]},  # eval_yolo
            {"exclude_layers": [], "exclude_layers_match": ["concat"], "quantize_mode": "full"},  # test_recognizer
            {"quantized_dtype": "auto", "exclude_layers": [], "exclude_layers_match": []},  # segmentation, pose
            {"exclude_layers": None, "exclude_layers_match": None, "LayerOutputCollector": None},  # the defaults
        ],
    )
    @pytest.mark.parametrize("calib_mode", ["naive", "entropy", "none"])
    def test_the_arguments_of_scripts(self, options: dict[str, Any], calib_mode: str) -> None:
        net = small()
        common = {"calib_data": loader(), "num_calib_examples": EXAMPLES, "ctx": mx.cpu(), "logger": logging}
        made = mxq.quantize_net(net, calib_mode=calib_mode, **common, **options, **FAST)
        assert made.mxq_report.summary["int8"] >= 2
        close(made(mx.nd.array(X)), net(mx.nd.array(X)).asnumpy())

    def test_network_is_net(self) -> None:
        net = small()
        one, other = (mxq.quantize_net(calib_data=X, **{name: net}, **FAST) for name in ("net", "network"))
        assert (one(mx.nd.array(X)).asnumpy() == other(mx.nd.array(X)).asnumpy()).all()
        for given in ({}, {"net": net, "network": net}):
            with pytest.raises(mxq.ConfigError, match=r"net and network are both (missing|given)"):
                mxq.quantize_net(calib_data=X, **given)

    def test_no_calibration(self) -> None:
        made = mxq.quantize_net(small(), calib_mode=None, calib_data=loader(), **FAST)
        assert made.mxq_report.config["calib_mode"] == "none"
        assert made.mxq_report.summary["calibration_examples"] == 0

    @pytest.mark.parametrize(
        "shapes",
        [
            [mx.io.DataDesc("data", (2, 3, SIDE, SIDE))],
            [("any", (2, 3, SIDE, SIDE)), ("softmax_label", (2,))],
            [(2, 3, SIDE, SIDE)],
            (2, 3, SIDE, SIDE),
        ],
    )
    def test_shapes_settle_what_is_deferred(self, shapes: Any) -> None:
        net = small(deferred=True)
        made = mxq.quantize_net(net, data_shapes=shapes, calib_mode="none", **FAST)
        close(made(mx.nd.array(X)), net(mx.nd.array(X)).asnumpy())

    def test_segments_of_videos_are_images(self) -> None:
        net, shape = small(), (4, 4, 3, SIDE, SIDE)
        batches = [(mx.nd.array(X.reshape(shape)), mx.nd.zeros(4))]
        found = [
            mxq.quantize_net(net, calib_data=data, num_calib_examples=EXAMPLES, **FAST).mxq_report
            for data in (batches, X.reshape(shape), X)
        ]
        assert [report.summary["calibration_examples"] for report in found] == [EXAMPLES] * 3
        assert found[0].thresholds == found[1].thresholds == found[2].thresholds

    def test_granularity(self, said: Callable[[], list[str]]) -> None:
        made = mxq.quantize_net(small(), X, quantize_granularity="tensor-wise", **FAST)
        assert made.mxq_report.config["quantize_granularity"] == "channel-wise"
        assert said() == [
            "quantize_granularity 'tensor-wise' is taken as 'channel-wise', which is more accurate and as quick"
        ]

    def test_what_matches_nothing_is_said(self, said: Callable[[], list[str]]) -> None:
        options = {
            "exclude_layers_match": ["concat"],
            "exclude_operators": ["Concat"],
            "exclude_layers": "net_dropout0_fwd",
        }
        made = mxq.quantize_net(small(), X, **options, **FAST)
        assert made.mxq_report.summary["int8"] >= 2  # without VNNI the guard may leave one in float
        assert made.mxq_report.summary["warnings"] == said()
        for sentence, begin in zip(
            said(), ("exclude_layers_match: 'concat' matches", "exclude_operators: 'Concat'"), strict=False
        ):
            assert sentence.startswith(begin)
        assert said()[2].endswith("is no operator of the fused network; inference does not need it")
        with pytest.raises(mxq.ConfigError, match="exclude_layers: 'concat' matches none"):
            mxq.quantize_net(small(), X, exclude_layers=["concat"], **FAST)

    def test_a_collector_of_ones_own(self) -> None:
        with pytest.raises(mxq.ConfigError, match="LayerOutputCollector is given; allowed: None"):
            mxq.quantize_net(small(), X, calib_mode="customize", LayerOutputCollector=object())

    def test_nothing_to_quantize(self, said: Callable[[], list[str]], tmp_path: Path) -> None:
        net = mx.gluon.nn.HybridSequential(prefix="net_")
        net.add(mx.gluon.nn.Activation("tanh"))
        made = mxq.quantize_net(net, X, **FAST)
        assert_close(made(mx.nd.array(X)).asnumpy(), np.tanh(X), rtol=1e-6, atol=1e-6)
        (warning,) = said()
        assert warning.startswith("no operator of the network can be int8, it stays as it is: ")
        mxq.save(made, tmp_path / "same")
        assert mxq.load(tmp_path / "same").mxq_report.summary["int8"] == 0
        for search in (mxq.tune, mxq.sensitivity):
            with pytest.raises(mxq.QuantizeError, match="there is nothing to choose: no operator of the network"):
                search(net, X)

    def test_v2(self) -> None:
        net = small()
        made = mxq.quantize_net_v2(net, "auto", "full", "channel-wise", None, ["flatten"], calib_data=loader(), **FAST)
        assert made.mxq_report.config["calib_mode"] == "naive"
        close(made(mx.nd.array(X)), net(mx.nd.array(X)).asnumpy())
        made = mxq.quantize_net_v2(net, data_shapes=[mx.io.DataDesc("data", (1, 3, SIDE, SIDE))], **FAST)
        assert made.mxq_report.config["calib_mode"] == "none"


class TestSymbols:
    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize(
        "excluded",
        [
            {"excluded_sym_names": "net_conv0_fwd"},
            {"excluded_sym_names": ["net_conv0_fwd", "concat"], "excluded_op_names": ["Concat"]},
            {"excluded_op_names": "FullyConnected"},
        ],
    )
    def test_model(self, checkpoint: Any, fused: bool, excluded: dict[str, Any], said: Callable[[], list[str]]) -> None:
        symbol, args, auxs = checkpoint
        wanted = forward(checkpoint).asnumpy()
        given = symbol.get_backend_symbol("MKLDNN_QUANTIZE") if fused else symbol
        data = mx.io.NDArrayIter(X, batch_size=8)
        made = mxq.quantize_model(given, args, auxs, calib_data=data, **excluded, **FAST)
        decided = {name: d.int8 for d in made.report.plan.decisions for name in (*d.members, d.op)}
        asked = {v for value in excluded.values() for v in ([value] if isinstance(value, str) else value)}
        assert not any(decided.get(name) for name in asked)
        unknown = {"concat", "Concat"} | ({"net_conv0_fwd"} if fused else set())  # fused, it has another name
        assert [next(n for n in sorted(asked) if repr(n) in sentence) for sentence in said()] == sorted(
            asked & unknown, key=["net_conv0_fwd", "concat", "Concat"].index
        )
        assert made.report.summary["int8"] >= 1  # without VNNI the guard may leave one in float
        close(forward(made), wanted)

    def test_in_mxnets_order(self, checkpoint: Any) -> None:
        data = mx.io.NDArrayIter(X, batch_size=8)
        names = (
            ("data",),
            ("softmax_label",),
            mx.cpu(),
            None,
            [],
            "entropy",
            data,
            EXAMPLES,
            "auto",
            "smart",
            "tensor-wise",
        )
        made = mxq.quantize_model_mkldnn(*checkpoint, *names, **FAST)
        assert made.report.config["calib_mode"] == "entropy"
        close(forward(made), forward(checkpoint).asnumpy())

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("calib_mode", ["naive", "entropy"])
    def test_graph_and_calibration(self, checkpoint: Any, fused: bool, calib_mode: str) -> None:
        symbol, args, auxs = checkpoint
        wanted = forward(checkpoint).asnumpy()
        given = symbol.get_backend_symbol("MKLDNN_QUANTIZE") if fused else symbol
        *at_run_time, collector = mxq.quantize_graph(given, args, auxs, calib_mode=calib_mode, **FAST)
        close(forward(at_run_time), wanted)
        monitored(given, args, auxs, collector.collect)
        made = mxq.calib_graph(*at_run_time, collector, calib_mode=calib_mode)
        close(forward(made), wanted)
        direct = mxq.quantize_model(
            given, args, auxs, X, calib_mode=calib_mode, batch_size=4, num_calib_examples=EXAMPLES, **FAST
        )
        assert made.report.thresholds == direct.report.thresholds

    def test_graphs_without_calibration(self, checkpoint: Any) -> None:
        *_, collector = mxq.quantize_graph(*checkpoint, calib_mode=None)
        assert collector is None
        with pytest.raises(mxq.ConfigError, match=r"collector is a NoneType; allowed: what mxq.quantize_graph"):
            mxq.calib_graph(*checkpoint, collector)
        *_, collector = mxq.quantize_graph(*checkpoint)
        with pytest.raises(mxq.DataError, match=r"the collector has seen no batch of data; .*monitor_all=True"):
            mxq.calib_graph(*checkpoint, collector)


def monitored(symbol: Any, args: Any, auxs: Any, collect: Callable[..., None]) -> None:
    """Runs a Module over X as the users of `calib_graph` do."""
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (4, 3, SIDE, SIDE))], for_training=False)
    module.set_params(args, auxs)
    executor = module._exec_group.execs[0]  # noqa: SLF001  (as MXNet's own tests reach it)
    executor.set_monitor_callback(collect, monitor_all=True)
    for start in range(0, EXAMPLES, 4):
        module.forward(mx.io.DataBatch([mx.nd.array(X[start : start + 4])]))
        module.get_outputs()[0].wait_to_read()


class TestCollector:
    """Two inputs, "b" read by two operators, one of them last."""

    RUN = ("a", "one_data", "b", "one_rhs", "one_output", "two_lhs", "b", "two_rhs", "two_output")

    def collected(self, runs: int, examples: int) -> list[dict[str, np.ndarray]]:
        collector = Collector(("a", "b"), lambda **_: None)  # type: ignore[arg-type, return-value]
        for run in range(runs):
            for name in self.RUN:
                collector.collect(name.encode(), mx.nd.full((examples, 2), run))
        return collector.feeds()

    @pytest.mark.parametrize("runs", [1, 3])
    def test_a_batch_is_a_run(self, runs: int) -> None:
        found = self.collected(runs, 2)
        assert [feed.keys() for feed in found] == [{"a", "b"}] * runs
        assert [float(feed["b"].mean()) for feed in found] == list(range(runs))

    def test_no_more_than_calibration_uses(self) -> None:
        assert len(self.collected(5, 400)) == 3

    def test_one_large_batch(self) -> None:
        assert len(self.collected(2, 5000)) == 1


class TestArguments:
    def test_names_and_order_are_mxnets(self) -> None:
        for name in ("quantize_net_v2", "quantize_model_mkldnn", "quantize_graph", "calib_graph"):
            own, theirs = (list(inspect.signature(getattr(m, name)).parameters) for m in (mxq, contrib))
            assert own[: len(theirs)] == theirs, name

    def test_none_is_a_default(self) -> None:
        log = logging.getLogger("none")
        assert own_options({"effort": None, "LayerOutputCollector": None, "calib_mode": None}, log) == {
            "calib_mode": "none"
        }

    def test_excluded(self, said: Callable[[], list[str]]) -> None:
        log = logging.getLogger("mxq")
        assert excluded("excluded_sym_names", "conv", ["conv", "c", "o"], log) == ("conv",)
        assert excluded("excluded_sym_names", ("conv", "x"), ["conv"], log) == ("conv",)
        assert said() == ["excluded_sym_names: the network has no 'x'; nothing is excluded by it"]
        with pytest.raises(mxq.ConfigError, match="excluded_sym_names holds 3; allowed: names"):
            excluded("excluded_sym_names", [3], [], log)  # type: ignore[list-item]

    @pytest.mark.parametrize("shapes", [3, [], [(1, 0)], "text", [("data", None)], [("data",)], [(1.5, 2)]])
    def test_shapes_that_are_none(self, shapes: Any) -> None:
        with pytest.raises(mxq.ConfigError, match=r"data_shapes is .*; allowed: for each input \(data\) a DataDesc"):
            shapes_of(shapes, ["data"])
