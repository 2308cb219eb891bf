"""Calibrate once, ask many calibrators: the statistics of one pass, kept in a file, and what follows from them.

Usage::

    python examples/resnet/calibrate.py
    python examples/resnet/calibrate.py --tensor NAME --calib-modes naive mse auto

Stop it while it calibrates and start it again: it goes on where it was. Prints the accuracy of the INT8 network that
each calibrator gives, and draws the histogram of one tensor with all their thresholds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import numpy as np  # noqa: E402
import task as tasks  # noqa: E402
from classify import logits  # noqa: E402

CALIBRATORS = ("naive", "percentile:99.9", "percentile:99.99", "entropy", "mse", "auto")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    parser.add_argument("--num-calib-batches", type=int, default=20)
    parser.add_argument("--calib-modes", nargs="+", default=CALIBRATORS)
    parser.add_argument("--tensor", help="whose histogram to draw; by default that of the tensor clipped most")
    parser.add_argument("--test-images", type=int, default=2000, help="images to compare on")
    return parser.parse_args()


def main() -> None:
    """Calibrate, compare, draw."""
    args = arguments()
    network = tasks.load(args)
    args.output.mkdir(parents=True, exist_ok=True)
    stats = args.output / f"{network.name}.stats"
    calibration = tasks.calibration_images(network, args, args.num_calib_batches * args.batch_size)
    ranges = mxq.calibrate(
        network.net,
        network.normalise(calibration),
        batch_size=args.batch_size,
        num_calib_examples=len(calibration),
        calib_mode="auto",
        stats=stats,
    )
    images, labels = tasks.labelled_images(network, args, args.test_images)
    right = logits(network.net, images, args.batch_size, network.normalise).argmax(1) == labels
    print(f"{'float32':18} top-1 {100 * np.mean(right):.2f} %")
    for mode in args.calib_modes:
        quantized = mxq.quantize_net(network.net, statistics=stats, calib_mode=mode)
        right = logits(quantized, images, args.batch_size, network.normalise).argmax(1) == labels
        print(f"{mode:18} top-1 {100 * np.mean(right):.2f} %")
    tensor = args.tensor or min(ranges, key=lambda name: _kept(ranges[name]))
    print(f"the histogram of {tensor}: {mxq.plot(stats, tensor, args.output / 'histogram.png')}")


def _kept(threshold: mxq.Threshold) -> float:
    """The range as a share of what was observed."""
    return threshold.range.absmax / threshold.observed.absmax


if __name__ == "__main__":
    main()
