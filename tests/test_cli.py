"""The command ``mxq``, on a network of a few layers made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from mxq import refine, workflow
from mxq.artifacts import record
from mxq.bench.processes import Job
from mxq.bench.sweep_result import Reading, Setup
from mxq.calibration.statistics import Statistics
from mxq.cli import app
from mxq.cli.app import ORDER
from mxq.config import QuantConfig
from mxq.data.examples import open_source
from mxq.data.preprocess import Preprocess
from mxq.errors import RuntimeFailure
from mxq.host import machine
from mxq.host.machine import Machine
from mxq.storage import locks

CLASSES = 7
SIDE = 16


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of one width, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a float network "tiny" and 40 pictures with labels."""
    import mxnet as mx

    where = tmp_path_factory.mktemp("nets")
    mx.random.seed(1)
    x = mx.sym.var("data")
    for i, width in enumerate((8, 16)):
        x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=width, name=f"conv{i}")
        x = mx.sym.BatchNorm(x, fix_gamma=False, name=f"bn{i}")
        x = mx.sym.Activation(x, act_type="relu", name=f"relu{i}")
    x = mx.sym.Pooling(x, global_pool=True, pool_type="avg", kernel=(1, 1), name="pool")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x, name="flat"), num_hidden=CLASSES, name="fc")
    net = mx.sym.softmax(x, name="prob")
    shapes, _, aux_shapes = net.infer_shape(data=(1, 3, SIDE, SIDE))
    values = {
        f"arg:{n}": mx.nd.random.normal(0, 0.3, s)
        for n, s in zip(net.list_arguments(), shapes, strict=True)
        if n != "data"
    }
    values |= {f"aux:{n}": mx.nd.ones(s) for n, s in zip(net.list_auxiliary_states(), aux_shapes, strict=True)}
    net.save(str(where / "tiny-symbol.json"))
    mx.nd.save(str(where / "tiny-0000.params"), values)

    pictures = where / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,label"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(pictures / f"{i:02}.png")
        rows.append(f"{i:02}.png,{i % CLASSES}")
    (pictures / "labels.csv").write_text("\n".join(rows) + "\n")
    return where


PICTURES = ("--mean", "127", "--std", "60", "--crop", str(SIDE))


