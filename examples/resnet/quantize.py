"""Take a classifier to INT8: the ResNet trained by this project, one of gluoncv's zoo, or your own.

Usage::

    python examples/resnet/quantize.py
    python examples/resnet/quantize.py --model resnet50_v1 --pretrained --data imagenet/val

Writes the float pair and, beside it, the INT8 pair with its report; then compares the two.
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
import numpy as np  # noqa: E402
import task as tasks  # noqa: E402
from classify import logits  # noqa: E402


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    networks.add_calibration_arguments(parser)
    parser.add_argument("--test-images", type=int, default=2000, help="images to compare on; 0 skips that")
    return parser.parse_args()


def main() -> None:
    """Quantize, write, compare."""
    args = arguments()
    network = tasks.load(args)
    images = tasks.calibration_images(network, args, args.num_calib_batches * args.batch_size)
    quantized = mxq.quantize_net(
        network.net,
        network.normalise(images),
        batch_size=args.batch_size,
        calib_mode=args.calib_mode,
        quantized_dtype=args.quantized_dtype,
        exclude_layers=args.exclude_layers,
        num_calib_examples=len(images),
    )
    network.write(args.output, quantized, with_float=args.prefix is None)
    if args.test_images:
        compare(network, quantized, args)


def compare(network: networks.Network, quantized: networks.Block, args: argparse.Namespace) -> None:
    """Print accuracy and speed of both networks, and how often they agree."""
    images, labels = tasks.labelled_images(network, args, args.test_images)
    answers, rates = [], []
    for name, block in (("float32", network.net), ("INT8", quantized)):
        block.hybridize(static_alloc=True, static_shape=True)
        logits(block, images[: args.batch_size], args.batch_size, network.normalise)
        start = time.perf_counter()
        answers.append(logits(block, images, args.batch_size, network.normalise).argmax(1))
        rates.append(len(images) / (time.perf_counter() - start))
        right = float(np.mean(answers[-1] == labels))
        print(f"{name:8} top-1 {100 * right:.2f} % of {len(images)} images, {rates[-1]:.0f} images/s")
    agreement = float(np.mean(answers[0] == answers[1]))
    print(f"same answer for {100 * agreement:.2f} %; INT8 runs {rates[1] / rates[0]:.2f} times as fast, end to end")


if __name__ == "__main__":
    main()
