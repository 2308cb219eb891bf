"""Results print as the command line shows them, and both doors answer alike: inspect, explain, verify, compare, ..."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import RESIDUAL, build
from helpers import fresh_python
from typer.testing import CliRunner

from mxq.artifacts import record
from mxq.bench.timing import Benchmark
from mxq.cli import app
from mxq.quant.plan import Decision, Plan, Report
from mxq.reporting.plain import WIDTH, plain
from mxq.runtime import load_model, to_arrays, to_symbol, write_pair

SIDE, HELD, CLASSES = 8, 24, 10
X = np.random.default_rng(0).standard_normal((HELD, 3, SIDE, SIDE)).astype(np.float32)
LABELS = np.arange(HELD) % CLASSES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network "net" and two int8 forms of it, "a" and "b", with data. Do not write there."""
    where = tmp_path_factory.mktemp("doors")
    write_pair(build(*RESIDUAL, data=(1, 3, SIDE, SIDE)), where / "net")
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


def data_of(*args: object, code: int = 0) -> Any:
    return json.loads(run(*args, "--json", code=code))


class TestInspect:
    def test_quantized(self, home: Path) -> None:
        found = mxq.inspect(home / "a")
        assert str(found) == printed("inspect", home / "a")
        assert found.to_json() == data_of("inspect", home / "a")
        assert (found.written, found.problems) == (True, ())
        assert "float (1" not in str(found)

    def test_float(self, home: Path) -> None:
        found = mxq.inspect(str(home / "net"), exclude_operators="FullyConnected")
        asked = ("inspect", home / "net", "--exclude-op", "FullyConnected")
        assert str(found) == printed(*asked)
        assert found.to_json() == data_of(*asked)
        assert not found.written
        assert not found.report.plan["fc0"].int8

    def test_a_file_that_has_changed(self, home: Path, tmp_path: Path) -> None:
        for file in home.glob("a-*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        with (tmp_path / "a-0000.params").open("ab") as stream:
            stream.write(b"x")
        found = mxq.inspect(tmp_path / "a")
        assert found.to_json() == data_of("inspect", tmp_path / "a", code=1)
        assert [problem.problem for problem in found.problems] == ["changed"]

    @pytest.mark.parametrize("form", ["block", "model", "symbol"])
    def test_in_memory(self, home: Path, form: str) -> None:
        """The same decisions as from the files; nothing is known of files."""
        model = load_model(home / "net")
        symbol = to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)
        net: Any = {"block": lambda: mxq.load(home / "a"), "model": lambda: mxq.quantize_model(*symbol, X),
                    "symbol": lambda: symbol}[form]()  # fmt: skip
        found = mxq.inspect(net)
        assert found.written is (form != "symbol")
        wanted = mxq.inspect(home / ("net" if form == "symbol" else "a"))
        assert found.report.plan.decisions == wanted.report.plan.decisions
        assert (found.network, found.bytes) == (type(net).__name__, {})
        assert "size" not in str(found)

    def test_int8_without_a_record(self, home: Path, tmp_path: Path) -> None:
        for end in ("-symbol.json", "-0000.params"):
            (tmp_path / f"a{end}").write_bytes((home / f"a{end}").read_bytes())
        with pytest.raises(mxq.QuantizeError, match=r"has no record a-mxq\.json beside it"):
            mxq.inspect(tmp_path / "a")
        with pytest.raises(mxq.QuantizeError):
            mxq.inspect(mxq.load(tmp_path / "a"))


class TestExplain:
    @pytest.mark.parametrize(("net", "node"), [("a", "conv0"), ("b", "fc0"), ("net", "relu1")])
    def test_as_the_command(self, home: Path, net: str, node: str) -> None:
        found = mxq.explain(home / net, node)
        assert str(found) == printed("explain", home / net, "--node", node)
        assert data_of("explain", home / net, "--node", node)["decision"]["node"] == found.decision.node

    def test_of_a_block(self, home: Path) -> None:
        assert str(mxq.explain(mxq.load(home / "a"), "conv0")) == str(mxq.explain(home / "a", "conv0"))

    def test_unknown(self, home: Path) -> None:
        with pytest.raises(mxq.ConfigError, match="no operator is named 'convo'; close ones: "):
            mxq.explain(home / "a", "convo")


