"""Pre-activation ResNets, and what makes them hard: streams of sums some channels of which are many times as large.

    python benchmarks/preact.py [preact_digits] [resnet50_v2]

Prints how unevenly the channels of each stream are spread, before and after they are made hard: the largest value of
the largest channel in shares of the median channel's. `ablation.py` has what quantization makes of them.

Before:  Convolution(w) -> sum -> BatchNorm(mean, variance) -> relu -> Convolution
After:   Convolution(s w) -> s sum -> BatchNorm(s mean, s^2 (variance + eps) - eps) -> relu -> Convolution

It computes the same, as BatchNorm makes up for channels of any size. That is why nothing keeps training from them, and
trained ResNets v2 have them; no such weights are at hand, so a small network is trained here, within a minute.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from real_nets import Task, run
from rich.console import Console

import mxnet as mx  # isort: skip  (mxq, which real_nets imports, is before it)
import zoo
from gluoncv.model_zoo import cifar_resnet20_v2
from mxnet import autograd, gluon, nd
from sklearn.datasets import load_digits

from mxq.graph.ir import Array, Graph, Model
from mxq.runtime import MxnetRunner, load_model

DIGITS, ZOO = "preact_digits", "resnet50_v2"
NETS = (DIGITS, ZOO)
TRAINED_ON = 797
"""Of the 1797 digits; the other thousand, most of them by other writers, evaluate."""
EPOCHS, BATCH, RATE, SHIFT = 15, 32, 0.003, 2
OUTLIER, EVERY = 100.0, 16
"""One channel of so many becomes so many times as large."""


def load(name: str, calibration: int = 50, evaluation: int = 500) -> Task:
    """One of `NETS`. The zoo's has random weights, and its own answers for truth."""
    if name == DIGITS:
        bunch = load_digits()
        images = np.kron(bunch.images, np.ones((2, 2)))[:, None].astype(np.float32) / 8 - 1
        model = load_model(_trained(images[:TRAINED_ON], bunch.target[:TRAINED_ON]))
        return Task(name, model, images[:calibration], images[TRAINED_ON:], bunch.target[TRAINED_ON:])
    net, model = zoo.NETS[name], zoo.build(name)
    images = zoo.examples(net, evaluation, seed=3)
    return Task(name, model, zoo.examples(net, calibration), images, run(model, images)[0].argmax(1))


def _trained(images: Array, labels: Array) -> gluon.HybridBlock:
    """``cifar_resnet20_v2`` on images (N, 1, 16, 16), by Adam, the rate lowered along a cosine, each batch shifted."""
    mx.random.seed(0)
    rng, steps = np.random.default_rng(0), len(images) // BATCH
    net = cifar_resnet20_v2(classes=10)
    net.initialize(mx.init.Xavier(factor_type="in", magnitude=2))
    net.hybridize(static_alloc=True, static_shape=True)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    schedule = mx.lr_scheduler.CosineScheduler(EPOCHS * steps, RATE, warmup_steps=steps)
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": RATE, "lr_scheduler": schedule})
    for _ in range(EPOCHS):
        for chosen in rng.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            batch = np.roll(images[chosen], rng.integers(-SHIFT, SHIFT + 1, 2), (2, 3))
            with autograd.record():
                loss = loss_of(net(nd.array(batch)), nd.array(labels[chosen])).mean()
            loss.backward()
            trainer.step(1)
    return net


def streams(graph: Graph) -> list[set[str]]:
    """The tensors of each stream of sums: all that are added to each other, and the sums."""
    found: list[set[str]] = []
    for node in graph.operators:
        if node.op == "elemwise_add":
            stream = {node.name, *(r.name for r in node.inputs)}
            stream = stream.union(*(other for other in found if other & stream))
            found = [*(other for other in found if not other & stream), stream]
    return found


def with_outliers(task: Task) -> Task:
    """The same function, with outlier channels in each stream."""
    args, auxs = dict(task.model.args), dict(task.model.auxs)
    for stream in streams(task.model.graph):
        _grow(task.model.graph, stream, args, auxs)
    return replace(task, name=f"{task.name}:streams", model=Model(task.model.graph, args, auxs))


def _grow(graph: Graph, stream: set[str], args: dict[str, Array], auxs: dict[str, Array]) -> None:
    """Changes the parameters of what writes ``stream`` and of what reads it."""
    writers = [n for n in graph.operators if n.name in stream and n.op == "Convolution"]
    s = np.ones(len(args[writers[0].inputs[1].name]))
    s[::EVERY] = OUTLIER
    for node in writers:
        for name in (r.name for r in node.inputs[1:]):
            args[name] = (args[name] * s.reshape(-1, *[1] * (args[name].ndim - 1))).astype(np.float32)
    for node in graph.operators:
        if node.inputs[0].name not in stream or node.op == "elemwise_add":
            continue
        if node.op == "Convolution":
            name = node.inputs[1].name
            args[name] = (args[name] / s[:, None, None]).astype(np.float32)
        elif node.op == "BatchNorm":
            mean, variance = (r.name for r in node.inputs[3:])
            eps = node.number("eps", 1e-3)
            auxs[mean] = (auxs[mean] * s).astype(np.float32)
            auxs[variance] = (s**2 * (auxs[variance].astype(np.float64) + eps) - eps).astype(np.float32)
        else:
            raise ValueError(f"{node.name!r} ({node.op}) reads a stream; allowed: BatchNorm, Convolution")


def spread(task: Task) -> list[float]:
    """Of the last tensor of each stream: the largest channel's largest value, in shares of the median channel's."""
    graph = task.model.graph
    last = [max(stream, key=[n.name for n in graph].index) for stream in streams(graph)]
    taps = tuple(graph[name].out for name in last)
    found = MxnetRunner().compile(task.model, taps)({task.model.inputs[0]: task.calibration[:8]})
    largest = [np.abs(v).max(axis=(0, 2, 3)) for v in list(found)[len(graph.heads) :]]
    return [float(v.max() / np.median(v)) for v in largest]


def main() -> None:
    """Print the spread of channels of each stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[DIGITS])
    for name in parser.parse_args().nets:
        plain = load(name, 8, 8)
        for task in (plain, with_outliers(plain)):
            Console().print(task.name, *(f"{v:.1f}" for v in spread(task)), highlight=False)


if __name__ == "__main__":
    main()
