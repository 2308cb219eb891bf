"""Train SSD-300 on drawn digits and export it for inference.

    python examples/ssd/train.py

The defaults reproduce models/ssd_vgg16_digits. The layers up to conv5_3 are first trained to
classify single digits, as SSD starts from a VGG16 that classifies. Then the network is trained to
detect.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
import scenes  # noqa: E402
from detect import detections, mean_ap  # noqa: E402
from mxnet import autograd, gluon, nd  # noqa: E402
from mxnet.gluon import nn  # noqa: E402
from network import SSD, VARIANCES, DeploySSD, VGG16Reduced  # noqa: E402
from training import fit  # noqa: E402

MODEL = Path(__file__).resolve().parents[2] / "models" / "ssd_vgg16_digits" / "ssd_vgg16_digits"
CLASSIFIER_SIZE = 96  # side of the pictures that the classifier is trained with, in pixels
HARD_NEGATIVES = 3  # background anchors in the loss, for each anchor on an object


def classifier(features: VGG16Reduced, classes: int) -> nn.HybridSequential:
    """Put a classifier on conv5_3; parameters up to there are shared with `features`."""
    net = nn.HybridSequential(prefix="classifier_")
    with net.name_scope():
        net.add(features.stage1, nn.MaxPool2D(), features.stage2, nn.MaxPool2D())
        net.add(features.stage3, nn.MaxPool2D(), features.stage4, nn.MaxPool2D())
        net.add(features.stage5, nn.GlobalAvgPool2D(), nn.Dense(classes))
    return net


def classification_loss(net: nn.HybridSequential, data: nd.NDArray, labels: np.ndarray) -> nd.NDArray:
    """Mean cross entropy (1,) float32 of data (N, 3, H, W) float32 and labels (N,) int32."""
    return gluon.loss.SoftmaxCrossEntropyLoss()(net(data), nd.array(labels)).mean()


def detection_loss(net: SSD, data: nd.NDArray, boxes: list[np.ndarray]) -> nd.NDArray:
    """Cross entropy on objects and hard negatives, plus smooth L1 on the boxes of objects.

    Args:
        net: the network.
        data: (N, 3, 300, 300) float32 normalised images.
        boxes: N arrays (k, 5) float32, as `scenes.detection` returns.

    Returns:
        (1,) float32, the sum divided by the number of anchors on objects.
    """
    logits, offsets, anchors = net(data)
    with autograd.pause():
        wanted, mask, labels = nd.contrib.MultiBoxTarget(
            anchors,
            nd.array(scenes.pad_boxes(boxes)),
            logits,
            overlap_threshold=0.5,
            negative_mining_ratio=HARD_NEGATIVES,
            negative_mining_thresh=0.5,
            ignore_label=-1,
            variances=VARIANCES,
        )
        objects = nd.maximum(mask.sum() / 4, 1)
    entropy = -nd.pick(nd.log_softmax(logits, axis=1), nd.maximum(labels, 0), axis=1)
    shift = nd.smooth_l1((offsets - wanted) * mask, scalar=1.0)
    return ((entropy * (labels >= 0)).sum() + shift.sum()) / objects


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.125, help="1.0 is VGG16")
    parser.add_argument("--no-batch-norm", action="store_true")
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--classifier-batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=MODEL, help="path and name of the model")
    return parser.parse_args()


def main() -> None:
    """Train, measure on held-out pictures, export."""
    args = arguments()
    mx.random.seed(args.seed)
    net = SSD(len(scenes.CLASSES), args.width, not args.no_batch_norm)
    net.initialize(mx.init.Xavier(factor_type="in", magnitude=2))
    body = classifier(net.features, len(scenes.CLASSES))
    body[-1].initialize(mx.init.Xavier(factor_type="in", magnitude=2))
    body.hybridize(static_alloc=True, static_shape=True)
    fit(
        body.collect_params(),
        partial(scenes.classification, size=CLASSIFIER_SIZE),
        partial(classification_loss, body),
        steps=args.classifier_steps,
        batch_size=args.classifier_batch_size,
        rate=args.learning_rate,
        seed=args.seed,
    )
    net.hybridize(static_alloc=True, static_shape=True)
    fit(
        net.collect_params(),
        scenes.detection,
        partial(detection_loss, net),
        steps=args.steps,
        batch_size=args.batch_size,
        rate=args.learning_rate,
        seed=args.seed,
    )
    deploy = DeploySSD(net)
    deploy.hybridize(static_alloc=True, static_shape=True)
    images, boxes = scenes.detection(args.test_images, "test", args.seed)
    found = detections(deploy, images)
    for name, eleven_point in (("11-point", True), ("area", False)):
        score = mean_ap(found, boxes, eleven_point=eleven_point)
        print(f"mAP@0.5 ({name}) on {len(images)} held-out images: {score:.4f}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    deploy.export(str(args.output))


if __name__ == "__main__":
    main()
