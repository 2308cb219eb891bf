"""The end of a search: training, where nothing else meets the bar."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from small_training import ctrl_c_at_step, data, net

from mxq.errors import ConfigError, DataError, TrainingError
from mxq.graph.ir import Graph, Node
from mxq.graph.serde import write_symbol
from mxq.qat import TrainConfig, preparing
from mxq.qat.journal import read_journal
from mxq.runtime import load_model, to_block
from mxq.tuning import training

SCHEDULE = TrainConfig(epochs=2, lr=0.02, batch_size=16, warmup_epochs=0.5)
LABELLED = data(48)


class Scores:
    """An ``eval_fn`` for which float is at 1, what was trained at 0.95, and all else at 0.5."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.is_trained, real = 0, False, training.converted

        def converted(*args: Any) -> Any:
            self.is_trained = True
            return real(*args)

        monkeypatch.setattr(training, "converted", converted)

    def __call__(self, block: Any) -> float:
        self.calls += 1
        return 1.0 if self.calls == 1 else 0.95 if self.is_trained else 0.5


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Scores:
    return Scores(monkeypatch)


def tuned(score: Callable[[Any], float], workdir: Path | None = None, **options: Any) -> Any:
    given = {"train_data": LABELLED, "training": SCHEDULE, **options}
    return mxq.tune(float_net(), mx.nd.array(LABELLED[0]), score, max_drop=0.1, workdir=workdir, **given)


@cache
def float_net() -> Any:
    """The same one each time: tensors of another have other names, and a folder is of one network."""
    return net()


def test_it_trains_where_nothing_else_meets_the_bar(score: Scores, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mxq"):
        found = tuned(score)
    assert found.met
    assert found.best.settings.training == SCHEDULE
    assert found.best.stage == "training"
    assert "trained with quantization" in found.verdict
    assert any("training with quantization takes 2 epochs of 3 steps of " in text for text in caplog.messages)
    loaded = load_model(found.block)
    assert any(node.op == "_contrib_quantize_v2" for node in loaded.graph.operators)


def test_training_starts_from_the_statistics_of_the_search(score: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float network is not run over the calibration data again."""
    monkeypatch.delattr(preparing, "_batches")
    assert tuned(score).best.settings.training == SCHEDULE


def test_it_does_so_of_a_network_that_ends_in_a_softmax(
    score: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains without the softmax; statistics in a workdir name the network that has it."""
    monkeypatch.delattr(preparing, "_batches")
    model = load_model(float_net())
    last = Node("probabilities", "softmax", {}, model.graph.heads)
    block = to_block(model.with_graph(Graph((*model.graph.nodes, last), (last.out,), model.graph.attrs)))
    given = {"train_data": LABELLED, "training": SCHEDULE}
    found = mxq.tune(block, mx.nd.array(LABELLED[0]), score, max_drop=0.1, workdir=tmp_path, **given)
    assert found.best.settings.training == SCHEDULE


def test_it_does_not_where_something_else_does() -> None:
    found = tuned(lambda _: 1.0)
    assert found.met
    assert all(trial.settings.training is None for trial in found.trials)


def test_ended_and_called_again_it_gives_the_same_network(score: Scores, tmp_path: Path) -> None:
    first = tuned(score, tmp_path)
    calls = score.calls
    again = tuned(score, tmp_path)
    assert score.calls == calls
    assert write_symbol(again.model.graph) == write_symbol(first.model.graph)
    for name, value in first.model.args.items():
        np.testing.assert_array_equal(again.model.args[name], value)
    assert mxq.load(tmp_path / "best") is not None


def test_training_that_fails_leaves_the_best_of_the_others(score: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(training, "fit", fails)
    found = tuned(score)
    assert not found.met
    assert found.trials[-1].state == "failed"
    assert "the loss is nan" in found.trials[-1].reason
    assert found.best.settings.training is None


def test_ctrl_c_in_its_training_leaves_a_search_to_go_on_with(
    score: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps tell what it costs; the second of two epochs of three steps is interrupted, and done again."""
    with monkeypatch.context() as patched:
        ctrl_c_at_step(patched, 6)
        cut = tuned(score, tmp_path)
    assert cut.interrupted
    assert not cut.met
    assert cut.best.settings.training is None
    assert [line["epoch"] for line in read_journal(tmp_path / training.FOLDER) if line["kind"] == "epoch"] == [0, 1]
    found = tuned(score, tmp_path)
    assert found.met
    assert found.best.settings.training == SCHEDULE


@pytest.mark.parametrize(("options", "message"), [
    ({"train_data": None}, "training is given without train_data"),
    ({"training": "fast"}, "training is 'fast'; allowed: a mxq.qat.TrainConfig"),
])  # fmt: skip
def test_settings_that_make_no_sense(score: Scores, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tuned(score, **options)


def test_data_without_labels_is_refused_before_it_trains(score: Scores) -> None:
    with pytest.raises(DataError, match="train_data has no labels"):
        tuned(score, train_data=LABELLED[0])
