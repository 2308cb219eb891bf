"""The tuner: what the search of `mxq.tuning.search` tries, on real networks.

Every network comes from the statistics of one calibration pass. Layers are ordered by what
`mxq.tuning.layer_sensitivity` measures, the noise that a layer alone adds to the outputs, for each unit of time that it
costs in float. It is measured on the calibration batches, without the methods of "default" and "best", which take a
while for each network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from mxq import observers
from mxq.artifacts import pair
from mxq.config import QuantConfig
from mxq.errors import ConfigError, DataError, QuantizeError
from mxq.graph.ir import Model
from mxq.logs import LOG
from mxq.passes.partition import NONE
from mxq.pipeline import Quantized
from mxq.quant.plan import Report
from mxq.tuning import keeping
from mxq.tuning.budget import Budget, is_number
from mxq.tuning.choices import layers
from mxq.tuning.cost import CostModel, cost_model
from mxq.tuning.driver import CALIBRATION, FLOAT, Driver, Found, Made, seconds_in
from mxq.tuning.journal import Journal, json_numbers, numbers_of
from mxq.tuning.layer_sensitivity import ONE_INT8, Meter, Subject, noise, ordered
from mxq.tuning.material import Material, make, planned
from mxq.tuning.scoring import FloatAgreement, Judge
from mxq.tuning.search import Bar, Method, Settings, Space, Trial, strategy
from mxq.tuning.training import Training
from mxq.tuning.tuned import Tuned
from mxq.weights.methods import BIAS_CORRECTIONS, ROUNDINGS

METHODS: Final = (
    Method("default"),
    Method("best"),
    Method("default", range_choice="tensor"),
    Method("default", equalize=False),
)
"""After plain calibration, which is ``Method("fast")``; see `_methods` for those after them."""

STATISTICS, TRIALS, LAYERS, BEST = "statistics.npz", "trials.jsonl", "layers.jsonl", "best"
"""Names in a workdir; the last begins those of the network's files."""


@dataclass(frozen=True)
class Task:
    """One search.

    Attributes:
        material: what networks are made from; its statistics are histograms.
        judge: scores a network.
        about: what all measurements depend on, see `mxq.tuning.running.about`.
        max_drop: how much less than float is allowed.
        budget: the time.
        workdir: where journals and the best network are; None keeps nothing.
        progress: whether to show what was tried, which stays silent where stderr is no terminal.
        training: data to train on where nothing else meets the bar; None where there is none.
    """

    material: Material
    judge: Judge
    about: Mapping[str, object]
    max_drop: float
    budget: Budget = field(default_factory=Budget)
    workdir: Path | None = None
    progress: bool = True
    training: Training | None = None

    @property
    def base(self) -> QuantConfig:
        return self.material.prepared.config

    @property
    def prefix(self) -> Path | None:
        return None if self.workdir is None else self.workdir / BEST

    def journal(self, name: str) -> Journal:
        return Journal.open(None if self.workdir is None else self.workdir / name, self.about)

    @cached_property
    def costs(self) -> CostModel:
        """Runs the float network once."""
        m = self.material
        return cost_model(m.runner, m.prepared.fused, next(iter(m.data)), self.base.target)

    def cost(self, config: QuantConfig) -> float:
        return self.costs.cost(planned(self.material.prepared, config).plan.quantized)

    def attempt(self, settings: Settings) -> Made[Quantized]:
        """Makes and scores a network."""
        made = self.make(settings)
        score = self.score(self.judge.measure(made.model))
        return Made(score, self.costs.cost(made.prepared.plan.quantized), made)

    def make(self, settings: Settings) -> Quantized:
        """A network, trained where the settings say so."""
        config = settings.config(self.base)
        if self.training is None or settings.training is None:
            return make(self.material, config)
        return self.training.network(self.material, config, self.workdir, progress=self.progress)

    def announce(self, settings: Settings) -> float | None:
        """Seconds that training will take, which it says, too; None for networks that are not trained."""
        if self.training is None or settings.training is None:
            return None
        cost = self.training.cost(self.material, settings.config(self.base))
        LOG.info("nothing met the bar; training with quantization takes %s", cost)
        return cost.total

    def score(self, numbers: Mapping[str, float]) -> float:
        """The first of what a judge found."""
        name, value = next(iter(numbers.items()))
        if not math.isfinite(value):
            raise DataError(f"the score {name!r} is {value}; allowed: a finite number")
        return value


