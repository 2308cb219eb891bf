"""Trained networks on real images: accuracy of int8, beside ``mxnet.contrib.quantization`` on the same images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from mxnet.contrib import quantization as contrib

from mxq.backends.mxnet.exact import exact
from mxq.graph.ir import Model, toposort
from mxq.runtime import MxnetRunner, from_symbol, load_model, to_arrays, to_symbol

pytestmark = pytest.mark.data

CALIBRATION = 50
CIFAR_MEAN, CIFAR_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def logits(model: Model) -> Model:
    """The classifier without its final softmax."""
    (head,) = model.graph.heads
    node = model.graph[head.name]
    if node.op not in ("softmax", "SoftmaxOutput"):
        return model
    return model.with_graph(toposort(model.graph.nodes, (node.inputs[0],), model.graph.attrs))


def run(model: Model, images: np.ndarray, batch: int = 50) -> np.ndarray:
    call, name = MxnetRunner().compile(model), model.inputs[0]
    return np.concatenate([call({name: images[i : i + batch]})[0] for i in range(0, len(images), batch)])


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB; what all classes share is no signal."""
    wanted, found = (v - v.mean(axis=1, keepdims=True) for v in (wanted, found))
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def arrays(model: Model) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    return to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)


def by_mxq(model: Model, images: np.ndarray, calib_mode: str) -> Model:
    result = mxq.quantize_model(
        *arrays(model), images, calib_mode=calib_mode, num_calib_examples=len(images), batch_size=10
    )
    return from_symbol(*result)


def by_contrib(model: Model, images: np.ndarray, calib_mode: str) -> Model:
    result = contrib.quantize_model_mkldnn(
        *arrays(model),
        data_names=model.inputs,
        label_names=None,
        calib_mode=calib_mode,
        calib_data=mx.io.NDArrayIter({model.inputs[0]: images}, batch_size=10),
        quantized_dtype="auto",
        quantize_mode="smart",
    )
    return from_symbol(*result)


@cache
def cifar(root: Path) -> tuple[Model, np.ndarray, np.ndarray, np.ndarray]:
    """The network, calibration images, and 1000 other images (N, 3, 32, 32) with labels."""
    with np.load(root / "cifar10" / "cifar10_test_jpeg.npz") as file:
        pixels = file["images"][: CALIBRATION + 1000].astype(np.float32) / 255
        labels = file["labels"][CALIBRATION : CALIBRATION + 1000]
    images = np.ascontiguousarray(((pixels - CIFAR_MEAN) / CIFAR_STD).transpose(0, 3, 1, 2))
    model = logits(load_model(root / "models" / "cifar_resnet20" / "cifar_resnet20"))
    return model, images[:CALIBRATION], images[CALIBRATION:], labels