class TestVerify:
    @pytest.mark.parametrize("layers", [False, True])
    def test_as_the_command(self, home: Path, layers: bool) -> None:
        found = mxq.verify(home / "net", home / "a", home / "x.npz", layers=layers)
        asked = ("verify", home / "net", home / "a", "--data", home / "x.npz", *(["--layers"] if layers else []))
        assert str(found) == printed(*asked)
        assert {**found.to_json(), "failures": []} == data_of(*asked)
        assert found.accuracy is not None
        assert bool(found.layers) is layers

    FORMS = ("path", "array", "tuple", "apart", "dictionary", "batches", "generator", "loader", "iterator")

    @pytest.mark.parametrize("form", FORMS)
    def test_forms_of_data(self, home: Path, form: str) -> None:
        batches = [(X[i : i + 8], LABELS[i : i + 8]) for i in range(0, HELD, 8)]
        options = {"labels": LABELS} if form == "apart" else {}
        data: Any = {
            "path": lambda: home / "x.npz",
            "array": lambda: X,
            "tuple": lambda: (X, LABELS),
            "apart": lambda: mx.nd.array(X),
            "dictionary": lambda: {"data": X, "label": LABELS},
            "batches": lambda: batches,
            "generator": lambda: iter(batches),
            "loader": lambda: mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(X, LABELS), 8),
            "iterator": lambda: mx.io.NDArrayIter(X, LABELS.astype(np.float32), 10),
        }[form]()
        found = mxq.verify(home / "net", home / "a", data, **options)
        wanted = mxq.verify(home / "net", home / "a", home / "x.npz")
        assert found.examples == HELD
        assert found.sqnr == pytest.approx(wanted.sqnr, rel=0, abs=1e-4)
        assert found.accuracy == (None if form == "array" else wanted.accuracy)

    def test_blocks(self, home: Path) -> None:
        found = mxq.verify(mxq.load(home / "net"), mxq.load(home / "a"), X)
        assert found == mxq.verify(home / "net", home / "a", X)
        assert found == mxq.verify(home / "net", home / "int", X)  # which is fed the codes of X
        assert found == mxq.verify(home / "net", mxq.load(home / "int"), X)

    def test_part_of_a_path(self, home: Path) -> None:
        found = mxq.verify(home / "net", home / "a", home / "x.npz", num_examples=6)
        assert found.to_json() | {"failures": []} == data_of(
            "verify", home / "net", home / "a", "--data", home / "x.npz", "--num-examples", 6
        )
        with pytest.raises(mxq.ConfigError, match="num_examples is 6 beside a ndarray; allowed: beside a path"):
            mxq.verify(home / "net", home / "a", X, num_examples=6)

    def test_labels(self, home: Path) -> None:
        with pytest.raises(mxq.DataError, match="there are 3 labels but more examples"):
            mxq.verify(home / "net", home / "a", X, labels=LABELS[:3])
        with pytest.raises(mxq.DataError, match="label 10 in a network of 10 classes"):
            mxq.verify(home / "net", home / "a", X, labels=LABELS + 1)
        assert mxq.verify(home / "net", home / "a", X, labels=np.zeros((HELD, 2, 5))).accuracy is None  # boxes

    def test_the_wrong_way_round(self, home: Path) -> None:
        with pytest.raises(
            mxq.ConfigError, match="the QuantizedBlock, given as the float network, is quantized, and the Quan"
        ):
            mxq.verify(mxq.load(home / "a"), mxq.load(home / "net"), X)

    def test_made_from_another(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        model = load_model(home / "net")
        other = replace(model, args={**model.args, "fc0_bias": model.args["fc0_bias"] + 1})
        symbol = to_symbol(other.graph), to_arrays(other.args), to_arrays(other.auxs)
        mxq.verify(symbol, mxq.load(home / "a"), X)
        assert "the QuantizedBlock was not made from the tuple" in caplog.text


class TestCompare:
    def test_without_data(self, home: Path) -> None:
        found = mxq.compare(home / "a", home / "b")
        assert str(found) == printed("compare", home / "a", home / "b")
        assert found.to_json() == data_of("compare", home / "a", home / "b")
        assert [d.node for d in found.differences.decisions] == ["fc0"]

    def test_on_data(self, home: Path) -> None:
        found = mxq.compare(home / "a", home / "b", home / "x.npz", float_net=home / "net")
        asked = ("compare", home / "a", home / "b", "--data", home / "x.npz", "--float", home / "net")
        assert str(found) == printed(*asked)
        assert found.to_json() == data_of(*asked)
        assert list(found.runs) == ["float_a", "float_b", "a_b"]

    def test_blocks_and_a_generator(self, home: Path) -> None:
        """Which is read once for each pair of networks."""
        data = iter([X[:10], X[10:]])
        found = mxq.compare(mxq.load(home / "a"), mxq.load(home / "int"), data, float_net=mxq.load(home / "net"))
        assert {name: run.examples for name, run in found.runs.items()} == dict.fromkeys(found.runs, HELD)
        assert found.runs["a_b"].sqnr == math.inf

    def test_a_reference_needs_data(self, home: Path) -> None:
        with pytest.raises(mxq.ConfigError, match="float_net is given without data"):
            mxq.compare(home / "a", home / "b", float_net=home / "net")


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
            "import sys, mxq; from mxq.artifacts import record\n"
            f"print(record.read({str(home / 'a')!r})); print(mxq.Thresholds()); assert 'mxnet' not in sys.modules"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("network      quantized by mxq ")

    def test_what_nobody_knows(self) -> None:
        with pytest.raises(TypeError, match="nothing is known of how to show a Benchmark"):
            plain(Benchmark.__new__(Benchmark))
