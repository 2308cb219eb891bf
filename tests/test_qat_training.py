"""Training: schedule, order of data, kills, errors."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training as training
from helpers import assert_close

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq.data.examples import open_source
from mxq.errors import ConfigError, DataError, FormatError, QuantizeError, RuntimeFailure, StorageError, TrainingError
from mxq.qat.checkpoint import FILE
from mxq.qat.epochs import Epochs
from mxq.qat.journal import JOURNAL, read_journal
from mxq.qat.result import LossRise
from mxq.qat.schedule import TrainConfig
from mxq.qat.training import Trained, fit
from mxq.runtime.training import seeded
from mxq.storage import locks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """A training without an end before the end."""
    folder = tmp_path_factory.mktemp("whole")
    return training.trained(folder), folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a checkpoint but its digest, and what it says."""
    table = dict(mxq.formats.params.read_params(folder / FILE))
    del table["sha256"]
    return table, json.loads(table["about"].tobytes())


def write(folder: Path, table: dict[str, Any], said: dict[str, Any]) -> None:
    """Such a checkpoint, as it was before there was a digest."""
    about = np.frombuffer(json.dumps(said).encode(), np.uint8)
    mxq.runtime.params_file.write_params(folder / FILE, {**table, "about": about})


class TestSchedule:
    def test_defaults_are_a_tenth_at_one_percent(self) -> None:
        config = TrainConfig(original_epochs=90, original_lr=0.5, original_batch_size=256)
        assert (config.passes, config.highest, config.examples, config.warmup) == (9, 0.005, 128, 0.5)
        asked = replace(config, epochs=2, lr=0.1, batch_size=7, warmup_epochs=0.0)
        assert (asked.passes, asked.highest, asked.examples, asked.warmup) == (2, 0.1, 7, 0.0)

    def test_rates_are_those_of_the_formula(self) -> None:
        config = TrainConfig(epochs=4, lr=0.2, warmup_epochs=0.5, cosine_final_lr_ratio=0.1)
        rates = [config.rate(step, 10) for step in range(40)]
        assert_close(rates[:5], [0.04, 0.08, 0.12, 0.16, 0.2], rtol=1e-12, atol=0)
        cosine = [0.02 + 0.18 * (1 + math.cos(math.pi * t / 34)) / 2 for t in range(35)]
        assert_close(rates[5:], cosine, rtol=1e-12, atol=0)
        assert_close(rates[-1], 0.02, rtol=1e-12, atol=0)

    def test_of_one_step(self) -> None:
        assert TrainConfig(epochs=1, lr=0.2, warmup_epochs=1).rate(0, 1) == 0.2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0}, r"lr is 0; allowed: 1e-09 to 1e\+09, or None"),
            ({"lr": 10**400}, r"lr is 1000.*; allowed: 1e-09 to 1e\+09, or None"),
            ({"original_lr": 1e300}, r"original_lr is 1e\+300; allowed: 1e-09 to 1e\+09"),
            ({"epochs": 2, "warmup_epochs": 3}, "the warm-up is 3 epochs of 2, .*; allowed: warmup_epochs up to"),
            ({"epochs": 1.5}, "epochs is 1.5; allowed: a whole number, 1 or more, or None"),
            ({"momentum": 1.0}, "momentum is 1.0; allowed: 0 to less than 1"),
            ({"momentum": 0}, "nesterov is True without momentum"),
            ({"weight_decay": math.nan}, r"weight_decay is nan; allowed: 0 to 1e\+09"),
            ({"shuffle": 1}, "shuffle is 1; allowed: True, False"),
            ({"seed": -1}, "seed is -1; allowed: 0 to 2147483647"),
        ],
    )
    def test_says_what_is_allowed(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**options)

    def test_json_is_read_back(self) -> None:
        config = TrainConfig(lr=0.5, epochs=3)
        assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        with pytest.raises(ConfigError, match=r"training has 'epoch'; allowed: .*did you mean 'epochs'"):
            TrainConfig.from_json({"epoch": 3})

    def test_the_options_are_the_fields(self) -> None:
        from mxq.qat.options import TrainOptions

        assert set(TrainOptions.__annotations__) == set(TrainConfig().to_json())


