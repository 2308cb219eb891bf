"""What the SSD scripts share: the detector and its data, drawn scenes or a directory in VOC layout."""

from __future__ import annotations

import argparse

import networks
import numpy as np
import scenes
import voc
from networks import EVALUATION_SEED, NEVER_TRAINED_ON, Network

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
