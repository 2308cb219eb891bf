"""What the classification scripts share: the classifier and its data, drawn pictures or folders of images."""

from __future__ import annotations

import argparse
from pathlib import Path

import networks
import numpy as np
import scenes
from networks import EVALUATION_SEED, NEVER_TRAINED_ON, Network
from PIL import Image

SHIPPED, SIZE, ZOO_SIZE = "resnet_digits", 48, 224
SUFFIXES = (".jpg", ".jpeg", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which network and which data."""
    networks.add_arguments(parser, "resnet50_v1", "directory with one folder of images per class, in class order")


def load(args: argparse.Namespace) -> Network:
    """The classifier that the command line asks for."""
    own = args.model is None and args.prefix is None
    return networks.load(args, SHIPPED, SIZE if own else ZOO_SIZE)


def calibration_images(network: Network, args: argparse.Namespace, count: int) -> np.ndarray:
    """Images (count, size, size, 3) uint8 to calibrate on: none was trained on, none is evaluated on."""
    if args.data is None:
        return scenes.classification(count, "train", size=network.size, start=NEVER_TRAINED_ON)[0]
    return _read(args.data, network.size, count)[0]


def labelled_images(network: Network, args: argparse.Namespace, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size, 3) uint8 and labels (n,) to evaluate on; at most `count`."""
    if args.data is None:
        return scenes.classification(count, "test", EVALUATION_SEED, network.size)
    return _read(args.data, network.size, count)


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
