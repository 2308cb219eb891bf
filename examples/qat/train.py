"""Train a classifier with quantization, at few bits, where rounding a trained network fails.

Usage::

    python examples/qat/train.py                                   # the shipped network: 2 bits, under 3 minutes
    python examples/qat/train.py --bits 4 --hardware tensorrt      # 4 bits on other hardware
    python examples/qat/train.py --bits 8                          # 8 bits: writes an INT8 pair for MXNet
    python examples/qat/train.py --model resnet18_v1 --pretrained --data train/ --test-data val/ --bits 4

Prints accuracy in float, rounded without training, and trained; draws how it came about. At 8 bits on oneDNN the result
is an INT8 pair; no MXNet kernel has fewer bits, so that of others is a float network that computes what they would.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "resnet"))

import mxq  # isort: skip  (before mxnet, which the modules below import)

mxq.use_physical_cores()

import networks  # noqa: E402
import numpy as np  # noqa: E402
import scenes  # noqa: E402
import task as tasks  # noqa: E402

from mxq.reporting import training  # noqa: E402

EDGE_BITS = 8
"""Of the first and the last layer, as papers have it (Wu et al., arXiv:2004.09602; MQBench, arXiv:2111.03759)."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks.add_arguments(parser)
    parser.add_argument("--test-data", type=Path, help="as --data, to measure on; default: --data")
    parser.add_argument("--bits", type=int, default=2, help="of weights and activations, 2 to 8")
    known = "onednn, tensorrt, acl, tvm, snpe, fbgemm, onnx or academic (8 bits at both ends)"
    parser.add_argument("--hardware", help=f"{known}; default: onednn at 8 bits, else academic")
    parser.add_argument("--algorithm", default="lsq", help="how ranges are learned: lsq, pact, dorefa, dsq, qil, ...")
    parser.add_argument("--train-images", type=int, default=3000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--calib-images", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    args = parser.parse_args()
    args.hardware = args.hardware or ("onednn" if args.bits == 8 else "academic")
    return args


Labelled = tuple[np.ndarray, np.ndarray]


def training_images(network: networks.Network, args: argparse.Namespace) -> Labelled:
    """Images and labels to train on."""
    if args.data is None:
        return scenes.classification(args.train_images, "train", size=network.size)
    return tasks.labelled_images(network, args, args.train_images)


def test_images(network: networks.Network, args: argparse.Namespace) -> Labelled:
    """Images and labels to measure on."""
    if args.test_data is not None:
        args = argparse.Namespace(**{**vars(args), "data": args.test_data})
    return tasks.labelled_images(network, args, args.test_images)


def main() -> None:
    """Prepare, train, compare, write."""
    args = arguments()
    network, started = tasks.load(args), time.perf_counter()
    images, labels = training_images(network, args)
    train = (network.normalise(images), labels)
    images, labels = test_images(network, args)
    test = (network.normalise(images), labels)
    block = mxq.qat.prepare(
        network.net,
        train[0][: args.calib_images],
        bits_w=args.bits,
        bits_a=args.bits,
        algorithm=args.algorithm,
        hardware=args.hardware,
        edge_bits=EDGE_BITS if args.hardware == "academic" else None,
    )
    workdir = args.output / f"{network.name}-{args.hardware}-{args.bits}bit"
    schedule = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.learning_rate}
    trained = mxq.qat.fit(block, train, eval_data=test, workdir=workdir, **schedule)
    scores = {
        "float32": mxq.evaluate(network.net, test).metrics["top1"],
        f"{args.bits} bits, rounded": trained.before["top1"],
        f"{args.bits} bits, trained": trained.after["top1"],
    }
    for name, score in scores.items():
        print(f"{name:>16}: {score:.2%} of {len(labels)} images")
    print(f"loss, accuracy, ranges and noise: {training.draw(workdir, workdir / 'training.png')}")
    write(network, block, args)
    print(f"{time.perf_counter() - started:.0f} s")


def write(network: networks.Network, block: networks.Block, args: argparse.Namespace) -> None:
    """The INT8 pair where MXNet's kernels can hold it; else a float network that computes what was trained."""
    if block.qat.config.is_held:
        network.write(args.output, mxq.qat.convert(block), with_float=False)
        return
    simulated = mxq.qat.convert(block, simulate=True)
    prefix = args.output / f"{network.name}-simulated"
    simulated.export(str(prefix))
    print(f"float32 that computes the same: {prefix}-symbol.json, -0000.params")


if __name__ == "__main__":
    main()
