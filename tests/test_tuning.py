"""The tuner: its search without networks, its journal, then the whole of it on small networks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import bn, build, conv, fc
from typer.testing import CliRunner

from mxq.artifacts import record
from mxq.cli import app
from mxq.cli.tune import seconds_of
from mxq.config import LayerConfig, QuantConfig
from mxq.distributed import Partitions
from mxq.errors import (
    ConfigError,
    DataError,
    FormatError,
    MxqError,
    QuantizeError,
    ReadError,
    StorageError,
    WorkerError,
)
from mxq.graph.ir import Model, Ref
from mxq.qat import TrainConfig
from mxq.runtime import MxnetRunner
from mxq.tuning.budget import Budget, OutOfTime
from mxq.tuning.cost import BYTE, CostModel, cost_model
from mxq.tuning.driver import Driver, Found, Made, trials_in
from mxq.tuning.journal import Journal
from mxq.tuning.search import (
    CALIBRATORS,
    DONE,
    FAILED,
    INTERRUPTED,
    LAYERS,
    METHODS,
    SKIPPED,
    TRAINING,
    Bar,
    Method,
    Settings,
    Space,
    Trial,
    strategy,
)

ORDER = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 1.0, "e": 1.0, "f": 1.0}
"""Layers in the order of the search -> what each costs in float."""

Score = Callable[[Settings], float]


class Clock:
    """Tells the time that it was set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A search over made-up networks; each takes ``seconds`` on a clock of its own."""

    score: Score
    max_drop: float = 0.01
    time_budget: float | None = None
    seconds: Callable[[Settings], float] = lambda _: 1.0
    path: Path | None = None
    training: TrainConfig | None = None
    guess: Callable[[Settings], float | None] = lambda _: None
    ends: Callable[[int], None] = lambda _: None
    clock: Clock = field(default_factory=Clock)
    asked: list[Settings] = field(default_factory=list)
    kept: list[Settings] = field(default_factory=list)

    def attempt(self, settings: Settings) -> Made[Settings]:
        self.ends(len(self.asked))
        self.asked.append(settings)
        self.clock.now += self.seconds(settings)
        return Made(self.score(settings), 10.0 + sum(ORDER[name] for name in settings.floats), settings)

    def run(self) -> Found[Settings]:
        calibrators, methods = (
            [Settings("naive"), Settings("entropy"), Settings("mse")],
            [Method("default"), Method("best")],
        )
        space = Space(calibrators, methods, rank, self.training)
        journal = Journal.open(self.path, {"network": 1})
        budget = Budget(self.time_budget, self.clock, sum(e["seconds"] for e in journal.entries))
        bar = Bar(0.9, self.max_drop)
        driver = Driver(bar, self.attempt, journal, budget, lambda trial, made: self.kept.append(made), 1.0)
        driver.guess = self.guess
        return driver.run(strategy(space, bar))


def rank(base: Settings) -> Mapping[str, float]:
    return ORDER


def needing(*floats: str) -> Score:
    """The bar is met where all of these are in float; each of them gives a point."""
    return lambda s: 0.9 - 0.1 * sum(name not in s.floats for name in floats)


def kinds(found: Found[Any]) -> list[tuple[str, str, str, str]]:
    return [
        (t.stage, t.settings.calib_mode, t.settings.method.effort, "".join(t.settings.floats)) for t in found.trials
    ]


class TestStrategy:
    def test_the_first_network_that_meets_the_bar_wholly_in_int8_ends_it(self) -> None:
        found = World(lambda s: {"naive": 0.5, "entropy": 0.895, "mse": 0.9}[s.calib_mode]).run()
        assert kinds(found) == [(CALIBRATORS, "naive", "fast", ""), (CALIBRATORS, "entropy", "fast", "")]
        assert found.best is found.trials[1]
        assert found.stopped == "a network wholly in int8 meets the bar, and none is faster"

    def test_training_comes_last_and_only_where_nothing_else_meets_the_bar(self) -> None:
        training = TrainConfig(epochs=3)
        found = World(lambda s: 0.95 if s.training else 0.5, training=training).run()
        assert [t.stage for t in found.trials].index(TRAINING) == len(found.trials) - 1
        assert found.best is found.trials[-1]
        assert found.best.settings == Settings("naive", training=training)
        assert found.stopped.endswith("; trained with quantization the network meets it")
        met = World(needing("a"), training=training).run()
        assert all(t.settings.training is None for t in met.trials)
        missed = World(lambda _: 0.5, training=training).run()
        assert missed.stopped.endswith("; trained with quantization the network misses it")

    def test_training_that_takes_longer_than_there_is_time_is_not_begun(self) -> None:
        def guess(s: Settings) -> float | None:
            return 1000.0 if s.training else None

        found = World(lambda _: 0.5, training=TrainConfig(), guess=guess, time_budget=500.0).run()
        assert all(t.settings.training is None for t in found.trials)
        assert "1000" in found.stopped

    def test_a_journal_goes_on_with_training(self, tmp_path: Path) -> None:
        """Data for it may come later; what was tried before is not tried again."""
        path = tmp_path / "trials"
        before = World(lambda _: 0.5, path=path).run()
        later = World(lambda s: 0.9 if s.training else 0.5, path=path, training=TrainConfig())
        assert len(later.run().trials) == len(before.trials) + 1
        assert [s.training for s in later.asked] == [TrainConfig()]

    def test_methods_are_tried_with_the_best_calibrator(self) -> None:
        scores = {"naive": 0.5, "entropy": 0.8, "mse": 0.7}
        found = World(lambda s: 0.9 if s.method.effort == "best" else scores[s.calib_mode]).run()
        assert kinds(found)[3:] == [
            (METHODS, "entropy", "default", ""), (METHODS, "naive", "default", ""), (METHODS, "entropy", "best", ""),
        ]  # fmt: skip
        assert found.best is found.trials[-1]

    def test_or_with_the_users_where_that_serves_the_first_method_better(self) -> None:
        def score(s: Settings) -> float:
            return {("entropy", "fast"): 0.8, ("naive", "default"): 0.85}.get((s.calib_mode, s.method.effort), 0.5)

        found = World(score).run()
        assert {mode for stage, mode, _, _ in kinds(found)[5:] if stage == METHODS} == {"naive"}
        assert found.best is not None
        assert (found.best.settings.calib_mode, found.best.settings.method.effort) == ("naive", "default")

    def test_layers_go_back_to_float_until_the_bar_is_met_and_no_more_than_needed(self) -> None:
        found = World(needing("a", "c", "e")).run()
        assert [floats for stage, _, _, floats in kinds(found) if stage == LAYERS] == [
            "a", "ab", "abcd", "abcde",  # doubling, up to all but one
            "acde",  # b, the dearest, is not needed
            "ade",  # c is
            "cde", "ace",  # so is a, d is not
        ]  # fmt: skip
        assert found.best is not None
        assert found.best.settings.floats == ("a", "c", "e")
        assert found.stopped == "3 of 6 layers in float meet the bar, with fewer of these it is missed"

    def test_bisection_between_the_last_doublings(self) -> None:
        found = World(needing("a", "b", "c")).run()
        assert [floats for stage, _, _, floats in kinds(found) if stage == LAYERS] == [
            "a", "ab", "abcd", "abc", "ac", "bc",
        ]  # fmt: skip

    def test_nothing_meets_the_bar(self) -> None:
        found = World(lambda s: 0.5 + 0.01 * len(s.floats)).run()
        assert found.stopped == "with 5 of 6 layers in float the bar is still missed"
        assert found.best is not None
        assert found.best.settings.floats == tuple("abcde"), "the most accurate"

    def test_one_layer_leaves_no_choice(self) -> None:
        bar = Bar(0.9, 0.0)
        asking = strategy(Space([Settings("naive")], [], lambda _: {"a": 1.0}), bar)
        next(asking)
        with pytest.raises(StopIteration, match="with 0 of 1 layers in float the bar is still missed"):
            asking.send(Trial(CALIBRATORS, Settings("naive"), score=0.1, cost=1.0))

    def test_a_failed_trial_is_noted_and_the_search_goes_on(self) -> None:
        def score(s: Settings) -> float:
            if s.calib_mode == "naive":
                raise ValueError("no\nluck")
            return 0.9

        found = World(score).run()
        assert [(t.state, t.reason) for t in found.trials] == [(FAILED, "ValueError: no luck"), (DONE, "")]
        assert found.best is found.trials[1]

    def test_all_fail(self) -> None:
        found = World(lambda _: 1 / 0).run()
        assert (found.best, found.stopped, len(found.trials)) == (None, "every calibrator failed", 3)


class TestBar:
    def test_half_a_point_is_half_a_point(self) -> None:
        assert 0.844 - 0.839 > 0.005
        assert Bar(0.844, 0.005).met(Trial(CALIBRATORS, Settings("naive"), score=0.839))
        assert not Bar(0.844, 0.005).met(Trial(CALIBRATORS, Settings("naive"), score=0.838))

    @pytest.mark.parametrize(
        ("trials", "best"),
        [
            ([(0.90, 5.0), (0.895, 4.0), (0.5, 1.0)], 1),  # the fastest that meets it
            ([(0.895, 4.0), (0.90, 4.0)], 1),  # of equally fast ones the more accurate
            ([(0.90, 4.0), (0.90, 4.0)], 0),  # of equals the first
            ([(0.7, 9.0), (0.8, 10.0), (0.8, 9.0)], 2),  # none meets it: the most accurate
        ],
    )
    def test_which_is_best(self, trials: list[tuple[float, float]], best: int) -> None:
        made = [Trial(LAYERS, Settings("naive"), score=score, cost=cost) for score, cost in trials]
        assert Bar(0.9, 0.005).best(made) is made[best]

    def test_settings_survive_json(self) -> None:
        settings = Settings("mse", Method("default", equalize=False), ("a", "b"))
        trial = Trial(LAYERS, settings, FAILED, None, None, 2.0, "why")
        assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
        assert str(settings.method) == "default, equalize=False"

    def test_settings_change_only_what_they_say(self) -> None:
        base = QuantConfig(rounding="nearest", overrides={"b": LayerConfig(calib_mode="mse"), "x": LayerConfig(True)})
        made = Settings("mse", Method("best"), ("b",)).config(base)
        assert (made.calib_mode, made.effort, made.rounding) == ("mse", "best", "nearest")
        assert made.overrides == {"x": LayerConfig(True), "b": LayerConfig(False, "mse")}
        assert [*made.overrides] == ["x", "b"], "the last one wins"


class TestBudget:
    def test_a_trial_that_would_end_too_late_is_not_begun(self) -> None:
        world = World(needing("a", "b", "c"), time_budget=6.5)
        found = world.run()
        assert len(found.trials) == 6
        assert world.clock.now == 6
        assert found.stopped == "the time budget of 6.5 s: 6 s are used, and the next trial takes about 1 s"

    def test_trials_of_a_method_are_expected_to_take_what_those_before_took(self) -> None:
        seconds = {"fast": 1.0, "default": 10.0, "best": 10.0}
        world = World(needing("a"), time_budget=22.5, seconds=lambda s: seconds[s.method.effort])
        found = world.run()
        efforts = [(t.settings.method.effort, t.state) for t in found.trials]
        assert efforts == [("fast", DONE)] * 3 + [("default", DONE), ("best", SKIPPED), ("fast", DONE)]
        assert found.trials[4].reason == (
            "the time budget of 22.5 s: 13 s are used, and the next trial takes about 10 s"
        )
        assert found.best is found.trials[-1], "leaving a layer in float was in time"
        assert world.clock.now == 14

    def test_one_is_tried_in_any_case(self) -> None:
        found = World(needing("a"), time_budget=0.1).run()
        assert len(found.trials) == 1
        assert found.best is found.trials[0]

    def test_earlier_runs_count(self, tmp_path: Path) -> None:
        path = tmp_path / "trials.jsonl"
        first = World(needing("a", "b", "c"), time_budget=4.5, path=path).run()
        assert [t.state for t in first.trials] == [DONE] * 4 + [SKIPPED]
        again = World(needing("a", "b", "c"), time_budget=4.5, path=path)
        assert again.run().trials == first.trials
        assert again.asked == []
        more = World(needing("a", "b", "c"), time_budget=6.5, path=path)
        assert len(more.run().trials) == 6
        assert len(more.asked) == 2

    def test_ranking_may_run_out_of_time(self) -> None:
        def late(_: Settings) -> Mapping[str, float]:
            raise OutOfTime("no time left")

        bar = Bar(0.9, 0.0)
        world = World(needing("a"))
        driver = Driver(bar, world.attempt, Journal(), Budget(), lambda *_: None)
        found = driver.run(strategy(Space([Settings("naive")], [], late), bar))
        assert (found.stopped, len(found.trials)) == ("no time left", 1)

    @pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
    def test_a_budget_is_positive(self, seconds: float) -> None:
        with pytest.raises(ConfigError, match=r"time_budget is .*; allowed: a positive number of seconds, or None"):
            Budget(seconds)

    @pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("30 s", 30)])
    def test_its_text(self, text: str, seconds: float) -> None:
        assert seconds_of(text) == seconds

    def test_text_that_is_none(self) -> None:
        with pytest.raises(ConfigError, match="--time-budget is 'soon'; allowed: seconds, or minutes and hours"):
            seconds_of("soon")


class Killed(BaseException):
    """As SIGKILL: nothing of the program sees it."""


class TestResume:
    WANTED = ("a", "c", "e")

    @pytest.mark.parametrize("at", range(13))
    @pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
    def test_ended_at_any_trial_the_result_is_that_of_a_run_without_an_end(
        self, at: int, error: type[BaseException], tmp_path: Path
    ) -> None:
        def end(count: int) -> None:
            if count == at:
                raise error

        whole = World(needing(*self.WANTED)).run()
        assert len(whole.trials) == 13
        path = tmp_path / "trials.jsonl"
        broken = World(needing(*self.WANTED), path=path, ends=end)
        if error is Killed or at == 0:
            with pytest.raises(error):
                broken.run()
        else:
            found = broken.run()
            assert found.stopped == INTERRUPTED
            assert found.trials == whole.trials[:at]
            assert found.best is not None
        again = World(needing(*self.WANTED), path=path)
        found = again.run()
        assert (found.trials, found.stopped) == (whole.trials, whole.stopped)
        assert found.best == whole.best
        assert len(broken.asked) + len(again.asked) == 13, "no trial is repeated"
        assert again.run().network is None, "nothing was made"

    def test_the_best_is_kept_whenever_it_changes(self) -> None:
        world = World(needing(*self.WANTED))
        world.run()
        assert ["".join(s.floats) for s in world.kept] == ["", "a", "abcd", "abcde", "acde", "ace"]

    def test_failed_trials_are_not_repeated(self, tmp_path: Path) -> None:
        path = tmp_path / "trials.jsonl"
        first = World(lambda _: 1 / 0, path=path).run()
        again = World(lambda _: 0.9, path=path)
        assert again.run().trials == first.trials
        assert not again.asked

    @pytest.mark.parametrize("at", [0, 1, 4, 12])
    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left on device"),
            StorageError("s.npz cannot be written: no space"),
            WorkerError("the scheduler was lost"),
            ReadError("partition '2' cannot be read"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_full_disk_ends_it_and_is_no_trial(self, at: int, error: Exception, tmp_path: Path) -> None:
        def end(count: int) -> None:
            if count == at:
                raise error

        whole, path = World(needing(*self.WANTED)).run(), tmp_path / "trials.jsonl"
        broken = World(needing(*self.WANTED), path=path, ends=end)
        with pytest.raises(MxqError, match=re.escape(str(error))):
            broken.run()
        assert len(Journal.open(path, {"network": 1}).entries) == at
        again = World(needing(*self.WANTED), path=path)
        assert again.run().trials == whole.trials
        assert len(broken.asked) + len(again.asked) == 13, "no trial is repeated"

    def test_what_caused_an_error_counts(self, tmp_path: Path) -> None:
        def end(count: int) -> None:
            try:
                raise OSError(5, "Input/output error")
            except OSError as error:
                raise ValueError("odd") from error

        path = tmp_path / "trials.jsonl"
        with pytest.raises(StorageError, match=r"^ValueError: odd$"):
            World(needing(), path=path, ends=end).run()
        assert not Journal.open(path, {"network": 1}).entries

    def test_want_of_memory_fails_a_trial_until_the_next_run(self, tmp_path: Path) -> None:
        short = [MemoryError("84 GB")]

        def end(count: int) -> None:
            if count == 2 and short:
                raise short.pop()

        whole, path = World(needing(*self.WANTED)).run(), tmp_path / "trials.jsonl"
        first = World(needing(*self.WANTED), path=path, ends=end).run()
        assert [(t.state, t.reason) for t in first.trials if t.score is None] == [(FAILED, "MemoryError: 84 GB")]
        assert World(needing(*self.WANTED), path=path).run().trials == whole.trials

    def test_failures_in_journals_that_do_not_say_whose_they_were_are_tried_again(self, tmp_path: Path) -> None:
        """Older ones took a full disk for the network's failure."""
        whole, path = World(needing(*self.WANTED)).run(), tmp_path / "trials.jsonl"
        journal, settings = Journal.open(path, {"network": 1}), [t.settings for t in whole.trials[:3]]
        for tried in settings:
            row = Trial("calibrators", tried, FAILED, seconds=1.0, reason="FormatError: No space left").to_json()
            del row["again"]
            journal.append({"kind": "trial", **row})
        assert World(needing(*self.WANTED), path=path).run().trials == whole.trials


