"""What the classification scripts share: the network, how its input is prepared, and its data.

By default that is the small network under `models/` and drawn pictures; `--model` takes any classifier of
gluoncv's zoo, `--prefix` an exported pair, `--data` a directory with one folder of images per class.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scenes
from mxnet import gluon, init, nd
from PIL import Image

import mxq

MODEL = Path(__file__).parents[2] / "models" / "resnet_digits" / "resnet_digits"
OUTPUT = Path("output")
IMAGENET_MEAN, IMAGENET_STD = (123.68, 116.28, 103.53), (58.395, 57.12, 57.375)
EVALUATION_SEED = 0
NEVER_TRAINED_ON = 100_000  # number of a scene of the training split that training does not reach
SUFFIXES = (".jpg", ".jpeg", ".png")

Block = Callable[[nd.NDArray], Any]


@dataclass(frozen=True)
class Task:
    """A classifier and what it expects.

    Attributes:
        name: base of the names of the files that are written.
        net: the float network, (N, 3, size, size) float32 to (N, classes).
        size: side of the input, in pixels.
        mean, std: of each RGB channel, in 0..255.
    """

    name: str
    net: Block
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Turn (N, H, W, 3) uint8 RGB images into network input, (N, 3, H, W) float32."""
        scaled = (images.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def scores(self, block: Block, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Class scores (N, classes) float32 of (N, size, size, 3) uint8 images."""
        starts = range(0, len(images), batch_size)
        batches = (nd.array(self.normalise(images[i : i + batch_size])) for i in starts)
        return np.concatenate([block(batch).asnumpy() for batch in batches])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which network and which data."""
    parser.add_argument("--model", help="a classifier of gluoncv's zoo, e.g. resnet50_v1")
    parser.add_argument("--pretrained", action="store_true", help="download the zoo's weights")
    parser.add_argument("--prefix", type=Path, help="PREFIX-symbol.json and PREFIX-0000.params of your own")
    parser.add_argument("--data", type=Path, help="directory with one folder of images per class, in class order")
    parser.add_argument("--size", type=int, help="side of the input, in pixels; default 48, for the zoo 224")
    parser.add_argument("--mean", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--std", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory for what is written")


def load(args: argparse.Namespace) -> Task:
    """The task that the command line asks for."""
    digits = args.model is None and args.prefix is None
    mean, std = (scenes.MEAN, scenes.STD) if digits else (IMAGENET_MEAN, IMAGENET_STD)
    size = args.size or (48 if digits else 224)
    prefix = args.prefix or MODEL
    net = _zoo(args.model, size, pretrained=args.pretrained) if args.model else mxq.load(prefix)
    return Task(args.model or prefix.name, net, size, tuple(args.mean or mean), tuple(args.std or std))


def int8_prefix(task: Task, output: Path) -> Path:
    """Where the INT8 pair goes: beside the float one, with "-int8" after its name."""
    return output / f"{task.name}-int8"


def calibration_images(task: Task, args: argparse.Namespace, count: int) -> np.ndarray:
    """Images (count, size, size, 3) uint8 to calibrate on: none was trained on, none is evaluated on."""
    if args.data is None:
        return scenes.classification(count, "train", size=task.size, start=NEVER_TRAINED_ON)[0]
    return _read(args.data, task.size, count)[0]


def labelled_images(task: Task, args: argparse.Namespace, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size, 3) uint8 and labels (n,) to evaluate on; at most `count`."""
    if args.data is None:
        return scenes.classification(count, "test", EVALUATION_SEED, task.size)
    return _read(args.data, task.size, count)


def _read(root: Path, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` images of a directory with one folder per class, taken evenly; and their labels."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    files = [(p, i) for i, f in enumerate(folders) for p in sorted(f.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{root} holds no folder with images ({', '.join(SUFFIXES)})")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    images = np.stack([_square(Image.open(path).convert("RGB"), size) for path, _ in chosen])
    return images, np.array([label for _, label in chosen])


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """Short side to 8/7 of `size`, then the middle, as ImageNet networks are evaluated."""
    scale = size * 8 / 7 / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.resize((width, height), Image.BILINEAR).crop((left, top, left + size, top + size)))


def _zoo(model: str, size: int, *, pretrained: bool) -> gluon.HybridBlock:
    from gluoncv import model_zoo  # noqa: PLC0415  (an import of seconds, for those who ask for it)

    net = model_zoo.get_model(model, pretrained=pretrained)
    if not pretrained:
        print(f"{model}: random weights (use --pretrained for the zoo's); speed is real, accuracy is not")
        net.initialize(init.Xavier())
    net.hybridize()
    net(nd.zeros((1, 3, size, size)))
    return net
