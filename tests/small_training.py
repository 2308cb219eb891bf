"""A small network and data that tests train on; as a script, a training in a process of its own that is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq.qat import checkpoint, prepare
from mxq.qat.schedule import TrainConfig
from mxq.qat.training import Trained, fit
from mxq.runtime.training import Trainee

CONFIG = TrainConfig(epochs=3, lr=0.05, batch_size=16, warmup_epochs=0.5)


def data(examples: int = 70, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 3, 8, 8) of three classes, each with a pattern of its own, float32; and their classes, int64."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(3, 3, 8, 8))
    labels = rng.integers(0, 3, examples)
    return (0.4 * patterns[labels] + rng.normal(size=(examples, 3, 8, 8))).astype(np.float32), labels


def net(seed: int = 0) -> mx.gluon.nn.HybridSequential:
    """Convolution, BatchNorm, ReLU, Dropout, Dense; initialised by the seed, run once."""
    mx.random.seed(seed)
    made = mx.gluon.nn.HybridSequential()
    made.add(
        mx.gluon.nn.Conv2D(8, 3, in_channels=3),
        mx.gluon.nn.BatchNorm(in_channels=8),
        mx.gluon.nn.Activation("relu"),
        mx.gluon.nn.Dropout(0.2),
        mx.gluon.nn.Dense(3, in_units=288),
    )
    made.initialize(mx.init.Xavier())
    made.hybridize()
    return made


def trained(workdir: Path | None = None, block: Any = None, **options: Any) -> Trained:
    """The network, or another block, trained."""
    return fit(block or net(), data(), eval_data=data(40, 1), config=CONFIG, workdir=workdir, progress=False, **options)


class Dying:
    """The default loss, which does something at the call of a number."""

    def __init__(self, call: int, do: Any) -> None:
        self.loss, self.left, self.do = mx.gluon.loss.SoftmaxCrossEntropyLoss(), call, do

    def __call__(self, output: Any, labels: Any) -> Any:
        self.left -= 1
        return self.do(self.loss(output, labels)) if self.left == 0 else self.loss(output, labels)


def kill(*_: Any) -> None:
    """Ends this process as the system would: at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def ctrl_c_at_step(patched: pytest.MonkeyPatch, number: int) -> None:
    """Sends SIGINT to this process in the ``number``-th step of all trainings from here on."""
    real, left = Trainee.step, number

    def step(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    patched.setattr(Trainee, "step", step)


def quantized() -> Any:
    """The network, prepared to train with quantization."""
    return prepare(net(), data()[0][:32])


def main(folder: str, moment: str, count: str, kind: str = "float") -> None:
    """Trains in ``folder`` and is killed at a moment's ``count``-th time: "step", "journal" (written) or "draft"."""
    left = int(count)

    def dying(function: Any) -> Any:
        def called(*given: Any) -> Any:
            nonlocal left
            left -= 1
            found = function(*given)
            if left == 0:
                kill()
            return found

        return called

    if moment == "journal":
        checkpoint.added = dying(checkpoint.added)
    elif moment == "draft":
        checkpoint.write_params = dying(checkpoint.write_params)
    loss = Dying(int(count), kill) if moment == "step" else None
    metric = mxq.evaluation.metrics.TopK()
    trained(Path(folder), quantized() if kind == "qat" else None, loss=loss, metric=metric)


if __name__ == "__main__":
    main(*sys.argv[1:])
