"""Two quantized networks side by side: what differs, by their graphs and records, and ``mxq compare``."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, bn, build, conv, fc, feeds, quantized
from helpers import SATURATES
from typer.testing import CliRunner

from mxq.artifacts import record
from mxq.cli import app
from mxq.graph.ir import Model
from mxq.pipeline import Quantized
from mxq.runtime import write_pair
from mxq.verification import Side, differences

LINES = (
    conv("a", "data"), bn("n", "a"), "r = Activation(n) " + RELU,
    conv("b", "r", bias=False), 'p = Pooling(b) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
    fc("f", "p"), "o = softmax(f)", "return o",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return build(*LINES)


@pytest.fixture(scope="module")
def plain(model: Model) -> Quantized:
    return quantized(model)


def side(made: Quantized, name: str = "x", *, recorded: bool = True) -> Side:
    return Side(name, made.model, made.report if recorded else None)


def scaled(made: Quantized, name: str, factor: float) -> Quantized:
    """``made`` with one parameter times ``factor``."""
    args = {**made.model.args, name: made.model.args[name] * np.float32(factor)}
    return replace(made, model=Model(made.model.graph, args, made.model.auxs))


class TestDifferences:
    def test_a_network_and_itself(self, plain: Quantized) -> None:
        found = differences(side(plain), side(plain))
        assert (found.decisions, found.tensors, found.weights, found.settings, found.notes) == ((), (), (), (), ())
        assert found.int8 == (4, 4)
        assert found.compared == {"operators": 5, "tensors": 4, "weights": 3}

    @pytest.mark.parametrize("recorded", [True, False])
    def test_a_layer_in_float(self, model: Model, plain: Quantized, recorded: bool) -> None:
        other = quantized(model, exclude_layers=["b"])
        found = differences(side(plain), side(other, recorded=recorded))
        decided = {d.node: (d.a, d.b) for d in found.decisions}
        assert decided == {"b": ("int8", "float")}
        because = found.decisions[0]
        assert because.reason_a == "int8 kernel"
        assert because.reason_b == ("excluded by exclude_layers 'b'" if recorded else "")
        assert found.int8 == (4, 3)
        assert {t.tensor for t in found.tensors} == {"b", "b_quantize"}
        assert all(None in (t.a, t.b) and t.ratio is None for t in found.tensors)

    @pytest.mark.parametrize("recorded", [True, False])
    def test_ranges_and_types(self, model: Model, plain: Quantized, recorded: bool) -> None:
        overrides = {"r": {"threshold": (0.0, 0.5)}, "data": {"threshold": (0.0, 4.0)}}
        other = quantized(model, overrides=overrides)
        found = differences(side(plain, recorded=recorded), side(other, recorded=recorded))
        r, data = (next(t for t in found.tensors if t.tensor == name) for name in ("r", "data_quantize"))
        assert (r.a.dtype, r.b.dtype, r.b.max) == ("uint8", "uint8", 0.5)
        assert r.ratio == pytest.approx(0.5 / plain.thresholds.range("r").max, rel=1e-6, abs=0)
        assert (data.a.dtype, data.b.dtype, data.b.max) == ("int8", "uint8", 4.0)
        assert len(found.tensors) == 2

    def test_parameters(self, plain: Quantized) -> None:
        (found,) = differences(side(plain), side(scaled(plain, "b_weight", 0.9))).weights
        assert (found.layer, found.bias_sqnr) == ("b", None)
        assert found.sqnr == pytest.approx(20.0, rel=0, abs=1e-4)
        (found,) = differences(side(plain), side(scaled(plain, "f_bias", 1.1))).weights
        assert (found.layer, found.sqnr) == ("f", math.inf)
        assert found.bias_sqnr == pytest.approx(20.0, rel=0, abs=1e-4)

    def test_parameters_of_channels_in_another_order_and_unit(self, model: Model) -> None:
        """As passes leave them: between two layers, and a pooling between the next two."""
        plain = quantized(model, target="avx512_vnni")  # for other CPUs channels are in another order already
        args, graph = dict(plain.model.args), plain.model.graph
        marks = {}
        for maker, reader, tensors in (("quantized_r", "quantized_b", ["r"]), ("quantized_b", "f", ["b", "p"])):
            up, down = graph[maker].inputs[1].name, graph[reader].inputs[1].name
            bias = graph[maker].inputs[2].name
            order, factors = np.roll(np.arange(8), 3), np.float32([1, 2, 4, 8, 1, 2, 4, 8])
            columns = args[down].reshape(len(args[down]), 8, -1)[:, order] / factors[:, None]
            args[up] = args[up][order] * factors[:, None, None, None]
            args[down] = columns.reshape(args[down].shape)
            if maker == "quantized_r":
                args[bias] = args[bias][order] * factors
            said = {"order": tuple(map(int, order)), "scale": tuple(map(float, factors))}
            marks |= {f"quantized_{name}": said for name in tensors}
        nodes = {name: (graph[name].noted(**said),) for name, said in marks.items()}
        moved = replace(plain, model=Model(graph.replace(nodes), args, plain.model.auxs))
        assert differences(side(plain), side(moved)).weights == ()
        unmarked = replace(plain, model=Model(graph, args, plain.model.auxs))
        assert {w.layer for w in differences(side(plain), side(unmarked)).weights} == {"r", "b", "f"}

    def test_records_of_weights_and_settings(self, model: Model, plain: Quantized) -> None:
        other = quantized(model, weight_calib_mode="mse", calib_mode="percentile:99.9")
        found = differences(side(plain), side(other))
        settings = {s.name: (s.a, s.b) for s in found.settings}
        assert settings == {"weight_calib_mode": ("naive", "mse"), "calib_mode": ("naive", "percentile:99.9")}
        b = next(w for w in found.weights if w.layer == "b")
        assert (b.a, b.b.observer) == (plain.report.weights.get("b"), "mse")
        assert 25 < b.sqnr < 60

    def test_notes(self, model: Model, plain: Quantized) -> None:
        notes = differences(Side("first", model), side(plain, "second")).notes
        assert notes[0] == "first has no int8 operator: is it the float network?"
        assert notes[1].startswith("first has no record beside it: settings, reasons")
        assert len(notes) == 2
        stranger = quantized(build(*LINES, seed=5))
        assert differences(side(plain), side(stranger)).notes == ("they were made from different float networks",)

    def test_names_that_a_shift_changes(self) -> None:
        lines = (
            conv("y", "data"), conv("c", "data"), "s = elemwise_add(c, y)", "r = Activation(s) " + RELU, "return r",
        )  # fmt: skip
        model = build(*lines)
        found = differences(side(quantized(model)), side(quantized(model, overrides={"y": {"dtype": "int8"}})))
        assert found.decisions == ()
        y = next(t for t in found.tensors if t.tensor == "y")
        assert (y.a.dtype, y.b.dtype) == ("uint8", "int8")

    def test_json(self, plain: Quantized) -> None:
        found = differences(side(plain, recorded=False), side(scaled(plain, "f_bias", 1.1)))
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["int8"] == {"a": 4, "b": 4}
        assert data["weights"][0]["sqnr"] == "inf"
        assert data["settings"] == []


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: Model, plain: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float network "net"; "a", "b" (other settings) and "int" (fed codes), quantized; inputs "x.npy"."""
    where = tmp_path_factory.mktemp("compare")
    write_pair(model, where / "net")
    others = {"b": {"calib_mode": "mse", "exclude_layers": ["b"]}, "int": {"input_dtype": "int8"}}
    for name, made in {"a": plain, **{k: quantized(model, **v) for k, v in others.items()}}.items():
        record.write(where / name, made.report, write_pair(made.model, where / name))
    np.save(where / "x.npy", feeds(seed=3)["data"])
    return where


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def test_tables(folder: Path) -> None:
    text = run("compare", folder / "a", folder / "b").stdout
    for words in (
        "int8 operators",
        "4, 3",
        "exclude_layers 'b'",
        "int8 tensors",
        "B / A",
        "settings",
        "mse",
        "naive",
    ):
        assert words in text
    assert "on the data" not in text


