"""What a search does last, where it may: it trains the network with quantization, wholly in int8.

Source: the end of the workflow of Wu et al., "Integer quantization for deep learning inference: principles and
empirical evaluation" (arXiv:2004.09602), figure 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mxq.config import QuantConfig, selects
from mxq.graph.ir import Graph
from mxq.pipeline import Quantized
from mxq.qat.config import QatConfig
from mxq.qat.converting import converted, trained
from mxq.qat.epochs import Epochs
from mxq.qat.preparing import Seen, block_of, prepared
from mxq.qat.schedule import TrainConfig
from mxq.qat.training import fit
from mxq.runtime.training import Settings, Trainee
from mxq.tuning.material import Material

FOLDER: Final = "training"
"""Of checkpoints and journal, in a workdir."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What training takes: ``epochs`` of so many ``steps`` of so many ``seconds``, as measured on one."""

    epochs: int
    steps: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds."""
        return self.epochs * self.steps * self.seconds

    def __str__(self) -> str:
        minutes = f"{self.total / 60:.0f} min" if self.total >= 90 else f"{self.total:.0f} s"
        return f"{self.epochs} epochs of {self.steps} steps of {self.seconds:.2f} s, about {minutes}"


@dataclass(frozen=True)
class Training:
    """Data to train on, and how.

    Attributes:
        data: labelled examples, as `mxq.qat.fit` takes them.
        labels: (examples, ...), where they are not in the data.
        config: the schedule.
        clock: tells the time, in seconds.
    """

    data: Any
    labels: Any = None
    config: TrainConfig = field(default_factory=TrainConfig)
    clock: Callable[[], float] = time.perf_counter

    def check(self, inputs: Sequence[str]) -> None:
        """Whether the data, of a network with ``inputs``, can be read more than once and has labels.

        Raises:
            DataError: it cannot, or has none.
        """
        next(self._epochs(inputs).epoch(0))

    def _epochs(self, inputs: Sequence[str]) -> Epochs:
        return Epochs(self.data, inputs, self.labels, self.config.examples)

    def cost(self, material: Material, base: QuantConfig) -> Cost:
        """What it takes, by the second of two steps that change nothing."""
        block, config = self._block(material, base), self.config
        trainee = Trainee(block, None, Settings(config.momentum, config.nesterov, config.weight_decay, {}))
        data = self._epochs(trainee.inputs)
        feed, labels = next(data.epoch(1))
        trainee.step(feed, labels, 0.0)
        started = self.clock()
        trainee.step(feed, labels, 0.0)
        return Cost(config.passes, data.steps(), self.clock() - started)

    def network(self, material: Material, base: QuantConfig, workdir: Path | None, *, progress: bool) -> Quantized:
        """The int8 network after training; in ``workdir``, where there is one, training goes on after any end.

        Raises:
            TrainingError: the loss is no longer finite.
            MxqError: see `mxq.qat.fit`.
        """
        block = self._block(material, base)
        folder = None if workdir is None else workdir / FOLDER
        fit(block, self.data, labels=self.labels, config=self.config, workdir=folder, progress=progress)
        return converted(trained(block), base.target, material.runner, dict(material.versions))

    def _block(self, material: Material, base: QuantConfig) -> Any:
        source = material.prepared.source
        config, seen = qat_config(base, source.graph), Seen(material.prepared.fused, material.statistics)
        return block_of(prepared(source, material.data, config, material.runner, seen))


def qat_config(base: QuantConfig, graph: Graph) -> QatConfig:
    """How a network is prepared for training that is to be quantized by ``base``."""
    excluded = dict.fromkeys(
        name
        for selector in base.exclude_layers
        for name in ([selector] if isinstance(selector, str) else _selected(selector, graph))
    )
    return QatConfig(init=base.calib_mode, exclude_layers=tuple(excluded), num_calib_examples=base.num_calib_examples)


def _selected(predicate: Any, graph: Graph) -> list[str]:
    return [node.name for node in graph.operators if selects(predicate, node)]
