"""Training with quantization on the CIFAR networks of ``MXQ_DATA``, by bits, algorithm, hardware, BatchNorm strategy.

    MXQ_DATA=... OMP_NUM_THREADS=2 python benchmarks/qat.py results.jsonl --part bits          # W8A8 to W2A2, by LSQ
    MXQ_DATA=... python benchmarks/qat.py results.jsonl --part algorithms --nets cifar_resnet20 --seeds 0 1 2
    MXQ_DATA=... python benchmarks/qat.py results.jsonl --part hardware strategies --train 4000 --epochs 2
    python benchmarks/qat.py results.jsonl --show                                              # the tables alone

Each line of the file is one run; runs that are in it are not repeated, so that the whole may be made in pieces. All
runs of a network start from the same float network, fine-tuned for ``--before`` epochs first (kept beside the file).
A run then fine-tunes for ``--epochs``, in float or with quantization, on the first ``--train`` images, each time
mirrored or not and shifted by up to 4 pixels, and measures on the 2,000 that follow the first 8,000, after the last
epoch: nothing is chosen by what is reported. Scores are top-1 in percent, the mean over seeds and the standard
deviation; the standard error of one score is 0.8 points (2,000 images).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from real_nets import CIFAR, load
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mxq
from mxq.graph.ir import Array
from mxq.qat.floating import float_block, written
from mxq.quant import hardware
from mxq.runtime import load_model, to_block, write_pair

BITS = (8, 4, 3, 2)
ALGORITHMS = ("lsq", "pact", "dorefa", "dsq", "qil", "apot")
HARDWARE = ("tensorrt", "acl", "tvm", "snpe", "fbgemm")
HARDWARE_ALGORITHMS = ("lsq", "dsq", "pact", "dorefa")
RANGES = ("naive", "mse")
"""Calibrators: all of the range, or the best."""
CALIBRATORS = ("naive", "entropy", "percentile:99.9", "percentile:99.99")
INITS = (("mse", "naive"), ("naive", "naive"), ("percentile:99.9", "mse"))
"""Calibrators of activations and of weights; the default is "mse" for both."""
STRATEGIES = (-1, 0, 1, 2, 3, 4)
EVALUATION, TRAINING = 2000, 8000
BATCH, SHIFT = 64, 4
Settings = dict[str, Any]


@dataclass(frozen=True)
class Augmented:
    """Batches of images in a new order, half of them mirrored, each shifted by up to `SHIFT` pixels beside zeros.

    Training seeds numpy's generator before each epoch.
    """

    images: Array
    labels: Array

    def __len__(self) -> int:
        return (len(self.images) + BATCH - 1) // BATCH

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002  (the one that is seeded)
        padded = np.pad(self.images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        order = rng.permutation(len(self.images))
        for picked in np.split(order, range(BATCH, len(order), BATCH)):
            yield np.stack([self._one(padded[i], rng) for i in picked]), self.labels[picked]

    def _one(self, padded: Array, rng: np.random.Generator) -> Array:
        (top, left), (height, width) = rng.integers(0, 2 * SHIFT + 1, 2), self.images.shape[2:]
        found = padded[:, top : top + height, left : left + width]
        return found[:, :, ::-1] if rng.random() < 0.5 else found


@dataclass(frozen=True)
class Data:
    """A network with its images, (N, 3, 32, 32) float32, and labels."""

    net: Any
    calibration: Array
    train: tuple[Array, Array]
    test: tuple[Array, Array]

    @staticmethod
    def of(name: str, options: argparse.Namespace) -> Data:
        """The images of a network, and the float network from which all its runs start."""
        task = load(name, 0, (TRAINING + EVALUATION) // 20)
        images, labels = task.evaluation, np.asarray(task.truth)
        train = (images[: options.train], labels[: options.train])
        data = Data(to_block(task.model), images[:256], train, (images[TRAINING:], labels[TRAINING:]))
        return replace(data, net=data._start(name, options)) if options.before else data

    def _start(self, name: str, options: argparse.Namespace) -> Any:
        prefix = options.file.with_name(f"{options.file.stem}-{name}-{options.before}-{options.train}-{options.lr}")
        if not prefix.with_name(f"{prefix.name}-symbol.json").exists():
            block = trainable(self.net)
            mxq.qat.fit(block, Augmented(*self.train), progress=False, epochs=options.before, lr=options.lr)
            write_pair(written(block), prefix)
        return to_block(load_model(prefix))

    def score(self, block: Any) -> float:
        """Top-1 in percent."""
        return 100 * float(mxq.evaluate(block, self.test, batch_size=100).metrics["top1"])


def academic(bits: int, **settings: Any) -> Settings:
    """Settings as papers have them, of so many bits."""
    return {"bits_w": bits, "bits_a": bits, "hardware": "academic", **settings}


for number in (2, 3):
    hardware.register(replace(hardware.ACADEMIC, name=f"academic{number}", graph=number))

PARTS: Mapping[str, tuple[Settings, ...]] = {
    # Of Wu et al., arXiv:2004.09602: table 7, table 8 and, with the ranges fixed, table 11.
    "int8": (academic(8, hardware="onednn"),),
    "ranges": tuple(academic(b, algorithm=a, init=i) for b in (8, 4) for a in ("fixed", "lsq") for i in RANGES),
    "calibrators": tuple(academic(8, algorithm="fixed", init=init) for init in CALIBRATORS),
    # Of MQBench, arXiv:2111.03759: tables 3 to 6 and 10.
    "bits": ({}, *map(academic, BITS)),
    "algorithms": tuple(academic(bits, algorithm=name) for bits in (4, 2, 3, 8) for name in ALGORITHMS),
    "graphs": tuple(academic(4, algorithm=a, hardware=f"academic{n}") for a in ("lsq", "pact") for n in (2, 3)),
    "strategies": tuple(academic(4, algorithm=a, bn_strategy=s) for a in ("lsq", "pact") for s in STRATEGIES),
    "hardware": tuple(academic(bits, hardware=name) for bits in (4, 8) for name in HARDWARE),
    "robustness": tuple(academic(4, algorithm=a, hardware=h) for a in HARDWARE_ALGORITHMS for h in HARDWARE),
    "init": tuple(academic(4, init=i, weight_init=w) for i, w in INITS),
}
"""Part -> the settings of `mxq.qat.prepare` in it; {} for the float network."""


def one(data: Data, settings: Settings, schedule: Settings, untrained: dict[str, float]) -> dict[str, float]:
    """The scores of a run: those before training, "trained", and seconds. ``untrained`` is empty until measured."""
    started = time.perf_counter()
    found = untrained or before(data, settings)
    block = mxq.qat.prepare(data.net, data.calibration, **settings) if settings else trainable(data.net)
    mxq.qat.fit(block, Augmented(*data.train), progress=False, **schedule)
    return {**found, "trained": data.score(block), "seconds": time.perf_counter() - started}


def before(data: Data, settings: Settings) -> dict[str, float]:
    """Before training: "float", or "ptq", and "recalibrated" with BatchNorm recalibration."""
    if not settings:
        return {"float": data.score(data.net)}
    block = mxq.qat.prepare(data.net, data.calibration, **settings)
    found = {"ptq": data.score(block)}
    mxq.recalibrate_batchnorm(block, data.train[0][:512])
    return {**found, "recalibrated": data.score(block)}


def trainable(net: Any) -> Any:
    """The float network as a block that trains."""
    return float_block(load_model(net))


def key(net: str, settings: Settings, seed: int, options: argparse.Namespace) -> str:
    """What a line of the file is about."""
    schedule = {name: getattr(options, name) for name in ("train", "before", "epochs", "lr")}
    about = {"net": net, "seed": seed, **schedule, **settings}
    return json.dumps(about, sort_keys=True)


def named(settings: Settings) -> str:
    """Settings in a table."""
    if not settings:
        return "float"
    algorithm, strategy = settings.get("algorithm", "lsq"), settings.get("bn_strategy")
    words = [f"W{settings['bits_w']}A{settings['bits_a']}", algorithm, settings["hardware"]]
    starts = [f"{what} {settings[what]}" for what in ("init", "weight_init") if what in settings]
    return " ".join([*words, *starts, *([] if strategy is None else [f"strategy {strategy}"])])


def tables(known: Mapping[str, dict[str, float]]) -> dict[str, list[list[str]]]:
    """What each network and schedule gave: rows of cells, under a title."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for text, scores in known.items():
        about = json.loads(text)
        epochs = f"{about.pop('before', 0)} + {about.pop('epochs')} epochs"
        head = f"{about.pop('net')}: {about.pop('train')} images, {epochs}, lr {about.pop('lr')}"
        about.pop("seed")
        found.setdefault(head, {}).setdefault(named(about), []).append(scores)
    return {
        head: [[row, str(len(runs)), *(_cell(runs, *names) for names in COLUMNS)] for row, runs in rows.items()]
        for head, rows in found.items()
    }