def test_on_data(folder: Path) -> None:
    common = ("compare", folder / "a", folder / "b", "--data", folder / "x.npy")
    runs = json.loads(run(*common, "--json").stdout)["runs"]
    assert list(runs) == ["a_b"]
    text = run(*common, "--float", folder / "net").stdout
    for words in ("A against float", "B against float", "B against A", "100.00 %"):
        assert words in text
    runs = json.loads(run(*common, "--float", folder / "net", "--json").stdout)["runs"]
    assert list(runs) == ["float_a", "float_b", "a_b"]
    assert min(runs[name]["sqnr"] for name in ("float_a", "float_b")) > 15
    if not SATURATES:  # there the guard may leave more of "a" in float
        assert runs["float_b"]["sqnr"] > runs["float_a"]["sqnr"]


def test_networks_that_are_fed_differently(folder: Path) -> None:
    found = json.loads(run("compare", folder / "a", folder / "int", "--data", folder / "x.npy", "--json").stdout)
    assert found["runs"]["a_b"]["sqnr"] == "inf"
    assert {t["tensor"]: t["ratio"] for t in found["tensors"]} == {"data_quantize": None}
    assert ("input_dtype", "float32", "int8") in [tuple(s.values()) for s in found["settings"]]


def test_without_a_record(folder: Path, tmp_path: Path) -> None:
    for end in ("-symbol.json", "-0000.params"):
        (tmp_path / f"lost{end}").write_bytes((folder / f"a{end}").read_bytes())
    found = json.loads(run("compare", folder / "b", tmp_path / "lost", "--json").stdout)
    assert "lost has no record beside it" in found["notes"][0]
    assert {d["node"] for d in found["decisions"]} == {"b"}
    assert "no record beside it" in run("compare", folder / "b", tmp_path / "lost").stdout


def test_a_reference_needs_data(folder: Path) -> None:
    result = run("compare", folder / "a", folder / "b", "--float", folder / "net", code=2)
    assert "without --data; allowed: both, or neither" in result.stderr


def test_layers_of_verify(folder: Path) -> None:
    common = ("verify", folder / "net", folder / "a", "--data", folder / "x.npy", "--layers")
    layers = json.loads(run(*common, "--json").stdout)["layers"]
    assert [layer["name"] for layer in layers] == ["data_quantize", "r", "b", "p", "f", "o"]
    assert all(layer["introduced"] is not None for layer in layers)
    text = run(*common).stdout
    assert "the noisiest first" in text
    for word in ("introduced", "inherited", "clipped", "levels"):
        assert word in text
    table = text[text.index("introduced inherited") :]
    ranked = sorted(layers, key=lambda layer: float(layer["introduced"]))
    rows = [line.split()[0] for line in table.splitlines()[2:] if line.strip()]
    assert rows == [layer["name"] for layer in ranked]