@cache
def imagenet(root: Path, name: str, count: int) -> tuple[Model, np.ndarray]:
    """The network and ``count`` images, spread over the classes, prepared as its preprocess.json says."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    how = json.loads((root / "models" / name / "preprocess.json").read_text(encoding="utf-8"))
    with (root / "imagenet" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    crop, images = how["crop"], []
    for row in rows[:: max(1, len(rows) // count)][:count]:
        with image.open(root / "imagenet" / row["file"]) as picture:
            left, top = ((side - crop) // 2 for side in picture.size)
            pixels = np.asarray(picture.convert("RGB").crop((left, top, left + crop, top + crop)), np.float32)
        pixels = pixels[::-1, ::-1] if how.get("rotate180") else pixels
        images.append(((pixels - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1))
    return logits(load_model(root / "models" / name / name)), np.ascontiguousarray(np.stack(images))


@pytest.mark.filterwarnings("ignore")  # of contrib
class TestCifar:
    @pytest.mark.parametrize("calib_mode", ["naive", "entropy"])
    def test_at_least_as_close_to_float_as_contrib(self, mxq_data: Path, calib_mode: str) -> None:
        model, calibration, images, _ = cifar(mxq_data)
        wanted = run(model, images)
        mine, theirs = (sqnr(wanted, run(by(model, calibration, calib_mode), images)) for by in (by_mxq, by_contrib))
        assert mine >= theirs
        assert mine >= 20  # dB

    @pytest.mark.parametrize("calib_mode", ["naive", "entropy"])
    def test_top_1_falls_by_a_point_at_most(self, mxq_data: Path, calib_mode: str) -> None:
        model, calibration, images, labels = cifar(mxq_data)
        before, after = (
            100 * float((run(m, images).argmax(1) == labels).mean())
            for m in (model, by_mxq(model, calibration, calib_mode))
        )
        assert before > 78  # 81 on these images, which JPEG has degraded; otherwise they are prepared wrongly
        assert after >= before - 1


@pytest.mark.filterwarnings("ignore")  # of contrib
def test_resnet18_at_least_as_close_to_float_as_contrib(mxq_data: Path) -> None:
    model, images = imagenet(mxq_data, "resnet18_pqf", CALIBRATION)
    wanted = run(model, images, 25)
    mine, theirs = (sqnr(wanted, run(by(model, images, "naive"), images, 25)) for by in (by_mxq, by_contrib))
    assert mine >= theirs
    assert mine >= 20  # dB


@pytest.mark.filterwarnings("ignore")  # of MXNet's RNN
def test_crnn_is_refined_whole(mxq_data: Path) -> None:
    """Convolutions, two bidirectional LSTMs, tensors (time, batch, features): every int8 layer looks at the data."""
    prefix = mxq_data / "models" / "crnn_english_g2" / "crnn_english_g2"
    with np.load(prefix.parent / "inputs.npz") as file:
        words = (file["data"][:24].astype(np.float32) - 127.5) / 127.5
    model, calibration, others = load_model(prefix), words[:16], words[16:]
    result = mxq.quantize_model(*arrays(model), calibration, batch_size=8, target="avx512_vnni")
    report = result.report
    assert report.summary["warnings"] == []
    assert len(report.weights) == 10
    done = {(w.rounding, w.bias_correction, w.note) for w in report.weights.values()}
    assert done == {("reconstruction", "empirical", "")}
    (wanted,), (found,) = (MxnetRunner().compile(m)({"data": others}) for m in (model, exact(from_symbol(*result))))
    assert relative_error(wanted, found) < 0.02


# ---- networks of other shapes, as old as 2016 ----------------------------------------------------------------


def relative_error(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted))


SMALL: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    # det1 slides over a picture of any size; det2 to det4 judge crops
    "det1": lambda rng: rng.uniform(-1, 1, (4, 3, 48, 64)),
    "det2": lambda rng: rng.uniform(-1, 1, (8, 3, 24, 24)),
    "det3": lambda rng: rng.uniform(-1, 1, (8, 3, 48, 48)),
    "det4": lambda rng: rng.uniform(-1, 1, (8, 15, 24, 24)),
}


@pytest.mark.parametrize("name", SMALL)
def test_mtcnn(mxq_data: Path, name: str, tmp_path: Path) -> None:
    """Parameters of epoch 1, JSON of an old MXNet, several outputs; written and read back."""
    prefix = mxq_data / "models" / "mtcnn" / name
    images = SMALL[name](np.random.default_rng(0)).astype(np.float32)
    model = load_model(prefix)
    # det2 and det3 end in SoftmaxOutput and read a label, which has no influence on what they compute
    feeds = {n: images if n == "data" else np.zeros(len(images), np.float32) for n in model.inputs}
    wanted = list(MxnetRunner().compile(model)(feeds))
    block = mxq.quantize_net(prefix, feeds)
    mxq.save(block, tmp_path / name)
    loaded = mxq.load(tmp_path / name)
    found = [o.asnumpy() for o in loaded(*(mx.nd.array(feeds[n]) for n in load_model(loaded).inputs))]
    assert [f.shape for f in found] == [w.shape for w in wanted]
    assert block.mxq_report.summary["int8"] >= 4
    for value, result in zip(wanted, found, strict=True):
        assert relative_error(value, result) < 0.1


def test_ssd_face_raw(mxq_data: Path) -> None:
    """Scores and boxes before detection: two outputs through many heads and concatenations."""
    prefix = mxq_data / "models" / "ssd_face_slim320" / "ssd_face_slim320_raw"
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)
    wanted = list(MxnetRunner().compile(load_model(prefix))({"data": images}))
    block = mxq.quantize_net(prefix, images)
    found = [o.asnumpy() for o in block(mx.nd.array(images))]
    assert [f.shape for f in found] == [(2, 4420, 2), (2, 4420, 4)]
    for value, result in zip(wanted, found, strict=True):
        assert relative_error(value, result) < 0.15


def test_ssd_face_with_detection(mxq_data: Path) -> None:
    prefix = mxq_data / "models" / "ssd_face_slim320" / "ssd_face_slim320"
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 240, 320)).astype(np.float32)
    block = mxq.quantize_net(prefix, images)
    rows = block(mx.nd.array(images)).asnumpy()
    assert rows.shape == (2, 4420, 6)
    assert np.isfinite(rows).all()
    detection = next(d for d in block.mxq_report.plan.decisions if "MultiBoxDetection" in d.op)
    assert not detection.int8


def test_legacy_json(mxq_data: Path) -> None:
    """Files from before MXNet 1.0 keep attributes under "param" or "attr" and lack auxiliary inputs."""
    path = mxq_data / "models" / "mtcnn" / "det1-symbol.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert not any("attrs" in node for node in written["nodes"])
    model = load_model(mxq_data / "models" / "mtcnn" / "det1")
    convolutions = [n for n in model.graph.operators if n.op == "Convolution"]
    assert len(convolutions) == sum(n["op"] == "Convolution" for n in written["nodes"]) > 0
    assert all(n.ints("kernel") and int(n.attrs["num_filter"]) > 0 for n in convolutions)