class TestOrder:
    X = np.arange(10, dtype=np.float32)[:, None]
    Y = np.arange(10)

    def seen(self, data: Any, labels: Any = None, seed: int | None = 0, number: int = 1) -> list[int]:
        order: list[int] = []
        for feed, truth in Epochs(data, ("data",), labels, 4, seed).epoch(number):
            assert np.array_equal(feed["data"].ravel(), np.ravel(truth))
            order += [int(y) for y in np.ravel(truth)]
        return order

    @pytest.mark.parametrize("kind", ["tuple", "array", "dict", "file", "batches"])
    def test_is_another_in_each_epoch_and_the_same_again(self, kind: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", data=self.X, label=self.Y)
        data = {
            "tuple": (self.X, self.Y), "array": self.X, "dict": {"data": self.X, "label": self.Y},
            "file": open_source(tmp_path / "data.npz", batch_size=4),
            "batches": [(self.X[i : i + 1], self.Y[i : i + 1]) for i in range(10)],
        }[kind]  # fmt: skip
        labels = self.Y if kind == "array" else None
        one, other = (self.seen(data, labels, number=n) for n in (1, 2))
        assert sorted(one) == sorted(other) == list(range(10))
        assert one != other
        assert self.seen(data, labels, number=1) == one
        assert self.seen(data, labels, seed=1) != one
        assert self.seen(data, labels, seed=None) == list(range(10))

    def test_of_a_loader_is_that_of_the_seeds(self) -> None:
        loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(self.X, self.Y), 3, shuffle=True)

        def order(*seed: int) -> list[int]:
            with seeded(*seed):
                return self.seen(loader)

        before = np.random.get_state()[1].copy()  # noqa: NPY002  (what loaders draw from)
        assert order(0, 1) == order(0, 1) != order(0, 2)
        assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    def test_steps(self) -> None:
        loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(self.X, self.Y), 3)
        iterator = mx.io.NDArrayIter(self.X, self.Y, 4, last_batch_handle="pad")
        for data, steps in (((self.X, self.Y), 3), (self.X, 3), (loader, 4), (iterator, 3)):
            labels = self.Y if data is self.X else None
            assert Epochs(data, ("data",), labels, 4).steps() == steps

    def test_what_is_read_once_is_refused(self) -> None:
        with pytest.raises(DataError, match="train_data is a generator, which can be read only once; allowed"):
            Epochs((x for x in ()), ("data",))

    def test_messages_call_the_data_what_it_is(self) -> None:
        with pytest.raises(DataError, match=r"^training data is an empty list; at least one batch is needed$"):
            next(Epochs([], ("data",)).epoch(1))
        with pytest.raises(DataError, match=r"^training batch 1: input 'data' has dtype <U1"):
            next(Epochs([(np.array(["a"]), self.Y[:1])], ("data",)).epoch(1))


