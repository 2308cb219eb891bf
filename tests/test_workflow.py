"""Both doors, Python and the command line, give the same files from the same network, data and settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import RESIDUAL, build
from helpers import fresh_python
from PIL import Image
from typer.testing import CliRunner

from mxq.calibration.statistics import Statistics
from mxq.cli import app
from mxq.data.preprocess import RAW, Preprocess
from mxq.runtime import load_model, write_pair
from mxq.workflow.measuring import AsIntegers

SIDE, HELD = 8, 120
ENDS = ("-symbol.json", "-0000.params", "-mxq.json")


def examples() -> np.ndarray:
    """(HELD, 3, SIDE, SIDE) float32, sorted: later examples are larger, so that it matters which are looked at."""
    x = np.random.default_rng(0).standard_normal((HELD, 3, SIDE, SIDE)).astype(np.float32)
    return x * np.linspace(0.5, 2, HELD, dtype=np.float32).reshape(-1, 1, 1, 1)


X = examples()
LABELS = np.arange(HELD) % 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network "net" and the same examples in several forms. Do not write there."""
    where = tmp_path_factory.mktemp("doors")
    write_pair(build(*RESIDUAL, data=(1, 3, SIDE, SIDE)), where / "net")
    np.save(where / "x.npy", X)
    np.savez(where / "x.npz", data=X, label=LABELS)
    pixels = np.clip(X * 40 + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.save(where / "pixels.npy", pixels)
    (where / "pictures").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(where / "pictures" / f"{i:03}.png")
    (where / "labels.csv").write_text("file,label\n" + "".join(f"{i:03}.png,{i % 10}\n" for i in range(HELD)))
    return where


def command(*args: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def same(prefix: Path, other: Path) -> None:
    """Every byte; the names of the files are in the record, and must be the same."""
    assert prefix.name == other.name
    found = {end: Path(f"{prefix}{end}").read_bytes() == Path(f"{other}{end}").read_bytes() for end in ENDS}
    assert found == dict.fromkeys(ENDS, True)


@pytest.fixture
def a(tmp_path: Path) -> Path:
    """Where the command writes."""
    (tmp_path / "a").mkdir()
    return tmp_path / "a" / "int8"


@pytest.fixture
def b(tmp_path: Path) -> Path:
    """Where Python writes."""
    (tmp_path / "b").mkdir()
    return tmp_path / "b" / "int8"


PREPROCESS = {"mean": [128, 128, 128], "std": [40, 40, 40]}
SETTINGS = ("--mean", "128", "--std", "40")
AS_FILES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...], dict[str, Any]]] = {
    "npy": ("x.npy", lambda _: X, (), {}),
    "npy by path": ("x.npy", lambda home: home / "x.npy", (), {}),
    "npz": ("x.npz", lambda _: {"data": X, "label": LABELS}, (), {}),
    "npz by path": ("x.npz", lambda home: str(home / "x.npz"), (), {}),
    "pictures": ("pictures", lambda home: home / "pictures", SETTINGS, {"preprocess": PREPROCESS}),
    "pixels": ("pixels.npy", lambda home: home / "pixels.npy", SETTINGS, {"preprocess": PREPROCESS}),
    "fast": ("x.npy", lambda _: X, ("--effort", "fast"), {"effort": "fast"}),
    "batch size": ("x.npy", lambda _: X, ("--batch-size", "7"), {"batch_size": 7}),
    "share": ("x.npy", lambda _: (X, LABELS), ("--num-calib-examples", "75%"), {"num_calib_examples": "75%"}),
    "count": ("x.npy", lambda _: X, ("--num-calib-examples", "40"), {"num_calib_examples": 40}),
    "shape": ("x.npy", lambda _: X, ("--input-shape", "3x8x8"), {"input_shape": (3, 8, 8)}),
    "saturation": ("x.npy", lambda _: X, ("--target", "avx2"), {"target": "avx2"}),
    "integers": ("pictures", lambda home: home / "pictures", (*SETTINGS, "--input-dtype", "uint8"),
                 {"preprocess": PREPROCESS, "input_dtype": "uint8"}),
}  # fmt: skip


