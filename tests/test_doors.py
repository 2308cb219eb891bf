"""Results print as the command line shows them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import bn, build, conv, fc
from helpers import fresh_python
from typer.testing import CliRunner

from mxq.bench import Benchmark
from mxq.cli import app
from mxq.plan import Decision, Plan, Report
from mxq.report import record
from mxq.report.plain import WIDTH, plain
from mxq.runtime import write_pair

SIDE, HELD, CLASSES = 8, 24, 10
X = np.random.default_rng(0).standard_normal((HELD, 3, SIDE, SIDE)).astype(np.float32)
LABELS = np.arange(HELD) % CLASSES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network "net" and two int8 forms of it, "a" and "b", with data. Do not write there."""
    where = tmp_path_factory.mktemp("doors")
    net = build(
        conv("conv0", "data"),
        bn("bn0", "conv0"),
        'relu0 = Activation(bn0) act_type="relu"',
        conv("conv1", "relu0"),
        "sum = elemwise_add(conv1, relu0)",
        'relu1 = Activation(sum) act_type="relu"',
        fc("fc0", "relu1"),
        "return fc0",
        data=(1, 3, SIDE, SIDE),
    )
    write_pair(net, where / "net")
    mxq.save(mxq.quantize_net(where / "net", X), where / "a")
    mxq.save(mxq.quantize_net(where / "net", X, calib_mode="mse", exclude_layers="fc0"), where / "b")
    mxq.save(mxq.quantize_net(where / "net", X, input_dtype="int8"), where / "int")
    np.save(where / "x.npy", X)
    np.savez(where / "x.npz", data=X, label=LABELS)
    return where


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout


def printed(*args: object, code: int = 0) -> str:
    """What a command prints, without spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in run(*args, code=code).rstrip().splitlines())


class TestShown:
    def test_a_report(self, home: Path) -> None:
        """As `mxq inspect`, but for the name and the size of files, which it does not know."""
        report = mxq.load(home / "a").mxq_report
        lines = printed("inspect", home / "a").splitlines()
        first, *rest = str(report).splitlines()
        assert first.startswith("network      quantized by mxq ")
        start = next(i for i, line in enumerate(lines) if line.startswith("operators"))
        assert rest == [line for line in lines[start:] if line.strip()[:4] not in ("size", "a-sy")]
        assert repr(report).startswith("Report(plan=Plan(")

    def test_what_would_be_decided(self) -> None:
        plan = Plan((Decision("fc", "FullyConnected", ("fc",), int8=False, reason="why [not]"),))
        text = str(Report(plan))
        assert "float; this is what quantizing would do" in text
        assert "why [not]" in text

    def test_thresholds(self, home: Path) -> None:
        found = mxq.calibrate(home / "net", X)
        assert printed("calibrate", home / "net", "--data", home / "x.npy").startswith(str(found))
        assert "relu0" in str(found)
        assert repr(found).startswith("Thresholds(table=")

    def test_evaluate(self, home: Path) -> None:
        found = mxq.evaluate(home / "a", home / "x.npz")
        assert str(found) == printed("evaluate", home / "a", "--data", home / "x.npz")

    def test_sensitivity(self, home: Path) -> None:
        found = mxq.sensitivity(home / "net", home / "x.npz")
        assert str(found) == printed("sensitivity", home / "net", "--data", home / "x.npz")

    def test_tune(self, home: Path, tmp_path: Path) -> None:
        """A search that was ended is read from its folder by both."""
        found = mxq.tune(home / "net", home / "x.npz", max_drop=1.0, workdir=tmp_path)
        asked = ("tune", home / "net", "--data", home / "x.npz", "--max-drop", 1.0, "--workdir", tmp_path)
        assert str(found) == printed(*asked)
        assert isinstance(found.block, mxq.QuantizedBlock)

    def test_no_escapes_and_no_markup(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        odd = Decision("a\x1b[31m[bold]b", "Concat", (), int8=False, reason="[red]:smile: " + "long " * 15)
        text = str(Report(Plan((odd,))))
        assert "\x1b" not in text
        assert r"a\x1b[31m[bold]b" in text
        assert "[red]:smile:" in text

    def test_width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        text = str(Report(Plan((Decision("a", "Concat", (), int8=False, reason="long " * 40),))))
        assert 90 < max(map(len, text.splitlines())) <= WIDTH
        assert not any(line.endswith(" ") for line in text.splitlines())

    def test_results_can_still_be_copied_and_pickled(self, home: Path) -> None:
        report = record.read(home / "a")
        for found in (report, record.explained(report, "conv0")):
            for again in (copy.copy(found), pickle.loads(pickle.dumps(found))):
                assert (again, str(again), repr(again)) == (found, str(found), repr(found))

    def test_without_mxnet(self, home: Path) -> None:
        """A record is printed without MXNet, which takes a second to import."""
        done = fresh_python(
            "import sys, mxq; from mxq.report import record\n"
            f"print(record.read({str(home / 'a')!r})); print(mxq.Thresholds()); assert 'mxnet' not in sys.modules"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("network      quantized by mxq ")

    def test_what_nobody_knows(self) -> None:
        with pytest.raises(TypeError, match="nothing is known of how to show a Benchmark"):
            plain(Benchmark.__new__(Benchmark))
