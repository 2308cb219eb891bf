"""The record beside a quantized pair, and the tables for the terminal."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from mxq.artifacts import record
from mxq.bench.timing import Benchmark, summarize
from mxq.errors import ConfigError, FormatError
from mxq.graph.ir import Ref
from mxq.quant.plan import Decision, NoiseRecord, Plan, Report, SaturationRecord, TensorRecord, WeightRecord
from mxq.reporting import tables
from mxq.verification import Accuracy, Boxes, Layer, Output, Verification

REPORT = Report(
    plan=Plan(
        (
            Decision("relu0", "Convolution+Activation", ("conv0", "relu0"), True, "an int8 kernel, calibrated"),
            Decision("prob", "softmax", ("prob",), False, "MXNet 1.9.1 has no int8 kernel for it"),
        ),
        (Ref("data"), Ref("split", 1), Ref("bn", 0, 2)),
    ),
    tensors={
        "quantized_relu0": TensorRecord("uint8", 0.0, 6.5, "widened to hold the sum", of="relu0"),
        "data_quantize": TensorRecord("int8"),
    },
    thresholds={
        "format": "mxq-thresholds/1",
        "tensors": {
            "relu0": {
                "range": {"min": 0.0, "max": 6.5},
                "observer": "entropy",
                "examples": 32,
                "observed": {"min": 0.0, "max": 9.0},
                "note": "clipped",
            }
        },
    },
    config={"calib_mode": "naive"},
    versions={"mxq": "0.1.0"},
    source={"sha256": "ab"},
    trace=(
        {"pass": "fuse", "rule": "fuse_conv_add_act", "fired": 1, "refused": {"relu0": "read twice", "x": "other"}},
        {"pass": "fuse", "rule": "fuse_conv_add_act", "fired": 1, "refused": {"conv0": "read twice"}},
    ),
    summary={"int8": 1, "float": 1},
)


def write_pair(folder: Path) -> tuple[Path, tuple[Path, Path]]:
    files = folder / "net_v1.0-symbol.json", folder / "net_v1.0-0000.params"
    files[0].write_text("{}")
    files[1].write_bytes(b"\x00" * 3_000_000)
    prefix = folder / "net_v1.0"
    record.write(prefix, REPORT, files)
    return prefix, files


def test_a_report_survives_json() -> None:
    assert record.from_json(json.dumps(record.to_json(REPORT))) == REPORT
    assert record.from_json(record.to_json(REPORT)) == REPORT


def test_the_record_lies_beside_the_pair_and_keeps_dots_of_the_prefix(tmp_path: Path) -> None:
    prefix, _ = write_pair(tmp_path)
    assert record.path_of(prefix) == tmp_path / "net_v1.0-mxq.json"
    assert record.read(prefix) == REPORT
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net_v1.0-0000.params",
        "net_v1.0-mxq.json",
        "net_v1.0-symbol.json",
    ]


def test_check_names_the_file_that_changed(tmp_path: Path) -> None:
    prefix, (symbol, params) = write_pair(tmp_path)
    assert record.check(prefix) == ()
    with params.open("r+b") as stream:
        stream.seek(2_000_000)
        stream.write(b"\x01")
    (found,) = record.check(prefix)
    assert (found.file, found.problem) == (params.name, "changed")
    symbol.unlink()
    assert [str(m) for m in record.check(prefix)] == [
        "net_v1.0-symbol.json is missing",
        "net_v1.0-0000.params has changed since it was written",
    ]


def test_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert record.checksum(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("{", "not JSON"),
        ("[1]", "is a list"),
        ({"format": "mxq-thresholds/1"}, "has format 'mxq-thresholds/1'; this version reads 'mxq-report/1'"),
        ({}, "has format None"),
        ({"format": "mxq-report/1", "summary": {}}, "lacks 'decisions'"),
        ({**record.to_json(REPORT), "decisions": [{"node": "x"}]}, "damaged"),
        ({**record.to_json(REPORT), "decisions": 5}, "damaged"),
        ({**record.to_json(REPORT), "observe": [[]]}, "damaged"),
        ({**record.to_json(REPORT), "tensors": {"x": {"dtype": "int8", "bits": 4}}}, "bits"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(data: object, found: str) -> None:
    with pytest.raises(FormatError, match=r".") as caught:
        record.from_json(data)
    assert found in str(caught.value)


def test_a_missing_or_broken_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none-mxq.json does not exist"):
        record.read(tmp_path / "none")
    (tmp_path / "bad-mxq.json").write_text("nonsense")
    with pytest.raises(FormatError, match=r"bad-mxq.json.*not JSON"):
        record.read(tmp_path / "bad")
    (tmp_path / "bad-mxq.json").write_text('{"format": "mxq-report/1", "files": 3}')
    with pytest.raises(FormatError, match="'files' is int"):
        record.check(tmp_path / "bad")


def test_a_report_json_cannot_say_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        record.write(tmp_path / "net", replace(REPORT, summary={"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["quantized_", "requantize_"])
def test_records_that_do_not_say_whose_int8_form_a_tensor_is(prefix: str) -> None:
    older = record.to_json(REPORT)
    older["tensors"] = {f"{prefix}relu0": {"dtype": "uint8"}, "data_quantize": {"dtype": "int8"}}
    found = record.from_json(older)
    assert found.tensors == {f"{prefix}relu0": TensorRecord("uint8", of="relu0"), "data_quantize": TensorRecord("int8")}
    assert record.tensor_of(found, "relu0") == TensorRecord("uint8", of="relu0")
    assert record.tensor_of(found, "data") is None


def test_an_older_record_calls_what_was_assumed_supposed() -> None:
    kept = {"a": SaturationRecord("pairs", "pairs", at_risk=9, assumed=False)}
    older = record.to_json(replace(REPORT, saturation=kept))
    older["saturation"]["a"]["supposed"] = older["saturation"]["a"].pop("assumed")
    assert record.from_json(older).saturation == kept
    assert not kept["a"].supposed  # scripts of then ask for it
    older["saturation"]["a"] = "damaged"
    with pytest.raises(FormatError, match=r"^mxq report is damaged: .*saturation"):
        record.from_json(older)


def test_a_record_without_fields_of_later_ones_is_read() -> None:
    older = record.to_json(REPORT)
    del older["noise"], older["saturation"], older["weights"], older["removed"]
    found = record.from_json(older)
    assert not found.noise
    assert record.shapes_of(found) == {}


def test_a_record_of_a_later_version_says_so() -> None:
    later = {**record.to_json(REPORT), "versions": {"mxq": "999.1.0"}, "smell": {}}
    why = r"written by mxq 999\.1\.0, .*unknown field `\$\.smell`\); allowed: mxq 999\.1\.0 or later$"
    with pytest.raises(FormatError, match=why):
        record.from_json(later)
    with pytest.raises(FormatError, match=r"^mxq report is damaged: it has an unknown field `\$\.smell`$"):
        record.from_json({**later, "versions": {"mxq": "0.0.1"}})


def test_an_older_record_says_in_a_note_that_a_range_came_at_run_time() -> None:
    older = record.to_json(REPORT)
    older["tensors"] = {
        "quantized_relu0": {"dtype": "uint8", "note": "range found at run time"}, "requantize_conv0": {"dtype": "int8"}
    }  # fmt: skip
    found = record.from_json(older).tensors
    assert [found[name].at_run_time for name in older["tensors"]] == [True, False]


class TestFinding:
    @pytest.mark.parametrize("name", ["relu0", "conv0", "quantized_relu0"])
    def test_a_node_has_many_names(self, name: str) -> None:
        assert record.find(REPORT, name).node == "relu0"

    def test_close_names_are_suggested(self) -> None:
        with pytest.raises(ConfigError, match="no operator is named 'relu1'; close ones: relu0"):
            record.find(REPORT, "relu1")
        with pytest.raises(ConfigError, match="there are 3"):
            record.find(REPORT, "zzzz")

    def test_an_explanation_gathers_all_there_is(self) -> None:
        about = record.explain(REPORT, record.find(REPORT, "conv0"))
        assert about.coded == REPORT.tensors["quantized_relu0"]
        assert about.calibrated is not None
        assert about.calibrated["observer"] == "entropy"
        assert about.refusals == (("fuse_conv_add_act", "read twice"),)  # once
        nothing = record.explain(REPORT, record.find(REPORT, "prob"))
        assert (nothing.coded, nothing.calibrated, nothing.refusals) == (None, None, ())


def lines_of(what: RenderableType, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(what)
    return [line.rstrip() for line in capture.get().splitlines()]


FOUND = Verification(
    examples=1500,
    agreement=0.985,
    outputs=(Output("prob", "scores", 23.4, 21.0, 0.9991, 0.0123), Output("boxes", "boxes")),
    accuracy=Accuracy(0.8, 0.79, 0.95, 0.96),
    boxes=Boxes(10, 12, 9),
    layers=tuple(Layer(f"conv{i}", "Convolution+Activation", "uint8", 40.0 - i, 0.999) for i in range(12)),
)


class TestTables:
    def test_ops_are_short(self) -> None:
        assert tables.short_op("Convolution+elemwise_add+Activation") == "conv+add+act"
        assert tables.short_op("_contrib_MultiBoxDetection") == "MultiBoxDetection"

    def test_tally_names_the_commonest_first(self) -> None:
        ops = ["Pooling", "Convolution", "Convolution", "softmax", "a", "b"]
        made = tuple(Decision(str(i), op, (), op != "softmax", "") for i, op in enumerate(ops))
        assert tables.tally(Report(Plan(made))) == "5 int8 (2 conv, 1 a, 1 b, 1 pool); 1 float (1 softmax)"
        assert tables.tally(Report(Plan())) == "0 int8; 0 float"

    def test_decisions(self) -> None:
        text = lines_of(tables.decisions(REPORT))
        assert text[0] == "int8"
        assert [line.split() for line in text[3:5]] == [
            ["data_quantize", "quantize", "int8", "of", "its", "input"],
            ["relu0", "conv+act", "uint8", "0", "..", "6.5"],
        ]
        assert any(line.startswith("softmax") and "no int8 kernel" in line and line.endswith("prob") for line in text)

    def test_operators_with_one_reason_share_a_line(self) -> None:
        made = tuple(Decision(n, "Reshape", (n,), False, "no kernel") for n in ("a", "b"))
        (line,) = [line for line in lines_of(tables.decisions(Report(Plan(made)))) if line.startswith("Reshape")]
        assert line.split() == ["Reshape", "2", "no", "kernel", "a,", "b"]

    def test_explanation(self) -> None:
        text = "\n".join(lines_of(tables.explanation(record.explain(REPORT, record.find(REPORT, "relu0"))), 120))
        for words in (
            "conv0, relu0", "uint8, 0 .. 6.5", "widened to hold the sum",
            "0 .. 6.5 by entropy over 32 examples (seen 0 .. 9); clipped", "read twice",
        ):  # fmt: skip
            assert words in text

    def test_explanation_of_weights_and_saturation(self) -> None:
        rounded = WeightRecord("layer", "rounding", 64, 2, 0.001, "reconstruction", "empirical", 0.25)
        clipped = WeightRecord("mse", "weight_calib_mode", 64, 2, 0.001)
        limited = SaturationRecord("pairs", "pairs", at_risk=9, limited=5, assumed=False)
        widened = SaturationRecord("pairs", "range", at_risk=9, factor=2**0.5)
        cases = {
            "rounding: reconstruction, 25.00 % of its codes are not the nearest; bias correction: empirical": rounded,
            "2 of 64 channels, 0.10 % of its values clipped by mse (weight_calib_mode)": clipped,
            "9 pairs of products may saturate; 5 weights made smaller": limited,
            "its input's range widened 1.41 times (what activations are like": widened,
        }
        for words, made in cases.items():
            weight, saturation = (made, None) if isinstance(made, WeightRecord) else (None, made)
            about = record.explain(REPORT, record.find(REPORT, "relu0"))
            about = replace(about, weight=weight, saturation=saturation, target="avx2")
            assert words in " ".join(" ".join(lines_of(tables.explanation(about), 120)).split())

    def test_explanation_of_noise(self) -> None:
        noise = NoiseRecord(0.001, 0.004, 0.01, 0.0015, 0.02, to_float=True)
        about = replace(record.explain(REPORT, record.find(REPORT, "relu0")), noise=noise)
        words = "25.00 % of that of the network's outputs, for 1.00 % of the multiply-adds and 0.15 % of the weights"
        assert words in " ".join(" ".join(lines_of(tables.explanation(about), 200)).split())

    def test_verification(self) -> None:
        text = lines_of(tables.verification(FOUND))
        whole = "\n".join(text)
        for words in ("1,500", "98.50 %", "80.00 %, 79.00 % (-1.00)", "95.00 %, 96.00 % (+1.00)", "81.82 % (9 pairs)"):
            assert words in whole
        assert ["prob", "23.4", "dB", "21.0", "dB", "0.99910", "0.0123"] in [line.split() for line in text]
        assert not any(line.startswith("boxes ") and "dB" in line for line in text)
        names = [line.split()[0] for line in text if line.startswith("conv")]
        assert names[:12] == [f"conv{i}" for i in range(12)]  # in order
        assert names[12:] == [f"conv{i}" for i in range(11, 1, -1)]  # the noisiest first, ten of them

    def test_decibels(self) -> None:
        assert [tables.decibels(v).plain for v in (12.34, None, math.inf, -math.inf)] == [
            "12.3 dB",
            "-",
            "exact",
            "broken",
        ]
        assert len({str(tables.decibels(v).style) for v in (5, 15, 25)}) == 3

    def test_benchmark(self) -> None:
        timings = (
            summarize("fp32", [0.010, 0.012], [0.010, 0.012], 16),
            summarize("int8", [0.005, 0.004], [0.010, 0.012], 16),
        )
        text = lines_of(tables.benchmark(Benchmark(timings, "fp32", 16, 2, 1, 1)))
        assert text[0].split() == ["median", "ms", "min", "p90", "examples/s", "vs", "fp32", "p10..p90"]
        assert text[2].split() == ["fp32", "11.00", "10.00", "11.80", "1,455", "1"]
        assert text[3].split() == ["int8", "4.50", "4.00", "4.90", "3,556", "2.50x", "2.10..2.90"]

    def test_layers_fit_into_80_characters(self) -> None:
        noise = dict.fromkeys(("introduced", "inherited"), -33.3)
        layer = Layer(
            "stage1_unit1_relu1", "Convolution+Activation", "uint8", -33.3, 0.9, clipped=1.0, levels=256, **noise
        )
        found = Verification(1, 1.0, (Output("out", "scores", 1.0, 1.0, 1.0, 1.0),), layers=(layer,))
        text = lines_of(tables.verification(found))
        head = next(line for line in text if line.startswith("layer "))
        assert head.split() == ["layer", "op", "as", "SQNR", "introduced", "inherited", "cosine", "clipped", "levels"]
        assert "conv+act uint8 -33.3 dB   -33.3 dB  -33.3 dB 0.9000 100.00 %    256" in "\n".join(text)

    @pytest.mark.parametrize("width", [80, 120])
    def test_nothing_is_cut_off(self, width: int) -> None:
        long = "stage_" * 14 + "conv0"
        made = Decision(long, "Convolution+elemwise_add+Activation", (long,), True, "because " * 20)
        kept = Decision(long, "softmax", (long,), False, "because " * 20)
        coded = {f"quantized_{long}": TensorRecord("uint8", -1234.5678, 1234.5678, of=long)}
        report = Report(Plan((made, kept)), tensors=coded)
        layers = (Layer(long, "Convolution+elemwise_add+Activation", "uint8", 33.3, 0.9),)
        for shown in (
            tables.decisions(report),
            tables.explanation(record.explain(report, made)),
            tables.verification(Verification(1, 1.0, (Output(long, "scores", 1.0, 1.0, 1.0, 1.0),), layers=layers)),
        ):
            text = lines_of(shown, width)
            assert max(map(len, text)) <= width
            assert "…" not in "".join(text)
            assert "".join(text).replace(" ", "").count("conv0") >= 1