class TestQuantize:
    @pytest.mark.parametrize("form", AS_FILES)
    def test_data(self, home: Path, a: Path, b: Path, form: str) -> None:
        file, data, options, settings = AS_FILES[form]
        command("quantize", home / "net", "--data", home / file, "--out", a, *options)
        mxq.save(mxq.quantize_net(home / "net", data(home), **settings), b)
        same(a, b)

    def test_preprocess_beside_the_network(self, home: Path, tmp_path: Path, a: Path, b: Path) -> None:
        for end in ENDS[:2]:
            shutil.copy(f"{home / 'net'}{end}", tmp_path / f"net{end}")
        (tmp_path / "preprocess.json").write_text(json.dumps(PREPROCESS))
        command("quantize", tmp_path / "net", "--data", home / "pictures", "--out", a)
        mxq.save(mxq.quantize_net(tmp_path / "net", home / "pictures"), b)
        same(a, b)
        mxq.save(mxq.quantize_net(home / "net", home / "pictures", preprocess=PREPROCESS), b)
        same(a, b)

    @pytest.mark.parametrize("again", [True, False], ids=["with data", "alone"])
    def test_statistics(self, home: Path, tmp_path: Path, a: Path, b: Path, again: bool) -> None:
        settings = {"calib_mode": "percentile:99.9"}
        options = ("--data", home / "x.npy") if again else ()
        stats = tmp_path / "s.npz"
        command("calibrate", home / "net", "--data", home / "x.npy", "--stats", stats)
        mode = ("--calib-mode", "percentile:99.9")
        command("quantize", home / "net", "--stats", stats, "--out", a, *options, *mode)
        data = X if again else None
        mxq.save(mxq.quantize_net(home / "net", data, statistics=stats, **settings), b)
        same(a, b)

    @pytest.mark.parametrize("again", [True, False], ids=["with data", "alone"])
    def test_thresholds(self, home: Path, tmp_path: Path, a: Path, b: Path, again: bool) -> None:
        options = ("--data", home / "x.npy") if again else ()
        command("calibrate", home / "net", "--data", home / "x.npy", "--out", tmp_path / "t.json")
        command("quantize", home / "net", "--thresholds", tmp_path / "t.json", "--out", a, *options)
        found = mxq.calibrate(home / "net", X)
        mxq.save(mxq.quantize_net(home / "net", X if again else None, thresholds=found), b)
        same(a, b)

    def test_thresholds_or_statistics(self, home: Path, tmp_path: Path) -> None:
        both = ("--thresholds", tmp_path / "t.json", "--stats", tmp_path / "s.npz", "--out", tmp_path / "q")
        assert "allowed: one of them" in command("quantize", home / "net", *both, code=2).stderr

    def test_a_symbol_and_its_parameters(self, home: Path, a: Path, b: Path) -> None:
        model = load_model(home / "net")
        command("quantize", home / "net", "--data", home / "x.npy", "--out", a)
        mxq.save(mxq.quantize_model(f"{home / 'net'}-symbol.json", model.args, model.auxs, X), b)
        same(a, b)