def search(task: Task) -> Tuned:
    """Searches; see `mxq.tuning.search.strategy` for the order and `mxq.tuning.driver` for the time and interruptions.

    Raises:
        ConfigError: ``max_drop`` is negative, the workdir is of something else, or the settings leave no choice.
        QuantizeError: no network could be made.
        MxqError: the float network cannot be scored.
    """
    check(task.base, task.max_drop)
    if task.training is not None:
        task.training.check(task.material.prepared.fused.arguments)
    journal, measured = task.journal(TRIALS), task.journal(LAYERS)
    task.budget.spent = seconds_in(journal) + seconds_in(measured)
    _calibrate(task, journal)
    reference, seconds = _float_score(task, journal)
    bar = Bar(reference, task.max_drop)
    driver = Driver(bar, task.attempt, journal, task.budget, lambda _, made: _keep(task, made), seconds)
    training = None if task.training is None else task.training.config
    space = Space(_calibrators(task.base), _methods(), lambda base: _ranked(task, base, measured), training)
    with tqdm(desc="tune", unit="network", leave=False, disable=None if task.progress else True) as bar_shown:
        driver.tell, driver.guess = (lambda trial: _show(bar_shown, trial)), task.announce
        found = driver.run(strategy(space, bar))
    if found.best is None:
        reasons = [trial.reason for trial in found.trials]
        raise QuantizeError(f"no network could be made; the first trial failed: {reasons[0]}")
    model, report = _network(task, found, found.best)
    return Tuned(
        model=model,
        record=report,
        config=found.best.settings.config(task.base),
        best=found.best,
        trials=found.trials,
        bar=bar,
        stopped=found.stopped,
        by=task.judge.by,
        float_cost=task.costs.cost(()),
        seconds=task.budget.elapsed,
        prefix=task.prefix,
        share=task.judge.share,
    )


def check(config: QuantConfig, max_drop: float) -> None:
    """Refuses what leaves no choice, and what networks of a search cannot have.

    Raises:
        ConfigError: the message says what is allowed.
    """
    if not (is_number(max_drop) and math.isfinite(max_drop) and max_drop >= 0):
        raise ConfigError(f"max_drop is {max_drop!r}; allowed: 0 or more")
    if config.simulate:
        raise ConfigError(
            "simulate is True, but the search is for the quickest network of MXNet's int8 kernels; allowed: False "
            "(mxq.sweep_bits and mxq.choose_bits search among simulations)"
        )
    if config.calib_mode == NONE:
        raise ConfigError("calib_mode is 'none', which leaves no calibrator to choose; allowed: any other")
    for spec in (config.calib_mode, *(layer.calib_mode for layer in config.overrides.values())):
        if spec is not None and not observers.reads_histograms(observers.get(spec)):
            raise ConfigError(f"calib_mode is {spec!r}, whose statistics serve no other calibrator; allowed: any other")


def _calibrate(task: Task, journal: Journal) -> None:
    """The statistics, and in the journal the time that they took when they were collected."""
    started = task.budget.clock()
    examples = task.material.statistics.examples
    if not any(kind == CALIBRATION for kind, *_ in journal.read(_scored)):
        journal.append({"kind": CALIBRATION, "examples": examples, "seconds": task.budget.clock() - started})


