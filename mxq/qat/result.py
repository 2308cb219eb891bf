"""`Trained`: what a training gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mxq.qat.journal import sayable
from mxq.text import Shown

Numbers: TypeAlias = Mapping[str, float]
"""Measurements by name; the first counts, more being better, but for "loss"."""


@dataclass(frozen=True, slots=True)
class LossRise:
    """A training that made the loss higher, though never infinite.

    Attributes:
        epoch: the last.
        before: the loss of the first batch, before any step, or the mean of the first epoch where that is lower.
        after: the mean of the last epoch.
    """

    epoch: int
    before: float
    after: float

    @staticmethod
    def of(history: Sequence[Mapping[str, Any]]) -> LossRise | None:
        """That of a history, see `Trained`.

        Batches differ, so it is one only where each of the last epoch is above the first of all, and their mean twice
        that; or each is above the mean of the first epoch.
        """
        epochs = history[1:]
        if not epochs:
            return None
        first, last = epochs[0], epochs[-1]
        means = [epoch["loss"] for epoch in epochs[:-1][:1]]
        start = first["first"]
        doubled = last["least"] > start and last["loss"] > start + abs(start)
        if not doubled and not any(last["least"] > mean for mean in means):
            return None
        return LossRise(len(epochs), min([start, *means]), last["loss"])

    def __str__(self) -> str:
        return (
            f"the loss rose from {self.before:.4g} to {self.after:.4g} in epoch {self.epoch}, the last, which is kept, "
            "as nothing was measured; allowed: a lower lr, a longer warm-up (warmup_epochs), or eval_data, by which "
            "the best epoch is kept"
        )


@dataclass(frozen=True)
class Trained(Shown):
    """What `fit` gives.

    Attributes:
        block: the block that was given, with the parameters of the best epoch.
        best_epoch: its number; 0 is before training.
        history: of each epoch, from 0: "epoch", "eval" (numbers by name; empty without data to measure on) and, but for
            0, "loss", "first" and "least" (of the first batch, and the lowest), "rate" (the last learning rate) and
            "train", the numbers in training.
        baseline: the float network that was fine-tuned by the same recipe, where one was given.
        workdir: the folder of the checkpoint and the journal.
    """

    block: Any
    best_epoch: int
    history: tuple[Mapping[str, Any], ...]
    baseline: Trained | None = None
    workdir: Path | None = None

    @property
    def before(self) -> Numbers:
        """What was measured before training: of a fake-quantized network, post-training quantization."""
        return dict(self.history[0]["eval"])

    @property
    def rise(self) -> LossRise | None:
        """What is wrong where the loss ends higher and nothing was measured to find the best epoch by, else None."""
        return None if self.before else LossRise.of(self.history)

    @property
    def after(self) -> Numbers:
        """What was measured after the best epoch."""
        return dict(self.history[self.best_epoch]["eval"])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, without the block."""
        own = {"best_epoch": self.best_epoch, "before": self.before, "after": self.after, "history": [*self.history]}
        own["loss_rise"] = None if self.rise is None else asdict(self.rise)
        return {**sayable(own), "float": None if self.baseline is None else self.baseline.to_json()}