class TestCalibrate:
    @pytest.mark.parametrize("form", ["npy", "pictures"])
    def test_ranges(self, home: Path, tmp_path: Path, form: str) -> None:
        file, data, options, settings = AS_FILES[form]
        command("calibrate", home / "net", "--data", home / file, "--out", tmp_path / "t.json", *options)
        found = mxq.calibrate(home / "net", data(home), **settings)
        assert json.loads((tmp_path / "t.json").read_text()) == found.to_json()

    def test_statistics(self, home: Path, tmp_path: Path) -> None:
        command("calibrate", home / "net", "--data", home / "x.npy", "--stats", tmp_path / "a.npz")
        mxq.calibrate(home / "net", home / "x.npy", stats=tmp_path / "b.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


class TestSearches:
    """Without data to measure on, both measure on all that the file holds, with its labels."""

    @pytest.mark.parametrize("form", ["npy", "npz"])
    def test_tune(self, home: Path, tmp_path: Path, form: str) -> None:
        file, data, _, _ = AS_FILES[form]
        options = ("--max-drop", "0.02", "--calib-mode", "entropy")
        shown = command("tune", home / "net", "--data", home / file, "--workdir", tmp_path / "a", "--json", *options)
        found = mxq.tune(home / "net", data(home), workdir=tmp_path / "b", max_drop=0.02, calib_mode="entropy")
        same(tmp_path / "a" / "best", tmp_path / "b" / "best")
        said, other = json.loads(shown.stdout), found.to_json()
        assert [t["score"] for t in said["trials"]] == [t["score"] for t in other["trials"]]
        assert said["float_score"] == other["float_score"]

    @pytest.mark.parametrize("form", ["npy", "npz"])
    def test_sensitivity(self, home: Path, form: str) -> None:
        file, data, _, _ = AS_FILES[form]
        shown = command("sensitivity", home / "net", "--data", home / file, "--json")
        found = mxq.sensitivity(home / "net", data(home))
        assert json.loads(shown.stdout) == found.to_json()
        assert found.measure == ("top1" if form == "npz" else "sqnr")


class TestRawPictures:
    """Where nothing says mean and std, pictures go in as 0..255, and that is said: once, by either door."""

    COMMANDS: ClassVar[dict[str, tuple[object, ...]]] = {
        "quantize": ("quantize", "{home}/net", "--out", "{out}"),
        "calibrate": ("calibrate", "{home}/net"),
        "tune": ("tune", "{home}/net", "--workdir", "{out}", "--max-drop", "1", "--eval-data", "{home}/pictures"),
        "sensitivity": ("sensitivity", "{home}/net", "--mode", "one-int8"),
        "evaluate": ("evaluate", "{home}/net", "--labels", "{home}/labels.csv"),
        "verify": ("verify", "{home}/net", "{home}/net"),
        "compare": ("compare", "{home}/int8", "{home}/int8"),
    }

    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize(("options", "times"), [((), 1), (("--scale", "1"), 0)], ids=["raw", "scale"])
    def test_command(self, home: Path, tmp_path: Path, name: str, options: tuple[str, ...], times: int) -> None:
        if name == "compare" and not (home / "int8-mxq.json").exists():
            mxq.save(mxq.quantize_net(home / "net", X), home / "int8")
        args = [str(a).format(home=home, out=tmp_path / "out") for a in self.COMMANDS[name]]
        said = command(*args, "--data", home / "pictures", *options).stderr
        assert said.count(f"mxq: {RAW}\n") == times

    @pytest.mark.parametrize(("options", "times"), [(("--crop", "8"), 1), (("--std", "2"), 0), (SETTINGS, 0)], ids=str)
    def test_which_options_are_about_values(self, home: Path, options: tuple[str, ...], times: int) -> None:
        said = command("calibrate", home / "net", "--data", home / "pictures", *options).stderr
        assert said.count(f"mxq: {RAW}\n") == times
        assert "--mean" in RAW

    @pytest.mark.parametrize("file", ["pictures", "pixels.npy"])
    def test_python(self, home: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
        calls: tuple[Callable[..., object], ...] = (mxq.calibrate, mxq.quantize_net, mxq.sensitivity)
        for call in calls:
            for settings, times in (({}, 1), ({"preprocess": {"scale": 1}}, 0)):
                caplog.clear()
                call(home / "net", home / file, effort="fast", **settings)
                assert [r.levelname for r in caplog.records if r.getMessage() == RAW] == ["WARNING"] * times

    def test_not_of_arrays(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        mxq.calibrate(home / "net", home / "x.npy")
        assert RAW not in caplog.messages

    def test_partitions(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        mxq.Partitions.images(home / "pictures", preprocess=Preprocess(mean=(128,)))
        mxq.Partitions.images(home / "x.npy")
        assert caplog.messages == []
        mxq.Partitions.images(home / "pictures")
        assert caplog.messages == [RAW]


def test_a_pair_written_over_a_float_one_of_a_later_epoch(home: Path, tmp_path: Path) -> None:
    """Its own parameters are read, not the float ones, which are the latest."""
    write_pair(load_model(home / "net"), tmp_path / "net")
    (tmp_path / "net-0000.params").rename(tmp_path / "net-0003.params")
    made = mxq.quantize_net(tmp_path / "net", X)
    mxq.save(made, tmp_path / "net")
    found, wanted = load_model(tmp_path / "net"), load_model(made)
    assert all(np.array_equal(found.args[name], value) for name, value in wanted.args.items())
    assert not np.array_equal(load_model(tmp_path / "net", epoch=3).args["fc0_weight"], found.args["fc0_weight"])


class TestSides:
    """Which of two networks is the float one."""

    @pytest.fixture(scope="class")
    @classmethod
    def int8(cls, home: Path) -> Path:
        mxq.save(mxq.quantize_net(home / "net", X), home / "q")
        return home / "q"

    @pytest.mark.parametrize("name", ["verify", "bench"])
    def test_swapped(self, home: Path, int8: Path, name: str) -> None:
        data = ("--data", home / "x.npy") if name == "verify" else ("--shape", "3,8,8")
        said = command(name, int8, home / "net", *data, code=2).stderr
        assert f"{int8}, given as the float network, is quantized, and {home / 'net'} is float" in said
        assert f"give {home / 'net'} {int8}" in " ".join(said.split())
        assert "mxq compare" in command(name, int8, int8, *data, code=2).stderr

    def test_made_from_another(self, home: Path, int8: Path, tmp_path: Path) -> None:
        model = load_model(home / "net")
        write_pair(replace(model, args={**model.args, "fc0_bias": model.args["fc0_bias"] + 1}), tmp_path / "net")
        data = ("--data", home / "x.npy", "--num-examples", "8")
        assert "was not made from" not in command("verify", home / "net", int8, *data).stderr
        said = command("verify", tmp_path / "net", int8, *data).stderr
        assert f"mxq: {int8} was not made from {tmp_path / 'net'}: its record names a float network" in said
        said = command("compare", int8, int8, *data, "--float", tmp_path / "net").stderr
        assert "was not made from" in said

    def test_two_float_ones(self, home: Path, tmp_path: Path) -> None:
        write_pair(load_model(home / "net"), tmp_path / "net")
        data = ("--data", home / "x.npy", "--num-examples", "8")
        said = command("verify", home / "net", tmp_path / "net", *data).stderr
        assert f"mxq: {tmp_path / 'net'}, given as the int8 network, is float" in said


class TestPlot:
    """What stands out is what the network has, what was asked for, or neither is claimed."""

    @pytest.fixture(scope="class")
    @classmethod
    def stats(cls, home: Path) -> Path:
        mxq.calibrate(home / "net", X, stats=home / "s.npz")
        return home / "s.npz"

    def marks(self, *args: object) -> dict[str, str]:
        found = json.loads(command("plot", *args, "--json").stdout)["calibrators"]
        return {name: line["mark"] for name, line in found.items() if line["mark"]}

    def test_nothing_is_known(self, stats: Path, tmp_path: Path) -> None:
        found = self.marks(stats, "--tensor", "relu0", "--out", tmp_path / "p.png")
        assert list(found.values()) == ["least expected error"]

    def test_asked_for(self, stats: Path, tmp_path: Path) -> None:
        options = ("--tensor", "relu0", "--out", tmp_path / "p.png", "--calib-mode", "entropy")
        assert self.marks(stats, *options) == {"entropy": "chosen"}

    def test_of_a_network(self, home: Path, stats: Path, tmp_path: Path) -> None:
        block = mxq.quantize_net(home / "net", statistics=stats, calib_mode="percentile:99", effort="fast")
        mxq.save(block, tmp_path / "q")
        options = (stats, "--tensor", "relu0", "--out", tmp_path / "p.png")
        shown = json.loads(command("plot", *options, "--network", tmp_path / "q", "--json").stdout)["calibrators"]
        used = block.mxq_report.thresholds["tensors"]["relu0"]["range"]
        assert shown["the network's"] == {**used, "mark": "used"}
        assert [name for name, line in shown.items() if line["mark"]] == ["the network's"]
        for network in (tmp_path / "q", block):
            assert mxq.plot(stats, "relu0", tmp_path / "p.svg", network=network).is_file()
            assert "(used)" in (tmp_path / "p.svg").read_text()

    def test_refuses(self, home: Path, stats: Path, tmp_path: Path) -> None:
        block = mxq.quantize_net(home / "net", X)
        rescaled = block.mxq_report.thresholds["tensors"]["relu0"]
        rescaled |= {"observed": None, "note": "its channels are scaled to share it"}
        for network, options, says in (
            (block, {}, "is of other values than the statistics': its channels are scaled"),
            (block, {"calib_mode": "naive"}, "allowed: one of them"),
            ("a block", {}, "a block-mxq.json does not exist"),
            (X, {}, "plot got a ndarray without a report"),
        ):
            with pytest.raises(mxq.MxqError, match=says):
                mxq.plot(stats, "relu0", tmp_path / "p.png", network=network, **options)


class TestEvaluate:
    @pytest.mark.parametrize("form", ["npz", "npz by path"])
    def test_accuracy(self, home: Path, form: str) -> None:
        file, data, _, _ = AS_FILES[form]
        shown = json.loads(command("evaluate", home / "net", "--data", home / file, "--json").stdout)
        found = mxq.evaluate(home / "net", data(home))
        assert shown == found.to_json()

    def test_pictures_are_read_as_the_record_says(self, home: Path, tmp_path: Path) -> None:
        """In another folder than the float network's, without its preprocess.json, and from Python."""
        options = ("--data", home / "pictures", *SETTINGS)
        for dtype in ("float32", "int8"):
            out = tmp_path / dtype
            command("quantize", home / "net", *options, "--input-dtype", dtype, "--out", out)
            (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i:03}.png,{i % 10}\n" for i in range(9)))
            labels = ("--labels", tmp_path / "labels.csv")
            wanted = command("evaluate", out, *options, *labels, "--json").stdout
            shown = command("evaluate", out, "--data", home / "pictures", *labels, "--json")
            assert shown.stdout == wanted
            assert f"pictures are prepared as the record of {out} says" in shown.stderr
            for net in (out, mxq.load(out)):
                found = mxq.evaluate(net, home / "pictures", labels=tmp_path / "labels.csv")
                assert found.to_json() == json.loads(wanted)


def test_a_partition_is_read_as_integers_where_the_network_takes_them(home: Path, tmp_path: Path) -> None:
    settings = Preprocess(mean=(128,), std=(40,))
    options = ("--data", home / "pictures", *SETTINGS, "--input-dtype", "int8")
    command("quantize", home / "net", *options, "--out", tmp_path / "q")
    transform = mxq.data.transform_for(tmp_path / "q")
    load = mxq.Partitions.images(home / "pictures", preprocess=settings, labels=home / "labels.csv").load
    (first, labels), *_ = AsIntegers(load, transform)((0, HELD))
    assert (first.dtype, labels.shape) == (np.int8, (32,))
    np.testing.assert_array_equal(first[0], transform(home / "pictures" / "000.png"))


class TestInterrupted:
    """Ctrl-C: exit code 130, no traceback, no result, and nothing half-written."""

    STOPPED: ClassVar[dict[str, tuple[str, tuple[object, ...]]]] = {
        "quantize": ("mxq.artifacts.pair.write", ("{home}/net", "--data", "{home}/x.npy", "--out", "{out}/q")),
        "calibrate": (
            "mxq.storage.writing.write_json",
            ("{home}/net", "--data", "{home}/x.npy", "--out", "{out}/t.json"),
        ),
        "plot": ("mxq.reporting.plots.figure", ("{home}/s.npz", "--tensor", "relu0", "--out", "{out}/p.png")),
        "merge-stats": (
            "mxq.calibration.statistics.merge",
            ("{home}/s.npz", "{home}/net-symbol.json", "--out", "{out}/m.npz"),
        ),
        "inspect": ("mxq.workflow.inspect", ("{home}/net",)),
        "explain": ("mxq.workflow.inspect", ("{home}/net", "--node", "fc0")),
        "verify": ("mxq.verification.verify", ("{home}/net", "{home}/net", "--data", "{home}/x.npy")),
        "evaluate": ("mxq.distributed.evaluate", ("{home}/net", "--data", "{home}/x.npz")),
        "bench": ("mxq.bench.timing.bench", ("{home}/net", "--shape", "3,8,8")),
        "sensitivity": ("mxq.pipeline.calibrate", ("{home}/net", "--data", "{home}/x.npy")),
        "tune": ("mxq.pipeline.calibrate", ("{home}/net", "--data", "{home}/x.npy", "--workdir", "{out}")),
        "doctor": ("mxq.host.environment.advice", ()),
    }

    @pytest.mark.parametrize("flags", [(), ("--json",)], ids=["tables", "json"])
    @pytest.mark.parametrize("name", STOPPED)
    def test_any_command(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...]
    ) -> None:
        if not (home / "s.npz").exists():
            mxq.calibrate(home / "net", X, stats=home / "s.npz")

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        where, args = self.STOPPED[name]
        monkeypatch.setattr(where, stop)
        if name == "merge-stats":
            monkeypatch.setattr(Statistics, "load", lambda _: Statistics())
        out = tmp_path / "out"
        out.mkdir()
        done = command(name, *(str(a).format(home=home, out=out) for a in args), *flags, code=130)
        assert done.stdout == ""
        assert "Traceback" not in done.output
        assert not [f for f in out.iterdir() if not f.name.endswith(".jsonl")]

    def test_within_text_that_python_runs(self) -> None:
        """As MXNet's import does: Python would end by the signal, whatever the exit code."""
        done = fresh_python(
            "import sys; from mxq.cli import inspect, main\n"
            "def stop(*_): exec('raise KeyboardInterrupt')\n"
            "inspect.inspected = stop; sys.argv = ['mxq', 'inspect', 'net']; main()"
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "mxq: interrupted; nothing was kept\n")