def show(known: Mapping[str, dict[str, float]]) -> None:
    """Prints the tables."""
    for head, rows in tables(known).items():
        table = Table(*HEADS, title=head)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


def markdown(known: Mapping[str, dict[str, float]]) -> str:
    """The tables for the docs."""
    lines = []
    for head, rows in tables(known).items():
        lines += [f"{head}:", "", *(f"| {' | '.join(row)} |" for row in (HEADS, ["---"] * len(HEADS), *rows)), ""]
    return "\n".join(lines)


HEADS = ("", "seeds", "float / PTQ", "recalibrated", "trained", "s")
BEFORE = ("float", "ptq", "recalibrated")
"""Scores that no seed changes."""
COLUMNS = (("float", "ptq"), ("recalibrated",), ("trained",), ("seconds",))


def _cell(found: list[dict[str, float]], *names: str) -> str:
    values = [scores[name] for scores in found for name in names if name in scores]
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main() -> int:
    """Runs what is not in the file, then shows all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--part", nargs="+", default=["bits"], choices=list(PARTS))
    parser.add_argument("--nets", nargs="+", default=list(CIFAR), choices=CIFAR)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=TRAINING)
    parser.add_argument("--before", type=int, default=6, help="epochs in float, from which all runs start")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--show", action="store_true", help="the tables alone")
    parser.add_argument("--markdown", type=Path, help="write the tables here, for the docs")
    options = parser.parse_args()
    logging.getLogger("mxq").setLevel(logging.ERROR)
    lines = options.file.read_text().splitlines() if options.file.exists() else []
    known: dict[str, dict[str, float]] = dict(json.loads(line) for line in lines)
    asked = [(n, s, seed) for seed in options.seeds for n in options.nets for p in options.part for s in PARTS[p]]
    todo = [] if options.show else [run for run in asked if key(*run, options) not in known]
    tasks: dict[str, Data] = {}
    for net, settings, seed in track(todo, console=Console(stderr=True)):
        if net not in tasks:
            tasks[net] = Data.of(net, options)
        schedule = {"epochs": options.epochs, "lr": options.lr, "seed": seed}
        others = (known.get(key(net, settings, other, options), {}) for other in options.seeds)
        untrained = next(({n: s for n, s in run.items() if n in BEFORE} for run in others if run), {})
        scores = one(tasks[net], settings, schedule, untrained)
        known[key(net, settings, seed, options)] = scores
        with options.file.open("a") as file:
            file.write(json.dumps([key(net, settings, seed, options), scores]) + "\n")
    show(known)
    if options.markdown:
        options.markdown.write_text(markdown(known), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
