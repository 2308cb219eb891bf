"""ONNX files read without running them: what is in them, what they say of themselves, damage of every kind."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from graphs import RESIDUAL, SHAPE, build

from mxq.backends import onnx as backend
from mxq.errors import ConfigError, FormatError
from mxq.formats.onnx_file import Port, is_onnx, read
from mxq.formats.onnx_record import FileRecord

pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")

import onnx
from onnx_files import lowered

EXAMPLE = SHAPE[1:]
RECORD = FileRecord(
    "int8", "portable", "avx2", {"effort": "fast", "bits": 8}, {"data": (3, 4, 4)}, {"params_sha256": "0a"}, "ff"
)


@pytest.fixture(scope="module")
def lowering() -> Any:
    return lowered(build(*RESIDUAL), {"data": EXAMPLE})


@pytest.fixture
def path(lowering: Any, tmp_path: Path) -> Path:
    """A float file of one residual block."""
    backend.write(lowering, tmp_path / "net.onnx", FileRecord(inputs={"data": EXAMPLE}))
    return tmp_path / "net.onnx"


class TestRecord:
    def test_there_and_back(self) -> None:
        texts = RECORD.to_properties()
        assert texts["mxq.target"] == "avx2"
        assert texts["mxq.inputs"] == '{"data": [3, 4, 4]}'
        assert FileRecord.from_properties({**texts, "mxq.later": "x", "other": "y"}, "net.onnx") == RECORD
        assert FileRecord.from_properties(FileRecord().to_properties(), "net.onnx") == FileRecord()

    def test_of_a_file_that_mxq_did_not_write(self) -> None:
        assert FileRecord.from_properties({"mxq.version": "1", "other": "y"}, "net.onnx") is None

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"mxq.kind": "int9"}, r"metadata of net.onnx is damaged: .*int9"),
            ({"mxq.config": "{"}, r"mxq.config of net.onnx is not JSON"),
            ({"mxq.inputs": '{"data": 3}'}, r"is damaged: Expected `array`, got `int` - at `\$.inputs"),
        ],
    )
    def test_damaged(self, changes: dict[str, str], says: str) -> None:
        with pytest.raises(FormatError, match=says):
            FileRecord.from_properties({**RECORD.to_properties(), **changes}, "net.onnx")


def test_what_is_in_a_file(path: Path) -> None:
    found = read(path)
    assert found.inputs == (Port("data", "float32", ("batch", *EXAMPLE)),)
    assert found.outputs == (Port("fc0", "float32", ("batch", 10), "Gemm"),)
    assert (found.opset, found.ir_version, found.domains) == (17, 8, {})
    assert found.producer.startswith("mxq ")
    assert (found.kind, found.layers_int8, found.layers_float) == ("float", 0, found.operators["Conv"] + 1)
    assert found.bytes == {"net.onnx": path.stat().st_size}
    assert found.record is not None
    assert found.record.inputs == {"data": EXAMPLE}
    assert found.intact is True


def test_a_file_that_mxq_did_not_write(tmp_path: Path) -> None:
    """Codes are seen by what layers read; operators within others count."""
    helper, kind = onnx.helper, onnx.TensorProto
    scalar = [helper.make_tensor(n, t, [], [v]) for n, t, v in (("s", kind.FLOAT, 0.5), ("z", kind.UINT8, 0))]
    weight = helper.make_tensor("w", kind.INT8, [2, 2], [1, 2, 3, 4])
    zero = helper.make_tensor("wz", kind.INT8, [], [0])
    then, other = (
        helper.make_graph([helper.make_node(op, ["m"], [out])], op, [], [helper.make_tensor_value_info(out, 1, [])])
        for op, out in (("Abs", "t"), ("Neg", "e"))
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
        helper.make_node("MatMul", ["x", "dw"], ["k"]),
        helper.make_node("ReduceMean", ["k"], ["m"], keepdims=0),
        helper.make_node("If", ["yes"], ["i"], then_branch=then, else_branch=other),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, ["n", 2]), helper.make_tensor_value_info("i", 1, [])]
    inputs = [helper.make_tensor_value_info("x", 1, [None, 2])]
    yes = helper.make_tensor("yes", kind.BOOL, [], [True])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [*scalar, weight, zero, yes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "a.onnx")
    found = read(tmp_path / "a.onnx")
    assert (found.kind, found.layers_int8, found.layers_float) == ("int8", 1, 1)
    assert (found.operators["DequantizeLinear"], found.operators["Abs"], found.operators["Neg"]) == (2, 1, 1)
    assert (found.record, found.intact, found.opset) == (None, None, 13)
    assert [str(port) for port in (*found.inputs, *found.outputs)] == [
        "x float32 ?x2", "y float32 nx2", "i float32 scalar",
    ]  # fmt: skip


@pytest.mark.parametrize("apart", [False, True])
def test_edited_values_are_noticed(lowering: Any, tmp_path: Path, apart: bool) -> None:
    path = tmp_path / "net.onnx"
    files = backend.write(lowering, path, largest=4096 if apart else 1 << 30)
    assert len(files) == 1 + apart
    assert read(path).intact is True
    assert {*read(path).bytes} == {file.name for file in files}
    content = bytearray(files[-1].read_bytes())
    value = lowering.constants["conv0_weight"].tobytes()
    content[content.index(value) + len(value) // 2] ^= 1
    files[-1].write_bytes(content)
    assert read(path).intact is False


def test_edited_operators_are_noticed(path: Path) -> None:
    model = onnx.load(path)
    (pad,) = (a for a in model.graph.node[0].attribute if a.name == "pads")
    pad.ints[0] += 1
    pad.ints[2] -= 1
    onnx.save(model, path)
    assert read(path).intact is False


def test_a_file_that_only_said_other_things_is_as_it_was(path: Path) -> None:
    model = onnx.load(path)
    model.metadata_props.add(key="mine", value="1")
    model.graph.doc_string = "mine"
    onnx.save(model, path)
    assert read(path).intact is True


# ---- damage --------------------------------------------------------------------------------------------------


def test_no_file_and_none_of_onnx(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no file"):
        read(tmp_path / "gone.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FormatError, match=r"is a folder; allowed: a file"):
        read(tmp_path / "folder.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(FormatError, match=r"is a pipe; allowed: a file"):
        read(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("content", [b"", b"{}", b"text of some length\n" * 10, bytes(100), b"\x08\x08"])
def test_other_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.onnx is damaged, or no ONNX file"):
        read(tmp_path / "a.onnx")


def test_a_missing_or_short_file_of_values(lowering: Any, tmp_path: Path) -> None:
    path, data = backend.write(lowering, tmp_path / "net.onnx", largest=4096)
    content = data.read_bytes()
    data.write_bytes(content[:-100])
    with pytest.raises(FormatError, match=rf"net.onnx.data has {len(content) - 100} bytes; net.onnx has values of"):
        read(path)
    data.unlink()
    with pytest.raises(FormatError, match=r"net\.onnx\.data', which has values of net\.onnx: keep both in one folder"):
        read(path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "a/../../x", ""])
def test_values_elsewhere_are_not_read(lowering: Any, tmp_path: Path, location: str) -> None:
    path, _ = backend.write(lowering, tmp_path / "net.onnx", largest=4096)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location)
    tensor.external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match="allowed: a file beside it"):
        read(path)


def test_an_operator_that_onnx_does_not_know(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, path)
    with pytest.raises(FormatError, match=r"is damaged, or no ONNX file: No Op registered for Convolve"):
        read(path)


def test_damage_anywhere_is_one_error_or_noticed(path: Path) -> None:
    """Cut at 40 places, and a byte changed at 160: refused, or read, and other values or operators are noticed."""
    content, random_ = path.read_bytes(), random.Random(0)
    variants = [content[: random_.randrange(len(content))] for _ in range(40)]
    for _ in range(160):
        changed = bytearray(content)
        changed[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        variants.append(bytes(changed))
    refused = noticed = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            noticed += read(path).intact is False
        except FormatError:
            refused += 1
    assert refused >= 30
    assert noticed >= 100


def test_without_onnx(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'mxq\[onnx\]'"):
        read(path)


def test_what_is_called_an_onnx_file() -> None:
    assert is_onnx("a/net.onnx")
    assert is_onnx(Path("NET.ONNX"))
    assert not is_onnx("net")
    assert not is_onnx("net.onnx-symbol.json")
    assert not is_onnx(None)


def test_messages_are_one_line(path: Path) -> None:
    """Also those that onnx has of several."""
    model = onnx.load(path)
    model.graph.node[1].input[0] = "nothing"
    onnx.save(model, path)
    with pytest.raises(FormatError, match=r"topologically sorted, however input 'nothing'") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
