"""mxq.reporting.page: what the page says, that it stands alone, and both doors to it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, SHAPE, bn, build, conv, fc
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.runtime import to_arrays, to_symbol, write_pair

pytest.importorskip("igraph")
pytest.importorskip("jinja2")

HELD = 8
TIMED = {"median_ms": 2.0, "examples_per_second": 500.0}
LEARNED = (
    {"kind": "epoch", "epoch": 0, "eval": {"top1": 0.5}},
    {"kind": "step", "epoch": 1, "step": 0, "rate": 0.1, "loss": 1.0, "examples": 8},
    {"kind": "epoch", "epoch": 1, "eval": {"top1": 0.6}, "loss": 1.0, "first": 1.0, "least": 1.0, "rate": 0.1,
     "train": {"top1": 0.7}},
)  # fmt: skip
LINES = (
    conv("c0", "data"), bn("b0", "c0"), f"r0 = Activation(b0) {RELU}", conv("c1", "r0"),
    "sum = elemwise_add(c1, r0)", f"r1 = Activation(sum) {RELU}", fc("fc", "r1"), "return fc",
)  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, what stands in its scripts, and the addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.parts: list[str] = []
        self._script = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.names += [known["data-name"] or ""] if tag == "g" and "data-name" in known else []
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self.parts += [v or "" for k, v in attrs if k == "data-part"]
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]
        self._script = known.get("id") or "" if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def json(self, name: str) -> Any:
        return json.loads(self.scripts[name])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    model, data = build(*LINES), rng.normal(size=(HELD, *SHAPE[1:])).astype(np.float32)
    write_pair(model, home / "net")
    net = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    mxq.save(mxq.quantize_net(net, data, effort="fast", num_calib_examples="100%"), home / "int8")
    np.savez(home / "x.npz", data=data, label=np.arange(HELD) % 10)
    return home


@pytest.fixture(scope="module")
def text(home: Path) -> str:
    written = mxq.report(home / "net", home / "int8", home / "x.npz", home / "report.html", batch_sizes=[2])
    return written.read_text(encoding="utf-8")


def test_it_says_what_was_measured(text: str) -> None:
    found = Page(text).json("measured")
    assert found["verification"]["examples"] == HELD
    assert [layer["name"] for layer in found["verification"]["layers"]]
    assert [t["name"] for t in found["benchmarks"]["2"]["timings"]] == ["fp32", "fp32 fused", "int8"]
    assert found["record"]["format"] == "mxq-report/1"
    for words in ("top-1 in INT8", "SQNR of the output", "as fast at batch 2", "operators in INT8", "made for", "CPU"):
        assert words in text


def test_each_operator_says_what_was_decided(text: str) -> None:
    known = {name: dict(each["rows"]) for name, each in Page(text).json("known").items()}
    assert known["0/c1"]["decision"] == "INT8"
    assert known["0/c1"]["made of"] == "c1, sum, r1"
    int8 = next(rows for name, rows in known.items() if name.startswith("1/") and "add + relu" in rows["operator"])
    assert int8["codes of its result"].startswith("uint8, 0 to ")
    assert "dB" in int8["of the noise it adds"]


def test_each_operator_has_its_values_and_codes(text: str) -> None:
    """Bars of all that was seen; the range that is used is among the calibrators'."""
    page = Page(text)
    known, measured = page.json("known"), page.json("measured")
    values = measured["tensors"][known["0/c1"]["tensor"]]
    assert sum(values["counts"]) == HELD * np.prod(SHAPE[1:])
    assert values["observed"][0] == 0
    limits = {limit["name"]: limit["high"] for limit in values["limits"]}
    assert {"used", "naive", "entropy"} <= limits.keys()
    assert limits["naive"] == pytest.approx(values["observed"][1], rel=1e-6)
    codes = measured["weights"][known["0/c1"]["weights"]]
    assert sum(codes["counts"]) == 8 * 8 * 9
    assert codes["observed"] in ([-127.0, 127.0], [-128.0, 127.0], [-127.0, 126.0])
    assert measured["tensors"][known["0/data"]["tensor"]]["low"] < 0


def test_charts_show_what_was_measured(text: str) -> None:
    page = Page(text)
    assert {"chart-accuracy", "chart-latency", "chart-throughput", "chart-speedup"} <= {*page.ids}
    assert len({*page.ids}) == len(page.ids)
    assert {*page.parts} <= page.json("measured").keys()
    assert "INT8" in text[text.index('id="chart-latency"') :]


