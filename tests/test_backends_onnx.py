"""ONNX files: names, batches, refusals, properties on random graphs, and real networks: `mxq.backends.onnx`."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, RESIDUAL, SHAPE, bn, build, conv, fc, feeds, run
from helpers import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mxq
from mxq.backends import onnx as backend
from mxq.backends.onnx import file as onnx_file
from mxq.errors import ConfigError, QuantizeError, StorageError
from mxq.graph.ir import Model, Ref, toposort
from mxq.graph.tensors import PerBatch, Tensor, affine, size_of
from mxq.runtime import load_model, tensors_of, write_pair

pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")

import onnx
from onnx_files import assert_same, lowered, outputs, session

EXAMPLE = SHAPE[1:]
CLOSE = {"rtol": 1e-5, "atol": 5e-6}
"""Float32 sums of a few layers in another order."""


@pytest.fixture(scope="module")
def residual() -> Model:
    return build(*RESIDUAL)


def write(model: Model, path: Path, **more: Any) -> tuple[Path, ...]:
    return backend.write(lowered(model, {"data": EXAMPLE}), path, **more)


# ---- shapes --------------------------------------------------------------------------------------------------


def test_sides() -> None:
    assert affine((2, 3, 4), (8, 12, 16)) == PerBatch(4)
    assert affine((2, 3, 4), (5, 6, 7)) == PerBatch(1, 3)
    assert affine((2, 3, 4), (5, 5, 5)) == 5
    assert affine((2, 3, 4), (4, 9, 16)) is affine((2, 4, 6), (1, 2, 2)) is None
    assert [str(side) for side in (PerBatch(), PerBatch(3), PerBatch(1, 2), PerBatch(2, -1))] == [
        "batch", "3*batch", "batch+2", "2*batch-1",
    ]  # fmt: skip
    assert size_of((2, PerBatch(3), 4)) == PerBatch(24)
    assert size_of((2, 3)) == 6
    assert size_of((PerBatch(), PerBatch())) is None


def test_tensors_follow_the_batch_or_are_of_one() -> None:
    model = build('r = Reshape(data) shape="(-3, 0, 0)"', 's = SliceChannel(r) axis="1" num_outputs="2"', "return s:1")
    open_, one = (tensors_of(model, {"data": EXAMPLE}, batch) for batch in (None, 3))
    assert open_[model.graph.heads[0]] == Tensor((PerBatch(8), 3, 6))
    assert one[model.graph.heads[0]] == Tensor((24, 3, 6))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'y = Reshape(data) shape="({SHAPE[0]}, {prod(EXAMPLE)})"', "'y' (Reshape) would make"),
        (f'w = _ones() shape="{SHAPE}"\ny = broadcast_add(data, w)', "for batches of 3"),
        ('f = Flatten(data)\ny = dot(f, f) transpose_b="True"\nz = Reshape(y) shape="(-1,)"', "'z' (Reshape) makes"),
    ],
)
def test_a_network_for_one_batch_size(line: str, says: str, tmp_path: Path) -> None:
    last = line.rpartition("\n")[2].split(" = ")[0]
    model = build(line, f"return {last}", data=SHAPE)
    with pytest.raises(ConfigError, match="give one batch_size") as caught:
        tensors_of(model, {"data": EXAMPLE})
    assert says in str(caught.value)
    assert_same(model, tmp_path / "net.onnx", feeds(), batch=SHAPE[0], **CLOSE)


# ---- files ---------------------------------------------------------------------------------------------------


def test_a_file_says_what_it_is(residual: Model, tmp_path: Path) -> None:
    (path,) = write(residual, tmp_path / "net.onnx")
    found = onnx.load(path)
    assert (found.producer_name, found.producer_version, found.ir_version) == ("mxq", mxq.__version__, 8)
    said = {p.key: p.value for p in found.metadata_props}
    assert (said["mxq.version"], said["mxq.kind"], len(said["mxq.sha256"])) == (mxq.__version__, "float", 64)
    assert [(o.domain, o.version) for o in found.opset_import] == [("", 17)]
    (given_,), (made,) = found.graph.input, found.graph.output
    sides = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (given_, made)]
    assert sides == [["batch", *EXAMPLE], ["batch", 10]]
    assert {*residual.args} <= {one.name for one in found.graph.initializer}
    assert {"conv0", "sum", "relu1", "fc0"} <= {name for node in found.graph.node for name in node.output}
    onnx.checker.check_model(found, full_check=True)


def test_the_same_network_gives_the_same_bytes(residual: Model, tmp_path: Path) -> None:
    files = [write(residual, tmp_path / name)[0].read_bytes() for name in ("a.onnx", "b.onnx")]
    assert files[0] == files[1]


def test_values_beyond_a_files_size_go_beside_it(residual: Model, tmp_path: Path) -> None:
    first, second = write(residual, tmp_path / "net.onnx", largest=4096)
    assert second == tmp_path / "net.onnx.data"
    assert first.stat().st_size < 8192 < second.stat().st_size
    onnx.checker.check_model(str(first), full_check=True)
    found, wanted = outputs(session(first), feeds())[0], run(residual)[0]
    assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("largest", [4096, onnx_file.LARGEST_FILE])
def test_whole_or_not_at_all(residual: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    path = tmp_path / "net.onnx"
    write(residual, path, largest=largest)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = residual.with_graph(residual.graph, {"fc0_bias": np.zeros(10, np.float32)})
    monkeypatch.setattr("mxq.storage.writing._take_places", _fails)
    with pytest.raises(StorageError, match="No space left"):
        write(other, path, largest=largest)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def _fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_without_onnx(residual: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'mxq\[onnx\]'"):
        mxq.export_onnx(residual, tmp_path / "net.onnx", input_shape=EXAMPLE)
    assert not [*tmp_path.iterdir()]


# ---- graphs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ("d = Dropout(data)", "return d, d, data"),
        ("r = relu(data)", "i = _copy(r)", "return r, i"),
        ('s = SliceChannel(data) axis="1" num_outputs="2"', "return s:1, s:0, s"),
        ("a = relu(data)", 'z = _zeros() shape="(1, 8, 1, 1)"', "y = broadcast_add(a, z)", "return y, z"),
    ],
)
def test_outputs_have_the_names_that_mxnet_gives(lines: tuple[str, ...], tmp_path: Path) -> None:
    model = build(*lines)
    heads = [*dict.fromkeys(model.graph.heads)]
    (path,) = write(model, tmp_path / "net.onnx")
    opened = session(path)
    names = [one.name for one in opened.get_outputs()]
    assert len({*names}) == len(names) == len(model.graph.heads)
    assert {str(head) for head in heads if not model.graph[head.name].is_variable} <= {*names}
    for found, wanted in zip(outputs(opened, feeds()), run(model), strict=True):
        assert_close(found, wanted, **CLOSE)


def test_all_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    model = build(
        'c = Convolution(data, c_weight, c_bias) kernel="(3, 3)" num_filter="8"',
        'd = Dropout(c) mode="always"',
        "g = gamma(d)",
        "r = relu(g)",
        'f = softmax(r) use_length="False"',
        'l = LRN(f) nsize="3"',
        "return l, l:1",
    )
    with pytest.raises(QuantizeError) as caught:
        lowered(model, {"data": EXAMPLE})
    text = str(caught.value)
    assert text.startswith("3 operators cannot be written as ONNX: ")
    assert "'d' (Dropout): this attribute has no counterpart in ONNX: mode 'always' draws at random" in text
    assert "'g' (gamma): mxq has no ONNX form of this operator" in text
    assert "'l' (LRN): this output is not made: output 1" in text


def test_many_that_cannot_be_written_are_named_by_operator_and_reason() -> None:
    lines, last = [], "data"
    for i in range(14):
        lines, last = [*lines, f"g{i} = gamma({last})"], f"g{i}"
    model = build(*lines, f"l = gammaln({last})", "return l", data=(2, 3))
    with pytest.raises(QuantizeError) as caught:
        lowered(model, {"data": (3,)})
    text = str(caught.value)
    assert text.startswith("15 operators cannot be written as ONNX: 'g0', 'g1', ")
    assert "'g11' and 2 more (gamma): mxq has no ONNX form of this operator; 'l' (gammaln): mxq has no" in text
    assert text.endswith("; allowed: operators of the table in docs/onnx.md")


def test_an_output_that_is_not_made_is_named() -> None:
    model = build("d = Dropout(data)", "y = elemwise_mul(data, d:1)", "return y")
    refs = dict.fromkeys([Ref("data"), Ref("d"), Ref("d", 1), Ref("y")], Tensor((2, 3)))
    with pytest.raises(
        QuantizeError, match=r"^1 operator cannot .*: 'd' \(Dropout\): this output is not made: output 1"
    ):
        backend.lower(model, refs)


def test_int8_is_refused(tmp_path: Path) -> None:
    model = build('q = _contrib_quantize_v2(data) out_type="int8"', "return q")
    with pytest.raises(QuantizeError, match="the network is quantized"):
        mxq.export_onnx(model, tmp_path / "net.onnx", input_shape=EXAMPLE)


BLOCKS = (
    lambda i, x: [conv(f"n{i}", x), f"m{i} = Activation(n{i}) {RELU}"],
    lambda i, x: [bn(f"n{i}", x), f'm{i} = LeakyReLU(n{i}) act_type="elu"'],
    lambda i, x: [f'n{i} = Pooling({x}) kernel="(3, 3)" pool_type="avg" stride="(1, 1)" pad="(1, 1)"',
                  f"m{i} = broadcast_mul(n{i}, {x})"],
    lambda i, x: [f'n{i} = Pooling({x}) global_pool="True" pool_type="avg"', f"m{i} = broadcast_add({x}, n{i})"],
    lambda i, x: [f'n{i} = SliceChannel({x}) axis="1" num_outputs="2"',
                  f'm{i} = Concat(n{i}:1, n{i}:0) dim="1" num_args="2"'],
    lambda i, x: [f'n{i} = Reshape({x}) shape="(0, -4, 2, -1, -2)"', f'o{i} = SwapAxis(n{i}) dim1="1" dim2="2"',
                  f'm{i} = Reshape(o{i}) shape="(0, -3, -2)"'],
    lambda i, x: [f'n{i} = clip({x}) a_min="-1" a_max="1"', f"m{i} = elemwise_sub({x}, n{i})"],
    lambda i, x: [f'n{i} = softmax({x}) axis="1"', f'm{i} = _rminus_scalar(n{i}) scalar="0.5"'],
)  # fmt: skip
"""Each keeps the shape of images, so that they can follow each other in any order."""


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.tuples(st.integers(0, len(BLOCKS) - 1), st.integers(0, 9)), min_size=1, max_size=5))
def test_random_graphs(chosen: list[tuple[int, int]], tmp_path: Path) -> None:
    made, lines = ["data"], list[str]()
    for i, (block, source) in enumerate(chosen):
        lines += BLOCKS[block](i, made[source % len(made)])
        made.append(f"m{i}")
    lines += [fc("last", made[-1]), f"return last, {made[len(made) // 2]}" if len(made) > 2 else "return last"]
    model = build(*lines)
    model = model.with_graph(
        toposort(model.graph.nodes, model.graph.heads, model.graph.attrs)
    )  # without what is unread
    other = {"data": feeds(seed=2, data=(5, *EXAMPLE))["data"]}
    assert_same(model, tmp_path / "net.onnx", feeds(), other, rtol=1e-4, atol=1e-5)


def test_rests_of_integers_have_the_sign_of_the_divisor(tmp_path: Path) -> None:
    """The runner of MXNet refuses integers here: a divisor of 0 ends its process."""
    casts = ('a = Cast(data) dtype="int32"', 'b = Cast(other) dtype="int32"')
    model = build(*casts, "y = broadcast_mod(a, b)", "return y", data=(2, 3), other=(2, 3))
    backend.write(lowered(model, {"data": (3,), "other": (3,)}), tmp_path / "net.onnx")
    a, b = np.float32([[5, -5, 7], [6, -7, 0]]), np.float32([[3, 3, -3], [3, -4, 5]])
    (found,) = outputs(session(tmp_path / "net.onnx"), {"data": a, "other": b})
    np.testing.assert_array_equal(found, np.mod(a, b).astype(np.int32))


# ---- both doors ----------------------------------------------------------------------------------------------


def test_a_block_a_prefix_and_the_command_give_the_same_file(residual: Model, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mxq.cli import app
    from mxq.runtime import to_block

    prefix = tmp_path / "net"
    write_pair(residual, prefix)
    (tmp_path / "preprocess.json").write_text("{}")
    shape = "x".join(map(str, EXAMPLE))
    ran = CliRunner().invoke(
        app, ["export", str(prefix), "--float", "--out", str(tmp_path / "a.onnx"), "--input-shape", shape, "--json"]
    )
    assert ran.exit_code == 0, ran.output
    size = (tmp_path / "a.onnx").stat().st_size
    assert json.loads(ran.stdout) == {"files": [str(tmp_path / "a.onnx")], "bytes": size}
    mxq.export_onnx(str(prefix), tmp_path / "b.onnx", input_shape={"data": EXAMPLE})
    mxq.export_onnx(to_block(residual), str(tmp_path / "c.onnx"), input_shape=shape)
    assert len({(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"}) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "the shape of input 'data' is not known"),
        ({"input_shape": {"image": EXAMPLE}}, r"input_shape is of \['image'\]; the inputs are data"),
        ({"input_shape": EXAMPLE, "batch_size": 0}, "batch_size is 0; allowed"),
        ({"input_shape": EXAMPLE, "batch_size": True}, "batch_size is True; allowed"),
        ({"input_shape": (8, 1)}, "MXNet cannot infer shapes"),
    ],
)
def test_bad_arguments(residual: Model, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        mxq.export_onnx(residual, tmp_path / "net.onnx", **more)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--float is missing"),
        (["--float", "--input-shape", "3xx4"], "--input-shape is '3xx4'; allowed"),
        (["--float", "--input-shape", "3x4", "--input-shape", "3x4"], "once for each input"),
    ],
)
def test_bad_options(residual: Model, tmp_path: Path, arguments: list[str], says: str) -> None:
    from typer.testing import CliRunner

    from mxq.cli import app

    write_pair(residual, tmp_path / "net")
    ran = CliRunner().invoke(app, ["export", str(tmp_path / "net"), "--out", str(tmp_path / "a.onnx"), *arguments])
    assert ran.exit_code == 2
    assert says in ran.output


# ---- real networks -------------------------------------------------------------------------------------------

REAL = {
    "cifar_resnet20": {"data": (3, 32, 32)},
    "cifar_resnet56": {"data": (3, 32, 32)},
    "mobilenet_v1_0.75": {"data": (3, 224, 224)},
    "mobilenet_v2_1.0_ptqdeq": {"data": (3, 224, 224)},
    "resnet18_pqf": {"data": (3, 224, 224)},
    "resnet50_pqf": {"data": (3, 224, 224)},
    "mbv2_yolov3_nano_voc": {"data": (3, 352, 352)},
    "ssd_face_slim320/ssd_face_slim320_raw": {"data": (3, 240, 320)},
    "crnn_english_g2": {"data": (1, 64, 256)},
    "ppocrv4_det": {"data": (3, 320, 320)},
    "minilm_l6_small": {"tokens": (64,), "mask": (64,)},
    "mtcnn/det1": {"data": (3, 100, 90)},
    "mtcnn/det2": {"data": (3, 24, 24)},
    "mtcnn/det3": {"data": (3, 48, 48)},
    "mtcnn/det4": {"data": (15, 24, 24)},
}
"""Networks of the shared data -> shape of one example."""


def _inputs(root: Path, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Two examples: those beside the network where there are some of its inputs, or noise."""
    rng, file = np.random.default_rng(0), root / "inputs.npz"
    if name == "minilm_l6_small":
        with np.load(file) as arrays:
            return {key: arrays[key][:2].astype(np.float32) for key in shapes}
    return {key: rng.standard_normal((2, *shape)).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_networks(mxq_data: Path, tmp_path: Path, name: str) -> None:
    place = Path(name)
    folder = mxq_data / "models" / place.parts[0]
    model = load_model(folder / place.name)
    batch = _inputs(folder, name, REAL[name])
    assert_same(model, tmp_path / "net.onnx", batch, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_detections(mxq_data: Path, tmp_path: Path) -> None:
    """The same boxes stay; of two whose scores are equal but for rounding either may come first."""
    model = load_model(mxq_data / "models" / "ssd_face_slim320" / "ssd_face_slim320")
    batch = {"data": np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)}
    backend.write(lowered(model, {"data": (3, 240, 320)}), tmp_path / "net.onnx")
    (found,), (wanted,) = outputs(session(tmp_path / "net.onnx"), batch), run(model, batch)
    for rows, others in zip(found, wanted, strict=True):
        ours, theirs = rows[rows[:, 0] >= 0], others[others[:, 0] >= 0]
        assert len(ours) == len(theirs) > 10
        nearest = np.abs(ours[:, None] - theirs).max(axis=-1).argmin(axis=1)
        assert sorted(nearest) == [*range(len(theirs))]
        assert_close(ours, theirs[nearest], rtol=0, atol=1e-5)
