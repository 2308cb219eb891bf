"""``mxq train``, and training with quantization as it does it, on the small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training as small
from typer.testing import CliRunner

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq.cli import app
from mxq.cli.tune import training_of
from mxq.errors import ConfigError
from mxq.numerics import sqnr_db
from mxq.qat.checkpoint import FILE
from mxq.qat.diagnosis import diagnosed
from mxq.qat.journal import JOURNAL, read_journal
from mxq.qat.schedule import TrainConfig
from mxq.qat.training import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained float network, and data with and without labels."""
    made = tmp_path_factory.mktemp("train")
    net = fit(small.net(), small.data(), config=small.CONFIG, progress=False).block
    net.export(str(made / "net"))
    for name, count, seed in (("train", 64, 0), ("test", 40, 1)):
        x, y = small.data(count, seed)
        np.savez(made / f"{name}.npz", data=x, label=y)
    np.savez(made / "bare.npz", data=x)
    return made


def test_tune_reads_how_to_train_in_the_recipe(tmp_path: Path) -> None:
    """As ``mxq train``: options override it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: mxq-recipe/1\ntraining: {original_epochs: 30, lr: 0.2, seed: 5}\n")
    found = training_of(tmp_path, None, {"epochs": None, "lr": 0.1}, recipe)
    assert found is not None
    assert found.config == TrainConfig(original_epochs=30, lr=0.1, seed=5)
    recipe.write_text("format: mxq-recipe/1\ntraining: {epoch: 30}\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml, training: training has 'epoch'; allowed: "):
        training_of(tmp_path, None, {}, recipe)


def run(folder: Path, *options: str, code: int = 0) -> Any:
    given = ["train", str(folder / "net"), "--data", str(folder / "train.npz"), *options]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else done.output


def test_reports_float_fine_tuned_quantized_and_trained(folder: Path, tmp_path: Path) -> None:
    options = (
        "--eval-data", str(folder / "test.npz"), "--workdir", str(tmp_path / "w"), "--bits", "W2A3", "--epochs", "1",
        "--lr", "0.01", "--batch-size", "32", "--plot", str(tmp_path / "curves.png"), "--json",
    )  # fmt: skip
    found = run(folder, *options)
    assert [e["epoch"] for e in found["history"]] == [e["epoch"] for e in found["float"]["history"]] == [0, 1]
    x, y = small.data(40, 1)
    net = mxq.load(folder / "net")
    assert found["float"]["before"]["top1"] == pytest.approx(np.mean(net(mx.nd.array(x)).asnumpy().argmax(1) == y))
    lines = read_journal(tmp_path / "w")
    assert [line["epoch"] for line in lines if line["kind"] == "ranges"] == [0, 1]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert run(folder, *options) == found  # it was finished: nothing is trained again


@pytest.mark.parametrize("steps", [3, 4, 9, 14])
def test_ctrl_c_and_the_same_command_again_give_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """In the float network's training, at the end of its first epoch, in the other's first epoch, and in its last.

    The pair, its record, both checkpoints and journals.
    """

    def options(where: str) -> tuple[str, ...]:
        (tmp_path / where).mkdir(exist_ok=True)
        data = ("--eval-data", str(folder / "test.npz"), "--workdir", str(tmp_path / where / "w"))
        out = ("--out", str(tmp_path / where / "o"), "--json")
        return (*data, "--seed", "7", "--epochs", "2", "--lr", "0.02", "--batch-size", "16", *out)

    def made(where: str) -> dict[str, bytes]:
        found = (tmp_path / where).rglob("*")
        return {str(path.relative_to(tmp_path / where)): path.read_bytes() for path in found if path.is_file()}

    whole = run(folder, *options("whole"))
    with monkeypatch.context() as patched:
        small.ctrl_c_at_step(patched, steps)
        said = run(folder, *options("cut"), code=130)
    assert f"holds the training after epoch {(steps - 1) % 8 // 4} of 2, the same call goes on from there" in said
    assert run(folder, *options("cut")) == whole
    assert made("cut") == made("whole")


def test_a_recipe_says_how(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: mxq-recipe/1\ntraining: {epochs: 1, batch_size: 32}\nqat: {bits_w: 4, bits_a: 4}\n")
    run(folder, "--recipe", str(recipe), "--workdir", str(tmp_path), "--no-baseline", "--lr", "0.001", "--json")
    assert len([line for line in read_journal(tmp_path) if line["kind"] == "step"]) == 2
    about = bytes(mxq.runtime.load_params(tmp_path / FILE)["about"]).decode()
    assert json.loads(about)["training"]["config"]["lr"] == 0.001
    assert not (tmp_path / "float").exists()


@pytest.mark.filterwarnings("ignore:Cannot decide type")
@pytest.mark.parametrize(("options", "int8"), [((), True), (("--bits", "4"), False), (("--float",), False)])
def test_writes_what_was_trained(folder: Path, tmp_path: Path, options: tuple[str, ...], int8: bool) -> None:
    """As INT8 where MXNet has kernels for it, else as float; stock MXNet loads either."""
    more = () if "--float" in options else ("--no-baseline",)
    run(
        folder,
        *options,
        *more,
        "--workdir",
        str(tmp_path / "w"),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "o"),
        "--json",
    )
    loaded = mx.gluon.SymbolBlock.imports(str(tmp_path / "o-symbol.json"), ["data"], str(tmp_path / "o-0000.params"))
    x, y = small.data(40, 1)
    assert np.mean(loaded(mx.nd.array(x)).asnumpy().argmax(1) == y) > 0.6
    assert ("_contrib_quantize_v2" in (tmp_path / "o-symbol.json").read_text()) == int8
    assert (tmp_path / "o-mxq.json").exists() == int8


def test_writes_an_onnx_file_of_what_was_trained_for_one(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out, codes = tmp_path / "net.onnx", ("--hardware", "onnxruntime", "--bits", "W4A8")
    run(folder, *codes, "--no-baseline", "--workdir", str(tmp_path / "w"), "--epochs", "1", "--out", str(out), "--json")
    x, y = small.data(40, 1)
    (found,) = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"]).run(None, {"data": x})
    assert np.mean(found.argmax(1) == y) > 0.6
    record = mxq.inspect_onnx(out).file.record
    assert record is not None
    assert (record.runtime, record.config["bits"]) == ("onnxruntime", "W4A8")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "W8A8 for oneDNN in MXNet 1.9.1"),
        (("--hardware", "onnx", "--bits", "4"), "W4A4 for ONNX Runtime and OpenVINO"),
        (("--float",), "a float network"),
    ],
)
def test_what_is_no_onnx_file_is_known_before_it_trains(
    folder: Path, tmp_path: Path, options: tuple[str, ...], found: str
) -> None:
    pytest.importorskip("onnx")
    given = (*options, "--workdir", str(tmp_path / "w"), "--out", str(tmp_path / "net.onnx"))
    said = " ".join(run(folder, *given, code=2).replace("│", " ").split())
    assert f"an ONNX file, but {found} is trained; allowed: W4A8 to W8A8 on onnx, onnxruntime, openvino" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("out", ["net", "nowhere/net"])
def test_where_it_cannot_write_is_known_before_it_trains(folder: Path, tmp_path: Path, out: str) -> None:
    said = run(folder, "--workdir", str(tmp_path / "w"), "--out", str(folder / out), code=2)
    assert "--out is" in said
    assert not (tmp_path / "w").exists()


def test_where_it_cannot_draw_is_known_before_it_trains(folder: Path, tmp_path: Path) -> None:
    for name, message in (("no/x.png", "there is no folder"), ("x.gif", "allowed: .png, .svg, .pdf")):
        said = run(folder, "--workdir", str(tmp_path / "w"), "--plot", str(tmp_path / name), code=2)
        assert message in " ".join(said.split())
        assert not (tmp_path / "w").exists()


def test_trains_in_float_alone(folder: Path, tmp_path: Path) -> None:
    found = run(folder, "--float", "--workdir", str(tmp_path), "--epochs", "1", "--json")
    assert (found["float"], found["best_epoch"]) == (None, 1)
    assert not [line for line in read_journal(tmp_path) if line["kind"] == "ranges"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--float", "--bits", "4"), "--bits is '4' beside --float"),
        (("--bits", "9"), "--bits is '9'; allowed: 2 to 8"),
        (("--hardware", "abacus"), "abacus"),
        (("--lr", "-1"), r"lr is -1.0; allowed: 1e-09 to 1e\+09"),
        (("--eval-data", "bare.npz"), "data to measure on .*bare.npz has no labels"),
    ],
)
def test_errors_name_the_option(folder: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    given = [str(folder / o) if o.endswith(".npz") else o for o in options]
    output = run(folder, "--workdir", str(tmp_path / "w"), *given, code=2)
    assert " ".join(output.split()).count("mxq: error:") == 1
    assert pytest.importorskip("re").search(message, " ".join(output.split()))


class TestQuantized:
    """`mxq.qat.fit` on what `mxq.qat.prepare` gives."""

    def block(self, folder: Path) -> Any:
        return mxq.qat.prepare(str(folder / "net"), small.data(64)[0], bits_w=3, bits_a=3)

    def test_interrupted_it_ends_with_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        def interrupt(_: Any) -> None:
            raise KeyboardInterrupt

        given = {"eval_data": small.data(40, 1), "metric": mxq.evaluation.metrics.TopK(), "progress": False}
        given |= {"config": small.CONFIG, "epochs": 2, "lr": 0.01}
        fit(self.block(folder), small.data(), workdir=tmp_path / "whole", **given)
        with pytest.raises(KeyboardInterrupt):
            fit(self.block(folder), small.data(), workdir=tmp_path / "cut", loss=small.Dying(8, interrupt), **given)
        fit(self.block(folder), small.data(), workdir=tmp_path / "cut", **given)
        for name in (FILE, JOURNAL):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()

    def test_ranges_and_noise_are_those_of_the_tensors(self, folder: Path) -> None:
        block = self.block(folder)
        x = small.data(16)[0]
        ranges, noise = diagnosed(block, mxq.data.feed.Feed({"data": x}, 16, {"data": 0}), 0)
        assert ranges["ranges"].keys() == noise["sqnr_db"].keys() == {q.name for q in block.qat.quantizers}
        step = float(block.trained["data_fq_step"][0])
        assert ranges["ranges"]["data_fq"] == pytest.approx([-4 * step, 3 * step], rel=1e-6)
        rounded = np.clip(np.rint(x / step), -4, 3) * step
        assert noise["sqnr_db"]["data_fq"] == pytest.approx(sqnr_db(x, rounded), abs=1e-3)

    def test_statistics_of_batchnorm_are_taken_anew(self, folder: Path) -> None:
        block = self.block(folder)
        before = block.trained
        found = mxq.recalibrate_batchnorm(block, small.data(64)[0])
        after = block.trained
        moving = {name for name in before if "running" in name}
        assert found is block
        assert moving
        assert all(np.array_equal(before[n], after[n]) != (n in moving) for n in before)


def test_a_softmax_at_the_end_is_written_again(folder: Path, tmp_path: Path) -> None:
    with_softmax = mx.sym.softmax(mx.sym.load(str(folder / "net-symbol.json")), name="probabilities")
    with_softmax.save(str(tmp_path / "net-symbol.json"))
    (tmp_path / "net-0000.params").write_bytes((folder / "net-0000.params").read_bytes())
    given = ["--data", str(folder / "train.npz"), "--workdir", str(tmp_path / "w"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["train", str(tmp_path / "net"), "--float", "--epochs", "1", *given])
    assert done.exit_code == 0, done.output
    sums = mxq.load(tmp_path / "out")(mx.nd.array(small.data(8)[0])).asnumpy().sum(axis=1)
    assert sums == pytest.approx(np.ones(8), abs=1e-5)
