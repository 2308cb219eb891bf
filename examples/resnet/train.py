"""Train the ResNet on drawn digits and export it.

    python examples/resnet/train.py

The defaults reproduce models/resnet_digits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
import scenes  # noqa: E402
from classify import accuracy  # noqa: E402
from mxnet import gluon, nd  # noqa: E402
from network import ResNet  # noqa: E402
from training import fit  # noqa: E402

MODEL = Path(__file__).resolve().parents[2] / "models" / "resnet_digits" / "resnet_digits"


def main() -> None:
    """Train, measure on held-out pictures, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=4000)
    parser.add_argument("--output", type=Path, default=MODEL, help="path and name of the model")
    args = parser.parse_args()

    mx.random.seed(args.seed)
    net = ResNet(len(scenes.CLASSES))
    net.initialize(mx.init.Xavier(factor_type="in", magnitude=2))
    net.hybridize(static_alloc=True, static_shape=True)
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()

    def loss_of(data: nd.NDArray, labels: np.ndarray) -> nd.NDArray:
        return cross_entropy(net(data), nd.array(labels)).mean()

    fit(
        net.collect_params(),
        scenes.classification,
        loss_of,
        steps=args.steps,
        batch_size=args.batch_size,
        rate=args.learning_rate,
        seed=args.seed,
    )
    images, labels = scenes.classification(args.test_images, "test", args.seed)
    score = accuracy(net, images, labels)
    print(f"accuracy on {len(labels)} held-out images: {score:.4f}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    net.export(str(args.output))


if __name__ == "__main__":
    main()
