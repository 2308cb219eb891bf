"""The trained networks of ``MXQ_DATA`` as `compare.py` takes them: with inputs by name, and what judges outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import real_nets
from every_cpu import NETS, fidelity
from real_nets import CIFAR, IMAGENET, YOLO

from mxq.graph.ir import Array, Model

SCORED = (*IMAGENET, *CIFAR, YOLO)
CALIBRATION, EVALUATION = 50, 500
"""Images. Of CIFAR four times as many evaluate."""
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Trained:
    """A float network, calibration and evaluation inputs by name, examples first, and a score in percent, if any."""

    model: Model
    calibration: Feeds
    evaluation: Feeds
    score: Callable[[Sequence[Array]], float] | None = None


def load(name: str) -> Trained:
    """The network ``name`` of `every_cpu.NETS`, on the 500 labelled images, 128 pictures of VOC, 2,000 of CIFAR."""
    if name not in SCORED:
        net = NETS[name]()
        return Trained(net.model, net.calibration, net.evaluation)
    task = real_nets.load(name, CALIBRATION, EVALUATION // 5 if name in CIFAR else EVALUATION)
    data = task.model.inputs[0]
    return Trained(task.model, {data: task.calibration}, {data: task.evaluation}, task.score)


def judged(name: str, wanted: Sequence[Array], found: Sequence[Array]) -> dict[str, float]:
    """Score and agreement in percent, SQNR in dB, of outputs over all evaluation inputs; each where there is one."""
    score = load(name).score
    sqnr, agreement = fidelity(wanted, found)
    known = {"sqnr_db": sqnr} if math.isnan(agreement) else {"sqnr_db": sqnr, "agreement": agreement}
    return known if score is None else {"score": score(found), **known}
