"""The training loop of the examples."""

from __future__ import annotations

import time
from collections.abc import Callable

import mxnet as mx
import numpy as np
import scenes
from mxnet import autograd, gluon, nd


def fit(
    params: gluon.ParameterDict,
    draw: Callable[..., tuple],
    loss_of: Callable[[nd.NDArray, list[np.ndarray] | np.ndarray], nd.NDArray],
    *,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> None:
    """Train with Adam, the learning rate warmed up, then lowered to 0 along a cosine.

    Args:
        params: initialised parameters, changed in place.
        draw: `scenes.classification` or `scenes.detection`; no picture is drawn twice.
        loss_of: mean loss (1,) float32 of a batch, given normalised images (N, 3, H, W) float32
            and the labels or boxes of the pictures.
        steps: number of batches.
        batch_size: pictures in a batch.
        rate: highest learning rate.
        seed: of the pictures.
    """
    schedule = mx.lr_scheduler.CosineScheduler(steps, rate, warmup_steps=steps // 30)
    options = {"learning_rate": rate, "lr_scheduler": schedule}
    trainer = gluon.Trainer(params, "adam", options)
    total, begin = 0.0, time.time()
    for step, (images, labels) in enumerate(scenes.stream(draw, steps, batch_size, seed), start=1):
        data = nd.array(scenes.normalise(images))
        with autograd.record():
            loss = loss_of(data, labels)
        loss.backward()
        trainer.step(1)
        total += float(loss.asscalar())
        if step % 100 == 0:
            speed = step * batch_size / (time.time() - begin)
            print(f"step {step}: loss {total / 100:.3f}, {speed:.0f} images/s", flush=True)
            total = 0.0