class TestFit:
    def test_learns(self, whole: tuple[Trained, Path]) -> None:
        found, _ = whole
        assert found.after["top1"] > found.before["top1"] + 0.2
        assert found.history[3]["loss"] < found.history[1]["loss"]
        assert [entry["epoch"] for entry in found.history] == [0, 1, 2, 3]

    def test_keeps_the_best_epoch(self, whole: tuple[Trained, Path]) -> None:
        found, _ = whole
        assert found.best_epoch == int(np.argmax([entry["eval"]["top1"] for entry in found.history]))
        x, y = training.data(40, 1)
        assert np.mean(found.block(mx.nd.array(x)).asnumpy().argmax(1) == y) == found.after["top1"]

    def test_steps_are_those_of_sgd_with_nesterov(self) -> None:
        """Sutskever et al., "On the importance of initialization and momentum": v = mu v - lr g; w += mu v - lr g."""
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
        block = mx.gluon.nn.Dense(2, in_units=4, use_bias=False)
        block.initialize()
        w, v = block.weight.data().asnumpy().astype(np.float64), np.zeros((2, 4))
        config = TrainConfig(epochs=3, lr=0.1, batch_size=8, warmup_epochs=0, weight_decay=0, shuffle=False)
        fit(block, (x, y), loss=mx.gluon.loss.L2Loss(), config=config, progress=False)
        for step in range(3):
            g = ((x @ w.T - y).T @ x) / (8 * 2)
            v = 0.9 * v - config.rate(step, 1) * g
            w = w + 0.9 * v - config.rate(step, 1) * g
        assert_close(block.weight.data().asnumpy(), w, rtol=1e-5, atol=1e-6)

    def test_the_journal_tells_of_every_step(self, whole: tuple[Trained, Path]) -> None:
        found, folder = whole
        lines = read_journal(folder)
        steps = [line for line in lines if line["kind"] == "step"]
        assert [line["step"] for line in steps] == list(range(15))
        assert [line["rate"] for line in steps] == [training.CONFIG.rate(t, 5) for t in range(15)]
        epochs = [line for line in lines if line["kind"] == "epoch"]
        assert [line["eval"] for line in epochs] == [entry["eval"] for entry in found.history]
        assert steps[4]["examples"] == 70 - 4 * 16

    def test_a_float_baseline_has_the_same_recipe(self, tmp_path: Path, whole: tuple[Trained, Path]) -> None:
        found = training.trained(tmp_path, baseline=training.net())
        assert found.baseline is not None
        assert found.baseline.history == found.history == whole[0].history
        assert files(tmp_path / "float") == files(whole[1])

    def test_without_data_to_measure_on_the_last_epoch_is_kept(self) -> None:
        found = fit(training.net(), training.data(), config=training.CONFIG, progress=False)
        assert (found.best_epoch, found.after) == (3, {})

    def test_scales_have_a_decay_of_their_own(self) -> None:
        def step(**options: float) -> float:
            block = mx.gluon.nn.Dense(2, in_units=4)
            block.initialize(mx.init.One())
            block.qat = type("Qat", (), {"learned": {block.weight.name}})
            zeros = np.zeros((4, 4), np.float32), np.zeros((4, 2), np.float32)
            plain = TrainConfig(epochs=1, lr=0.1, batch_size=4, momentum=0, nesterov=False, weight_decay=0.5)
            fit(block, zeros, loss=mx.gluon.loss.L2Loss(), config=plain, progress=False, **options)
            return float(block.weight.data().asnumpy()[0, 0])

        assert step() == 1.0
        assert_close(step(scale_weight_decay=0.25), 1 - 0.1 * 0.25, rtol=1e-6, atol=0)