class TestJournal:
    ABOUT: ClassVar = {"network": {"graph": "1" * 64, "inputs": ["data"]}, "settings": {"calib_mode": "naive"}}

    def test_reads_what_it_wrote(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "j.jsonl"
        journal = Journal.open(path, self.ABOUT)
        journal.append({"x": 0.1, "y": (1, 2)})
        assert journal.entries == [{"x": 0.1, "y": [1, 2]}]
        assert Journal.open(path, self.ABOUT).entries == journal.entries

    @pytest.mark.parametrize("cut", range(1, 10))
    def test_a_line_that_was_cut_short_is_dropped(self, cut: int, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        journal = Journal.open(path, self.ABOUT)
        journal.append({"x": 1})
        journal.append({"x": 22})
        path.write_bytes(path.read_bytes()[:-cut])
        again = Journal.open(path, self.ABOUT)
        assert again.entries == [{"x": 1}]
        again.append({"x": 3})
        assert Journal.open(path, self.ABOUT).entries == [{"x": 1}, {"x": 3}]

    @pytest.mark.parametrize(
        ("about", "says"),
        [
            (
                {**ABOUT, "network": {"graph": "2" * 64, "inputs": ["data"]}},
                r"its network graph is 1+\.\.\., now 2+\.\.\.",
            ),
            ({**ABOUT, "settings": {"calib_mode": "mse"}}, "its settings calib_mode is naive, now mse"),
            ({**ABOUT, "data": "x"}, "its data is null, now x"),
        ],
    )
    def test_one_about_something_else_is_refused(self, about: Any, says: str, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        Journal.open(path, self.ABOUT)
        before = path.read_bytes()
        with pytest.raises(ConfigError, match=f"about something else: {says}; allowed: the same network, data"):
            Journal.open(path, about)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{}\n", "no journal of mxq"),
            ("[1]\n", "no journal of mxq"),
            ("PK\n", "line 1 is not JSON"),
            ('{"format": "mxq-journal/1"}\n{"x": \n{"x": 1}\n', "line 2 is not JSON"),
        ],
    )
    def test_other_files_are_refused(self, text: str, says: str, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        path.write_text(text)
        with pytest.raises(FormatError, match=says):
            Journal.open(path, self.ABOUT)

    @pytest.mark.parametrize("entry", ['{"kind": "trial"}', "3", "null", '{"kind": "trial", "settings": {}}'])
    def test_damaged_entries(self, entry: str, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        World(needing(), path=path).run()
        with path.open("a") as stream:
            stream.write(f"{entry}\n")
        journal = Journal.open(path, {"network": 1})
        with pytest.raises(
            FormatError, match=rf"j.jsonl, line {len(journal.entries) + 1} is damaged \(.*delete the file"
        ):
            trials_in(journal)

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
    def test_a_line_that_could_not_be_written_whole_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        journal = Journal.open(tmp_path / "j.jsonl", self.ABOUT)
        journal.append({"x": 1})
        before = (tmp_path / "j.jsonl").read_bytes()

        def full(_: int) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises((StorageError, KeyboardInterrupt), match=r"j.jsonl cannot be written: No space left|^$"):
                journal.append({"x": 2})
        assert (tmp_path / "j.jsonl").read_bytes() == before
        assert len(journal.entries) == 1

    def test_a_pipe_is_no_journal(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "j.jsonl")
        with pytest.raises(StorageError, match="it is a pipe or a device"):
            Journal.open(tmp_path / "j.jsonl", self.ABOUT)

    def test_a_file_in_the_folders_place(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("")
        with pytest.raises(FormatError, match="cannot be used as a journal"):
            Journal.open(tmp_path / "f" / "j.jsonl", self.ABOUT)


NET = (
    conv("conv0", "data", bias=False),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    conv("conv1", "relu0"),
    "sum = elemwise_add(conv1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    conv("conv2", "relu1"),
    'relu2 = Activation(conv2) act_type="relu"',
    'pool = Pooling(relu2) pool_type="avg" global_pool="True" kernel="(1, 1)"',
    fc("fc0", "pool"),
    "return fc0",
)
X = np.random.default_rng(0).standard_normal((40, 8, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def net() -> Model:
    return build(*NET)


@pytest.fixture(scope="module")
def hard(net: Model) -> Model:
    """One layer has an outlier that takes all its levels."""
    weight = net.args["conv2_weight"].copy()
    weight[:, 0] *= 300
    return replace(net, args={**net.args, "conv2_weight": weight})


class TestCost:
    def test_counts_what_there_is_to_do(self, net: Model) -> None:
        prepared = mxq_plan(net)
        model = cost_model(MxnetRunner(), prepared.fused, {"data": X[:4]}, "avx512_vnni")
        assert model.work["relu0"].multiply_adds == 8 * 36 * 8 * 9
        assert model.work["relu0"].written == model.work["relu0"].read == 8 * 36
        assert model.work["fc0"].multiply_adds == 80
        assert sum(map(model.share, model.work)) == pytest.approx(1)

    def test_conversions_cost(self) -> None:
        model = build(conv("a", "data"), conv("b", "a"), conv("c", "b"), "return c")
        elements = {Ref(name): 10 for name in ("data", "a", "b", "c")}
        costs = CostModel(model, elements, "unsupported")  # no gain in multiply-adds
        bytes_of = BYTE * (20 + model.args["a_weight"].size + 8)
        each = costs.cost({"a", "b", "c"}) - costs.cost(())
        assert each == pytest.approx(3 * bytes_of * (1 - 4) + 2 * BYTE * 50)  # in and out
        middle = costs.cost({"a", "c"}) - costs.cost({"a", "b", "c"})
        assert middle == pytest.approx(bytes_of * 3 + 2 * BYTE * 50)

    def test_int8_is_faster_where_it_is(self, net: Model) -> None:
        prepared = mxq_plan(net)
        for target in ("avx2", "avx512", "avx512_vnni"):
            model = cost_model(MxnetRunner(), prepared.fused, {"data": X[:4]}, target)
            assert model.cost(prepared.plan.quantized) < model.cost(()) / 1.4


def mxq_plan(net: Model) -> Any:
    from mxq import pipeline

    return pipeline.plan(net, QuantConfig())


def tune(net: Any, data: Any = X, **options: Any) -> Any:
    return mxq.tune(net, data, **options)


class TestTune:
    def test_an_easy_network_is_done_at_once(self, net: Model, tmp_path: Path) -> None:
        found = tune(net, workdir=tmp_path, max_drop=0.05)
        assert found.met
        assert len(found.trials) == 1
        assert "wholly in int8 meets the bar" in found.stopped
        assert found.by == "agreement with the float network"
        assert record.check(tmp_path / "best") == ()
        assert mxq.load(tmp_path / "best").mxq_report.config["calib_mode"] == "naive"
        assert found.speedup(found.best) > 1
        assert "result: the bar is met" in found.report
        json.dumps(found.to_json(), allow_nan=False)

    def test_without_a_folder(self, net: Model) -> None:
        found = tune(net, (x for x in [X[:20], X[20:]]), max_drop=0.05)
        assert found.met
        assert found.prefix is None
        written = found.block(mxq_array(X)).asnumpy()
        assert written.shape == (40, 10)
        assert found.block.mxq_report is found.record

    def test_a_hard_one_leaves_layers_in_float_and_resumes(self, hard: Model, tmp_path: Path) -> None:
        calls = []

        def score(block: Any) -> float:
            calls.append(1)
            out = block(mxq_array(X)).asnumpy()
            return -float(np.abs(out - wanted).mean() / np.abs(wanted).mean())

        wanted = reference(hard)
        options: dict[str, Any] = {"eval_fn": score, "max_drop": 0.004, "workdir": tmp_path}
        found = tune(hard, **options)
        asked = len(calls)
        assert found.best.settings.floats
        assert asked == len(found.trials) + 1, "float is scored once"
        made = record.read(tmp_path / "best")
        assert all(not made.plan[name].int8 for name in found.best.settings.floats)
        again = tune(hard, **options)
        assert len(calls) == asked
        assert (again.trials, again.best, again.stopped) == (found.trials, found.best, found.stopped)
        for file in tmp_path.glob("best*"):
            file.unlink()
        anew = tune(hard, **options)
        assert record.check(tmp_path / "best") == ()
        np.testing.assert_array_equal(
            anew.block(mxq_array(X)).asnumpy(), found.block(mxq_array(X)).asnumpy(), "made again, the same"
        )
        assert len(calls) == asked

    def test_interrupted_and_killed_it_goes_on(self, hard: Model, tmp_path: Path) -> None:
        wanted = reference(hard)

        def scorer(ends: Mapping[int, BaseException]) -> Callable[[Any], float]:
            count = iter(range(1000))

            def score(block: Any) -> float:
                number = next(count)
                if number in ends:
                    raise ends[number]
                out = block(mxq_array(X)).asnumpy()
                return -float(np.abs(out - wanted).mean() / np.abs(wanted).mean())

            return score

        options: dict[str, Any] = {"max_drop": 0.004, "workdir": tmp_path / "b"}
        whole = tune(hard, eval_fn=scorer({}), max_drop=0.004, workdir=tmp_path / "a")
        with pytest.raises(Killed):
            tune(hard, eval_fn=scorer({3: Killed()}), **options)
        stopped = tune(hard, eval_fn=scorer({2: KeyboardInterrupt()}), **options)
        assert stopped.interrupted
        assert record.check(tmp_path / "b" / "best") == ()
        found = tune(hard, eval_fn=scorer({}), **options)
        assert [t.settings for t in found.trials] == [t.settings for t in whole.trials]
        assert [t.score for t in found.trials] == [t.score for t in whole.trials]
        assert found.best.settings == whole.best.settings

    def test_nothing_meets_the_bar(self, hard: Model) -> None:
        scores = iter(range(100))
        found = tune(hard, eval_fn=lambda _: -float(next(scores)), max_drop=0.0)
        assert not found.met
        assert found.score == -1.0
        assert found.verdict.startswith("nothing met the bar, which allows 0; the most accurate has -1.0000")

    def test_labels(self, net: Model) -> None:
        answers = reference(net).argmax(axis=1)
        found = tune(net, eval_data=X, labels=answers, max_drop=0.1)
        assert (found.by, found.bar.reference) == ("accuracy on labelled data", 1.0)
        assert tune(net, eval_data=(X, answers), max_drop=0.1).best.score == found.best.score
        assert tune(net, eval_data=[X[:20], X[20:]], max_drop=0.1).by == "agreement with the float network"

    def test_partitions(self, net: Model) -> None:
        answers = reference(net).argmax(axis=1)
        parts = Partitions.of(lambda i: [(X[i : i + 10], answers[i : i + 10])], range(0, 40, 10))
        found = tune(net, parts, eval_data=parts, max_drop=0.1)
        assert (found.met, found.bar.reference) == (True, 1.0)
        assert tune(net, parts, max_drop=0.1).met, "labels are not needed"

    def test_a_folder_of_something_else(self, net: Model, hard: Model, tmp_path: Path) -> None:
        tune(net, workdir=tmp_path, max_drop=0.05)
        for name, change in {
            "params_sha256": {"net": hard},
            "settings exclude_layers": {"exclude_layers": "conv0"},
            "calibration data first": {"data": X[::-1]},
            "judge metric": {"eval_fn": lambda _: 1.0},
        }.items():
            options: dict[str, Any] = {"net": net, "workdir": tmp_path, **change}
            with pytest.raises(ConfigError, match=f"about something else: its .*{name} is"):
                tune(options.pop("net"), **options)
        assert tune(net, workdir=tmp_path, max_drop=0.5).met, "another bar is no other subject"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"max_drop": -1}, "max_drop is -1; allowed: 0 or more"),
            ({"max_drop": "1"}, "max_drop is '1'; allowed: 0 or more"),
            ({"time_budget": 0}, "time_budget is 0; allowed: a positive number"),
            ({"time_budget": "1h"}, "time_budget is '1h'; allowed: a positive number"),
            ({"calib_mode": "none"}, "calib_mode is 'none', which leaves no calibrator"),
            ({"calib_mode": "ema_minmax"}, "calib_mode is 'ema_minmax', whose statistics serve no other"),
            ({"input_dtype": "int8"}, "input_dtype is 'int8' where networks are compared; allowed: 'float32'"),
            ({"data": [X], "labels": np.zeros(40)}, "labels is given without the data"),
            ({"eval_fn": len, "eval_data": X}, "eval_fn and eval_data are both given"),
            ({"eval_fn": 3}, "eval_fn is a int; allowed: a function"),
        ],
    )
    def test_refuses(self, options: dict[str, Any], says: str, net: Model) -> None:
        with pytest.raises(ConfigError, match=says):
            tune(net, **options)

    def test_scores_are_numbers(self, net: Model) -> None:
        with pytest.raises(DataError, match=r"eval_fn returned \{\}; allowed: one finite number"):
            tune(net, eval_fn=lambda _: {})

    def test_no_network_can_be_made(self, net: Model) -> None:
        scores = iter([1.0])
        with pytest.raises(QuantizeError, match="no network could be made; the first trial failed: StopIteration"):
            tune(net, eval_fn=lambda _: next(scores))

    def test_outputs_that_have_no_answers(self) -> None:
        image = build(conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="relu"', "return relu0")
        with pytest.raises(ConfigError, match=r"neither class scores nor boxes .*; allowed: give eval_fn"):
            tune(image)


def mxq_array(x: np.ndarray) -> Any:
    import mxnet as mx

    return mx.nd.array(x)


def reference(net: Model) -> np.ndarray:
    return np.asarray(MxnetRunner().compile(net)({"data": X})[0])


@pytest.fixture
def files(net: Model, tmp_path: Path) -> Iterator[Path]:
    from mxq.runtime import write_pair

    write_pair(net, tmp_path / "net")
    np.savez(tmp_path / "data.npz", data=X, label=reference(net).argmax(axis=1))
    return tmp_path


class TestCommand:
    def test_tune(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        args = ["tune", str(files / "net"), "--data", str(files / "data.npz"), "--workdir", str(files / "w")]
        result = CliRunner().invoke(app, [*args, "--max-drop", "0.2", "--time-budget", "10m"])
        assert result.exit_code == 0, result.output
        assert "the bar is met" in result.stdout
        assert record.check(files / "w" / "best") == ()
        again = CliRunner().invoke(app, [*args, "--max-drop", "0.2", "--json"])
        found = json.loads(again.stdout)
        assert (found["met"], found["by"]) == (True, "accuracy on labelled data")
        assert [t["state"] for t in found["trials"]] == ["done"]

    def test_exit_code_where_nothing_meets_the_bar(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mxq import workflow
        from mxq.tuning.search import Bar as AnyBar

        real = workflow.tune
        monkeypatch.setattr(workflow, "tune", lambda *a, **k: replace(real(*a, **k), bar=AnyBar(2.0, 0.0)))
        args = ["tune", str(files / "net"), "--data", str(files / "data.npz"), "--workdir", str(files / "w")]
        result = CliRunner().invoke(app, [*args, "--max-drop", "0.2"])
        assert result.exit_code == 1, result.output
        assert "nothing met the bar" in result.stdout

    @pytest.mark.slow
    def test_workers_find_the_same(self, files: Path) -> None:
        args = ["tune", str(files / "net"), "--data", str(files / "data.npz"), "--max-drop", "0.2", "--json"]
        alone = CliRunner().invoke(app, [*args, "--workdir", str(files / "a"), "--num-calib-examples", "40"])
        shared = CliRunner().invoke(
            app, [*args, "--workdir", str(files / "b"), "--num-calib-examples", "40", "--workers", "1"]
        )
        one, other = json.loads(alone.stdout), json.loads(shared.stdout)
        assert (one["best"]["score"], one["float_score"]) == (other["best"]["score"], other["float_score"])