def test_what_was_found_elsewhere_is_added(home: Path, tmp_path: Path) -> None:
    net, x = home / "net", home / "x.npz"
    sensitive = mxq.sensitivity(net, np.load(x)["data"], mode="one-int8")
    tuned = mxq.tune(net, np.load(x)["data"], max_drop=1.0)
    race = {"rows": [{"network": "a/net.onnx", "runtime": "onnxruntime", "batch_size": b, "timing": TIMED}
                     for b in (1, 4)], "cpus": [0]}  # fmt: skip
    (tmp_path / "race.json").write_text(json.dumps(race))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "training.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LEARNED))
    added = [sensitive, tuned, tmp_path / "race.json", tmp_path / "work"]
    page = mxq.report(net, home / "int8", x, tmp_path / "a.html", batch_sizes=(), added=added)
    found = Page(page.read_text(encoding="utf-8"))
    assert {"chart-sensitivity", "chart-trials", "chart-runtimes", "chart-training"} <= {*found.ids}
    assert len({*found.ids}) == len(found.ids)
    measured = found.json("measured")
    assert measured["tuning"]["verdict"] == tuned.verdict
    assert len(measured["training"]["lines"]) == len(LEARNED)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "cannot be added to a page; allowed: what mxq sensitivity"),
        ('{"rows": 3, "cpus": []}', r"is damaged: Expected `array`, got `int` - at `\$.rows`"),
        ("{", "is not JSON"),
    ],
)
def test_what_cannot_be_added_is_refused(home: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(mxq.FormatError, match=why):
        mxq.report(home / "net", home / "int8", home / "x.npz", tmp_path / "a.html", added=[tmp_path / "odd.json"])


def test_quantizing_writes_the_page_too(home: Path, tmp_path: Path) -> None:
    data = np.load(home / "x.npz")["data"]
    mxq.quantize_net(home / "net", data, effort="fast", report=tmp_path / "a.html")
    assert Page((tmp_path / "a.html").read_text(encoding="utf-8")).json("measured")["record"]["config"]
    command = ["quantize", str(home / "net"), "--data", str(home / "x.npz"), "--out", str(tmp_path / "q")]
    found = CliRunner().invoke(app, [*command, "--report", str(tmp_path / "b.html"), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["files"][-1] == str(tmp_path / "b.html")
    assert Page((tmp_path / "b.html").read_text(encoding="utf-8")).json("measured")["verification"]["examples"] == HELD


def test_a_page_that_cannot_be_is_refused_before_any_work(home: Path, tmp_path: Path) -> None:
    data = np.load(home / "x.npz")["data"]
    with pytest.raises(mxq.ConfigError, match="but there is no folder"):
        mxq.quantize_net(home / "net", data, report=tmp_path / "none" / "a.html")
    with pytest.raises(mxq.ConfigError, match="calib_data is a list_iterator, which can be read once"):
        mxq.quantize_net(home / "net", iter([data]), report=tmp_path / "a.html")
    with pytest.raises(mxq.ConfigError, match="calib_data is None"):
        mxq.tune(home / "net", None, report=tmp_path / "a.html")
    with pytest.raises(mxq.ConfigError, match="eval_data is a list_iterator, which can be read once"):
        mxq.tune(home / "net", data, eval_data=iter([data]), report=tmp_path / "a.html")
    command = ["quantize", str(home / "net"), "--calib-mode", "none", "--out", str(tmp_path / "q")]
    refused = CliRunner().invoke(app, [*command, "--report", str(tmp_path / "b.html")])
    assert refused.exit_code == 2
    assert "without --data" in refused.output


def test_tuning_shows_its_trials(home: Path, tmp_path: Path) -> None:
    data = np.load(home / "x.npz")["data"]
    mxq.tune(home / "net", data, max_drop=1.0, report=tmp_path / "a.html")
    found = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "chart-trials" in found.ids
    assert found.json("measured")["tuning"]["trials"]


def test_it_stands_alone(text: str) -> None:
    """No address but those within the page and of the names of formats."""
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert {*re.findall(r"https?://[^\s\"'<]+", text)} <= {"http://www.w3.org/2000/svg"}
    assert {"c0", "fc", "output fc"} <= {*page.names}


def test_names_cannot_end_the_script(tmp_path: Path) -> None:
    evil = "</script><b>"
    model = build(conv("c", "data"), "return c")
    data = np.zeros((2, *SHAPE[1:]), np.float32)
    write_pair(model, tmp_path / evil.replace("/", "_"))
    prefix = tmp_path / evil.replace("/", "_")
    text = mxq.report(prefix, prefix, data, tmp_path / "page.html", batch_sizes=()).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert Page(text).json("measured")["record"] is None


def test_the_command_writes_the_page(home: Path, tmp_path: Path) -> None:
    arguments = [
        str(home / "net"),
        str(home / "int8"),
        "--data",
        str(home / "x.npz"),
        "--out",
        str(tmp_path / "a.html"),
    ]
    found = CliRunner().invoke(app, ["report", *arguments, "--batch-size", "1"])
    assert found.exit_code == 0, found.output
    assert Page((tmp_path / "a.html").read_text(encoding="utf-8")).json("measured")["benchmarks"].keys() == {"1"}


def test_another_suffix_is_refused_before_anything_runs(home: Path, tmp_path: Path) -> None:
    with pytest.raises(mxq.ConfigError, match=r"'page.pdf' has suffix '.pdf'; allowed: .html, .htm"):
        mxq.report(home / "net", home / "int8", home / "nothing", tmp_path / "page.pdf")
