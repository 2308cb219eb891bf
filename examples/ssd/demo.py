"""Draw what the float network and the INT8 pair detect, side by side, into one PNG.

Usage::

    python examples/ssd/demo.py
    python examples/ssd/demo.py --prefix model/ssd --images street.jpg --picture street-int8.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import networks  # noqa: E402
import numpy as np  # noqa: E402
import task as tasks  # noqa: E402
from detect import detections  # noqa: E402
from draw import side_by_side  # noqa: E402
from PIL import Image  # noqa: E402


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    parser.add_argument("--int8-prefix", type=Path, help="default: where quantize.py writes")
    parser.add_argument("--images", type=Path, nargs="*", help="your own pictures")
    parser.add_argument("--count", type=int, default=2, help="pictures from the data, where --images is not given")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn")
    parser.add_argument("--picture", type=Path, help="the PNG to write; default: OUTPUT/NAME-demo.png")
    return parser.parse_args()


def main() -> None:
    """Detect with both networks and draw."""
    args = arguments()
    network = tasks.load(args)
    quantized = mxq.load(networks.made(args.int8_prefix or network.int8_prefix(args.output)))
    if args.images:
        pictures = [Image.open(path).convert("RGB").resize((network.size, network.size)) for path in args.images]
        images = np.stack([np.asarray(picture) for picture in pictures])
    else:
        images = tasks.labelled_images(network, args, args.count)[0]
    left, right = (detections(block, images, args.batch_size, network.normalise) for block in (network.net, quantized))
    path = args.picture or args.output / f"{network.name}-demo.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(images, left, right, path, classes=tasks.classes(network), threshold=args.threshold)
    print(path)


if __name__ == "__main__":
    main()