def run(*args: object, code: int = 0) -> Any:
    """Runs ``mxq`` with ``args``; the exit code has to be ``code``."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def data_of(*args: object, code: int = 0) -> Any:
    """What ``mxq ... --json`` prints; it must be one document and nothing else."""
    return json.loads(run(*args, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def int8(nets: Path) -> Path:
    """The network, quantized."""
    out = nets / "tiny-int8"
    result = run("quantize", nets / "tiny", "--data", nets / "pictures", "--out", out, *PICTURES)
    assert "calibrating on 32 of 40 images" in result.stderr
    assert "4 int8 (2 conv+act" in result.stdout
    return out


class TestQuantize:
    def test_writes_a_pair_and_its_record(self, int8: Path) -> None:
        assert sorted(p.name for p in int8.parent.glob("tiny-int8*")) == [
            "tiny-int8-0000.params", "tiny-int8-mxq.json", "tiny-int8-symbol.json",
        ]  # fmt: skip
        assert record.check(int8) == ()
        assert record.read(int8).plan.quantized == {"relu0", "relu1", "flat", "fc"}

    def test_json(self, nets: Path, tmp_path: Path) -> None:
        found = data_of(
            "quantize", nets / "tiny", "--data", nets / "pictures", "--out", tmp_path / "q", *PICTURES,
            "--exclude", "conv0", "--calib-mode", "entropy", "--num-calib-examples", "50%", "--batch-size", "7",
        )  # fmt: skip
        assert found["format"] == record.FORMAT
        assert [Path(f).name for f in found["files"]] == ["q-symbol.json", "q-0000.params", "q-mxq.json"]
        assert found["summary"]["calibration_examples"] == 20
        assert found["config"]["calib_mode"] == "entropy"
        decisions = {d["node"]: d for d in found["decisions"]}
        assert not decisions["relu0"]["int8"]
        assert "exclude_layers 'conv0'" in decisions["relu0"]["reason"]
        written = json.loads((tmp_path / "q-mxq.json").read_text())
        assert {k: v for k, v in found.items() if k in written} | {"files": written["files"]} == written

    def test_without_data(self, nets: Path, tmp_path: Path) -> None:
        run("quantize", nets / "tiny", "--out", tmp_path / "q", "--calib-mode", "none")
        assert record.read(tmp_path / "q").config["calib_mode"] == "none"

    def test_completed_names_mean_their_prefix(self, nets: Path, tmp_path: Path) -> None:
        run("quantize", nets / "tiny-symbol.json", "--out", tmp_path / "q-0000.params", "--calib-mode", "none")
        assert (tmp_path / "q-symbol.json").is_file()

    def test_preprocess_beside_the_network_is_used_and_can_be_overruled(self, nets: Path, tmp_path: Path) -> None:
        for end in ("-symbol.json", "-0000.params"):
            (tmp_path / f"tiny{end}").write_bytes((nets / f"tiny{end}").read_bytes())
        (tmp_path / "preprocess.json").write_text('{"mean": 127, "std": 60, "resize": 16}')
        common = ("quantize", tmp_path / "tiny", "--data", nets / "pictures", "--num-calib-examples", "8")
        result = run(*common, "--out", tmp_path / "a")
        assert f"pictures are prepared by {tmp_path / 'preprocess.json'}" in result.stderr
        run(*common, "--out", tmp_path / "b", "--std", "30", "--crop", "16x16")
        ranges = [record.read(tmp_path / n).tensors["data_quantize"].max for n in "ab"]
        assert ranges[1] == pytest.approx(2 * 128 / 60, rel=0.05, abs=0)
        assert ranges[0] is not None
        assert ranges[0] < 1.1 * 128 / 60

    def test_warns_of_a_short_data_set(self, nets: Path, tmp_path: Path) -> None:
        run(
            "quantize",
            nets / "tiny",
            "--data",
            nets / "pictures",
            "--out",
            tmp_path / "q",
            *PICTURES,
            "--num-calib-examples",
            "500",
        )
        assert record.read(tmp_path / "q").summary["calibration_examples"] == 40

    def test_effort_and_target_by_default(self, int8: Path) -> None:
        found = record.read(int8)
        assert (found.config["effort"], found.config["target"]) == ("default", "native")
        assert found.target == machine.resolve_target("native", machine.detect())
        assert {(w.rounding, w.bias_correction) for w in found.weights.values()} == {("reconstruction", "empirical")}
        assert found.summary["warnings"] == []

    @pytest.mark.parametrize(
        ("options", "rounding", "bias"),
        [
            (("--effort", "fast"), None, None),
            (("--effort", "fast", "--bias-correction", "empirical"), "nearest", "empirical"),
            (("--rounding", "nearest", "--no-equalize", "--range-choice", "tensor"), "nearest", "empirical"),
        ],
    )
    def test_methods(
        self, nets: Path, tmp_path: Path, options: tuple[str, ...], rounding: str | None, bias: str | None
    ) -> None:
        common = ("quantize", nets / "tiny", "--data", nets / "pictures", *PICTURES, "--num-calib-examples", "8")
        found = data_of(*common, "--out", tmp_path / "q", "--target", "avx512_vnni", *options)
        assert found["target"] == found["config"]["target"] == "avx512_vnni"
        layers = [w for w in found["weights"].values() if w["observer"] == "layer"]
        expected = set() if rounding is None else {(rounding, bias)}
        assert {(w["rounding"], w["bias_correction"]) for w in layers} == expected
        given = (found["config"]["equalize"], found["config"]["range_choice"])
        assert given == ((False, "tensor") if "--no-equalize" in options else (None, None))

    def test_a_recipe_has_effort_and_target_and_options_go_on_top(self, nets: Path, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_text("format: mxq-recipe/1\neffort: fast\ntarget: avx2\nequalize: true\n")
        common = ("quantize", nets / "tiny", "--data", nets / "pictures", *PICTURES, "--num-calib-examples", "8")
        recipe = ("--recipe", tmp_path / "r.yaml", "--target", "avx512", "--no-equalize")
        text = " ".join(run(*common, "--out", tmp_path / "q", *recipe).stdout.split())
        assert "target avx512 " in text
        config = record.read(tmp_path / "q").config
        assert (config["effort"], config["target"], config["equalize"]) == ("fast", "avx512", False)

    @pytest.mark.parametrize("flags", [(), ("--json",)])
    def test_says_where_there_is_no_data_to_look_at(self, nets: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
        stats = tmp_path / "s.npz"
        run("calibrate", nets / "tiny", "--data", nets / "pictures", *PICTURES, "--stats", stats)
        common = ("quantize", nets / "tiny", "--stats", stats, "--out", tmp_path / "q", *flags)
        assert "mxq: weights are rounded to the nearest code" in run(*common).stderr
        assert "nearest" not in run(*common, "--effort", "fast").stderr
        with_data = run(*common, "--data", nets / "pictures", *PICTURES)
        assert "nearest" not in with_data.stderr

    def test_what_is_looked_at_again_is_spread_over_the_folder(
        self, nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(refine.EXAMPLES, "default", 4)
        seen = []
        at = refine.CalibrationSubset.at

        def spied(*args: Any) -> Any:
            looked = at(*args)
            seen.extend(looked.feeds)
            return looked

        monkeypatch.setattr(refine.CalibrationSubset, "at", staticmethod(spied))
        common = ("quantize", nets / "tiny", "--data", nets / "pictures", *PICTURES, "--out", tmp_path / "q")
        run(*common, "--num-calib-examples", "8")
        source = open_source(nets / "pictures", ("data",), Preprocess(mean=[127], std=[60], crop=[SIDE, SIDE]))
        wanted = source.read([0, 10, 20, 30])["data"]
        assert np.array_equal(np.concatenate([feed["data"] for feed in seen]), wanted)


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("inspect", "nowhere"), "nowhere-symbol.json"),
            (("quantize", "{}/tiny", "--out", "{}/tiny", "--calib-mode", "none"), "choose another prefix"),
            (("quantize", "{}/tiny", "--out", "{}/x"), "--data is missing"),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--dtype", "int4", "--data", "{}"),
                "quantized_dtype is 'int4'; allowed: 'auto'",
            ),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--calib-mode", "magic"),
                "calib_mode is 'magic'; allowed",
            ),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--effort", "most"),
                "effort is 'most'; allowed: 'fast', 'default', 'best'",
            ),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--rounding", "up"),
                "rounding is 'up'; allowed: 'nearest', 'reconstruction'",
            ),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--bias-correction", "yes"),
                "bias_correction is 'yes'; allowed: 'none', 'analytic', 'empirical'",
            ),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--range-choice", "all"),
                "range_choice is 'all'; allowed: 'tensor', 'layer'",
            ),
            (
                ("tune", "{}/tiny", "--workdir", "{}/w", "--data", "{}/pictures", "--target", "arm"),
                "target is 'arm'; allowed: 'native', 'avx512_vnni'",
            ),
            (
                ("sensitivity", "{}/tiny", "--data", "{}/pictures", "--effort", "none"),
                "effort is 'none'; allowed: 'fast'",
            ),
            (("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/none"), "none does not exist"),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--crop", "a"),
                "--crop is 'a'; allowed",
            ),
            (("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--mean", "1,b"), "--mean is '1,b'"),
            (
                ("quantize", "{}/tiny", "--out", "{}/x", "--data", "{}/pictures", "--exclude", "conv9"),
                "'conv9' matches none",
            ),
            (("quantize", "{}/tiny", "--out", "{}/no/x", "--data", "{}/pictures"), "there is no folder"),
            (("bench", "{}/tiny"), "give --shape data=3,224,224"),
            (("bench", "{}/tiny", "--shape", "x=3"), "--shape is 'x=3'"),
            (("bench", "{}/tiny", "--shape", "9" * 5000), "--shape is '999"),
            (
                ("bench", "{}/tiny", "--shape", "3,999999999,999999999"),
                "of 'data' are 2,999,999,994,000,000,003 values",
            ),
            (("explain", "{}/tiny", "--node", "conv7"), "close ones: conv"),
        ],
    )
    def test_one_line_and_exit_code_2(self, nets: Path, args: tuple[str, ...], says: str) -> None:
        result = run(*(a.replace("{}", str(nets)) for a in args), code=2)
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("mxq: error: ")
        assert says in last
        assert result.stdout == ""
        assert "Traceback" not in result.output

    def test_debug_shows_where(self) -> None:
        for args in (["--debug", "inspect", "nowhere"], ["inspect", "nowhere", "--debug"]):
            result = CliRunner().invoke(app, args)
            assert type(result.exception).__name__ == "FormatError"

    def test_usage(self) -> None:
        assert "Missing" in run("quantize", code=2).stderr
        assert run("frobnicate", code=2).stdout == ""


class TestLooking:
    def test_inspect_what_was_written(self, int8: Path) -> None:
        text = run("inspect", int8).stdout
        assert "quantized by mxq" in text
        assert "calib_mode naive, 32 examples" in text
        for word in ("data_quantize", "relu0", "conv+act", "uint8", "0 .. ", "softmax", "tiny-int8-0000.params"):
            assert word in text

    def test_inspect_what_would_happen(self, nets: Path) -> None:
        text = run("inspect", nets / "tiny").stdout
        assert "this is what quantizing would do" in " ".join(text.split())
        assert "conv+act" in text
        found = data_of("inspect", nets / "tiny", "--exclude-op", "FullyConnected")
        assert not found["written"]
        int8 = {d["node"]: d["int8"] for d in found["decisions"]}
        assert (int8["relu0"], int8["fc"], int8["prob"]) == (True, False, False)

    def test_inspect_misses_the_record(self, int8: Path, tmp_path: Path) -> None:
        for end in ("-symbol.json", "-0000.params"):
            (tmp_path / f"lost{end}").write_bytes(int8.with_name(int8.name + end).read_bytes())
        assert "has no record lost-mxq.json beside it" in run("inspect", tmp_path / "lost", code=2).stderr

    def test_inspect_fails_when_a_file_has_changed(self, int8: Path, tmp_path: Path) -> None:
        for path in int8.parent.glob("tiny-int8*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        assert data_of("inspect", tmp_path / "tiny-int8")["problems"] == []
        with (tmp_path / "tiny-int8-0000.params").open("ab") as stream:
            stream.write(b"x")
        found = data_of("inspect", tmp_path / "tiny-int8", code=1)
        assert found["problems"] == [{"file": "tiny-int8-0000.params", "problem": "changed"}]
        assert "tiny-int8-0000.params has changed" in run("inspect", tmp_path / "tiny-int8", code=1).stderr
        doctor = run("doctor", tmp_path / "tiny-int8", code=1)
        assert "tiny-int8-0000.params has changed" in doctor.stdout
        assert "mxq: check failed: tiny-int8-0000.params has changed" in doctor.stderr
        assert any("has changed" in hint for hint in data_of("doctor", tmp_path / "tiny-int8", code=1)["advice"])

    @pytest.mark.parametrize("name", ["relu0", "conv0", "bn0", "quantized_relu0"])
    def test_explain_finds_a_node_by_any_of_its_names(self, int8: Path, name: str) -> None:
        found = data_of("explain", int8, "--node", name)
        assert found["decision"]["node"] == "relu0"
        assert found["decision"]["op"] == "Convolution+Activation"
        assert found["coded"]["dtype"] == "uint8"
        assert found["calibrated"]["observer"] == "naive"

    def test_explain_in_words(self, int8: Path, nets: Path) -> None:
        text = run("explain", int8, "--node", "conv0").stdout
        assert "conv0, bn0, relu0" in text
        assert "by naive over 32 examples" in text
        text = run("explain", nets / "tiny", "--node", "fc", "--exclude", "f*").stdout
        assert "excluded by exclude_layers 'f*'" in text
        assert "float" in text


class TestVerify:
    def test_tables(self, nets: Path, int8: Path) -> None:
        result = run(
            "verify", nets / "tiny", int8, "--data", nets / "pictures", *PICTURES, "--layers", "--min-sqnr", "15"
        )
        assert "comparing on 40 of 40 images" in result.stderr
        for word in ("same best class", "top-1", "top-5", "prob", "SQNR", "relu1", "noisiest"):
            assert word in result.stdout

    def test_json_and_bars(self, nets: Path, int8: Path) -> None:
        common = ("verify", nets / "tiny", int8, "--data", nets / "pictures", *PICTURES)
        found = data_of(*common, "--layers", "--num-examples", "10")
        assert found["examples"] == 10
        assert found["failures"] == []
        assert {layer["name"] for layer in found["layers"]} >= {"relu0", "relu1", "pool", "fc", "prob"}
        assert all(layer["sqnr"] > 20 for layer in found["layers"])
        assert found["accuracy"]["float_top1"] >= 0
        result = run(*common, "--min-sqnr", "90", code=1)
        assert "mxq: check failed: SQNR is" in result.stderr
        assert data_of(*common, "--min-sqnr", "90", code=1)["failures"]

    def test_a_network_against_itself(self, nets: Path) -> None:
        found = data_of(
            "verify", nets / "tiny", nets / "tiny", "--data", nets / "pictures", *PICTURES, "--min-agreement", "1"
        )
        assert (found["agreement"], found["sqnr"]) == (1.0, "inf")

    def test_arrays(self, nets: Path, int8: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 3, SIDE, SIDE)).astype(np.float32))
        found = data_of("verify", nets / "tiny", int8, "--data", tmp_path / "x.npy")
        assert (found["examples"], found["accuracy"]) == (5, None)


class TestBench:
    def test_three_networks_in_turn(self, nets: Path, int8: Path) -> None:
        found = data_of(
            "bench",
            nets / "tiny",
            int8,
            "--shape",
            f"3x{SIDE}x{SIDE}",
            "--batch-size",
            "2",
            "--repeats",
            "3",
            "--warmup",
            "1",
        )
        assert [t["name"] for t in found["timings"]] == ["fp32", "fp32 fused", "int8"]
        assert found["shapes"] == {"data": [2, 3, SIDE, SIDE]}
        assert (found["examples_per_call"], found["repeats"], found["base"]) == (2, 3, "fp32")
        assert all(t["median_ms"] > 0 for t in found["timings"])
        assert found["threads"] == os.environ["OMP_NUM_THREADS"]

    def test_the_shape_is_in_the_record(self, nets: Path, int8: Path) -> None:
        """What calibration saw; without a record, nothing says it."""
        rounds = ("--repeats", "1", "--warmup", "0")
        assert data_of("bench", nets / "tiny", int8, *rounds)["shapes"] == {"data": [1, 3, SIDE, SIDE]}
        assert "give --shape data=" in run("bench", nets / "tiny", *rounds, code=2).stderr

    def test_a_table(self, nets: Path) -> None:
        text = run("bench", nets / "tiny", "--shape", f"data=3,{SIDE},{SIDE}", "--repeats", "2", "--warmup", "0").stdout
        for word in ("fp32 fused", "vs fp32", f"data 1x3x{SIDE}x{SIDE}", "threads"):
            assert word in text


class TestSweep:
    def test_two_processes(self, nets: Path, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cpus = os.sched_getaffinity(0)
        monkeypatch.setattr("mxq.bench.sweep.setups", lambda machine: (Setup(1, ((min(cpus),), (max(cpus),))),))
        common = ("bench", nets / "tiny", int8, "--sweep", "--shape", f"3x{SIDE}x{SIDE}", "--warmup", "1")
        found = data_of(*common, "--batch-size", "2", "--batch-size", "1", "--seconds", "0.05")
        assert found["complete"]
        assert found["network"] == str(int8)
        assert found["shapes"] == {"data": [3, SIDE, SIDE]}
        assert [(r["instances"], r["batch_size"], r["problem"]) for r in found["rows"]] == [
            (2, 1, None), (2, 2, None),
        ]  # fmt: skip
        assert all(r["reading"]["median_ms"] > 0 and r["reading"]["calls"] >= 3 for r in found["rows"])
        assert found["best"]["latency"] is None
        first = f"OMP_NUM_THREADS=1 MXNET_CPU_PARALLEL_SIZE=2147483647 taskset -c {min(cpus)} python serve.py &"
        assert found["best"]["throughput"]["commands"][0] == first

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_table_and_what_to_type(self, nets: Path, monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
        def run_setup(job: Job, setup: Setup) -> Iterator[Reading]:
            if setup.instances > 1:
                raise KeyboardInterrupt if ended else RuntimeFailure("process on CPU 0: killed by SIGKILL")
            yield Reading(0.002, 0.0025, 500.0 / setup.threads, 100, 1)

        monkeypatch.setattr(Job, "run", run_setup)
        monkeypatch.setattr("mxq.host.machine.detect", lambda: Machine("", "", frozenset(), frozenset(), (0, 1), 2))
        command = ("bench", nets / "tiny", "--sweep", "--shape", f"3x{SIDE}x{SIDE}", "--batch-size", "1")
        done = run(*command, code=130 if ended else 0)
        assert "best latency and throughput" in done.stdout
        line = "OMP_NUM_THREADS=1 MXNET_CPU_PARALLEL_SIZE=2147483647 taskset -c 0 python serve.py"
        assert f"least latency, 2.00 ms at batch 1:\n  {line}\n" in done.stdout
        assert ("SIGKILL" in done.stdout) is not ended
        assert ("mxq: interrupted" in done.stderr) is ended

    def test_nothing_works(self, nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def run_setup(job: Job, setup: Setup) -> Iterator[Reading]:
            raise RuntimeFailure("process on CPU 0: no memory")
            yield

        monkeypatch.setattr(Job, "run", run_setup)
        done = run("bench", nets / "tiny", "--sweep", "--shape", f"3x{SIDE}x{SIDE}", code=2)
        assert "no combination could be timed: process on CPU 0: no memory" in done.stderr
        assert "missing-symbol.json" in run("bench", nets / "missing", "--sweep", "--shape", "3x4x4", code=2).stderr

    def test_several_batch_sizes_are_for_a_sweep(self, nets: Path) -> None:
        refused = run("bench", nets / "tiny", "--batch-size", "1", "--batch-size", "2", code=2)
        assert "--batch-size is given 2 times; allowed: once, or with --sweep" in refused.stderr


class TestDoctor:
    def test_says_what_there_is(self) -> None:
        text = run("doctor").stdout
        for word in ("CPU", "OMP_NUM_THREADS", "mxnet 1.9.1", "oneDNN"):
            assert word in text

    def test_json(self, int8: Path) -> None:
        found = data_of("doctor", int8)
        assert found["onednn"] is True
        assert found["threads"]["recommended"] >= 1
        assert found["machine"]["cores"] >= 1
        assert set(found["threads"]["variables"]) == {"OMP_NUM_THREADS", "MXNET_CPU_PARALLEL_SIZE"}

    @pytest.mark.parametrize(("flags", "warns"), [("avx2", True), ("avx2 avx_vnni", False)])
    def test_warns_where_the_network_is_for_another_cpu(
        self, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, warns: bool
    ) -> None:
        for path in int8.parent.glob(f"{int8.name}-*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        record = tmp_path / f"{int8.name}-mxq.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"target": "avx512_vnni"}))
        here = replace(machine.detect(), flags=frozenset(flags.split()), usable=frozenset(flags.split()))
        monkeypatch.setattr(machine, "detect", lambda: here)
        assert ("quantized for avx512_vnni" in " ".join(run("doctor", tmp_path / int8.name).stdout.split())) == warns


class TestCommand:
    def test_help_lists_the_commands_in_order_of_use(self) -> None:
        text = run("--help").stdout
        places = [text.index(f" {name} ", text.index("Commands")) for name in ORDER]
        assert places == sorted(places)
        assert {c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback} == set(ORDER)

    @pytest.mark.parametrize("name", ORDER)
    def test_each_command_has_help(self, name: str) -> None:
        assert "--json" in run(name, "--help").stdout

    @pytest.mark.parametrize("name", ["quantize", "tune", "draw"])
    def test_help_ends_with_the_exit_codes(self, name: str) -> None:
        assert "Exit codes: 0 all is well; 1 a check failed; 2 wrong usage" in " ".join(
            run(name, "--help").stdout.split()
        )

    def test_completion_is_offered(self) -> None:
        assert "--install-completion" in run("--help").stdout
        done = subprocess.run(
            [sys.executable, "-m", "mxq"],
            env={**os.environ, "_MXQ_COMPLETE": "complete_bash", "COMP_WORDS": "mxq quan", "COMP_CWORD": "1"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.stdout.split() == ["quantize"]

    def test_ctrl_c_says_that_nothing_was_kept(self, nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("mxq.workflow.draw", interrupted)
        found = CliRunner().invoke(app, ["draw", str(nets / "tiny"), "--out", "a.svg"])
        assert "mxq: interrupted; nothing was kept" in found.stderr
        assert found.exit_code == 130

    def test_where_there_is_no_terminal_lines_are_whole(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from mxq.cli.console import PIPED, show
        from mxq.reporting.tables import facts

        monkeypatch.delenv("COLUMNS")
        show(facts([("name", "x" * 150)]))
        assert "x" * 150 in capsys.readouterr().out
        monkeypatch.setenv("COLUMNS", "60")
        show(facts([("name", "x" * 150)]))
        assert capsys.readouterr().out.count("x") == 150
        assert PIPED > 150

    def test_version(self) -> None:
        from mxq.version import __version__

        assert run("--version").stdout == f"mxq {__version__}\n"

    def test_as_a_process(self, nets: Path, int8: Path) -> None:
        environ = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}

        def mxq(*args: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "mxq", *map(str, args)]
            return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)

        done = mxq("verify", nets / "tiny", int8, "--data", nets / "pictures", *PICTURES, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["examples"] == 40
        assert "OMP_NUM_THREADS=" in done.stderr
        failed = mxq("inspect", "nowhere")
        assert (failed.returncode, failed.stdout) == (2, "")
        assert failed.stderr.splitlines()[-1].startswith("mxq: error: ")

    @pytest.mark.parametrize(
        ("name", "extra"), [("export", "mxq[onnx]"), ("draw", "mxq[report]"), ("report", "mxq[report]")]
    )
    def test_help_names_the_extras_to_install(self, name: str, extra: str) -> None:
        assert f"({extra})" in " ".join(run(name, "--help").stdout.split())

    def test_help_does_not_import_mxnet(self) -> None:
        code = "import sys, mxq.cli; print([m for m in ('mxnet', 'scipy', 'PIL', 'tqdm') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == "[]"
        subprocess.run([sys.executable, "-m", "mxq", "--help"], capture_output=True, check=True, timeout=60)


class TestTuning:
    """What the options become; what is done with them is in test_tuning_sensitivity.py and test_tuning.py."""

    @pytest.mark.parametrize(
        ("args", "effort", "target"),
        [((), "fast", "native"), (("--effort", "best", "--target", "avx2"), "best", "avx2")],
    )
    def test_sensitivity_is_fast_by_default(
        self, nets: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], effort: str, target: str
    ) -> None:
        asked = self._asked(monkeypatch, "sensitivity", nets, *args)
        assert (asked.effort, asked.target) == (effort, target)

    def test_tune_takes_a_target(self, nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self._asked(monkeypatch, "tune", nets, "--workdir", tmp_path, "--target", "avx512")
        assert asked.target == "avx512"
        assert "--effort" not in run("tune", "--help").stdout

    @staticmethod
    def _asked(monkeypatch: pytest.MonkeyPatch, name: str, nets: Path, *args: object) -> QuantConfig:
        asked: list[QuantConfig] = []

        def stop(net: Path, given: workflow.Given, config: QuantConfig, *_: object, **__: object) -> None:
            asked.append(config)
            raise RuntimeFailure("enough")

        monkeypatch.setattr(workflow, name, stop)
        run(name, nets / "tiny", "--data", nets / "pictures", *PICTURES, *args, code=2)
        return asked[0]


class TestEvaluate:
    def test_accuracy_is_that_of_verify(self, nets: Path, int8: Path) -> None:
        data = ("--data", nets / "pictures", *PICTURES)
        both = data_of("verify", nets / "tiny", int8, *data)["accuracy"]
        for prefix, kind in ((nets / "tiny", "float"), (int8, "int8")):
            found = data_of("evaluate", prefix, *data)
            assert found["examples"] == 40
            assert found["metrics"] == {k: both[f"{kind}_{k}"] for k in ("top1", "top5")}
        assert "top1" in run("evaluate", int8, *data, "--num-examples", "10").stdout

    def test_no_labels(self, nets: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((4, 3, SIDE, SIDE), np.float32))
        refused = run("evaluate", nets / "tiny", "--data", tmp_path / "x.npy", code=2)
        assert "has no labels; allowed" in refused.stderr


def holds_batches(file: Path) -> bool:
    """The first file is written before the first batch is seen."""
    return file.exists() and Statistics.load(file).batches > 0


class TestCalibrate:
    """Statistics in a file: kept while they grow, asked again, merged, drawn."""

    def test_ranges_and_their_statistics(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        out = tmp_path / "ranges.json"
        found = data_of("calibrate", nets / "tiny", "--stats", stats, "--out", out, "--calib-mode", "percentile:99.9")
        assert json.loads(out.read_text())["tensors"] == found["tensors"]
        assert found["examples"] == 32
        relu = found["tensors"]["relu0"]
        assert (relu["observer"], relu["source"], relu["examples"]) == ("percentile:99.9", "calib_mode", 32)
        assert 0 < relu["range"]["max"] < relu["observed"]["max"]
        table = run("calibrate", nets / "tiny", "--stats", stats).stdout
        assert "relu0" in table
        assert "32 in 4 batches" in table

    def test_one_pass_serves_every_calibrator(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        fresh = ("--data", nets / "pictures", "--batch-size", "8", *PICTURES)
        for mode in ("naive", "entropy", "mse", "auto"):
            kept = data_of("calibrate", nets / "tiny", "--stats", stats, "--calib-mode", mode)
            assert kept["tensors"] == data_of("calibrate", nets / "tiny", *fresh, "--calib-mode", mode)["tensors"]
        out = tmp_path / "q"
        run("quantize", nets / "tiny", "--stats", stats, "--calib-mode", "auto", "--out", out)
        entry = record.read(out).thresholds["tensors"]["relu0"]
        assert entry["observer"] == entry["candidates"][0]["observer"]
        assert len(entry["candidates"]) > 5
        assert "instead of" in run("explain", out, "--node", "relu0").stdout

    def test_killed_and_started_again(self, nets: Path, tmp_path: Path) -> None:
        """SIGKILL at a moment when something is on disk; the second run ends with what one run gives."""
        command = ("calibrate", nets / "tiny", "--data", nets / "pictures", "--num-calib-examples", "40")
        options = ("--batch-size", "1", *PICTURES)
        whole, broken = tmp_path / "whole.stats", tmp_path / "broken.stats"
        wanted = data_of(*command, *options, "--stats", whole)
        slow = (
            "import time; from mxq.data.preprocess import Preprocess; from mxq.calibration import collect; "
            "collect.EVERY_SECONDS = 0.0; prepare = Preprocess.__call__; "
            "Preprocess.__call__ = lambda self, image: (time.sleep(0.1), prepare(self, image))[1]; "
            "from mxq.cli import main; main()"
        )
        args = [str(a) for a in (*command, *options, "--stats", broken)]
        process = subprocess.Popen([sys.executable, "-c", slow, *args], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not holds_batches(broken) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        begun = Statistics.load(broken)
        assert 0 < begun.batches < 40
        assert not begun.complete
        listed = run("calibrate", nets / "tiny", "--stats", broken)
        assert f"is not complete: {begun.examples} examples so far" in listed.stderr
        assert data_of(*command, *options, "--stats", broken) == wanted
        assert broken.read_bytes() == whole.read_bytes()

    def test_other_data_is_refused(self, nets: Path, stats: Path) -> None:
        settings = ("--data", nets / "pictures", "--stats", stats, *PICTURES)
        again = run("calibrate", nets / "tiny", *settings, "--batch-size", "7", code=2)
        assert "the first batch of '32 of 40 examples in pictures' has changed" in again.stderr
        more = run("calibrate", nets / "tiny", *settings, "--num-calib-examples", "40", code=2)
        assert "this run is on '40 of 40 examples in pictures'" in more.stderr

    def test_merge(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        rest, both, out = tmp_path / "rest", tmp_path / "both.stats", tmp_path / "other.stats"
        rest.mkdir()
        for i in range(5):
            (rest / f"{i}.png").write_bytes((nets / "pictures" / f"{i:02}.png").read_bytes())
        run("calibrate", nets / "tiny", "--data", rest, "--stats", out, *PICTURES)
        found = data_of("merge-stats", stats, out, "--out", both)
        assert found["examples"] == 37
        assert [s["name"] for s in found["stretches"]] == ["32 of 40 examples in pictures", "5 of 5 examples in rest"]
        a, b, merged = (Statistics.load(p).states["relu0"] for p in (stats, out, both))
        np.testing.assert_array_equal(a.merge(b).counts, merged.counts)
        with locks.alone(both, ""):
            assert f"{both} is in use by" in run("merge-stats", stats, out, "--out", both, code=2).stderr
        assert "twice" in run("merge-stats", stats, stats, "--out", both, code=2).stderr
        assert "would count twice" in run("merge-stats", both, stats, "--out", tmp_path / "x", code=2).stderr
        assert "allowed: two or more" in run("merge-stats", stats, "--out", both, code=2).stderr

    def test_plot(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        assert run("plot", stats).stdout.split() == ["data", "relu0", "relu1", "pool"]
        picture = tmp_path / "relu0.png"
        found = data_of("plot", stats, "--tensor", "relu0", "--out", picture, "--calib-mode", "percentile:99.5")
        with Image.open(picture) as drawn:
            assert drawn.size == (1000, 600)
        assert [name for name, x in found["calibrators"].items() if x["mark"] == "chosen"] == ["percentile:99.5"]
        assert "no tensor 'rel0' among 4; close ones: relu0" in run("plot", stats, "--tensor", "rel0", code=2).stderr

    def test_recipe(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "format: mxq-recipe/1\ncalib_mode: mse\noverrides:\n  op:Activation: {calib_mode: 'fixed:0,3'}\n"
            "  conv1: {weight_calib_mode: mse}\n  op:FullyConnected: {quantize: false}\n"
        )
        out = tmp_path / "q"
        run("quantize", nets / "tiny", "--stats", stats, "--recipe", recipe, "--out", out, "--calib-mode", "entropy")
        report = record.read(out)
        tensors = report.thresholds["tensors"]
        assert {n: (t["observer"], t["source"]) for n, t in tensors.items()} == {
            "data": ("entropy", "calib_mode"),
            "relu0": ("fixed:0.0,3.0", "overrides 'op:Activation'"),
            "relu1": ("fixed:0.0,3.0", "overrides 'op:Activation'"),
        }
        assert report.weights["relu1"].source == "overrides 'conv1'"
        assert "overrides 'op:FullyConnected'" in report.plan["fc"].reason
        recipe.write_text("format: mxq-recipe/1\ncalib_mod: mse\n")
        refused = run("inspect", nets / "tiny", "--recipe", recipe, code=2)
        assert "unknown field 'calib_mod'" in refused.stderr

    @pytest.mark.slow
    def test_workers_find_the_same(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        pytest.importorskip("distributed")
        shared = tmp_path / "shared.stats"
        command = ("calibrate", str(nets / "tiny"), "--data", str(nets / "pictures"), "--batch-size", "8", *PICTURES)
        options = ("--workers", "2", "--stats", str(shared), "--json")
        program = [sys.executable, "-m", "mxq"]
        done = subprocess.run([*program, *command, *options], capture_output=True, text=True, check=True)
        alone = data_of("calibrate", nets / "tiny", "--stats", stats)["tensors"]
        found = json.loads(done.stdout)["tensors"]
        assert {n: t["range"] for n, t in found.items()} == {n: t["range"] for n, t in alone.items()}
        a, b = (Statistics.load(path).states["relu1"] for path in (stats, shared))
        np.testing.assert_array_equal(a.counts, b.counts)

    def test_one_run_at_a_time(self, nets: Path, tmp_path: Path) -> None:
        kept, folder = tmp_path / "s.stats", tmp_path / "w"
        folder.mkdir()
        data = ("--data", nets / "pictures", *PICTURES)
        with locks.alone(kept, ""), locks.alone(folder, ""):
            second = run("calibrate", nets / "tiny", *data, "--stats", kept, code=2).stderr
            assert f"{kept} is in use by process {os.getpid()} (" in second
            for command in ("tune", "sensitivity"):
                second = run(command, nets / "tiny", *data, "--workdir", folder, code=2).stderr
                assert f"{folder} is in use by" in second
        assert not kept.exists()
        assert not list(folder.iterdir())

    def test_one_cluster_at_a_time(self, nets: Path) -> None:
        both = ("--data", nets / "pictures", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
        assert "--workers is 2 beside --scheduler" in run("calibrate", nets / "tiny", *both, *PICTURES, code=2).stderr

    def test_neither_data_nor_statistics(self, nets: Path) -> None:
        assert "--data is missing" in run("calibrate", nets / "tiny", code=2).stderr


EVIL = "\x1b]0;PWNED\x07\x1b[2J[red]x"


class TestTerminal:
    def test_names_in_a_record(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        run("quantize", nets / "tiny", "--stats", stats, "--out", tmp_path / "q")
        path = record.path_of(tmp_path / "q")
        path.write_text(path.read_text().replace('"relu0"', json.dumps(EVIL)))
        for command in (["inspect", tmp_path / "q"], ["explain", tmp_path / "q", "--node", EVIL]):
            shown = run(*command).output
            assert "\x1b" not in shown
            assert "[red]x" in shown
        assert EVIL in [d["node"] for d in data_of("inspect", tmp_path / "q")["decisions"]]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("inspect", EVIL),
            ("inspect", "x", EVIL),
            (EVIL,),
            ("inspect", f"--{EVIL}"),
            ("inspect", "x", "--epoch", EVIL),
            ("merge-stats", EVIL, "b", "--out", "c"),
        ],
    )
    def test_arguments(self, arguments: tuple[str, ...]) -> None:
        assert "\x1b" not in run(*arguments, code=2).output


class TestEnds:
    def program(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mxq", *map(str, arguments)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)

    def test_an_output_that_is_full(self, stats: Path) -> None:
        with Path("/dev/full").open("w") as full, self.program("plot", stats, stdout=full) as process:
            _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (2, "mxq: error: OSError: [Errno 28] No space left on device\n")

    def test_outputs_that_are_closed(self, stats: Path) -> None:
        def close() -> None:
            os.close(1)

        with self.program("plot", stats, preexec_fn=close) as process:
            _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "")

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_signals(self, nets: Path, tmp_path: Path, number: int, code: int) -> None:
        """What was seen is kept, and nothing else is."""
        os.mkfifo(tmp_path / "out")  # which it waits to be read from, so that it cannot end before
        command = ("calibrate", nets / "tiny", "--data", nets / "pictures", *PICTURES)
        kept = tmp_path / "s.stats"
        with self.program(*command, "--stats", kept, "--out", tmp_path / "out", stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 120
            while not kept.exists() or Statistics.load(kept).examples < 32:
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        assert process.returncode == code
        assert "Traceback" not in said
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.stats"]

    def test_a_folder_is_no_prefix(self, nets: Path, stats: Path, tmp_path: Path) -> None:
        for out, what in ((f"{tmp_path}/", "folder"), (f"{tmp_path}/..", "folder"), ("", "'' is empty")):
            said = run("quantize", nets / "tiny", "--stats", stats, "--out", out, code=2).stderr
            assert what in said
            assert "Invalid value for '--out'" in said
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stats(nets: Path) -> Path:
    """Statistics of the network on 32 pictures, in batches of 8."""
    path = nets / "tiny.stats"
    settings = ("--data", nets / "pictures", "--batch-size", "8", *PICTURES)
    run("calibrate", nets / "tiny", *settings, "--stats", path)
    return path


@pytest.mark.parametrize("name", ["quantize", "calibrate", "tune", "sensitivity", "inspect", "explain"])
def test_every_command_that_decides_has_every_setting(name: str) -> None:
    """`QuantConfig`'s fields, but for what Python and recipes alone have, and what `tune` chooses or cannot have."""
    found = {parameter.name for parameter in typer.main.get_command(app).commands[name].params}
    names = {"quantized_dtype": "dtype", "exclude_layers": "exclude", "include_layers": "include"}
    names |= {"exclude_operators": "exclude_op", "exclude_passes": "exclude_pass"}
    wanted = {names.get(f.name, f.name) for f in fields(QuantConfig)}
    wanted -= {
        "exclude_layers_match",
        "overrides",
        "preprocess",
        "quantize_granularity",
        *(["effort", "backend", "simulate", "hardware", "bits"] if name == "tune" else []),
    }
    assert wanted <= found
