"""Fine-tune the shipped SSD with quantization, to 8 bits, by a loss and a loop of its own; write the INT8 pair.

    python examples/qat/detector.py

The detector trains as it did in float (examples/ssd/train.py), but for the block: scores, offsets and anchors come from
the fake-quantized network. What chooses among the boxes follows the INT8 network when it is trained, in float.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "ssd"))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
import scenes  # noqa: E402
from detect import detections, mean_ap  # noqa: E402
from mxnet import nd  # noqa: E402
from network import SSD, DeploySSD  # noqa: E402
from networks import EVALUATION_SEED, MODELS, NEVER_TRAINED_ON  # noqa: E402
from train import detection_loss  # noqa: E402
from training import fit  # noqa: E402

NAME = "ssd_vgg16_digits"
WIDTH = 0.125


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--calib-images", type=int, default=32)
    parser.add_argument("--test-images", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1, help="of the pictures to train on")
    parser.add_argument("--output", type=Path, default=Path("output"), help="directory for what is written")
    return parser.parse_args()


def trained_float() -> SSD:
    """The shipped detector, as it was trained."""
    net = SSD(len(scenes.CLASSES), WIDTH)
    DeploySSD(net).collect_params().load(str(MODELS / NAME / f"{NAME}-0000.params"), ctx=mx.cpu())
    net.hybridize()
    return net


def detector(net: SSD) -> DeploySSD:
    """What detects, of what gives scores, offsets and anchors."""
    deploy = DeploySSD(net)
    deploy.hybridize(static_alloc=True, static_shape=True)
    return deploy


def main() -> None:
    """Prepare, train, compare, write."""
    args = arguments()
    net = trained_float()
    calibration = scenes.detection(args.calib_images, "train", start=NEVER_TRAINED_ON)[0]
    block = mxq.qat.prepare(net, scenes.normalise(calibration))
    block.hybridize()
    images, boxes = scenes.detection(args.test_images, "test", EVALUATION_SEED)

    def show(name: str, what: DeploySSD) -> None:
        print(f"{name:>15}: mAP@0.5 {mean_ap(detections(what, images), boxes):.4f}", flush=True)

    show("float32", detector(net))
    show("INT8, rounded", detector(mxq.qat.convert(block)))

    def loss_of(data: nd.NDArray, labels: list[np.ndarray]) -> nd.NDArray:
        return detection_loss(block, data, labels)

    schedule = {"steps": args.steps, "batch_size": args.batch_size, "rate": args.learning_rate, "seed": args.seed}
    fit(block.collect_params(), scenes.detection, loss_of, **schedule)
    deploy = detector(mxq.qat.convert(block))
    show("INT8, trained", deploy)
    args.output.mkdir(parents=True, exist_ok=True)
    deploy.export(str(args.output / f"{NAME}-qat-int8"))
    print(f"INT8: {args.output / f'{NAME}-qat-int8'}-symbol.json, -0000.params")


if __name__ == "__main__":
    main()
