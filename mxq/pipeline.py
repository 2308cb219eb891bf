"""The arrows, in order: prepare, fuse, partition, calibrate, quantize. Nothing here knows MXNet; a `Runner` does.

::

    Model --prepare--> Model --fuse--> fused Model --partition--> Plan
          --collect--> Thresholds --shift, quantize--> int8 Model (+ Report)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mxq import observers
from mxq.batches import Feeds, feeds
from mxq.collect import collect
from mxq.config import QuantConfig
from mxq.errors import CalibrationError, ConfigError, DataError, QuantizeError
from mxq.ir import Model, Ref, Runner
from mxq.passes import FOLD_BN, FUSE_FLOAT, FUSE_INT8, SIMPLIFY, partition, quantize_graph, shift_summands
from mxq.passes.overrides import LayerChoices
from mxq.passes.partition import NONE
from mxq.passes.simplify import FLOAT
from mxq.plan import Plan, Report
from mxq.rewrite import Trace, run_pass
from mxq.serde import write_text
from mxq.thresholds import Range, Threshold, Thresholds


@dataclass(frozen=True)
class Prepared:
    """A network on its way: the ``source`` as given, its ``fused`` float form, the ``plan``, and the ``trace``."""

    source: Model
    fused: Model
    plan: Plan
    config: QuantConfig
    trace: Trace


@dataclass(frozen=True)
class Quantized:
    """The end of the pipeline: the int8 ``model`` with its ``report``, and what it was made from."""

    model: Model
    report: Report
    prepared: Prepared
    thresholds: Thresholds


@dataclass(frozen=True)
class Calibrated:
    """Ranges of all planned tensors, and the data they come from."""

    thresholds: Thresholds
    examples: int = 0
    batches: int = 0
    warnings: tuple[str, ...] = field(default_factory=tuple)


def prepare(model: Model, trace: Trace | None = None) -> Model:
    """The float network as inference needs it: simplified, BatchNorm folded, not yet fused.

    Raises:
        QuantizeError: the network is int8 already.
    """
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(f"the network is quantized already: {refusal.reason}; allowed: a float network")
    trace = trace if trace is not None else Trace()
    return run_pass(FOLD_BN, run_pass(SIMPLIFY, model, trace), trace)


def fuse_float(model: Model) -> Model:
    """The fastest float form: prepared, and fused for the float kernels."""
    return run_pass(FUSE_FLOAT, prepare(model))


def plan(model: Model, config: QuantConfig) -> Prepared:
    """Everything that happens before calibration.

    Raises:
        QuantizeError: the network is int8 already.
        ConfigError: a pattern of ``config`` matches nothing, or its calibrator is unknown.
    """
    _known_observer("calib_mode", config.calib_mode)
    trace = Trace()
    fused = run_pass(FUSE_INT8, prepare(model, trace), trace)
    return Prepared(model, fused, partition(fused, config, trace=trace), config, trace)


def _known_observer(field_name: str, name: str) -> None:
    if name != NONE and name not in observers.names():
        allowed = ", ".join(map(repr, (*observers.names(), NONE)))
        raise ConfigError(f"{field_name} is {name!r}; allowed: {allowed}")


def calibrate(prepared: Prepared, calib_data: object, runner: Runner, *, progress: bool = True) -> Calibrated:
    """Runs the fused float network over ``calib_data`` and finds a range for each planned tensor.

    Raises:
        DataError: the data is missing, empty, or does not fit the network's inputs.
    """
    config = prepared.config
    if config.calib_mode == NONE:
        return Calibrated(Thresholds())
    choices = LayerChoices.of(prepared.fused.graph, config)
    fixed = _fixed(prepared.plan, choices)
    wanted = {r: _observer(r, config, choices) for r in prepared.plan.observe if str(r) not in fixed}
    if not wanted:
        return Calibrated(Thresholds(fixed))
    if calib_data is None:
        raise DataError(
            f"calib_data is None, but calib_mode {config.calib_mode!r} needs data; give some, or calib_mode='none'"
        )
    batches = calib_data if isinstance(calib_data, Feeds) else feeds(calib_data, prepared.fused.inputs, config.budget)
    statistics = collect(runner, prepared.fused, batches, wanted, progress=progress)
    found = statistics.thresholds({str(r): _asked_dtype(r, prepared) for r in wanted})
    return Calibrated(Thresholds({**found, **fixed}), statistics.examples, statistics.batches, tuple(batches.warnings))


def _fixed(plan: Plan, choices: LayerChoices) -> dict[str, Threshold]:
    given = {str(r): choices.threshold(r.name) for r in plan.observe}
    return {name: Threshold(Range(*pair), "fixed") for name, pair in given.items() if pair is not None}


def _observer(ref: Ref, config: QuantConfig, choices: LayerChoices) -> observers.Observer[Any]:
    name = choices.calib_mode(ref.name) or config.calib_mode
    _known_observer("overrides: calib_mode", name)
    return observers.get(name)


def _asked_dtype(ref: Ref, prepared: Prepared) -> str:
    """Kernels choose the type of what they write ("auto"); what is quantized from float is the user's choice."""
    return "auto" if ref.name in prepared.plan.quantized else prepared.config.quantized_dtype


def quantize(prepared: Prepared, calibrated: Calibrated, versions: Mapping[str, str] | None = None) -> Quantized:
    """Builds the int8 network from its plan and ranges.

    Raises:
        CalibrationError: a planned tensor has no range.
        QuantizeError: nothing would be int8, or "uint8" was asked for a tensor with negative values.
    """
    if not prepared.plan.quantized:
        reasons = sorted({d.reason for d in prepared.plan.decisions})
        raise QuantizeError(f"no operator of the network can be int8: {'; '.join(reasons[:3])}")
    missing = [str(r) for r in prepared.plan.observe if str(r) not in calibrated.thresholds]
    if missing:
        raise CalibrationError(f"thresholds lack tensor {missing[0]!r} ({len(missing)} missing in all)")
    fused, decided, thresholds = prepared.fused, prepared.plan, calibrated.thresholds
    if prepared.config.calib_mode != NONE:
        choices = LayerChoices.of(fused.graph, prepared.config)
        fused, decided, thresholds = shift_summands(fused, decided, thresholds, choices, prepared.trace)
    model, tensors = quantize_graph(fused, decided, thresholds, prepared.config)
    int8 = len(decided.quantized)
    report = Report(
        plan=decided,
        tensors=tensors,
        thresholds=thresholds.to_json(),
        config=prepared.config.to_json(),
        versions=versions or {},
        source=fingerprint(prepared.source),
        trace=prepared.trace.to_json(),
        summary={
            "int8": int8,
            "float": len(decided.decisions) - int8,
            "calibration_examples": calibrated.examples,
            "calibration_batches": calibrated.batches,
            "warnings": list(calibrated.warnings),
        },
    )
    return Quantized(model, report, prepared, thresholds)


def fingerprint(model: Model) -> dict[str, object]:
    """What identifies a network: sha256 of its graph and of its parameters, and its inputs."""
    params = hashlib.sha256()
    for name, value in sorted({**model.args, **model.auxs}.items()):
        params.update(f"{name}{value.dtype}{value.shape}".encode())
        params.update(value.tobytes())
    return {
        "graph_sha256": hashlib.sha256(write_text(model.graph).encode()).hexdigest(),
        "params_sha256": params.hexdigest(),
        "inputs": list(model.inputs),
    }
