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

import task as tasks  # noqa: E402
import voc  # noqa: E402
from mxnet import gluon  # noqa: E402


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    parser.add_argument("--num-calib-batches", type=int, default=5)
    parser.add_argument("--calib-mode", default="naive", help="naive, entropy or none")
    parser.add_argument("--quantized-dtype", default="auto", help="of the input: auto, int8, uint8")
    parser.add_argument("--exclude-layers", nargs="*", default=[], help="names or shell patterns to leave in float")
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
    task = tasks.load(args)
    images = tasks.calibration_images(task, args, args.num_calib_batches * args.batch_size)
    dataset = gluon.data.ArrayDataset(task.normalise(images))
    loader = gluon.data.DataLoader(dataset, args.batch_size, shuffle=args.shuffle, num_workers=args.num_workers)
    quantized = mxq.quantize_net(
        task.net,
        loader,
        calib_mode=args.calib_mode,
        quantized_dtype=args.quantized_dtype,
        exclude_layers=[*args.exclude_layers, *([first_convolution] if args.exclude_first_conv else [])],
        num_calib_examples=len(images),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    float_prefix = args.output / task.name
    if args.prefix is None:
        task.net.export(str(float_prefix))
        print(f"float32: {float_prefix}-symbol.json, -0000.params")
    written = mxq.save(quantized, tasks.int8_prefix(task, args.output))
    print("INT8:    " + ", ".join(path.name if i else str(path) for i, path in enumerate(written)))
    if args.test_images:
        compare(task, quantized, args)


def compare(task: tasks.Task, quantized: tasks.Block, args: argparse.Namespace) -> None:
    """Print mAP and speed of both networks on a few images."""
    images, boxes, difficult = tasks.labelled_images(task, args, args.test_images)
    rates = {}
    for name, block in (("float32", task.net), ("INT8", quantized)):
        block.hybridize(static_alloc=True, static_shape=True)
        task.detect(block, images[: args.batch_size], args.batch_size)
        start = time.perf_counter()
        found = task.detect(block, images, args.batch_size)
        rates[name] = len(images) / (time.perf_counter() - start)
        score = voc.mean_ap(found, boxes, len(task.classes), difficult=difficult).mean
        print(f"{name:8} mAP@0.5 {score:.4f} on {len(images)} images, {rates[name]:.0f} images/s")
    print(f"INT8 runs {rates['INT8'] / rates['float32']:.2f} times as fast as float32, end to end")


if __name__ == "__main__":
    main()
