"""From what networks are made of, and a judge, to the two searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mxq.host import machine
from mxq.quant.bits import Bits
from mxq.tuning.budget import Budget
from mxq.tuning.choices import layers
from mxq.tuning.cost import cost_model
from mxq.tuning.journal import Journal
from mxq.tuning.kept_data import digest
from mxq.tuning.layer_sensitivity import BOTH, Sensitivity, Subject, measured
from mxq.tuning.material import Material, make
from mxq.tuning.mixed_bits import JOURNAL as BITS
from mxq.tuning.mixed_bits import BitSubject, MixedBits
from mxq.tuning.mixed_bits import choose_bits as chosen_bits
from mxq.tuning.scoring import Judge
from mxq.tuning.training import Training
from mxq.tuning.tuned import Tuned
from mxq.tuning.tuner import Task, search

SENSITIVITY: Final = "sensitivity.jsonl"
"""The journal's name in a workdir."""


def sensitivity(
    material: Material, judge: Judge, mode: str = BOTH, workdir: Path | None = None, *, progress: bool = True
) -> Sensitivity:
    """Measures each layer alone; see `mxq.tuning.layer_sensitivity.measured`.

    Args:
        material: what networks are made from.
        judge: what measures them.
        mode: "one-int8", "one-float", or "both".
        workdir: where the journal is; None keeps nothing.
        progress: whether to show a bar, which stays silent where stderr is no terminal.
    """
    prepared = material.prepared
    found = layers(prepared)
    costs = cost_model(material.runner, prepared.fused, next(iter(material.data)), prepared.config.target)
    subject = Subject(
        layers=found,
        shares={layer.name: costs.share(layer.name) for layer in found},
        config=prepared.config,
        make=lambda config: make(material, config).model,
        measure=judge.measure,
        float=prepared.source,
        by=judge.by,
    )
    journal = Journal.open(None if workdir is None else workdir / SENSITIVITY, about(material, judge))
    material.statistics  # noqa: B018  (what is wrong with them is wrong with no layer)
    return measured(subject, journal, mode, progress=progress)


def choose_bits(
    material: Material,
    judge: Judge,
    noise: Judge,
    budget: float,
    choices: Sequence[Bits],
    workdir: Path | None = None,
    *,
    progress: bool = True,
) -> MixedBits:
    """Chooses the bits of each layer; see `mxq.tuning.mixed_bits`.

    Args:
        material: what simulations are made from.
        judge: what measures the networks that come of it.
        noise: what measures the noise of single layers.
        budget: the most mean bits of weights.
        choices: from `mxq.tuning.mixed_bits.choices_of`.
        workdir: where the journal is; None keeps nothing.
        progress: whether to show a bar, which stays silent where stderr is no terminal.
    """
    prepared = material.prepared
    found, graph = layers(prepared), prepared.fused.graph
    subject = BitSubject(
        layers=found,
        weights={layer.name: prepared.fused.args[graph[layer.name].inputs[1].name].size for layer in found},
        config=prepared.config,
        make=lambda config: make(material, config),
        measure=judge.measure,
        noise=noise.measure,
        float=prepared.source,
        by=judge.by,
    )
    journal = Journal.open(None if workdir is None else workdir / BITS, about(material, judge))
    material.statistics  # noqa: B018  (what is wrong with them is wrong with no layer)
    return chosen_bits(subject, journal, budget, choices, progress=progress)


def tune(
    material: Material,
    judge: Judge,
    max_drop: float,
    budget: Budget | None = None,
    workdir: Path | None = None,
    *,
    training: Training | None = None,
    progress: bool = True,
) -> Tuned:
    """Finds the fastest network that meets the bar; see `mxq.tuning.tuner.search`.

    Args:
        material: what networks are made from; its statistics are histograms.
        judge: what scores them.
        max_drop: how much less than float is allowed.
        budget: the time.
        workdir: where journals and the best network are; None keeps nothing.
        training: data to train on where nothing else meets the bar.
        progress: whether to show what is tried, which stays silent where stderr is no terminal.
    """
    task = Task(material, judge, about(material, judge), max_drop, budget or Budget(), workdir, progress, training)
    return search(task)


def about(material: Material, judge: Judge) -> Mapping[str, object]:
    """What all measurements depend on, JSON-ready: network, settings, data, judge, and this CPU's kernels."""
    return {
        "network": material.prepared.fingerprint,
        "settings": material.prepared.config.to_json(),
        "calibration data": digest(material.data),
        "judge": judge.about,
        "kernels": machine.detect().target,
    }
