"""Fine-tunes a block: with fake quantization, or a float one by the same recipe. It can be killed and goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from mxq import runtime
from mxq.config import with_options
from mxq.data.feed import Feed, examples_in
from mxq.errors import ConfigError, MxqError, QuantizeError, TrainingError
from mxq.evaluation import Function, Metric
from mxq.formats.reading import path_given
from mxq.graph.ir import Array
from mxq.host.interrupts import held
from mxq.logs import LOG
from mxq.passes.simplify import FLOAT
from mxq.qat.checkpoint import WEIGHTS, Checkpoints, State, alone, fingerprint
from mxq.qat.diagnosis import diagnosed
from mxq.qat.epochs import Epochs
from mxq.qat.measuring import EpochTally, Evaluator, score
from mxq.qat.network import QatNetwork
from mxq.qat.options import TrainOptions, Unpack
from mxq.qat.result import Trained
from mxq.qat.schedule import TrainConfig
from mxq.quant.bits import Bits
from mxq.runtime.training import Loss, Settings, Trainee, seeded

SOFTMAX: Final = ("softmax", "SoftmaxOutput", "SoftmaxActivation")


def fit(
    block: Any,
    train_data: object,
    *,
    labels: Any = None,
    eval_data: object = None,
    eval_labels: Any = None,
    metric: Metric[Any] | Function | None = None,
    loss: Loss | None = None,
    baseline: Any = None,
    config: TrainConfig | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    logger: logging.Logger | None = None,
    **options: Unpack[TrainOptions],
) -> Trained:
    """Fine-tunes a block by SGD.

    Args:
        block: any Gluon block that trains on the CPU, such as `mxq.qat.prepare` gives. It is changed.
        train_data: examples with labels: whole arrays ``(data, labels)``, a DataLoader, a DataIter, a list of batches,
            or what `mxq.data` opens at a path.
        labels: (examples, ...), where they are not in the data.
        eval_data, eval_labels: the same to measure on, before training and after every epoch. Without it the last epoch
            is kept, and the result has no numbers.
        metric: as for `mxq.evaluate`; its first number says which epoch is best. By default top-1, or with ``loss``
            the loss, of which less is better.
        loss: a gluon loss, or a function of what the block gives and labels. By default softmax cross-entropy of the
            first output.
        baseline: a float block, which is fine-tuned first, by the same recipe: what training alone brings.
        config: the settings.
        workdir: a folder for the checkpoint, after every epoch, and the journal. Ended in any way and called again with
            the same arguments, training goes on after the last epoch that was finished, and gives the same parameters
            (bit for bit with the same ``OMP_NUM_THREADS``: threads share the sums of a batch).
        progress: whether to show a bar, which stays silent where stderr is no terminal.
        logger: receives what mxq says instead of ``logging.getLogger("mxq")``.
        **options: fields of `TrainConfig`, instead of ``config`` or to change it.

    Returns:
        The block with the parameters of the best epoch, and what was measured.

    Raises:
        ConfigError: a setting is not allowed, or ``workdir`` holds another training.
        DataError: there are no labels, or the data does not fit the block.
        QuantizeError: the block does not train: it has no parameters, or they have no values.
        TrainingError: the loss is no longer finite; the block and ``workdir`` have the last good epoch.
        MxqError: see `mxq.errors`.
    """
    settings = with_options(TrainConfig(), config, options)
    if _quantization(baseline) is not None:
        raise ConfigError("baseline is a block that trains with quantization; allowed: the float block, or None")
    folder = None if workdir is None else path_given("workdir", workdir)
    heard = LOG if logger is None else logger
    measured = Evaluator.of(eval_data, eval_labels, metric, loss)
    data = Epochs(train_data, (), labels, settings.examples, settings.seed if settings.shuffle else None)

    def run(one: Any, where: Path | None) -> Trained:
        return _Training.of(one, data, measured, loss, settings, where, heard).run(progress=progress)

    with alone(folder):
        tuned = None if baseline is None else run(baseline, None if folder is None else folder / "float")
        return replace(run(block, folder), baseline=tuned)


def _quantization(block: Any) -> Mapping[str, Any] | None:
    """How a block is quantized in training, JSON-ready; None for a float one."""
    network = getattr(block, "qat", None)
    return network.config.to_json() if isinstance(network, QatNetwork) else None


def _check(block: Any, loss: Loss | None) -> None:
    """What can be seen of a block before it trains; nothing of one that cannot be traced."""
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss is {loss!r:.60}; allowed: a gluon loss, or a function of outputs and labels")
    try:
        model = runtime.load_model(block)
    except MxqError:
        return
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(f"the block is quantized already: {refusal.reason}; allowed: a float block")
    last = model.graph[model.graph.heads[0].name].op
    if loss is None and last in SOFTMAX:
        raise ConfigError(
            f"the block ends in {last}, which the default loss computes itself; allowed: the block without it, as "
            "mxq.qat.prepare gives, or loss= for what it gives"
        )


@dataclass
class _Training:
    """A training under way."""

    trainee: Trainee
    data: Epochs
    measured: Evaluator
    config: TrainConfig
    kept: Checkpoints
    each: int
    name: str
    logger: logging.Logger
    sample: Feed | None
    state: State = field(init=False)

    @staticmethod
    def of(
        block: Any,
        data: Epochs,
        measured: Evaluator,
        loss: Loss | None,
        config: TrainConfig,
        folder: Path | None,
        logger: logging.Logger,
    ) -> _Training:
        scales = getattr(getattr(block, "qat", None), "learned", ())
        decays = dict.fromkeys(scales, config.scale_weight_decay)
        settings = Settings(config.momentum, config.nesterov, config.weight_decay, decays)
        _check(block, loss)
        trainee = Trainee(block, loss, settings)
        data = replace(data, inputs=trainee.inputs)
        each = data.steps()
        quantization = _quantization(block)
        about = {"config": config.to_json(), "qat": quantization, "parameters": trainee.shapes, "steps": each}
        sample = None
        if folder is not None:
            with seeded(config.seed, 0):
                sample, labels = next(data.epoch(0))
            about["data"] = data.fingerprint(sample, labels)
            about["eval_data"] = measured.fingerprint(trainee.inputs, config.examples)
            about[WEIGHTS] = fingerprint(trainee.values)
        name = "float" if quantization is None else str(Bits(quantization["bits_w"], quantization["bits_a"]))
        kept = Checkpoints(folder, about)
        return _Training(trainee, data, measured, config, kept, each, name, logger, sample)

    def run(self, *, progress: bool) -> Trained:
        """All epochs that are still to come; see `fit`."""
        self._begin()
        total, done = self.config.passes * self.each, self.state.epoch * self.each
        hidden = None if progress else True
        try:
            with tqdm(None, self.name, total, initial=done, leave=False, unit="batch", disable=hidden) as bar:
                for number in range(self.state.epoch + 1, self.config.passes + 1):
                    self._epoch(number, bar)
        except KeyboardInterrupt:
            on = "" if self.kept.folder is None else ", the same call goes on from there"
            self.logger.warning("interrupted; %s%s", self._left, on)
            raise
        finally:
            self.trainee.assign(self.state.values)
        self.trainee.assign(self.state.best)
        found = Trained(self.trainee.block, self.state.best_epoch, self.state.history, workdir=self.kept.folder)
        if found.rise is not None:
            self.logger.warning("%s: %s", self.name, found.rise)
        return found

    @property
    def _left(self) -> str:
        """What there is after an end before the end."""
        done = f"after epoch {self.state.epoch} of {self.config.passes}"
        if self.kept.folder is None:
            return f"the block is as {done}"
        return f"{self.kept.folder} holds the training {done}"

    @property
    def _remedy(self) -> str:
        """What to change where a training diverges: other settings are another training."""
        elsewhere = "" if self.kept.folder is None else " (with another workdir)"
        return f"a lower lr, a longer warm-up (warmup_epochs){elsewhere}"

    def _begin(self) -> None:
        """Goes on where a checkpoint ends, or measures the block as it is."""
        found = self.kept.read()
        if found is not None:
            self.state = found
            self.trainee.assign(found.values)
            self.trainee.resume(found.momenta)
            return
        values = self.trainee.values
        self.state = State(0, values, best=values)
        numbers = self.measured.numbers(self.trainee, self.config.examples)
        self.state = replace(self.state, history=({"epoch": 0, "eval": numbers},))
        lines = [{"kind": "epoch", "epoch": 0, "eval": numbers}, *self._diagnosed(0)]
        self.state = self.kept.write(self.state, lines)

    def _epoch(self, number: int, bar: Any) -> None:
        """One epoch, and the checkpoint after it."""
        lines, tally = list[Mapping[str, Any]](), EpochTally(self.measured.metric)
        with seeded(self.config.seed, number):
            for place, (feed, labels) in enumerate(self.data.epoch(number)):
                step = (number - 1) * self.each + place
                lines.append(self._step(number, step, feed, labels, tally))
                bar.update()
                bar.set_postfix(loss=f"{tally.mean_loss:.3f}", refresh=False)
        self._check_finite(number, lines[-1]["rate"])
        numbers = self.measured.numbers(self.trainee, self.config.examples)
        losses = [line["loss"] for line in lines]
        entry = {"epoch": number, "loss": tally.mean_loss, "first": losses[0], "least": min(losses)}
        entry |= {"rate": lines[-1]["rate"], "train": tally.result(), "eval": numbers}
        self._keep(entry, [*lines, {"kind": "epoch", **entry}, *self._diagnosed(number)])
        words = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.logger.info(
            "%s, epoch %d of %d: training loss %.4g%s",
            self.name,
            number,
            self.config.passes,
            tally.mean_loss,
            words and f"; measured: {words}",
        )

    def _step(self, epoch: int, step: int, feed: Feed, labels: Array, tally: EpochTally) -> Mapping[str, Any]:
        rate = self.config.rate(min(step, self.config.passes * self.each - 1), self.each)
        loss, outputs = self.trainee.step(feed, labels, rate)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {epoch}, step {step} (learning rate {rate:.4g}): {self._left}; allowed: "
                f"{self._remedy}, data without NaN"
            )
        tally.add(outputs, labels, loss)
        return {"kind": "step", "epoch": epoch, "step": step, "rate": rate, "loss": loss, "examples": examples_in(feed)}

    def _check_finite(self, epoch: int, rate: float) -> None:
        """Whether what was learned are numbers: a gradient need not be finite where the loss is."""
        lost = next((name for name, value in self.trainee.values.items() if not np.isfinite(value).all()), None)
        if lost is not None:
            raise TrainingError(
                f"parameter {lost!r} is not finite after epoch {epoch} (learning rate {rate:.4g}): {self._left}; "
                f"allowed: {self._remedy}, a loss whose gradients are finite"
            )

    def _keep(self, entry: Mapping[str, Any], lines: list[Mapping[str, Any]]) -> None:
        """The state after an epoch, in memory and on the disk."""
        values, best = self.trainee.values, self.state.history[self.state.best_epoch]["eval"]
        better = not entry["eval"] or score(entry["eval"]) > score(best)
        state = replace(
            self.state,
            epoch=entry["epoch"],
            values=values,
            momenta=self.trainee.momenta,
            best=values if better else self.state.best,
            best_epoch=entry["epoch"] if better else self.state.best_epoch,
            history=(*self.state.history, entry),
        )
        self.state = self.kept.write(state, lines)

    def _diagnosed(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """What the journal says of ranges and rounding; not where there is none."""
        if self.sample is not None:
            with held():
                lines = [*diagnosed(self.trainee.block, self.sample, epoch)]
            yield from lines
