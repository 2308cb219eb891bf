"""Take an SSD to INT8: the network trained by this project, one of gluoncv's zoo, or your own.

Usage::

    python examples/ssd/quantize.py
    python examples/ssd/quantize.py --calib-mode entropy --exclude-layers 'conv1_*'
    python examples/ssd/quantize.py --model ssd_300_vgg16_atrous_voc --pretrained --data VOCdevkit/VOC2007

Writes the float pair and, beside it, the INT8 pair with its report; then compares the two on a few images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import networks  # noqa: E402
import task as tasks  # noqa: E402
import voc  # noqa: E402
from detect import detections  # noqa: E402
from mxnet import gluon  # noqa: E402


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    networks.add_calibration_arguments(parser)
    parser.add_argument("--exclude-first-conv", action="store_true")
    parser.add_argument("--shuffle", action="store_true", help="draw calibration batches in random order")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--test-images", type=int, default=256, help="images to compare on; 0 skips that")
    return parser.parse_args()


def first_convolution(node: object) -> bool:
    """Whether a node is the convolution that reads the image (a predicate for `exclude_layers`)."""
    inputs = getattr(node, "inputs", ())
    return getattr(node, "op", "") == "Convolution" and bool(inputs) and inputs[0].name == "data"


def main() -> None:
    """Quantize, write, compare."""
    args = arguments()
    network = tasks.load(args)
    images = tasks.calibration_images(network, args, args.num_calib_batches * args.batch_size)
    dataset = gluon.data.ArrayDataset(network.normalise(images))
    loader = gluon.data.DataLoader(dataset, args.batch_size, shuffle=args.shuffle, num_workers=args.num_workers)
    quantized = mxq.quantize_net(
        network.net,
        loader,
        calib_mode=args.calib_mode,
        quantized_dtype=args.quantized_dtype,
        exclude_layers=[*args.exclude_layers, *([first_convolution] if args.exclude_first_conv else [])],
        num_calib_examples=len(images),
    )
    network.write(args.output, quantized, with_float=args.prefix is None)
    if args.test_images:
        compare(network, quantized, args)


def compare(network: networks.Network, quantized: networks.Block, args: argparse.Namespace) -> None:
    """Print mAP and speed of both networks on a few images."""
    images, boxes, difficult = tasks.labelled_images(network, args, args.test_images)
    rates = {}
    for name, block in (("float32", network.net), ("INT8", quantized)):
        block.hybridize(static_alloc=True, static_shape=True)
        detections(block, images[: args.batch_size], args.batch_size, network.normalise)
        start = time.perf_counter()
        found = detections(block, images, args.batch_size, network.normalise)
        rates[name] = len(images) / (time.perf_counter() - start)
        score = voc.mean_ap(found, boxes, len(tasks.classes(network)), difficult=difficult).mean
        print(f"{name:8} mAP@0.5 {score:.4f} on {len(images)} images, {rates[name]:.0f} images/s")
    print(f"INT8 runs {rates['INT8'] / rates['float32']:.2f} times as fast as float32, end to end")


if __name__ == "__main__":
    main()