class TestKills:
    @pytest.mark.parametrize("kind", ["float", "qat"])
    def test_killed_at_any_moment_it_ends_with_the_same_bytes(self, kind: str, tmp_path: Path) -> None:
        """Learned steps and BatchNorm's statistics too."""
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of a batch depend on how many threads share them
        for folder, moment, count in (
            (whole, "none", 0),
            (killed, "journal", 2),
            (killed, "draft", 1),
            (killed, "step", 9),
            (killed, "none", 0),
        ):
            command = [sys.executable, training.__file__, str(folder), moment, str(count), kind]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
            assert ended.returncode == (0 if moment == "none" else -9), ended.stderr
        assert files(killed) == files(whole)

    def test_a_loader_that_shuffles_goes_on_with_the_same_bytes(self, tmp_path: Path) -> None:
        """Of arrays, read by the user's own loader; interrupted in the last epoch."""

        def interrupt(_: Any) -> None:
            raise KeyboardInterrupt

        def run(folder: str, loss: Any = None) -> None:
            images, labels = training.data()
            loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(images, labels), 16, shuffle=True)
            metric = mxq.evaluation.metrics.TopK()
            given = {"config": training.CONFIG, "loss": loss, "metric": metric, "progress": False}
            fit(training.net(), loader, eval_data=training.data(40, 1), workdir=tmp_path / folder, **given)

        run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("cut", training.Dying(13, interrupt))
        run("cut")
        assert files(tmp_path / "cut") == files(tmp_path / "whole")

    def test_ctrl_c_leaves_a_state_to_go_on_from(self, whole: tuple[Trained, Path], tmp_path: Path) -> None:
        def interrupt(_: Any) -> None:
            raise KeyboardInterrupt

        block = training.net()
        given = {"eval_data": training.data(40, 1), "metric": mxq.evaluation.metrics.TopK(), "workdir": tmp_path}
        with pytest.raises(KeyboardInterrupt):
            fit(
                block,
                training.data(),
                config=training.CONFIG,
                loss=training.Dying(8, interrupt),
                progress=False,
                **given,
            )
        assert len(read_journal(tmp_path)) == 1 + 5 + 1
        found = fit(block, training.data(), config=training.CONFIG, progress=False, **given)
        assert files(tmp_path) == files(whole[1])
        assert found.history == whole[0].history

    def test_ctrl_c_within_mxnet_is_not_lost(self, tmp_path: Path) -> None:
        """A signal that comes while C code calls Python back is raised when the step is done."""

        def press(found: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return found

        block = training.net()
        with pytest.raises(KeyboardInterrupt):
            fit(
                block,
                training.data(),
                config=training.CONFIG,
                loss=training.Dying(7, press),
                workdir=tmp_path,
                progress=False,
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert len(read_journal(tmp_path)) == 1 + 5 + 1

    def test_a_finished_training_is_read(self, whole: tuple[Trained, Path]) -> None:
        before = files(whole[1])
        found = training.trained(whole[1])
        assert files(whole[1]) == before
        assert found.history == whole[0].history
        x = mx.nd.array(training.data(40, 1)[0])
        assert np.array_equal(found.block(x).asnumpy(), whole[0].block(x).asnumpy())


class Shuffling:
    """Four labelled batches by a generator of its own."""

    def __init__(self, seed: int, size: int = 16) -> None:
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        x, y = training.data(64)
        order = np.random.default_rng(self.seed).permutation(64)[: 4 * self.size].reshape(4, -1)
        return ((mx.nd.array(x[some]), mx.nd.array(y[some], dtype="int64")) for some in order)


class TestLossThatRises:
    """Where nothing is measured, a training that has failed says so."""

    def test_a_rate_that_is_too_high(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "mxq"):
            found = fit(training.net(), training.data(), config=training.CONFIG, lr=10.0, progress=False)
        assert found.rise is not None
        assert found.rise.after > 2 * found.rise.before
        assert found.to_json()["loss_rise"]["epoch"] == 3
        assert "float: the loss rose from" in caplog.text
        assert "allowed: a lower lr, a longer warm-up (warmup_epochs), or eval_data" in caplog.text

    @pytest.mark.parametrize("options", [{}, {"lr": 10.0, "eval_data": training.data(40, 1)}])
    def test_a_loss_that_falls_or_epochs_that_are_measured(
        self, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        found = fit(training.net(), training.data(), config=training.CONFIG, progress=False, **options)
        assert found.rise is None
        assert "the loss rose" not in caplog.text

    @pytest.mark.parametrize(("epochs", "rises"), [
        ([], False),
        ([(2, 1, 1.5)], False), ([(2, 2.1, 3.9)], False), ([(2, 1.9, 5)], False), ([(2, 2.1, 4.1)], True),
        ([(-2, -1, -1)], False), ([(-2, -1, 1)], True),
        ([(2, 1, 1.5), (2, 1.4, 3)], False), ([(2, 1, 1.5), (2, 1.6, 3)], True), ([(2, 50, 90), (9, 5, 9)], True),
    ])  # fmt: skip
    def test_above_the_first_batch_or_the_first_epoch(
        self, epochs: list[tuple[float, float, float]], rises: bool
    ) -> None:
        history = [{"epoch": 0}, *({"first": first, "least": least, "loss": loss} for first, least, loss in epochs)]
        assert (LossRise.of(history) is not None) == rises


class TestErrors:
    def test_no_labels(self) -> None:
        x, y = training.data()
        with pytest.raises(DataError, match=r"train_data has no labels; allowed: batches of inputs and labels"):
            fit(training.net(), x, progress=False)
        with pytest.raises(DataError, match=r"eval_data has no labels"):
            fit(training.net(), (x, y), eval_data=x, progress=False)

    def test_a_loss_that_is_no_number(self, tmp_path: Path) -> None:
        block, loss = training.net(), training.Dying(8, lambda found: found * math.inf)
        metric = mxq.evaluation.metrics.TopK()
        given = {"loss": loss, "metric": metric, "workdir": tmp_path, "progress": False}
        with pytest.raises(
            TrainingError,
            match=r"inf in epoch 2, step 7 \(learning rate 0\.0\d+\): .*after epoch 1 of 3; allowed: .*another workdir",
        ):
            fit(block, training.data(), config=training.CONFIG, **given)
        kept = mxq.runtime.load_params(tmp_path / FILE)
        assert np.array_equal(block[0].weight.data().asnumpy(), kept["values:0.weight"])
        assert np.isfinite(kept["values:0.weight"]).all()

    def test_what_does_not_train(self) -> None:
        x, y = training.data()
        frozen = training.net()
        frozen.collect_params().setattr("grad_req", "null")
        with pytest.raises(QuantizeError, match="has no parameters that train"):
            fit(frozen, (x, y))
        with pytest.raises(QuantizeError, match="block is a str; allowed: a Gluon block"):
            fit("net", (x, y))
        open_ = mx.gluon.nn.Dense(3)
        open_.initialize()
        with pytest.raises(QuantizeError, match=r"parameter 'dense.*' has no value"):
            fit(open_, (x, y))
        int8 = mxq.quantize_net(training.net(), x, effort="fast")
        with pytest.raises(QuantizeError, match="quantized already"):
            fit(int8, (x, y))

    def test_a_softmax_at_the_end(self) -> None:
        class Ends(mx.gluon.nn.HybridSequential):  # type: ignore[misc]
            def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803
                return F.softmax(super().hybrid_forward(F, x))

        block = Ends()
        block.add(mx.gluon.nn.Dense(3, in_units=192))
        block.initialize()
        with pytest.raises(ConfigError, match="the block ends in softmax, which the default loss computes itself"):
            fit(block, training.data())

    def test_another_training_in_the_folder(self, whole: tuple[Trained, Path]) -> None:
        with pytest.raises(ConfigError, match=r"its config\.lr is 0\.05, here 0\.1; allowed: the same block"):
            training.trained(whole[1], lr=0.1)

    def test_another_quantization_in_the_folder(self, tmp_path: Path) -> None:
        """Blocks whose parameters have the same shapes train in one folder only where they are quantized alike."""
        net, (images, _) = training.net(), training.data()

        def run(bits: int) -> None:
            block = mxq.qat.prepare(net, images, bits_w=bits, bits_a=bits)
            fit(block, training.data(), config=training.CONFIG, epochs=1, workdir=tmp_path, progress=False)

        run(4)
        run(4)
        with pytest.raises(ConfigError, match=r"its qat\.bits_w is 4, here 3; allowed: the same block, data"):
            run(3)

    def test_a_folder_that_another_run_trains_in(self, tmp_path: Path) -> None:
        with locks.alone(tmp_path, ""), pytest.raises(StorageError, match=r"is in use by .*give another workdir"):
            training.trained(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match=r"workdir '.*file/w' cannot be made: Not a directory"):
            training.trained(tmp_path / "file" / "w")

    def test_a_generator_to_measure_on(self) -> None:
        with pytest.raises(DataError, match="eval_data is a generator, which can be read only once"):
            fit(training.net(), training.data(), eval_data=(x for x in ()))

    @pytest.mark.parametrize(
        ("changed", "what"),
        [
            ({"data": (training.data(86))}, "steps is 5, here 6"),
            ({"data": (training.data()[0] + np.float32(1), training.data()[1])}, "data.sha256 is '"),
            ({"labels": (training.data()[1] + 1) % 3}, "data.sha256 is '"),
            (
                {"labels": training.data()[1].astype(np.float32)},
                r"data.batch.\(labels\) is 'int64\[16\]', here 'float32",
            ),
            ({"eval": training.data(40, 2)}, "eval_data.sha256 is '"),
            ({"eval": None}, r"eval_data is {.*, here None"),
        ],
    )
    def test_other_data_is_refused(
        self, whole: tuple[Trained, Path], tmp_path: Path, changed: dict[str, Any], what: str
    ) -> None:
        (tmp_path / FILE).write_bytes(files(whole[1])[FILE])
        data, evaluated = changed.get("data", training.data()), changed.get("eval", training.data(40, 1))
        data = (data[0], changed.get("labels", data[1]))
        with pytest.raises(ConfigError, match=f"is of another training: its {what}.*; allowed: the same block, data"):
            fit(training.net(), data, eval_data=evaluated, config=training.CONFIG, workdir=tmp_path, progress=False)
        assert files(tmp_path)[FILE] == files(whole[1])[FILE]

    def test_data_that_shuffles_itself_goes_on(self, tmp_path: Path) -> None:
        """Whatever its first batch is; batches of other shapes are refused."""
        given: dict[str, Any] = {"config": training.CONFIG, "epochs": 1, "workdir": tmp_path, "progress": False}
        fit(training.net(), Shuffling(1), **given)
        fit(training.net(), Shuffling(2), **given)
        with pytest.raises(ConfigError, match=r"data.batch.data is 'float32\[16, 3, 8, 8\]', here 'float32\[8"):
            fit(training.net(), Shuffling(1, size=8), **given)

    def test_another_network_of_the_same_shapes_is_refused(self, whole: tuple[Trained, Path]) -> None:
        before = files(whole[1])
        with pytest.raises(ConfigError, match=r"its weights\.sha256 is '.*, here '.*; allowed: the same block"):
            training.trained(whole[1], training.net(seed=1))
        assert files(whole[1]) == before

    def test_a_checkpoint_of_before_tells_nothing_of_data_and_weights(
        self, whole: tuple[Trained, Path], tmp_path: Path
    ) -> None:
        table, said = read(whole[1])
        del said["training"]["data"], said["training"]["eval_data"], said["training"]["weights"]
        write(tmp_path, table, said)
        shutil.copy(whole[1] / JOURNAL, tmp_path)
        assert training.trained(tmp_path).history == whole[0].history

    @pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
    def test_a_byte_that_changed_is_noticed(self, whole: tuple[Trained, Path], tmp_path: Path, place: float) -> None:
        content = bytearray(files(whole[1])[FILE])
        content[int(place * len(content))] ^= 1
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(FormatError, match="is damaged: its sha256 is another than when it was written"):
            training.trained(tmp_path)

    @pytest.mark.parametrize("left", [None, 0, 100])
    def test_a_journal_that_lost_lines(self, whole: tuple[Trained, Path], tmp_path: Path, left: int | None) -> None:
        (tmp_path / FILE).write_bytes(files(whole[1])[FILE])
        if left is not None:
            (tmp_path / JOURNAL).write_bytes(files(whole[1])[JOURNAL][:left])
        with pytest.raises(FormatError, match=rf"training.jsonl has {left or 0} bytes, but \d+ when the checkpoint"):
            training.trained(tmp_path)

    def test_damaged_files(self, whole: tuple[Trained, Path], tmp_path: Path) -> None:
        (tmp_path / FILE).write_bytes(files(whole[1])[FILE][:-100])
        with pytest.raises(FormatError, match="damaged"):
            training.trained(tmp_path)
        (tmp_path / JOURNAL).write_bytes(files(whole[1])[JOURNAL])
        mxq.runtime.params_file.write_params(tmp_path / FILE, {"x": np.zeros(3, np.float32)})
        with pytest.raises(FormatError, match="is no checkpoint of a training, or damaged; delete it"):
            training.trained(tmp_path)
        for change in (
            {"epoch": "two"},
            {"epoch": 99},
            {"best_epoch": 7},
            {"history": [{}] * 4},
            {"journal": -5},
            {"journal": "q"},
            {"values": np.full(3, 1, np.float32)},
            {"best": np.full((8, 3, 3, 3), np.nan, np.float32)},
            {"momenta": np.zeros(3, np.float32)},
        ):
            (table, said), (which, value) = read(whole[1]), next(iter(change.items()))
            if isinstance(value, np.ndarray):
                table[f"{which}:0.weight"] = value
            else:
                said |= change
            write(tmp_path, table, said)
            with pytest.raises(FormatError, match="is no checkpoint of a training, or damaged; delete it"):
                training.trained(tmp_path)
        (tmp_path / JOURNAL).write_text("[]\n")
        with pytest.raises(FormatError, match="is no journal of a training"):
            read_journal(tmp_path)

    def test_options(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown option 'epoch'; allowed: .*did you mean 'epochs'"):
            fit(training.net(), training.data(), epoch=3)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match="loss is 3; allowed: a gluon loss"):
            fit(training.net(), training.data(), loss=3)  # type: ignore[arg-type]


class Share:
    """A metric of two numbers, of which the second is NaN: a class without examples."""

    def empty(self) -> float:
        return 0.5

    def update(self, state: float, outputs: Any, labels: Any) -> float:
        return state

    def merge(self, a: float, b: float) -> float:
        return a

    def result(self, state: float) -> dict[str, float]:
        return {"share": state, "rare": math.nan}


class Rising:
    """A loss that is 0 where its gradient is not finite."""

    def __call__(self, output: Any, labels: Any) -> Any:
        return mx.nd.sqrt(output * 0)


def fails(*_: Any) -> Any:
    raise KeyError("mine")


class TestWhatUsersGive:
    """Data, losses and metrics of users, each a case with an error of ours or a right result."""

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros(71), r"train_data has 70 examples, an array or labels of it the shape \(71,\); allowed: as many"),
            (np.zeros(5), r"train_data has 70 examples, an array or labels of it the shape \(5,\); allowed: as many"),
            (np.array(["a"] * 70), "train_data, batch 1: labels are of type <U1; allowed: numbers"),
            (np.array([None] * 70), "train_data, batch 1: labels are of type object; allowed: numbers"),
        ],
    )
    def test_labels_that_do_not_fit(self, labels: np.ndarray, message: str) -> None:
        x = training.data()[0]
        for given in ({"train_data": (x, labels)}, {"train_data": x, "labels": labels}):
            with pytest.raises(DataError, match=message):
                fit(training.net(), **given, progress=False)

    def test_labels_of_true_and_false_are_numbers(self) -> None:
        x, y = training.data(16)
        loss = mx.gluon.loss.SigmoidBCELoss()

        def first(output: Any, labels: Any) -> Any:
            return loss(output[:, :1], labels)

        settings = {"loss": first, "config": training.CONFIG, "epochs": 1, "progress": False}
        true, one = (fit(training.net(), (x, each), **settings) for each in (y > 0, (y > 0).astype(np.float32)))
        assert true.history[1]["loss"] == one.history[1]["loss"]

    @pytest.mark.parametrize("part", ["train", "eval"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_no_numbers(self, part: str, value: float) -> None:
        x, y = training.data(16)
        bad = x.copy()
        bad[3, 0, 0] = value
        given = {"train_data": (x, y), "eval_data": (x, y), f"{part}_data": (bad, y)}
        message = rf"{part}_data, batch 1: 8 of 3072 values of 'data' are not finite; allowed: no NaN, no Inf"
        with pytest.raises(DataError, match=message):
            fit(training.net(), **given, config=training.CONFIG, progress=False, shuffle=False)

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (fails, "the loss raised KeyError: 'mine'"),
            (lambda output, labels: 1.0, "the loss gave a float; allowed: an array of MXNet"),
            (lambda output, labels: [output], "the loss gave a list; allowed: an array of MXNet"),
            (lambda output: output, "the loss raised TypeError: .*positional argument"),
            (mx.gluon.loss.L2Loss, "the loss gave a L2Loss; allowed"),
        ],
    )
    def test_losses_that_fail(self, loss: Any, message: str) -> None:
        with pytest.raises(RuntimeFailure, match=message):
            fit(training.net(), training.data(16), loss=loss, config=training.CONFIG, progress=False)

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            (fails, "the metric raised KeyError: 'mine'"),
            (
                lambda outputs, labels: {"a": "b"},
                "metric 'a' is 'b' for a batch of 16 examples; allowed",
            ),
            (lambda outputs, labels: {"a": np.ones(2)}, "metric 'a' is array.*; allowed: a finite number"),
            (lambda outputs, labels: {}, "the metric gives no number of eval_data; allowed: one or more"),
        ],
    )
    def test_metrics_that_fail(self, metric: Any, message: str) -> None:
        data = training.data(16)
        with pytest.raises(DataError, match=message):
            fit(training.net(), data, eval_data=data, metric=metric, config=training.CONFIG, progress=False)

    def test_a_number_without_a_word_in_json_is_the_same_after_a_new_start(self, tmp_path: Path) -> None:
        first, again = (training.trained(tmp_path, metric=Share()) for _ in range(2))
        for found in (first, again):
            assert found.after["share"] == 0.5
            assert math.isnan(found.after["rare"])
            assert json.loads(json.dumps(found.to_json(), allow_nan=False))["after"] == {"share": 0.5, "rare": None}
        assert read_journal(tmp_path)[0]["eval"] == {"share": 0.5, "rare": None}

    def test_parameters_that_are_no_numbers_are_not_kept(self) -> None:
        block = training.net()
        before = block[0].weight.data().asnumpy()
        with pytest.raises(TrainingError, match=r"parameter '.*' is not finite after epoch 1 .*as after epoch 0 of 3"):
            fit(block, training.data(16), loss=Rising(), config=training.CONFIG, progress=False)
        assert np.array_equal(block[0].weight.data().asnumpy(), before)

    def test_a_loss_on_held_out_data_that_is_no_number(self) -> None:
        data = training.data(16)
        loss = training.Dying(1, lambda found: found * math.nan)
        with pytest.raises(TrainingError, match="'loss' of eval_data is nan, which cannot say which epoch is best"):
            fit(training.net(), data, eval_data=data, loss=loss, config=training.CONFIG, progress=False)

    def test_what_mxnet_itself_cannot_train(self) -> None:
        x, y = training.data(16)
        block = mx.gluon.nn.HybridSequential()
        block.add(mx.gluon.nn.Conv1D(8, 3), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(3))
        block.initialize()
        flat = x.reshape(16, 3, 64)
        block(mx.nd.array(flat))
        with pytest.raises(RuntimeFailure, match="MXNet failed in training"):
            fit(block, (flat, y), config=training.CONFIG, progress=False)
