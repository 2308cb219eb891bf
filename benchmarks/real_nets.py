"""The pretrained networks and labelled images under ``MXQ_DATA``, as the benchmarks use them."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

from mxnet import io  # noqa: E402
from mxnet.contrib import quantization as contrib  # noqa: E402

from mxq.graph.ir import Array, Model, toposort  # noqa: E402
from mxq.runtime import MxnetRunner, from_symbol, load_model, to_arrays, to_symbol  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import voc  # noqa: E402

IMAGENET = ("resnet18_pqf", "resnet50_pqf", "mobilenet_v1_0.75", "mobilenet_v2_1.0_ptqdeq")
CIFAR = ("cifar_resnet20", "cifar_resnet56")
YOLO = "mbv2_yolov3_nano_voc"
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def data_root() -> Path:
    """The directory that ``MXQ_DATA`` names; ends the program, saying so, where it is unset."""
    if "MXQ_DATA" not in os.environ:
        sys.exit("set MXQ_DATA to the directory with models/, imagenet/, cifar10/ and voc_style/")
    return Path(os.environ["MXQ_DATA"])


@dataclass(frozen=True)
class Task:
    """A float network, its calibration and evaluation inputs (N, C, H, W) float32, and labels or boxes."""

    name: str
    model: Model
    calibration: Array
    evaluation: Array
    truth: Any

    def score(self, outputs: Sequence[Array]) -> float:
        """Top-1 accuracy, or VOC07 mAP, in percent."""
        if self.name == YOLO:
            return 100 * _yolo_map(outputs, self.truth)
        return 100 * float((outputs[0].argmax(1) == self.truth).mean())


def load(name: str, calibration: int = 50, evaluation: int = 500) -> Task:
    """One network with its data. Classifiers give logits: a final softmax is taken off."""
    root = data_root()
    model = load_model(root / "models" / name / name)
    if name == YOLO:
        samples = voc.read(root / "voc_style")
        images = voc.load_images(samples, 320).transpose(0, 3, 1, 2).astype(np.float32) / 255
        return Task(name, model, images[:calibration], images, samples)
    if name in CIFAR:
        with np.load(root / "cifar10" / "cifar10_test_jpeg.npz") as file:
            pixels, labels = file["images"].astype(np.float32) / 255, file["labels"]
        images = ((pixels - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)).transpose(0, 3, 1, 2)
        # The first images calibrate, the others evaluate, at most twenty times as many as of ImageNet.
        most = calibration + 20 * evaluation
        return Task(name, logits(model), images[:calibration], images[calibration:most], labels[calibration:most])
    images, labels = _imagenet(root, name, evaluation)
    return Task(name, logits(model), images[:: max(1, len(images) // calibration)][:calibration], images, labels)


def logits(model: Model) -> Model:
    """The classifier without its final softmax."""
    head = model.graph.heads[0]
    node = model.graph[head.name]
    if node.op not in ("softmax", "SoftmaxOutput"):
        return model
    return model.with_graph(toposort(model.graph.nodes, (node.inputs[0],), model.graph.attrs))


def _imagenet(root: Path, name: str, count: int) -> tuple[Array, Array]:
    how = json.loads((root / "models" / name / "preprocess.json").read_text())
    with (root / "imagenet" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:count]
    crop, images = how["crop"], []
    for row in rows:
        with Image.open(root / "imagenet" / row["file"]) as picture:
            left, top = ((side - crop) // 2 for side in picture.size)
            pixels = np.asarray(picture.convert("RGB").crop((left, top, left + crop, top + crop)), np.float32)
        pixels = pixels[::-1, ::-1] if how.get("rotate180") else pixels
        images.append(((pixels - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1))
    return np.stack(images), np.array([int(row["index"]) + how["label_offset"] for row in rows])


def run(model: Model, images: Array, batch: int = 25) -> list[Array]:
    """Outputs of a network over all images, each (N, ...)."""
    call, name = MxnetRunner().compile(model), model.inputs[0]
    parts = [list(call({name: images[i : i + batch]})) for i in range(0, len(images), batch)]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def by_mxq(task: Task, **options: Any) -> Model:
    """The network quantized by mxq on the task's calibration images."""
    symbol = (to_symbol(task.model.graph), to_arrays(task.model.args), to_arrays(task.model.auxs))
    images = task.calibration
    result = mxq.quantize_model(*symbol, calib_data=images, num_calib_examples=len(images), batch_size=10, **options)
    return from_symbol(*result)


def by_contrib(task: Task, calib_mode: str, batch: int = 10) -> Model:
    """The network fused and quantized by ``mxnet.contrib.quantization`` (smart, auto) on the same images."""
    name = task.model.inputs[0]
    data = io.NDArrayIter({name: task.calibration}, batch_size=batch)
    result = contrib.quantize_model_mkldnn(
        to_symbol(task.model.graph),
        to_arrays(task.model.args),
        to_arrays(task.model.auxs),
        data_names=(name,),
        label_names=None,
        calib_mode=calib_mode,
        calib_data=data,
        quantized_dtype="auto",
        quantize_mode="smart",
    )
    return from_symbol(*result)


def _yolo_map(outputs: Sequence[Array], samples: Sequence[voc.Sample]) -> float:
    settings = json.loads((data_root() / "models" / YOLO / f"{YOLO}-yolo.json").read_text())
    found = []
    for i in range(len(samples)):
        rows = np.concatenate([_decode(outputs[h["output"]][i], h, settings["width"]) for h in settings["heads"]])
        found.append(_suppress(rows))
    return voc.mean_ap(
        found, [s.boxes for s in samples], len(voc.CLASSES), difficult=[s.difficult for s in samples]
    ).mean


def _decode(output: Array, head: dict[str, Any], width: int) -> Array:
    """Rows (n, 6): class, score, corners in [0, 1], of one image's head (anchors * (5 + classes), H, W)."""
    anchors, classes = np.array(head["anchors"], np.float32), head["classes"]
    _, h, w = output.shape
    maps = output.reshape(len(anchors), 5 + classes, h, w)
    sigmoid = 1 / (1 + np.exp(-maps))
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)))
    centre = ((sigmoid[:, :2] - 0.5) * head["scale_x_y"] + 0.5 + grid) / np.array([w, h]).reshape(1, 2, 1, 1)
    size = np.exp(maps[:, 2:4]) * anchors[:, :, None, None] / width
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    scores = sigmoid[:, 4:5] * sigmoid[:, 5:]
    rows = []
    for a, label, y, x in np.argwhere(scores > 0.005):
        rows.append((label, scores[a, label, y, x], *corners[a, :, y, x]))
    return np.array(rows, np.float32).reshape(-1, 6)


def _suppress(rows: Array, overlap: float = 0.45) -> Array:
    """Greedy non-maximum suppression per class."""
    kept = []
    for label in np.unique(rows[:, 0]):
        mine = rows[rows[:, 0] == label]
        mine = mine[np.argsort(-mine[:, 1], kind="stable")]
        while len(mine):
            kept.append(mine[0])
            mine = mine[1:][voc.iou(mine[:1, 2:], mine[1:, 2:])[0] <= overlap]
    return np.array(kept, np.float32).reshape(-1, 6)
