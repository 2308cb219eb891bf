"""`Trained`: what a training gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mxq.qat.journal import sayable
from mxq.text import Shown

Numbers: TypeAlias = Mapping[str, float]
"""Measurements by name; the first counts, more being better, but for "loss"."""


@dataclass(frozen=True)
class Trained(Shown):
    """What `fit` gives.

    Attributes:
        block: the block that was given, with the parameters of the best epoch.
        best_epoch: its number; 0 is before training.
        history: of each epoch, from 0: "epoch", "eval" (numbers by name; empty without data to measure on) and, but for
            0, "loss", "rate" (the last learning rate) and "train", the numbers in training.
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
    def after(self) -> Numbers:
        """What was measured after the best epoch."""
        return dict(self.history[self.best_epoch]["eval"])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, without the block."""
        own = {"best_epoch": self.best_epoch, "before": self.before, "after": self.after, "history": [*self.history]}
        return {**sayable(own), "float": None if self.baseline is None else self.baseline.to_json()}
