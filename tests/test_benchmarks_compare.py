"""benchmarks/compare.py: its counts against sums by hand, its servers against a process that misbehaves, its files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from graphs import build, conv, fc, quantized
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import compare
import compare_report
import roofline
from compare_report import Figure, Row, Run
from peers import client, protocol
from peers.client import Failure, Server

PEERS = Path(compare.__file__).parent / "peers"
SERVER = """
    import os, sys, time
    sys.path.insert(0, {folder!r})
    import protocol

    class Network:
        about = {{"version": "1"}}
        turns, batch = 0, 4

        def __call__(self):
            print("a library's chatter")
            self.turns += 1
            {body}

        def outputs(self):
            return [[1.0, 2.0], [[3.0]]]

        def infer(self, feeds):
            assert len(feeds["data"]) == self.batch
            return [2 * feeds["data"], feeds["data"].sum(axis=1)]

    def load():
        {load}
        return Network()

    protocol.serve(load)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a server of `SERVER`, with a line for its calls and one for its loading; ends all of them."""
    servers = []

    def starting(name: str = "mxq", body: str = "pass", load: str = "pass", timeout: float = 20.0) -> Server:
        script = tmp_path / f"{name}.py"
        script.write_text(textwrap.dedent(SERVER).format(folder=str(PEERS), body=body, load=load))
        command = [sys.executable, str(script)]
        servers.append(Server(name, command, os.environ, tmp_path / f"{name}.log", timeout))
        return servers[-1]

    yield starting
    for server in servers:
        server.close()


# Counting


def test_multiply_adds_of_a_convolution_a_grouped_one_and_a_dense_layer() -> None:
    model = build(
        conv("a", "data", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'),
        conv("b", "a", 'kernel="(3, 3)" num_filter="16" num_group="16" stride="(2, 2)" pad="(1, 1)"', bias=False),
        'relu = Activation(b) act_type="relu"',
        fc("c", "relu"),
        "return c",
    )
    # On (2, 8, 6, 6): 3 x 3 x 8 a pixel and filter; 3 x 3 on half the side; 16 x 3 x 3 -> 10.
    assert roofline.multiply_adds(model, {"data": (2, 8, 6, 6)}) == {
        "a": 2 * 16 * 36 * 72,
        "b": 2 * 16 * 9 * 9,
        "c": 2 * 10 * 144,
    }


def test_multiply_adds_of_a_deconvolution_are_those_of_its_input() -> None:
    line = 'up = Deconvolution(data, up_weight) kernel="(4, 4)" num_filter="5" stride="(2, 2)" no_bias="True"'
    assert roofline.multiply_adds(build(line, "return up"), {"data": (1, 8, 6, 6)}) == {"up": 8 * 36 * 5 * 16}


def test_multiply_adds_grow_with_the_batch_and_are_none_without_layers() -> None:
    model = build(conv("a", "data"), "return a")
    one, three = (roofline.multiply_adds(model, {"data": (n, 8, 6, 6)})["a"] for n in (1, 3))
    assert three == 3 * one
    assert roofline.multiply_adds(build("relu = relu(data)", "return relu"), {"data": (1, 8, 6, 6)}) == {}


def test_the_int8_share_leaves_out_what_stays_in_float() -> None:
    model = build(conv("a", "data"), "t = tanh(a)", conv("b", "t"), "return b")
    macs = roofline.multiply_adds(model, {"data": (1, 8, 6, 6)})
    assert roofline.int8_share(quantized(model).model, macs) == 1.0
    assert roofline.int8_share(quantized(model, exclude_layers=["b"]).model, macs) == 0.5
    assert roofline.int8_share(model, macs) == 0.0


@pytest.mark.parametrize("stack", [roofline.Stack(8, 3, 6, 2), roofline.Stack(16, 0, 1, 4)], ids=str)
def test_a_peak_is_found_for_both_kinds(stack: roofline.Stack) -> None:
    found = roofline.peaks([stack], repeats=1)
    assert set(found) == {"int8", "float32"}
    assert all(found[kind][str(stack)] > 0 for kind in found)


# Servers


def test_a_server_times_itself_and_gives_its_outputs(start, tmp_path) -> None:
    server = start(body="time.sleep(0.01)")
    assert server.about == {"version": "1"}
    took = server.time(3)
    assert 0.01 <= took < 0.1
    assert server.seconds == [took]
    assert 0 <= server.overhead[0] < 0.1
    first, second = server.outputs(tmp_path / "outputs.npz")
    assert first.tolist() == [1.0, 2.0]
    assert second.tolist() == [[3.0]]


def test_a_server_gives_its_outputs_for_all_examples_though_the_last_batch_is_not_full(start, tmp_path) -> None:
    data = np.arange(18, dtype=np.float32).reshape(9, 2)
    np.savez(tmp_path / "in.npz", data=data)
    start().evaluate(tmp_path / "in.npz", tmp_path / "out.npz")
    first, second = client.read_outputs(tmp_path / "out.npz")
    np.testing.assert_array_equal(first, 2 * data)
    np.testing.assert_array_equal(second, data.sum(axis=1))


def test_a_call_that_does_not_count_precedes_those_that_do(start) -> None:
    # Call 1 is the server's own, call 2 does not count.
    assert start(body="time.sleep(0.2 if self.turns < 3 else 0)").time(2) < 0.1


def test_a_server_that_cannot_load_says_why(start) -> None:
    with pytest.raises(Failure, match=r"^OSError: no such kernel$"):
        start(load="raise OSError('no such kernel')")


def test_a_server_that_a_signal_kills_is_a_failure(start) -> None:
    with pytest.raises(Failure, match=r"^killed by SIGSEGV$"):
        start(load=f"os.kill(os.getpid(), {int(signal.SIGSEGV)})")


def test_a_server_that_hangs_is_a_failure(start) -> None:
    with pytest.raises(Failure, match="no answer after 0 s"):
        start(load="time.sleep(60)", timeout=0.3)


def test_closing_ends_the_process(start) -> None:
    server = start()
    server.close()
    with pytest.raises((Failure, OSError, ValueError)):
        server.time(1)


def test_the_others_are_measured_when_one_dies_on_the_way(start) -> None:
    servers = [start("fused"), start("mxq", body="assert self.turns < 12, 'out of luck'"), start("openvino")]
    row = Row("net", 16, figures={server.name: Figure() for server in servers})
    compare.measure(servers, row, repeats=5)
    assert row.figures["mxq"].failure == "AssertionError: out of luck"
    assert [len(row.figures[n].seconds) for n in ("fused", "openvino")] == [5, 5]


def test_an_interrupt_leaves_the_rounds_that_all_completed(start, monkeypatch) -> None:
    servers = [start("fused"), start("mxq")]
    row = Row("net", 16, figures={server.name: Figure() for server in servers})
    turns = iter(range(9))
    take = Server.time

    def timed(self: Server, calls: int) -> float:
        if next(turns) == 7:
            raise KeyboardInterrupt
        return take(self, calls)

    monkeypatch.setattr(Server, "time", timed)
    with pytest.raises(KeyboardInterrupt):
        compare.measure(servers, row, repeats=20)
    assert [len(f.seconds) for f in row.figures.values()] == [1, 1]  # three rounds less two of warm-up


# Steps and reasons


def options(**changes) -> compare.Options:
    fields = {"candidates": ("fused", "mxq", "openvino"), "batches": (1,), "repeats": 1, "threads": 1, "images": 1}
    return compare.Options(**{**fields, "python": Path("nowhere"), **changes})


def test_a_step_that_fails_is_not_run_again_and_names_itself(tmp_path, monkeypatch) -> None:
    asked = []

    def failing(command, env, log, timeout) -> None:
        asked.append(command[2:])
        raise Failure("too old")

    monkeypatch.setattr(compare, "run", failing)
    net = compare.Network("net", tmp_path, options())
    for _ in range(2):
        with pytest.raises(Failure, match=r"^contrib: too old$"):
            net.serve("contrib", 1)
    assert asked == [["quantize", "contrib", str(tmp_path)]]


def test_what_runs_elsewhere_is_made_once_for_all_batch_sizes_of_the_float_file(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(compare, "run", lambda command, env, log, timeout: asked.append(command[2:]))
    monkeypatch.setattr(compare, "Server", lambda name, command, env, log: command[2:])
    net = compare.Network("net", tmp_path, options(python=Path(sys.executable)))
    served = [net.serve(name, batch) for batch in (1, 16) for name in ("openvino_mixed", "mxq_openvino")]
    folder = str(tmp_path)
    assert asked == [["export", folder], ["quantize", "openvino_mixed", folder], ["quantize", "mxq_onnx", folder]]
    assert served[0] == ["serve", "openvino_mixed.xml", folder, "1"]
    assert served[3] == ["serve", "mxq_onnx.onnx", folder, "16"]


def test_files_that_were_kept_are_used_again_and_a_step_that_failed_runs_again(tmp_path, monkeypatch) -> None:
    asked = []

    def failing_once(command, env, log, timeout) -> None:
        asked.append(command[3])
        if command[3] == "contrib" and asked.count("contrib") == 1:
            raise Failure("disk full")

    monkeypatch.setattr(compare, "run", failing_once)
    monkeypatch.setattr(compare, "Server", lambda name, command, env, log: name)
    for _ in range(3):
        with compare.folder_for("net:raw", "", options(kept=tmp_path)) as folder:
            net = compare.Network("net:raw", folder, options())
            for name in ("mxq", "contrib"):
                with contextlib.suppress(Failure):
                    net.serve(name, 1)
    assert folder == tmp_path / "net-raw"
    assert asked == ["mxq", "contrib", "contrib"]


def test_a_trained_network_is_judged_once_by_all_its_evaluation_inputs(tmp_path, monkeypatch) -> None:
    def judging(command, env, log, timeout) -> None:
        asked.append(command[2:])
        (tmp_path / "mxq-judged.json").write_text('{"score": 80.5, "sqnr_db": 30.0}')

    asked, evaluated = [], []
    monkeypatch.setattr(compare, "run", judging)

    class Server:
        def evaluate(self, source, path) -> None:
            evaluated.append((source, path))

    net = compare.Network("net", tmp_path, options())
    assert net.judge("mxq", Server()) == {}  # of the zoo: nothing to judge by
    (tmp_path / "evaluation.npz").touch()
    assert [net.judge("mxq", Server()) for _ in range(2)] == [{"score": 80.5, "sqnr_db": 30.0}] * 2
    assert asked == [["judge", "net", str(tmp_path), "mxq"]]
    assert evaluated == [(tmp_path / "evaluation.npz", tmp_path / "mxq-evaluated.npz")]


def test_without_the_peers_environment_their_cells_say_so(tmp_path) -> None:
    with pytest.raises(Failure, match=r"make_env\.py builds it"):
        compare.Network("net", tmp_path, options()).serve("openvino", 1)


def test_a_network_that_cannot_be_built_fails_in_every_cell(tmp_path, monkeypatch) -> None:
    def failing(command, env, log, timeout) -> None:
        raise Failure("unknown")

    monkeypatch.setattr(compare, "run", failing)
    row = Row("net", 1)
    compare.compare(compare.Network("net", tmp_path, options()), row, options())
    assert {name: f.failure for name, f in row.figures.items()} == dict.fromkeys(
        ("fused", "mxq", "openvino"), "build: unknown"
    )


def test_peers_get_a_network_of_their_own_without_non_maximum_suppression(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(compare, "run", lambda command, env, log, timeout: asked.append(command[3:5]))
    net = compare.Network("net:less", tmp_path, options())
    net.build()
    assert asked == [["net", str(tmp_path)], ["net:raw", str(tmp_path / "less")]]
    assert [net.folder_of(name) for name in ("mxq", "openvino")] == [tmp_path, tmp_path / "less"]


def test_what_nobody_expected_fails_one_row_and_the_next_follows(monkeypatch) -> None:
    def filling(net, row, given) -> None:
        if net.name == "large":
            raise OSError("the disk is full")
        row.figures = {"mxq": Figure([0.1])}

    monkeypatch.setattr(compare, "compare", filling)
    found = Run({})
    rows = list(compare.compare_all(["large", "small"], options(), found))
    assert rows == found.rows
    assert {f.failure for f in rows[0].figures.values()} == {"OSError: the disk is full"}
    assert rows[1].figures == {"mxq": Figure([0.1])}


def test_the_better_of_two_peaks_counts() -> None:
    first, second = {"int8": {"a": 3.0, "b": 1.0}}, {"int8": {"a": 2.0, "b": 4.0}, "float32": {"a": 1.0}}
    assert compare.best(first, second) == {"int8": {"a": 3.0, "b": 4.0}, "float32": {"a": 1.0}}
    assert compare.best(first, {}) == first


def test_run_tells_an_error_a_signal_and_a_timeout_apart(tmp_path) -> None:
    log = tmp_path / "log"
    python = [sys.executable, "-c"]
    client.run([*python, "pass"], os.environ, log, 20)
    with pytest.raises(Failure, match=r"^ValueError: bad$"):
        client.run([*python, "raise ValueError('bad')"], os.environ, log, 20)
    with pytest.raises(Failure, match=r"^killed by SIGABRT$"):
        client.run([*python, "import os; os.abort()"], os.environ, log, 20)
    with pytest.raises(Failure, match=r"^not done after"):
        client.run([*python, "import time; time.sleep(60)"], os.environ, log, 0.3)


def test_a_reason_is_short_and_has_no_paths_of_others() -> None:
    text = 'MXNetError: Traceback\n  File "../src/a.cc", line 3\nMXNetError: Check failed: x == y (1 vs. 2) : no'
    assert client.short(text) == "x == y (1 vs. 2) : no"
    text = "RuntimeError: Exception from src/a.cpp:54:\nCheck 'm->ok()' failed at src/b.cpp:446:\nCan not create it"
    assert client.short(text) == "RuntimeError: Can not create it"
    assert client.short("Fail: /onnx/src/graph.cc:41 replaced") == "Fail: replaced"
    assert client.short("cannot import 'a' from 'b' (/some/b.py)") == "cannot import 'a' from 'b'"
    assert len(client.short("word " * 100)) == 110


def test_the_server_refuses_what_it_does_not_know() -> None:
    class Network:
        def __call__(self) -> None: ...

    with pytest.raises(ValueError, match="'sing'; allowed: time CALLS, outputs FILE"):
        protocol._obey(Network(), ["sing"])  # noqa: SLF001


# Tables, JSON, chart


@pytest.fixture
def result() -> Run:
    figures = {
        "float32": Figure([0.4, 0.4, 0.4], [np.inf]),
        "fused": Figure([0.2, 0.2, 0.4], [90.0]),
        "mxq": Figure([0.1, 0.1, 0.1], [30.0, None], {"score": 80.25, "sqnr_db": 28.5}, 4_200_000, about={"mxq": "1"}),
        "openvino": Figure(failure="export: no [operator]"),
    }
    row = Row("net", 2, macs=10**9, int8_share=0.5, figures=figures)
    return Run({"threads": 2}, {"int8": {"a": 4e10, "b": 1e10}, "float32": {"a": 1e10}}, [row])


def shown(result: Run) -> str:
    console = Console(width=200, file=io.StringIO())
    compare_report.show(result, console)
    return console.file.getvalue()


def test_ratios_are_of_the_rounds_and_the_share_is_of_the_peak(result) -> None:
    row = result.rows[0]
    assert row.timing("mxq", "fused").speedup == pytest.approx(2.0, rel=1e-9, abs=0)
    assert row.timing("openvino", "fused") is None
    assert row.share("mxq", result.peak("int8")) == pytest.approx(2e9 / 0.1 / 4e10, rel=1e-9, abs=0)
    assert row.share("openvino", result.peak("int8")) is None


def test_the_tables_say_what_was_found_and_what_failed(result) -> None:
    text = shown(result)
    for words in (
        "100.00 ±0%",
        "2.00 (2.00-3.60)",
        "4.00 of 1",
        "50%",
        "30.0",
        "40 GOPS",
        "ratio 4.00",
        "80.25",
        "28.50",
        "4.2",
    ):
        assert words in text
    assert "net fails in OpenVINO int8: export: no [operator]" in text


def test_tables_for_the_docs(result) -> None:
    result.rows[0].figures |= {"onnxruntime": Figure([0.2] * 3), "mxq_onnxruntime": Figure([0.1] * 3)}
    said, accurate, fast = compare_report.markdown(result).split("\n\n")
    assert said == "threads 2"
    assert accurate.splitlines()[0::2] == ["| network | mxq int8 |", "| net | 80.2 / - / 28.5, 4.2 MB |"]
    assert fast.splitlines()[-1] == "| net | 2.00 | - |"


def test_json_round_trip_shows_the_same(result, tmp_path) -> None:
    result.save(tmp_path / "run.json")
    json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    read = Run.load(tmp_path / "run.json")
    assert shown(read) == shown(result)
    assert read.rows[0].figures["mxq"] == result.rows[0].figures["mxq"]


def test_a_run_that_was_stopped_at_once_can_be_shown(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    result = Run({"threads": 2}, {}, [Row("net", 1), Row("other", 1, figures={"mxq": Figure([0.1])})])
    assert "100.00" in shown(result)
    compare_report.chart(result, tmp_path / "chart.png")


def test_the_chart_is_drawn_from_the_file(result, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    source, picture = tmp_path / "run.json", tmp_path / "chart.png"
    result.save(source)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--from", str(source), "--chart", str(picture)])
    compare.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "net fails in OpenVINO int8" in capsys.readouterr().out
