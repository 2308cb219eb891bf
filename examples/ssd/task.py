"""What the SSD scripts share: the network, how its input is prepared, and its data.

By default that is the small network under `models/` and drawn scenes; `--model` takes any detector of
gluoncv's zoo, `--prefix` an exported pair, `--data` a directory in VOC layout.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import voc
from mxnet import gluon, init, nd

import mxq

MODEL = Path(__file__).parents[2] / "models" / "ssd_vgg16_digits" / "ssd_vgg16_digits"
OUTPUT = Path("output")
IMAGENET_MEAN, IMAGENET_STD = (123.68, 116.28, 103.53), (58.395, 57.12, 57.375)
EVALUATION_SEED = 0
NEVER_TRAINED_ON = 100_000  # number of a scene of the training split that training does not reach

Block = Callable[[nd.NDArray], Any]


@dataclass(frozen=True)
class Task:
    """A detector and what it expects.

    Attributes:
        name: base of the names of the files that are written.
        net: the float network, (N, 3, size, size) float32 to detections.
        size: side of the input, in pixels.
        classes: names of the classes.
        mean, std: of each RGB channel, in 0..255.
        drawn: the data are drawn scenes, not a directory's pictures.
    """

    name: str
    net: Block
    size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    drawn: bool

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Turn (N, H, W, 3) uint8 RGB images into network input, (N, 3, H, W) float32."""
        scaled = (images.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def detect(self, block: Block, images: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Run a detector, this task's float network or its INT8 form.

        Args:
            block: the network.
            images: (N, size, size, 3) uint8 RGB.
            batch_size: images in one forward pass; the last batch may be smaller.

        Returns:
            For each image (m, 6) float32, best first: class, score in [0, 1], xmin, ymin, xmax, ymax
            as fractions of the side.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(images), batch_size):
            result = block(nd.array(self.normalise(images[start : start + batch_size])))
            found.extend(rows[rows[:, 0] >= 0] for rows in self._rows(result))
        return found

    def _rows(self, result: Any) -> np.ndarray:
        """(N, m, 6) rows from what the network gives: such rows, or gluoncv's ids, scores and corners in pixels."""
        if isinstance(result, nd.NDArray):
            return result.asnumpy()
        ids, scores, corners = (part.asnumpy() for part in result[:3])
        return np.concatenate([ids, scores, corners / self.size], axis=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which network and which data."""
    parser.add_argument("--model", help="a detector of gluoncv's zoo, e.g. ssd_300_vgg16_atrous_voc")
    parser.add_argument("--pretrained", action="store_true", help="download the zoo's weights")
    parser.add_argument("--prefix", type=Path, help="PREFIX-symbol.json and PREFIX-0000.params of your own")
    parser.add_argument("--data", type=Path, help="directory in VOC layout (JPEGImages, Annotations)")
    parser.add_argument("--image-set", help="list in ImageSets/Main, e.g. test; default: every annotation")
    parser.add_argument("--size", type=int, help="side of the input, in pixels; default: the network's own")
    parser.add_argument("--mean", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--std", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory for what is written")


def load(args: argparse.Namespace) -> Task:
    """The task that the command line asks for."""
    digits = args.model is None and args.prefix is None
    mean, std = (scenes.MEAN, scenes.STD) if digits else (IMAGENET_MEAN, IMAGENET_STD)
    size = args.size or _size_in(args.model or "")
    if args.model:
        net, name, classes = *_zoo(args.model, size, pretrained=args.pretrained), voc.CLASSES
    else:
        prefix = args.prefix or MODEL
        net, name, classes = mxq.load(prefix), prefix.name, scenes.CLASSES if digits else voc.CLASSES
    return Task(
        name, net, size, classes, tuple(args.mean or mean), tuple(args.std or std), drawn=args.data is None
    )


def int8_prefix(task: Task, output: Path) -> Path:
    """Where the INT8 pair goes: beside the float one, with "-int8" after its name."""
    return output / f"{task.name}-int8"


def calibration_images(task: Task, args: argparse.Namespace, count: int) -> np.ndarray:
    """Images (count, size, size, 3) uint8 to calibrate on: none was trained on, none is evaluated on."""
    if args.data is None:
        return scenes.detection(count, "train", size=task.size, start=NEVER_TRAINED_ON)[0]
    return voc.load_images(voc.read(args.data, task.classes, args.image_set)[:count], task.size)


def labelled_images(
    task: Task, args: argparse.Namespace, count: int
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """At most `count` images (n, size, size, 3) uint8 to evaluate on; boxes (k, 5) and difficult flags (k,) of each."""
    if args.data is None:
        images, boxes = scenes.detection(count, "test", EVALUATION_SEED, task.size)
        return images, boxes, [np.zeros(len(b), bool) for b in boxes]
    samples = voc.read(args.data, task.classes, args.image_set)[:count]
    return voc.load_images(samples, task.size), [s.boxes for s in samples], [s.difficult for s in samples]


def _size_in(model: str) -> int:
    """The side that a zoo name states (ssd_512_...), or 300."""
    return next((int(part) for part in model.split("_") if part.isdigit()), 300)


def _zoo(model: str, size: int, *, pretrained: bool) -> tuple[gluon.HybridBlock, str]:
    from gluoncv import model_zoo  # noqa: PLC0415  (an import of seconds, for those who ask for it)

    net = model_zoo.get_model(model, pretrained=pretrained, **({} if pretrained else {"pretrained_base": False}))
    if not pretrained:
        print(f"{model}: random weights (use --pretrained for the zoo's); speed is real, accuracy is not")
        net.initialize(init.Xavier())
    net.hybridize()
    net(nd.zeros((1, 3, size, size)))
    return net, model
