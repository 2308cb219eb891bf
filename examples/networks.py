"""What the examples' scripts share: which network they take, and how its input is prepared.

By default that is a small network under `models/`; `--model` takes any of gluoncv's zoo, `--prefix` an exported pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scenes
from mxnet import gluon, init, nd

import mxq

MODELS = Path(__file__).parents[1] / "models"
IMAGENET_MEAN, IMAGENET_STD = (123.68, 116.28, 103.53), (58.395, 57.12, 57.375)
EVALUATION_SEED = 0
NEVER_TRAINED_ON = 100_000  # number of a scene of the training split that training does not reach

Block = Callable[[nd.NDArray], Any]


@dataclass(frozen=True)
class Network:
    """A float network and what it expects.

    Attributes:
        name: base of the names of the files that are written.
        net: the network, on (N, 3, size, size) float32.
        size: side of the input, in pixels.
        mean, std: of each RGB channel, in 0..255.
        digits: it knows the drawn digits, not the classes of a public data set.
    """

    name: str
    net: Block
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digits: bool

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Turn (N, H, W, 3) uint8 RGB images into network input, (N, 3, H, W) float32."""
        return scenes.normalise(images, self.mean, self.std)

    def write(self, output: Path, quantized: Block, *, with_float: bool) -> None:
        """Write the INT8 pair and, where it is not the user's own already, the float pair beside it."""
        output.mkdir(parents=True, exist_ok=True)
        if with_float:
            self.net.export(str(output / self.name))
            print(f"float32: {output / self.name}-symbol.json, -0000.params")
        written = mxq.save(quantized, self.int8_prefix(output))
        print("INT8:    " + ", ".join(path.name if i else str(path) for i, path in enumerate(written)))

    def int8_prefix(self, output: Path) -> Path:
        """Where the INT8 pair goes: beside the float one, with "-int8" after its name."""
        return output / f"{self.name}-int8"


def made(prefix: Path) -> Path:
    """The prefix of a pair that quantize.py wrote; the script ends in one line where it is not there."""
    missing = prefix.with_name(f"{prefix.name}-symbol.json")
    if not missing.is_file():
        sys.exit(f"{missing} is missing: run quantize.py first")
    return prefix


def add_arguments(parser: argparse.ArgumentParser, model: str, data: str) -> None:
    """Options that say which network and which data; `model` and `data` complete their help."""
    parser.add_argument("--model", help=f"a network of gluoncv's zoo, e.g. {model}")
    parser.add_argument("--pretrained", action="store_true", help="download the zoo's weights")
    parser.add_argument("--prefix", type=Path, help="PREFIX-symbol.json and PREFIX-0000.params of your own")
    parser.add_argument("--data", type=Path, help=data)
    parser.add_argument("--size", type=int, help="side of the input, in pixels; default: the network's own")
    parser.add_argument("--mean", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--std", type=float, nargs=3, help="of R, G and B, in 0..255")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("output"), help="directory for what is written")


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say how to quantize."""
    parser.add_argument("--num-calib-batches", type=int, default=5)
    parser.add_argument("--calib-mode", default="naive", help="naive, entropy, mse, percentile:99.99, auto, ..., none")
    parser.add_argument("--quantized-dtype", default="auto", help="of the input: auto, int8, uint8")
    parser.add_argument("--exclude-layers", nargs="*", default=[], help="names or shell patterns to leave in float")


def load(args: argparse.Namespace, shipped: str, size: int) -> Network:
    """The network that the command line asks for; `shipped` is the default, `size` its or the zoo network's input."""
    digits = args.model is None and args.prefix is None
    size = args.size or size
    prefix = args.prefix or MODELS / shipped / shipped
    net = _zoo(args.model, size, pretrained=args.pretrained) if args.model else mxq.load(prefix)
    mean, std = (scenes.MEAN, scenes.STD) if digits else (IMAGENET_MEAN, IMAGENET_STD)
    return Network(
        args.model or prefix.name, net, size, tuple(args.mean or mean), tuple(args.std or std), digits=digits
    )


def _zoo(model: str, size: int, *, pretrained: bool) -> gluon.HybridBlock:
    from gluoncv import model_zoo  # noqa: PLC0415  (an import of seconds, for those who ask for it)

    kinds = ("ssd", "yolo", "rcnn", "center_net")
    no_weights = {"pretrained_base": False} if not pretrained and any(k in model for k in kinds) else {}
    net = model_zoo.get_model(model, pretrained=pretrained, **no_weights)
    if not pretrained:
        print(f"{model}: random weights (use --pretrained for the zoo's); speed is real, accuracy is not")
        net.initialize(init.Xavier())
    net.hybridize()
    net(nd.zeros((1, 3, size, size)))
    return net
