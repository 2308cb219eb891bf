"""Sensitivity: every layer alone, from one calibration pass; its journal, its picture, its command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import bn, build, conv, fc
from typer.testing import CliRunner

from mxq import pipeline
from mxq.cli import app
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import CalibrationError, ConfigError, MxqError, StorageError
from mxq.graph.ir import Model
from mxq.runtime import MxnetRunner, write_pair
from mxq.tuning import kept_data, picture, rendering
from mxq.tuning.choices import Layer, layers, observing_more, with_floats, with_only
from mxq.tuning.journal import Journal
from mxq.tuning.kept_data import Remembered, WithLabels
from mxq.tuning.layer_sensitivity import BOTH, ONE_FLOAT, ONE_INT8, Subject, measured, noise, ordered
from mxq.tuning.material import planned
from mxq.tuning.replay import Divergence, Replaying
from mxq.tuning.scoring import FloatAgreement

NET = (
    conv("conv0", "data", bias=False),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    'pool0 = Pooling(relu0) pool_type="avg" kernel="(2, 2)" stride="(2, 2)"',
    conv("conv1", "pool0"),
    'relu1 = Activation(conv1) act_type="relu"',
    conv("conv2", "relu1"),
    'relu2 = Activation(conv2) act_type="relu"',
    'cat = Concat(relu1, relu2) num_args="2"',
    'pool = Pooling(cat) pool_type="avg" global_pool="True" kernel="(1, 1)"',
    fc("fc0", "pool"),
    "return fc0",
)
LAYERS = ("relu0", "relu1", "relu2", "fc0")
X = np.random.default_rng(0).standard_normal((24, 8, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Model:
    """Its layer "relu2" has outliers that take all levels."""
    model = build(*NET)
    weight = model.args["conv2_weight"].copy()
    weight[:, 0, 0, 0] *= 100
    return Model(model.graph, {**model.args, "conv2_weight": weight}, model.auxs)


def plan(model: Model, **options: Any) -> pipeline.Prepared:
    return pipeline.plan(model, QuantConfig(**options))


class TestLayers:
    def test_only_what_is_worth_int8_by_itself(self, net: Model) -> None:
        prepared = plan(net)
        assert tuple(layer.name for layer in layers(prepared)) == LAYERS
        assert {"pool0", "cat"} <= prepared.plan.quantized, "these follow from the layers"
        assert layers(prepared)[0].op == "Convolution+Activation"

    @pytest.mark.parametrize("mode", ["smart", "full"])
    def test_a_layer_alone(self, net: Model, mode: str) -> None:
        prepared = plan(net, quantize_mode=mode)
        for name in LAYERS:
            only = planned(prepared, with_only(prepared.config, LAYERS, name)).plan
            assert only.quantized == {name}, "nothing that carries is int8 by itself"

    def test_a_layer_left_in_float(self, net: Model) -> None:
        prepared = plan(net)
        for name in LAYERS:
            left = planned(prepared, with_floats(prepared.config, [name])).plan
            assert name not in left.quantized
            assert set(LAYERS) - {name} <= left.quantized

    def test_the_users_choices_do_not_get_in_the_way(self, net: Model) -> None:
        asked = {"relu1": LayerConfig(calib_mode="mse"), "op:Convolution": LayerConfig(True)}
        prepared = plan(net, exclude_layers="conv0", overrides=asked)
        assert tuple(layer.name for layer in layers(prepared)) == LAYERS
        left = with_floats(prepared.config, ["relu1"])
        assert left.overrides["relu1"] == LayerConfig(False, "mse")
        assert "relu1" not in planned(prepared, left).plan.quantized
        assert planned(prepared, with_only(prepared.config, LAYERS, "relu1")).plan.quantized == {"relu1"}

    def test_statistics_of_one_pass_serve_every_choice(self, net: Model) -> None:
        prepared = plan(net)
        more = observing_more(prepared)
        assert set(prepared.plan.observe) < set(more.plan.observe)
        found = pipeline.calibrate(more, X, MxnetRunner(), progress=False).statistics
        for name in LAYERS:
            for config in (with_floats(prepared.config, [name]), with_only(prepared.config, LAYERS, name)):
                alike = planned(prepared, config)
                assert set(pipeline.ranges(alike, found).thresholds) == set(map(str, alike.plan.observe))
        narrow = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False).statistics
        with pytest.raises(CalibrationError, match="statistics lack tensor 'pool0'"):
            pipeline.ranges(planned(prepared, with_floats(prepared.config, ["relu0"])), narrow)

    def test_a_second_network_says_nothing_of_the_first(self, net: Model) -> None:
        """What is planned once may be quantized any number of times."""
        prepared = plan(net)
        calibrated = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False)
        one, other = (pipeline.quantize(prepared, calibrated) for _ in range(2))
        assert one.trace == other.trace
        assert one.report.trace == other.report.trace
        assert len(one.trace.events) >= len(prepared.trace.events)


@dataclass
class Runs:
    """Counts what it runs."""

    runner: MxnetRunner = field(default_factory=MxnetRunner)
    count: int = 0

    def compile(self, model: Model, taps: Sequence[Any] = ()) -> Any:
        bound = self.runner.compile(model, taps)

        def run(feeds: Any) -> Any:
            self.count += 1
            return bound(feeds)

        return run

    def watch(self, model: Model, refs: Any) -> Any:
        raise NotImplementedError


class TestData:
    def test_batches_are_read_once_where_they_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Read(list[Any]):
            passes = 0

            def __iter__(self) -> Any:
                self.passes += 1
                return super().__iter__()

        source = Read([{"data": X[:10]}, {"data": X[10:]}])
        kept = Remembered(source)
        next(iter(kept))
        assert [len(b["data"]) for b in kept] == [len(b["data"]) for b in kept] == [10, 14]
        assert source.passes == 2, "the first pass was not finished"
        monkeypatch.setattr(kept_data, "MOST_BYTES", X[:10].nbytes)
        kept = Remembered(source)
        assert [len(b["data"]) for b in kept] == [len(b["data"]) for b in kept] == [10, 14]
        assert source.passes == 4

    def test_batches_with_labels(self) -> None:
        found = [*WithLabels(X, ("data",), np.arange(24), 10)]
        assert [b["label"].tolist() for b in found] == [[*range(10)], [*range(10, 20)], [*range(20, 24)]]
        assert next(iter(WithLabels([X], ("data",), None, 10))).keys() == {"data"}


class TestAgainst:
    def test_float_against_itself(self, net: Model) -> None:
        found = FloatAgreement(net, [{"data": X}], MxnetRunner()).measure(net)
        assert found == {"sqnr": math.inf, "kl": 0.0, "agreement": 1.0}

    def test_float_runs_once(self, net: Model) -> None:
        runs = Runs()
        judge = FloatAgreement(net, [{"data": X[:10]}, {"data": X[10:]}], runs, answers=True)
        other = Model(net.graph, dict(net.args), net.auxs)
        first = judge.measure(other)
        assert runs.count == 4
        assert judge.measure(other) == first
        assert runs.count == 6
        assert next(iter(first)) == "agreement"

    def test_what_does_not_fit_in_memory_runs_again(self, net: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        from mxq.tuning import replay

        monkeypatch.setattr(replay, "MOST_BYTES", 10 * 10 * 4)  # a batch of ten examples, ten classes
        runs = Runs()
        judge = FloatAgreement(net, [{"data": X[:10]}, {"data": X[10:]}], runs)
        other = Model(net.graph, dict(net.args), net.auxs)
        assert judge.measure(other) == judge.measure(other)
        assert runs.count == 4 + 3

    @pytest.mark.parametrize("softmax", [False, True])
    def test_divergence(self, softmax: bool) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((2, 5, 4))
        p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a, b))
        model = build(fc("fc0", "data"), "prob = softmax(fc0)", "return prob" if softmax else "return fc0")
        found = Divergence(model.graph)
        assert found.mean is None
        outputs = ([p], [q]) if softmax else ([a], [b])
        found.add([outputs[0][0][:3]], [outputs[1][0][:3]], 3)
        found.add([outputs[0][0][3:]], [outputs[1][0][3:]], 2)
        assert found.mean == pytest.approx(float((p * np.log(p / q)).sum() / 5))

    def test_outputs_of_other_kinds_have_no_divergence(self) -> None:
        model = build(conv("conv0", "data"), "return conv0")
        found = FloatAgreement(model, [{"data": X}], MxnetRunner()).measure(model)
        assert found == {"sqnr": math.inf}

    def test_recall(self) -> None:
        memory = Replaying(MxnetRunner(), build(conv("conv0", "data"), "return conv0"))
        memory.remember(1, (X,))
        assert memory.recall(1) is None, "in order, or not at all"


# ---------------------------------------------------------------------------------------------- measuring, made up


ALL = QuantConfig()
PLAIN = Model(build(conv("conv0", "data"), "return conv0").graph)


@dataclass
class Lab:
    """Three layers whose noise is known."""

    noises: dict[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 5.0, "c": 2.0})
    made: list[QuantConfig] = field(default_factory=list)
    ends: int | None = None

    def make(self, config: QuantConfig) -> Model:
        if len(self.made) == self.ends:
            raise KeyboardInterrupt
        self.made.append(config)
        return Model(PLAIN.graph, {}, {})

    def measure(self, model: Model) -> dict[str, float]:
        if model is PLAIN:
            return {"sqnr": math.inf, "agreement": 1.0}
        floats = {k for k, v in self.made[-1].overrides.items() if v.quantize is False}
        left = sum(n for name, n in self.noises.items() if name not in floats)
        return {"sqnr": -left, "agreement": 1 - left / 10}

    def subject(self) -> Subject:
        rows = tuple(Layer(name, "Convolution") for name in self.noises)
        return Subject(rows, {"a": 0.5, "b": 0.3, "c": 0.2}, ALL, self.make, self.measure, PLAIN, "a ruler")


def run(lab: Lab, journal: Journal | None = None, mode: str = BOTH) -> Any:
    return measured(lab.subject(), journal or Journal(), mode, progress=False)


class TestMeasured:
    def test_worst_first(self) -> None:
        found = run(Lab())
        assert [row.layer for row in found.layers] == ["b", "c", "a"]
        assert found.layers[0].only_int8 == {"sqnr": -5.0, "agreement": 0.5}
        assert found.layers[0].only_float == {"sqnr": -3.0, "agreement": 0.7}
        assert (found.layers[0].share, found.measure, found.by, found.complete) == (0.3, "sqnr", "a ruler", True)
        assert found.float["sqnr"] == math.inf
        assert found.int8 == {"sqnr": -8.0, "agreement": pytest.approx(0.2)}

    @pytest.mark.parametrize(("mode", "made"), [(ONE_INT8, 4), (ONE_FLOAT, 4), (BOTH, 7)])
    def test_modes(self, mode: str, made: int) -> None:
        lab = Lab()
        found = run(lab, mode=mode)
        assert len(lab.made) == made
        assert [row.layer for row in found.layers] == ["b", "c", "a"]
        assert [row.only_float is None for row in found.layers] == [mode == ONE_INT8] * 3
        assert [row.only_int8 is None for row in found.layers] == [mode == ONE_FLOAT] * 3

    def test_an_unknown_mode(self) -> None:
        with pytest.raises(ConfigError, match="mode is 'none'; allowed: 'both', 'one-int8', 'one-float'"):
            run(Lab(), mode="none")

    @pytest.mark.parametrize("at", range(7))
    def test_interrupted_at_any_network_it_goes_on(self, at: int, tmp_path: Path) -> None:
        path = tmp_path / "s.jsonl"
        first = Lab(ends=at)
        stopped = run(first, Journal.open(path, {}))
        assert not stopped.complete
        assert len(stopped.layers) == min(max(at - 1, 0), 3)
        again = Lab()
        assert run(again, Journal.open(path, {})) == run(Lab())
        assert len(first.made) + len(again.made) == 7
        third = Lab()
        assert run(third, Journal.open(path, {})).complete
        assert not third.made

    def test_a_layer_that_cannot_be_measured(self, tmp_path: Path) -> None:
        class Odd(Lab):
            def make(self, config: QuantConfig) -> Model:
                if config.overrides.get("b", LayerConfig()).quantize:
                    raise CalibrationError("b has\nno range")
                return super().make(config)

        found = run(Odd(), Journal.open(tmp_path / "s.jsonl", {}))
        assert [row.layer for row in found.layers] == ["c", "a", "b"], "last: nothing is known of it"
        assert found.layers[-1].problem == "b has no range"
        assert found.layers[-1].only_float is not None
        again = run(Lab(), Journal.open(tmp_path / "s.jsonl", {}))
        assert again == found, "not tried again"

    @pytest.mark.parametrize("at", [0, 1, 5])
    def test_a_full_disk_ends_it_and_is_not_what_a_layer_is_like(self, at: int, tmp_path: Path) -> None:
        class Full(Lab):
            def make(self, config: QuantConfig) -> Model:
                if len(self.made) == at:
                    raise StorageError("s.npz cannot be written: No space left on device")
                return super().make(config)

        path, first, again = tmp_path / "s.jsonl", Full(), Lab()
        with pytest.raises(StorageError, match="No space left on device"):
            run(first, Journal.open(path, {}))
        assert run(again, Journal.open(path, {})) == run(Lab())
        assert len(first.made) + len(again.made) == 7

    @pytest.mark.parametrize("again", [True, None], ids=["for want of memory", "before journals said"])
    def test_failures_that_may_pass_are_measured_again(self, again: bool | None, tmp_path: Path) -> None:
        path = tmp_path / "s.jsonl"
        entry = {"label": "", "mode": ONE_INT8, "layer": "a", "seconds": 1.0, "numbers": None, "problem": "No space"}
        Journal.open(path, {}).append(entry if again is None else {**entry, "again": again})
        assert run(Lab(), Journal.open(path, {})) == run(Lab())

    def test_want_of_memory_is_a_layers_problem_for_now(self, tmp_path: Path) -> None:
        class Short(Lab):
            def make(self, config: QuantConfig) -> Model:
                if len(self.made) == 3:
                    self.made.append(config)
                    raise MemoryError("84 GB")
                return super().make(config)

        path = tmp_path / "s.jsonl"
        found = run(Short(), Journal.open(path, {}))
        assert [row.problem for row in found.layers if row.problem] == ["MemoryError: 84 GB"]
        assert run(Lab(), Journal.open(path, {})) == run(Lab())

    def test_json(self) -> None:
        found = json.loads(json.dumps(run(Lab()).to_json(), allow_nan=False))
        assert found["float"] == {"sqnr": "inf", "agreement": 1.0}
        assert found["layers"][0] == {
            "layer": "b",
            "op": "Convolution",
            "multiply_adds_share": 0.3,
            "only_int8": {"sqnr": -5.0, "agreement": 0.5},
            "only_float": {"sqnr": -3.0, "agreement": 0.7},
            "problem": None,
        }


class TestOrder:
    def test_noise_for_each_unit_of_time(self) -> None:
        noises = {"a": 1.0, "b": 6.0, "c": 1.0, "d": 2.0}
        costs = {"a": 1.0, "b": 3.0, "c": 4.0, "d": 0.0}
        assert ordered(costs, noises) == ["d", "b", "a", "c"]

    def test_what_cannot_be_measured_goes_first(self) -> None:
        assert ordered({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": math.inf}) == ["b", "a"]

    @pytest.mark.parametrize(
        ("numbers", "value"),
        [
            ({"sqnr": 20.0}, 0.01),
            ({"sqnr": math.inf}, 0.0),
            ({"sqnr": -math.inf}, math.inf),
            ({"agreement": 0.75}, 0.25),
        ],
    )
    def test_noise(self, numbers: dict[str, float], value: float) -> None:
        assert noise(numbers) == pytest.approx(value)


# ------------------------------------------------------------------------------------------------ on a real network


class TestSensitivity:
    def test_finds_the_layer_with_outliers(self, net: Model, tmp_path: Path) -> None:
        found = mxq.sensitivity(net, X, workdir=tmp_path)
        assert {row.layer for row in found.layers} == set(LAYERS)
        assert found.layers[0].layer == "relu2"
        assert [*found.float] == ["sqnr", "kl", "agreement"]
        assert found.layers[0].only_float["sqnr"] > found.int8["sqnr"]
        assert sum(row.share for row in found.layers) == pytest.approx(1)
        before = (tmp_path / "sensitivity.jsonl").read_bytes()
        assert mxq.sensitivity(net, X, workdir=tmp_path) == found
        assert (tmp_path / "sensitivity.jsonl").read_bytes() == before

    def test_alone_in_float_is_as_excluded_by_hand(self, net: Model) -> None:
        found = mxq.sensitivity(net, X, mode="one-float", num_calib_examples="100%")
        by_hand = mxq.quantize_net(net, X, exclude_layers="conv2", effort="fast", num_calib_examples="100%")
        numbers = FloatAgreement(net, [{"data": X}], MxnetRunner()).measure(mxq_model(by_hand))
        (row,) = (row for row in found.layers if row.layer == "relu2")
        assert row.only_float == pytest.approx(numbers, rel=1e-6)

    @pytest.mark.parametrize("options", [{}, {"stem": "float"}], ids=str)
    def test_stems_are_measured_as_all_layers(self, options: dict[str, str]) -> None:
        depthwise = conv("d", "c", 'kernel="(3, 3)" pad="(1, 1)" num_filter="8" num_group="8"')
        begins = build(conv("c", "data"), depthwise, conv("e", "d"), fc("f", "e"), "return f")
        found = mxq.sensitivity(begins, X, mode="one-int8", effort="default", **options)
        assert {row.layer for row in found.layers} == {"c", "d", "e", "f"}

    def test_accuracy_counts_where_there_are_labels(self, net: Model) -> None:
        answers = np.asarray(MxnetRunner().compile(net)({"data": X})[0]).argmax(axis=1)
        found = mxq.sensitivity(net, X, data=(X, answers), mode="one-int8")
        assert (found.measure, found.float["top1"], found.by) == ("top1", 1.0, "accuracy on labelled data")
        by_metric = mxq.sensitivity(net, X, data=X, labels=answers, metric=score, mode="one-int8")
        assert by_metric.measure == "score"

    def test_a_journal_of_another_network(self, net: Model, tmp_path: Path) -> None:
        mxq.sensitivity(net, X, workdir=tmp_path, mode="one-int8")
        with pytest.raises(ConfigError, match="about something else: its network params_sha256 is"):
            mxq.sensitivity(build(*NET, seed=1), X, workdir=tmp_path)
        with pytest.raises(ConfigError, match="its settings calib_mode is naive, now entropy"):
            mxq.sensitivity(net, X, workdir=tmp_path, calib_mode="entropy")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"mode": "all"}, "mode is 'all'; allowed: 'both'"),
            ({"calib_data": [X], "metric": len}, "metric is given without the data"),
            ({"input_dtype": "uint8", "preprocess": {"mean": 0}}, "allowed: 'float32'"),
        ],
    )
    def test_refuses(self, options: dict[str, Any], says: str, net: Model) -> None:
        with pytest.raises(MxqError, match=says):
            mxq.sensitivity(net, **{"calib_data": X, **options})


def score(outputs: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    return {"score": float((outputs[0].argmax(axis=1) == labels).mean())}


def mxq_model(block: Any) -> Model:
    from mxq.runtime import load_model

    return load_model(block)


class TestShown:
    def test_table(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        from mxq.cli.console import show

        monkeypatch.setenv("COLUMNS", "100")
        show(rendering.sensitivity(run(Lab())))
        text = capsys.readouterr().out
        assert "alone" in text
        assert "sqnr exact, agreement 100.00 %" in text
        assert text.index("\nb ") < text.index("\nc ") < text.index("\na ")
        assert "problem" not in text

    def test_picture(self, tmp_path: Path) -> None:
        drawn = picture.figure(run(Lab()))
        assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == ["b", "c", "a"]
        assert picture.write(run(Lab()), tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")

    def test_picture_of_nothing(self, tmp_path: Path) -> None:
        assert picture.write(run(Lab(ends=0)), tmp_path / "s.svg").is_file()

    def test_missing_matplotlib_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ConfigError, match="plots need matplotlib"):
            picture.figure(run(Lab()))


class TestCommand:
    @pytest.fixture
    def args(self, net: Model, tmp_path: Path) -> list[str]:
        write_pair(net, tmp_path / "net")
        np.savez(tmp_path / "data.npz", data=X, label=np.arange(24) % 10)
        return ["sensitivity", str(tmp_path / "net"), "--data", str(tmp_path / "data.npz")]

    def test_table_and_picture(self, args: list[str], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [*args, "--noise", "--plot", str(tmp_path / "s.png")])
        assert result.exit_code == 0, result.output
        assert "noise against the float network" in result.stdout
        assert (tmp_path / "s.png").is_file()

    def test_json(self, args: list[str], tmp_path: Path) -> None:
        more = ["--mode", "one-int8", "--num-examples", "12", "--workdir", str(tmp_path / "w"), "--json"]
        result = CliRunner().invoke(app, [*args, *more])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["measure"] == "top1"
        assert len(found["layers"]) == len(LAYERS)

    def test_interrupted(self, args: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from mxq import tuning

        real, count = tuning.running.make, iter(range(100))

        def stop(*given: Any) -> Any:
            if next(count) == 2:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(tuning.running, "make", stop)
        more = ["--noise", "--workdir", str(tmp_path / "w"), "--json"]
        result = CliRunner().invoke(app, [*args, *more])
        assert result.exit_code == 130, result.output
        assert "the same command goes on from there" in result.stderr
        assert len(json.loads(result.stdout)["layers"]) == 1
        result = CliRunner().invoke(app, [*args, *more])
        assert result.exit_code == 0
        assert json.loads(result.stdout)["complete"]
