"""Classify images with the INT8 pair that quantize.py wrote, by plain MXNet.

The network needs no mxq; on Python 3.12 and later importing MXNet 1.9.1 does.

Usage::

    python examples/resnet/infer.py
    python examples/resnet/infer.py --prefix output/resnet50_v1-int8 --size 224 --images cat.jpg dog.jpg
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

if sys.version_info >= (3, 12):
    import mxq  # noqa: F401  (MXNet 1.9.1 does not import there by itself; mxq restores what it misses)

import mxnet as mx  # isort: skip

SAMPLE = Path(__file__).parent / "sample.png"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", default="output/resnet_digits-int8")
    parser.add_argument("--images", type=Path, nargs="*", default=[SAMPLE])
    parser.add_argument("--size", type=int, default=48, help="side of the input, in pixels")
    parser.add_argument("--mean", type=float, nargs=3, default=(123.0, 123.0, 123.0), help="of R, G and B, in 0..255")
    parser.add_argument("--std", type=float, nargs=3, default=(48.0, 48.0, 48.0), help="of R, G and B, in 0..255")
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    return parser.parse_args()


def read(path: Path, args: argparse.Namespace) -> np.ndarray:
    """One image as network input, (1, 3, size, size) float32."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB").resize((args.size, args.size)), np.float32)
    return ((pixels - np.float32(args.mean)) / np.float32(args.std)).transpose(2, 0, 1)[None]


def main() -> None:
    """Load the pair as any MXNet model, and classify."""
    args = arguments()
    if not Path(f"{args.prefix}-symbol.json").is_file():
        sys.exit(f"{args.prefix}-symbol.json is missing: run quantize.py first")
    warnings.filterwarnings("ignore", "Cannot decide type")  # the graph fixes its input's type only when it runs
    net = mx.gluon.SymbolBlock.imports(f"{args.prefix}-symbol.json", ["data"], f"{args.prefix}-0000.params")
    net.hybridize(static_alloc=True, static_shape=True)
    for path in args.images:
        scores = mx.nd.softmax(net(mx.nd.array(read(path, args)))).asnumpy()[0]
        best = np.argsort(-scores)[: args.top]
        print(f"{path}: " + ", ".join(f"class {i} {scores[i]:.3f}" for i in best))


if __name__ == "__main__":
    main()