def _float_score(task: Task, journal: Journal) -> tuple[float, float]:
    """The float network's score, and the seconds it took; measured once."""
    for kind, known, seconds in journal.read(_scored):
        if kind == FLOAT:
            return task.score(known), seconds
    started = task.budget.clock()
    numbers = task.judge.measure(task.material.prepared.source)
    score, seconds = task.score(numbers), task.budget.clock() - started
    name = next(iter(numbers))
    journal.append({"kind": FLOAT, "numbers": json_numbers({name: score}), "seconds": seconds})
    return score, seconds


def _scored(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, float], float]:
    """An entry of a journal: its kind, the numbers where it has any, and its seconds."""
    return entry["kind"], numbers_of(entry.get("numbers")) or {}, float(entry["seconds"])


def _calibrators(base: QuantConfig) -> tuple[Settings, ...]:
    """The user's first, then all that ask for it, each once."""
    known = filter(observers.reads_histograms, observers.OBSERVERS.values())
    asked = (spec for observer in known for spec in observer.in_tune)
    specs = (observers.spec_of(observers.get(spec)) for spec in (base.calib_mode, *asked))
    return tuple(Settings(spec) for spec in dict.fromkeys(specs))


def _methods() -> tuple[Method, ...]:
    """`METHODS`, and what else asks to be tried: roundings, bias corrections, and observers that clip weights."""
    roundings = (Method("default", rounding=m.name) for m in ROUNDINGS.values() if m.in_tune)
    biases = (Method("default", bias_correction=m.name) for m in BIAS_CORRECTIONS.values() if m.in_tune)
    specs = dict.fromkeys(spec for o in observers.OBSERVERS.values() for spec in o.clips_in_tune)
    return (*METHODS, *roundings, *biases, *(Method("fast", weight_calib_mode=spec) for spec in specs))


def _ranked(task: Task, base: Settings, journal: Journal) -> Mapping[str, float]:
    """Layers in the order in which to leave them in float -> the time that each costs there."""
    m, config = task.material, replace(base, method=Method()).config(task.base)
    found = layers(m.prepared)
    subject = Subject(
        layers=found,
        shares={},
        config=config,
        make=lambda settings: make(m, settings).model,
        measure=FloatAgreement(m.prepared.source, m.data, m.runner).measure,
        float=m.prepared.source,
    )

    def in_time() -> None:
        took = max(journal.read(lambda entry: float(entry["seconds"])), default=0.0)
        task.budget.check("measuring the next layer", took)

    meter = Meter(subject, journal, base.calib_mode, in_time, task.budget.clock)
    noises = {}
    for name in subject.names:
        numbers = meter.get(ONE_INT8, name).numbers
        noises[name] = math.inf if numbers is None else noise(numbers)
    whole = task.cost(config)
    costs = {name: task.cost(subject.settings("one-float", name)) - whole for name in subject.names}
    return {name: costs[name] for name in ordered(costs, noises)}


def _keep(task: Task, made: Quantized) -> None:
    if task.prefix is not None:
        pair.write(made.model, made.report, task.prefix)


def _network(task: Task, found: Found[Quantized], best: Trial) -> tuple[Model, Report]:
    """The best network: as it was made in this run, as it lies in the workdir, or made again."""
    if found.network is None and best.settings.training is None and (saved := _kept(task, best)):
        return saved
    made = found.network or task.make(best.settings)  # training goes on from its checkpoint, which is at its end
    if task.prefix is not None and _kept(task, best) is None:  # a save was cut short
        _keep(task, made)
    return made.model, made.report


def _kept(task: Task, best: Trial) -> tuple[Model, Report] | None:
    """What lies in the workdir, where it was made by the best settings."""
    return None if task.prefix is None else keeping.load(task.prefix, best.settings.config(task.base))


def _show(bar: tqdm, trial: Trial) -> None:
    bar.update()
    score = "failed" if trial.score is None else f"{trial.score:.4f}"
    bar.set_postfix_str(f"{trial.stage} {trial.settings.calib_mode} {score}")
