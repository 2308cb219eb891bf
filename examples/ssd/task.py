"""What the SSD scripts share: the detector and its data, drawn scenes or a directory in VOC layout."""

from __future__ import annotations

import argparse
from typing import Any

import networks
import numpy as np
import scenes
import voc
from mxnet import nd
from networks import EVALUATION_SEED, NEVER_TRAINED_ON, Block, Network

SHIPPED, SIZE = "ssd_vgg16_digits", 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which network and which data."""
    networks.add_arguments(
        parser, "ssd_300_vgg16_atrous_voc", "directory in VOC layout (JPEGImages, Annotations, perhaps ImageSets/Main)"
    )
    parser.add_argument("--image-set", help="list in ImageSets/Main, e.g. test; default: every annotation")


def load(args: argparse.Namespace) -> Network:
    """The detector that the command line asks for; a zoo name states its size (ssd_512_...)."""
    stated = (int(part) for part in (args.model or "").split("_") if part.isdigit())
    return networks.load(args, SHIPPED, next(stated, SIZE))


def classes(network: Network) -> tuple[str, ...]:
    """Names of the classes."""
    return scenes.CLASSES if network.digits else voc.CLASSES


def detect(network: Network, block: Block, images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Run a detector.

    Args:
        network: how the input is prepared.
        block: the float network or its INT8 form.
        images: (N, size, size, 3) uint8 RGB.
        batch_size: images in one forward pass; the last batch may be smaller.

    Returns:
        For each image (m, 6) float32, best first: class, score in [0, 1], xmin, ymin, xmax, ymax as
        fractions of the side.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        result = block(nd.array(network.normalise(images[start : start + batch_size])))
        found.extend(rows[rows[:, 0] >= 0] for rows in _rows(result, network.size))
    return found


def _rows(result: Any, size: int) -> np.ndarray:
    """(N, m, 6) rows from what a network gives: such rows, or gluoncv's ids, scores and corners in pixels."""
    if isinstance(result, nd.NDArray):
        return result.asnumpy()
    ids, scores, corners = (part.asnumpy() for part in result[:3])
    return np.concatenate([ids, scores, corners / size], axis=2)


def calibration_images(network: Network, args: argparse.Namespace, count: int) -> np.ndarray:
    """Images (count, size, size, 3) uint8 to calibrate on: none was trained on, none is evaluated on."""
    if args.data is None:
        return scenes.detection(count, "train", size=network.size, start=NEVER_TRAINED_ON)[0]
    return voc.load_images(voc.read(args.data, classes(network), args.image_set)[:count], network.size)


def labelled_images(
    network: Network, args: argparse.Namespace, count: int
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """At most `count` images (n, size, size, 3) uint8 to evaluate on; boxes (k, 5) and difficult flags (k,) of each."""
    if args.data is None:
        images, boxes = scenes.detection(count, "test", EVALUATION_SEED, network.size)
        return images, boxes, [np.zeros(len(b), bool) for b in boxes]
    samples = voc.read(args.data, classes(network), args.image_set)[:count]
    return voc.load_images(samples, network.size), [s.boxes for s in samples], [s.difficult for s in samples]
