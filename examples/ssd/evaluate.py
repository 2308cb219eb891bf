"""Measure mAP, as VOC defines it, of the float network and of the INT8 pair that quantize.py wrote.

Usage::

    python examples/ssd/evaluate.py
    python examples/ssd/evaluate.py --prefix model/ssd --int8-prefix model/ssd-int8 --data VOC2007 --image-set test
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
import voc  # noqa: E402
from detect import detections  # noqa: E402


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    parser.add_argument("--int8-prefix", type=Path, help="default: where quantize.py writes")
    parser.add_argument("--test-images", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    """Evaluate both networks on the same images."""
    args = arguments()
    network = tasks.load(args)
    prefix = networks.made(args.int8_prefix or network.int8_prefix(args.output))
    images, boxes, difficult = tasks.labelled_images(network, args, args.test_images)
    objects = sum(map(len, boxes))
    print(f"{network.name}: {len(images)} images, {objects} objects")
    means, names = [], tasks.classes(network)
    for name, block in (("float32", network.net), ("INT8", mxq.load(prefix))):
        block.hybridize(static_alloc=True, static_shape=True)
        start = time.perf_counter()
        found = detections(block, images, args.batch_size, network.normalise)
        seconds = time.perf_counter() - start
        voc07, area = (
            voc.mean_ap(found, boxes, len(names), difficult=difficult, eleven_point=e) for e in (True, False)
        )
        means.append(voc07.mean)
        rate = len(images) / seconds
        print(f"{name:8} mAP@0.5 {voc07.mean:.4f} (VOC07), {area.mean:.4f} (area); {rate:.0f} images/s")
        classes = zip(names, voc07.classes, strict=True)
        print(" " * 9 + "  ".join(f"{name} {value:.3f}" for name, value in classes if not np.isnan(value)))
    print(f"INT8 - float32: {100 * (means[1] - means[0]):+.2f} points")


if __name__ == "__main__":
    main()
