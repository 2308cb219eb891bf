"""The arrows, in order: prepare, fuse, partition, calibrate, quantize. Nothing here knows MXNet; a `Runner` does.

::

    Model --prepare--> Model --fuse--> fused Model --partition--> Plan --collect--> Thresholds
          --assign--> QuantizedNetwork --constrain, refine, guard--> QuantizedNetwork --lower--> Model (+ Report)

What is int8, and what becomes of it in files, a `Backend` says, the same all the way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

from mxq import backends, observers
from mxq.backends import Backend, default
from mxq.backends.hardware import simulated
from mxq.calibration.collect import Checkpoint, collect
from mxq.calibration.statistics import Statistics
from mxq.config import MXNET, QuantConfig
from mxq.data.feed import Feed
from mxq.data.feeding import Feeds, feeds
from mxq.errors import CalibrationError, ConfigError, DataError, QuantizeError, RuntimeFailure, one_of
from mxq.graph.ir import Array, Graph, Model, Ref, Runner
from mxq.graph.serde import write_text
from mxq.host import machine
from mxq.noisy import EXAMPLES, noisy_layers, why_float
from mxq.passes import check_excluded, steps
from mxq.passes.assignment import assign, check_requests, requested
from mxq.passes.coding import Coding, coding_of
from mxq.passes.constants import fold_constants
from mxq.passes.fed_codes import check_input, fed_input
from mxq.passes.fix_shape import fix_shape, with_shapes
from mxq.passes.limit_saturation import FLOAT as TO_FLOAT
from mxq.passes.limit_saturation import limit_saturation
from mxq.passes.narrow_weights import narrow_weights
from mxq.passes.overrides import LayerChoices
from mxq.passes.pair_channels import PAIR_CHANNELS
from mxq.passes.partition import NONE, partition, unmatched, with_carried
from mxq.passes.removed import removed
from mxq.passes.shift_streams import shift_streams
from mxq.passes.simplify import check_done, check_float
from mxq.quant import ANY8, QParams, QuantizedNetwork, QuantSpec
from mxq.quant.bits import Bits
from mxq.quant.hardware import hardware_of
from mxq.quant.plan import NoiseRecord, Plan, Report, SaturationRecord, WeightRecord
from mxq.quant.thresholds import FIXED, Oddity, Range, Threshold, Thresholds
from mxq.recalibration import restored
from mxq.refine import (
    CalibrationSubset,
    activations,
    analytic,
    by_examples,
    channels,
    equalized,
    exceptions,
    kept,
    refined,
    rounded,
    samples_of,
    without_data,
)
from mxq.rewrite import NO_EVENTS, Pass, Trace, run_passes
from mxq.weights.clip import WeightObserverRequest, clip_weights
from mxq.weights.equalize import Channels
from mxq.weights.held_out import MUCH_BETTER, Judge
from mxq.weights.methods import NEAREST


@dataclass(frozen=True)
class Prepared:
    """A network on its way: the ``source`` as given, its ``fused`` float form, the ``plan``, and the ``trace``.

    ``backend`` is whose kernels it is for; ``unmatched`` says what of the settings has no effect on it.
    """

    source: Model
    fused: Model
    plan: Plan
    config: QuantConfig
    backend: Backend
    trace: Trace
    unmatched: tuple[str, ...] = ()

    @property
    def nothing_int8(self) -> str:
        """Why no operator can be int8; empty where one can."""
        if self.plan.quantized:
            return ""
        reasons = sorted({decision.reason for decision in self.plan.decisions if decision.reason})
        why = "; ".join(reasons[:3]) or "it has none that computes"
        return f"no operator of the network can be int8, it stays as it is: {why}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        at_run_time = self.config.calib_mode == NONE
        ranged = () if at_run_time else [ref.name for ref in self.plan.observe]
        return (*self.unmatched, *filter(None, [self.nothing_int8]), *self.choices.unused_ranges(ranged))

    @cached_property
    def choices(self) -> LayerChoices:
        """The settings of single layers."""
        return LayerChoices.of(self.fused.graph, self.config)

    @cached_property
    def coding(self) -> Coding:
        """The codes that tensors and weights have."""
        return coding_of(self.fused, self.plan, self.config, self.backend.spec)

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """The `fingerprint` of the source, which takes a pass over all parameters."""
        return fingerprint(self.source)


@dataclass(frozen=True)
class Quantized:
    """The end of the pipeline: the int8 ``model`` with its ``report``, what it was made from, and ``warnings``.

    ``network`` is what it was written from, whatever backend writes it; None where nothing is int8. ``trace`` is what
    all passes did.
    """

    model: Model
    report: Report
    prepared: Prepared
    thresholds: Thresholds
    trace: Trace
    warnings: tuple[str, ...] = ()
    network: QuantizedNetwork | None = None


@dataclass(frozen=True)
class Calibrated:
    """Ranges of all planned tensors, and the ``statistics`` of the data they come from, where there is data.

    ``given`` are scales and zero points that do not follow from ranges, see `QuantizedNetwork`. ``shapes`` are those of
    one example of each input, where the data was read.
    """

    thresholds: Thresholds
    statistics: Statistics = field(default_factory=Statistics)
    warnings: tuple[str, ...] = ()
    given: Mapping[str, QParams] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def prepare(
    model: Model, runner: Runner | None = None, backend: Backend | None = None, exclude: Collection[str] = ()
) -> tuple[Model, Trace]:
    """The float network as inference needs it: simplified, BatchNorm folded, slow operators replaced; not yet fused.

    Args:
        model: as given.
        runner: computes what parameters alone determine; without, it stays to be computed.
        backend: whose kernels there are; the default one if None.
        exclude: names of passes that are not run.

    Raises:
        QuantizeError: the network is int8 already, or trains with quantization.
    """
    check_float(model, "a float network")
    check_done(model)
    spec = (backend or default()).spec
    # Constants after detection, which knows tables of candidates by how they count their classes.
    constants = () if runner is None else (fold_constants(runner),)
    simplified, replaced = steps("simplified", spec, exclude), steps("prepared", spec, exclude)
    return run_passes((*simplified, *constants, *replaced), model)


def fuse_float(model: Model, runner: Runner | None = None, backend: Backend | None = None) -> Model:
    """The fastest float form: prepared, and fused for the float kernels of a backend, the default one if None."""
    backend = backend or default()
    prepared, _ = prepare(model, runner, backend)
    return run_passes(steps("fused_float", backend.spec), prepared)[0]


def plan(model: Model, config: QuantConfig, runner: Runner | None = None, backend: Backend | None = None) -> Prepared:
    """Everything that happens before calibration.

    Args:
        model: as given.
        config: the settings.
        runner: computes what parameters alone determine, and sizes, where ``config`` has an ``input_shape``.
        backend: whose kernels there are; the default one of ``config`` if None.

    Raises:
        QuantizeError: the network is int8 already.
        ConfigError: a pattern of ``config`` matches nothing, its calibrator or a pass is unknown, the inputs are not
            those that it has shapes of, or it asks for codes that MXNet's kernels do not have.
        RuntimeFailure: the network does not take these shapes.
    """
    excluded = config.exclude_passes
    _check_observers(config)
    check_excluded(excluded)
    check_input(model, config)
    backend = backend or backend_of(config)
    prepared, trace = prepare(with_shapes(model, config.shapes) if config.shapes else model, runner, backend, excluded)
    fusion = steps("fused", backend.spec, excluded)
    fused, fusing = run_passes((*_of_one_shape(config, runner), *fusion), prepared)
    ignored = unmatched(fused.graph, config)
    return _decided(Prepared(model, fused, Plan(), config, backend, trace + fusing, ignored))


def backend_of(config: QuantConfig) -> Backend:
    """The backend that the settings name: stock MXNet's kernels or, with ``simulate``, the simulation of hardware.

    Raises:
        ConfigError: other hardware or fewer bits without ``simulate``, or what a simulation cannot be of.
    """
    if not config.simulate:
        if not config.has_kernels:
            raise _without_kernels(config)
        if config.backend != MXNET:
            return backends.get(config.backend)
        return default(at_run_time=config.calib_mode == NONE)
    for name, found, allowed in (
        ("calib_mode", config.calib_mode, config.calib_mode != NONE),
        ("input_dtype", config.input_dtype, config.input_dtype == "float32"),
        ("quantized_dtype", config.quantized_dtype, config.hardware == "onednn" or config.quantized_dtype == "auto"),
    ):
        if not allowed:
            usual = getattr(QuantConfig(), name)
            raise ConfigError(
                f"{name} is {found!r} beside simulate and hardware {config.hardware!r}; allowed: {usual!r}, as a "
                "simulation has none of MXNet's kernels"
            )
    return simulated(config.hardware)


def _without_kernels(config: QuantConfig) -> ConfigError:
    """The error for codes that MXNet has no kernels for."""
    asked = {"hardware": config.hardware} if config.hardware != "onednn" else {}
    asked |= {"bits": str(config.width)} if config.width != Bits() else {}
    asked |= {f"overrides {p!r}: bits": str(layer.bits) for p, layer in config.overrides.items() if layer.bits}
    name, value = next(iter(asked.items()))
    return ConfigError(
        f"{name} is {value!r}, but MXNet's int8 kernels are oneDNN's of 8 bits; allowed: simulate=True (--simulate, "
        "mxq.simulate) for a float network that computes what it would, or hardware 'onednn' with 8 bits"
    )


def _of_one_shape(config: QuantConfig, runner: Runner | None) -> tuple[Pass, ...]:
    """What can be spared where inputs have one shape."""
    if not config.shapes:
        return ()
    if runner is None:
        raise ValueError("input_shape needs a runner")
    return fix_shape(runner), fold_constants(runner)


def _decided(prepared: Prepared, kept: Mapping[str, str] = MappingProxyType({})) -> Prepared:
    """With what becomes of every operator of the source; ``kept`` are layers that stay in float -> why."""
    source, fused, trace = prepared.source, prepared.fused, prepared.trace
    found = partition(fused, prepared.config, prepared.backend.spec, trace, source=source.graph, kept=kept)
    return replace(prepared, plan=replace(found, removed=removed(source, fused, trace)))


def _check_observers(config: QuantConfig) -> None:
    """Every calibrator that is asked for exists and can do what it is asked for."""
    _check_observer("calib_mode", config.calib_mode, none=True)
    _check_observer("weight_calib_mode", config.weight_calib_mode, weight=True)
    for pattern, layer in config.overrides.items():
        for name in ("calib_mode", "weight_calib_mode"):
            if (asked := getattr(layer, name)) is not None:
                _check_observer(f"overrides {pattern!r}: {name}", asked, weight=name == "weight_calib_mode")


def _check_observer(setting: str, spec: str, *, weight: bool = False, none: bool = False) -> None:
    if none and spec == NONE:
        return
    known = (*observers.names(), *observers.OBSERVERS.aliases)
    if spec.partition(":")[0].strip() not in known:
        raise one_of(setting, spec, (*known, NONE) if none else known)
    try:
        observer = observers.get(spec)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None
    if observer.ordered and weight:
        raise ConfigError(f"{setting} is {spec!r}, an average over batches; a weight is the same in all of them")


def wanted(prepared: Prepared) -> dict[Ref, observers.Observer[Any]]:
    """The observer of every planned tensor whose range is not given by hand."""
    config, choices = prepared.config, prepared.choices
    if config.calib_mode == NONE:
        return {}
    fixed = _fixed(prepared.plan, choices)
    refs = [r for r in prepared.plan.observe if str(r) not in fixed]
    return {r: observers.get(choices.calib_mode(r.name) or config.calib_mode) for r in refs}


def calibrate(
    prepared: Prepared,
    calib_data: object,
    runner: Runner,
    *,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Calibrated:
    """Runs the fused float network over ``calib_data`` and finds a range for each planned tensor.

    Args:
        prepared: from `plan`.
        calib_data: see `mxq.data.feeding.feeds`; it may be None where no range needs data.
        runner: what runs the network.
        progress: whether to show a bar.
        checkpoint: where to keep the statistics. Then histograms are collected whatever the observers need, so that
            other observers can be asked later.

    Raises:
        DataError: the data is missing, empty, or does not fit the network's inputs.
        CalibrationError: the checkpoint is of something else.
    """
    config, asked = prepared.config, wanted(prepared)
    if not asked:
        return ranges(prepared, Statistics())
    if checkpoint is not None:
        asked = {ref: observers.collector(observer) for ref, observer in asked.items()}
    if calib_data is None:
        raise DataError(
            f"calib_data is None, but calib_mode {config.calib_mode!r} needs data; give some, or calib_mode='none'"
        )
    order = prepared.fused.arguments
    batches = calib_data if isinstance(calib_data, Feeds) else feeds(calib_data, order, config.budget)
    statistics = collect(runner, prepared.fused, batches, asked, progress=progress, checkpoint=checkpoint)
    found = ranges(prepared, statistics)
    return replace(found, warnings=(*batches.warnings, *found.warnings), shapes=dict(batches.shapes))


def ranges(prepared: Prepared, statistics: Statistics) -> Calibrated:
    """A range for each planned tensor from statistics collected before; the network does not run.

    Raises:
        CalibrationError: the statistics are of another network, lack a tensor, or do not serve its observer.
    """
    choices = prepared.choices
    if prepared.config.calib_mode == NONE:
        return Calibrated(Thresholds())
    asked = wanted(prepared)
    if asked and statistics.network:
        statistics.check_network(prepared.fingerprint)
    if asked:
        _check_complete(prepared, {*statistics.states, *_fixed(prepared.plan, choices)}, "statistics")
    specs = {str(r): _asked_spec(r, prepared) for r in asked}
    found = dict(statistics.thresholds({str(r): o for r, o in asked.items()}, specs, prepared.coding.scheme))
    for ref in asked:
        source = choices.source(ref.name, "calib_mode") or "calib_mode"
        found[str(ref)] = replace(found[str(ref)], source=source)
    found |= _fixed(prepared.plan, choices)
    in_order = {str(r): found[str(r)] for r in prepared.plan.observe}
    fed = prepared.fused.fed
    return Calibrated(
        Thresholds(in_order),
        statistics,
        _oddities({str(r): found[str(r)] for r in prepared.plan.observe if r.name in fed}),
    )


def _oddities(found: Mapping[str, Threshold]) -> tuple[str, ...]:
    """A sentence for tensors that held but one value: a sign of broken data or a dead layer."""
    sentences = []
    for oddity in Oddity:
        names = [name for name, threshold in found.items() if threshold.oddity is oddity]
        if names:
            more = f" and {len(names) - 3} others" if len(names) > 3 else ""
            listed = ", ".join(map(repr, names[:3]))
            what = f"{oddity.value} in all of the calibration data"
            sentences.append(f"{listed}{more}: {what}; are data and preparation right?")
    return tuple(sentences)


def _fixed(plan: Plan, choices: LayerChoices) -> dict[str, Threshold]:
    given = {str(r): (choices.threshold(r.name), choices.source(r.name, "threshold")) for r in plan.observe}
    return {name: Threshold(Range(*pair), FIXED, source=why) for name, (pair, why) in given.items() if pair}


def _asked_spec(ref: Ref, prepared: Prepared) -> QuantSpec:
    """Kernels choose the type of what they write; what is quantized from float is the user's choice."""
    if not prepared.coding.is_of_kernels:
        return prepared.coding.activation(ref.name)
    return ANY8 if ref.name in prepared.plan.quantized else prepared.config.activation


def quantize(
    prepared: Prepared,
    calibrated: Calibrated,
    versions: Mapping[str, str] | None = None,
    *,
    runner: Runner | None = None,
    data: Iterable[Feed] | None = None,
) -> Quantized:
    """Builds the int8 network from its plan and ranges.

    Args:
        prepared: from `plan`.
        calibrated: from `calibrate` or `ranges`.
        versions: for the report.
        runner, data: what the methods of ``config`` that look at calibration data need (`mxq.refine`). Without
            them weights are rounded to the nearest code, and the report says so.

    Returns:
        The int8 network; the float one as it was given where no operator can be int8.

    Raises:
        CalibrationError: a planned tensor has no range.
        QuantizeError: "uint8" was asked for a tensor with negative values, or nothing is int8 of a network that is to
            take integers.
    """
    _check_complete(prepared, calibrated.thresholds)
    if not prepared.plan.quantized:
        return _unquantized(prepared, calibrated, versions)
    built, warnings = _built(prepared, calibrated, runner, data)
    if isinstance(data, Feeds) and not calibrated.shapes:  # ranges were given, and the data is looked at all the same
        calibrated = replace(calibrated, shapes=dict(data.shapes))
    network, lowered = built.network, prepared.backend.lower(built.network)
    trace = prepared.trace + network.trace + lowered.trace
    report = replace(
        _report(prepared, network.plan, calibrated, versions, warnings, trace),
        tensors=lowered.tensors,
        weights=built.weights,
        thresholds=network.thresholds.to_json(),
        input=lowered.input,
        target=network.target,
        saturation=network.saturation,
        noise=built.noise,
    )
    return Quantized(lowered.model, report, prepared, network.thresholds, trace, warnings, network)


def _unquantized(prepared: Prepared, calibrated: Calibrated, versions: Mapping[str, str] | None) -> Quantized:
    """The network as it was given, with a report that says why."""
    if prepared.config.input_dtype != "float32":
        raise QuantizeError(
            f"input_dtype is {prepared.config.input_dtype!r}, but {prepared.nothing_int8}; allowed: 'float32'"
        )
    report = _report(prepared, prepared.plan, calibrated, versions, (), prepared.trace)
    return Quantized(prepared.source, report, prepared, calibrated.thresholds, prepared.trace)


def _report(
    prepared: Prepared,
    decided: Plan,
    calibrated: Calibrated,
    versions: Mapping[str, str] | None,
    warnings: tuple[str, ...],
    trace: Trace,
) -> Report:
    """What a report says of any network."""
    int8 = len(decided.quantized)
    return Report(
        plan=decided,
        config=prepared.config.to_json(),
        versions=versions or {},
        source=prepared.fingerprint,
        trace=trace.to_json(),
        summary={
            "int8": int8,
            "float": len(decided.decisions) - int8,
            "calibration_examples": calibrated.statistics.examples,
            "calibration_batches": calibrated.statistics.batches,
            **({"input_shapes": {name: list(s) for name, s in calibrated.shapes.items()}} if calibrated.shapes else {}),
            "warnings": [*prepared.warnings, *calibrated.warnings, *warnings],
            **simulation(prepared),
        },
    )


def simulation(prepared: Prepared) -> dict[str, object]:
    """What a report says of a simulation: of what, and the bits of layers that have others; empty for int8 networks."""
    if not prepared.config.simulate:
        return {}
    coding = prepared.coding
    found = {"of": coding.hardware.library, "graph": coding.hardware.graph, "bits": str(coding.bits)}
    return {"simulation": {**found, "layers": {name: str(bits) for name, bits in coding.layers.items()}}}


def _check_complete(prepared: Prepared, known: Collection[str], what: str = "thresholds") -> None:
    """Whether all tensors that are planned are among those that ``what`` are of.

    Raises:
        CalibrationError: some are not; it says by which call they would be.
    """
    missing = [str(r) for r in prepared.plan.observe if str(r) not in known]
    if missing:
        coding = prepared.coding
        of = f"(simulate=True, hardware={coding.hardware.name!r})" if prepared.config.simulate else ""
        raise CalibrationError(
            f"{what} lack tensor {missing[0]!r} ({len(missing)} missing in all); allowed: those that calibrate{of} "
            "finds for this network with the settings that are given here"
        )


@dataclass(frozen=True)
class _Built:
    """A network as it is to be lowered, with what else a report says of it."""

    network: QuantizedNetwork
    weights: Mapping[str, WeightRecord] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    noise: Mapping[str, NoiseRecord] = field(default_factory=dict)


def _built(
    prepared: Prepared, calibrated: Calibrated, runner: Runner | None, data: Iterable[Feed] | None
) -> tuple[_Built, tuple[str, ...]]:
    """`_fitted` to the data where there is some to look at and it can be; else a sentence says why not."""
    config = prepared.config
    needed, blind = config.calib_mode != NONE and config.methods.need_data, without_data(config.methods)
    if not looks_again(config) or runner is None or data is None:
        return _fitted(prepared, calibrated), (f"{blind}: there is no calibration data",) if needed else ()
    try:
        built = _fitted(prepared, calibrated, CalibrationSubset.at(runner, prepared.fused, data, config))
    except RuntimeFailure as error:
        return _fitted(prepared, calibrated), (f"{blind}: {error}",) if needed else ()
    return built, built.warnings


def looks_again(config: QuantConfig) -> bool:
    """Whether calibration data serves once more when ranges are known: for a method, or for sums that saturate."""
    return config.calib_mode != NONE and (config.methods.need_data or target_of(config) != machine.VNNI)


def target_of(config: QuantConfig) -> str:
    """The CPU that a network is made for: one of `mxq.host.machine.TARGETS`; sums of other codes are exact."""
    if not config.has_kernels and hardware_of(config.hardware).products is None:
        return machine.VNNI
    return machine.resolve_target(config.target, machine.detect())


def _fitted(prepared: Prepared, calibrated: Calibrated, looked: CalibrationSubset | None = None) -> _Built:
    """What `_chosen` gives, with layers in float that would be poor ones in int8."""
    noise = {} if looked is None else _noise(prepared, calibrated, looked)
    kept = {name: why_float(record) for name, record in noise.items() if record.to_float}
    prepared, calibrated = _keeping(prepared, calibrated, kept) if kept else (prepared, calibrated)
    records = dict[str, SaturationRecord]()
    built = _chosen(prepared, calibrated, looked)
    while found := _named_for_float(built.network):
        kept, records = kept | {name: _why_float(record) for name, record in found.items()}, records | found
        prepared, calibrated = _keeping(prepared, calibrated, kept)
        built = _chosen(prepared, calibrated, looked)
    nothing = [prepared.nothing_int8] if prepared.nothing_int8 and kept else []
    network = replace(built.network, saturation={**records, **built.network.saturation})
    return replace(built, network=network, noise=noise, warnings=(*built.warnings, *nothing))


def _keeping(prepared: Prepared, calibrated: Calibrated, kept: Mapping[str, str]) -> tuple[Prepared, Calibrated]:
    """With the layers ``kept`` in float."""
    decided = _decided(prepared, kept)
    thresholds = with_carried(decided.fused.graph, decided.plan, calibrated.thresholds)
    return decided, replace(calibrated, thresholds=thresholds)


def _noise(prepared: Prepared, calibrated: Calibrated, looked: CalibrationSubset) -> dict[str, NoiseRecord]:
    """What was measured of the layers that bring most noise, by their names before any is shifted."""
    config, backend = prepared.config, prepared.backend
    if config.methods.stem != "float" or config.quantize_mode != "smart" or not backend.spec.float_stems:
        return {}
    network = prepared.coding.of(backend.constrain(_assigned(prepared, calibrated.thresholds, looked)))
    graph = network.fused.graph
    free = network.plan.quantized - _surely_int8(prepared, graph)
    found = noisy_layers(looked.runner, network, backend.spec, looked.some(EXAMPLES), free)
    return {graph[name].note.unshifted or name: record for name, record in found.items()}


def _named_for_float(network: QuantizedNetwork) -> dict[str, SaturationRecord]:
    """The layers that the guard names for float, as they are called where what they make is not shifted yet."""
    named = {name: record for name, record in network.saturation.items() if record.remedy == TO_FLOAT}
    return {network.fused.graph[name].note.unshifted or name: record for name, record in named.items()}


def _why_float(record: SaturationRecord) -> str:
    int8, vnni = (f"{-10 * math.log10(max(n, 1e-30)):.0f} dB" for n in (record.noise, record.noise_with_vnni))
    return f"without VNNI its sums saturate: in int8 it would be at {int8}, with VNNI at {vnni}"


def _surely_int8(prepared: Prepared, shifted: Graph) -> frozenset[str]:
    """The layers of ``shifted`` that stay int8 whatever it costs: asked for, or made from fed codes of the input."""
    graph, asks_int8 = prepared.fused.graph, prepared.choices.asks_int8
    fed = frozenset() if prepared.config.input_dtype == "float32" else frozenset(prepared.fused.inputs)
    found = {n.name for n in graph.operators if asks_int8(n.name) or (n.inputs and n.inputs[0].name in fed)}
    return frozenset(n.name for n in shifted.operators if (n.note.unshifted or n.name) in found)


def _chosen(prepared: Prepared, calibrated: Calibrated, looked: CalibrationSubset | None = None) -> _Built:
    """Weights, biases and ranges chosen layer by layer on what is ``looked`` at; without, weights are rounded."""
    config, spec = prepared.config, prepared.backend.spec
    whole, judge = looked, None
    if looked is not None and config.methods.layerwise:
        looked, judge = _judged(prepared, looked)
    aligned = _begun(prepared, calibrated, looked, judge)
    unrounded, clipped = clip_weights(aligned.fused, _asked_of_weights(prepared))
    network = replace(aligned, fused=unrounded)
    weights: Mapping[str, WeightRecord] = {}
    samples: Mapping[str, Array] = {}
    warnings: tuple[str, ...] = ()
    if looked is not None and config.methods.layerwise:
        found = refined(looked, network, spec, config)
        if judge is not None and network.exact:  # what saturates is not simulated
            nearest, records = rounded(network, replace(config, rounding=NEAREST, bias_correction="none"))
            found = kept(judge, nearest, found, records)
        network, weights, warnings = found.network, found.weights, exceptions(found)
    elif config.methods.round_alone:
        network, weights = rounded(network, config)
    if looked is not None and not network.exact:
        samples = activations(looked, network)
    network = network.after(limit_saturation(spec, samples, unrounded, _surely_int8(prepared, network.fused.graph)))
    if config.methods.bias.needs == "batch_norm":
        network = analytic(config.methods.bias, prepared.source, aligned.fused, network)
    if whole is not None and config.methods.recalibrate_batchnorm:
        network = restored(whole.runner, network, aligned.fused, whole.feeds, prepared.source)
    return _Built(network, _merged(weights, clipped), warnings)


def _judged(prepared: Prepared, looked: CalibrationSubset) -> tuple[CalibrationSubset, Judge | None]:
    """What methods are fitted to, and who knows what they do to the network's outputs, where there is data for both."""
    fitted, held = looked.divided()
    return fitted, Judge.of(looked.runner, prepared.fused, held) if held else None


def _begun(
    prepared: Prepared, calibrated: Calibrated, looked: CalibrationSubset | None, judge: Judge | None
) -> QuantizedNetwork:
    """`_aligned` with the ranges that serve the network's outputs best, and channels scaled where that does."""
    seen = channels(looked, prepared.fused) if looked is not None and prepared.config.methods.equalize else None
    asked = _aligned(prepared, calibrated, looked, seen)
    if looked is None or judge is None:
        return asked
    unscaled = replace(prepared, config=replace(prepared.config, equalize=False))
    is_scaled, others = bool(asked.trace.fired("equalize")), dict[str, Callable[[], QuantizedNetwork]]()
    if is_scaled:
        others["equalize"] = partial(_aligned, unscaled, calibrated, looked)
    if prepared.config.methods.range_choice == "layer":
        source = prepared if is_scaled else unscaled
        for name, thresholds in by_examples(looked, prepared.fused, prepared.plan, calibrated.thresholds).items():
            others[name] = partial(_aligned, source, replace(calibrated, thresholds=thresholds), looked, seen)
    return judge.best(asked, others, MUCH_BETTER).network if others else asked


def _merged(weights: Mapping[str, WeightRecord], clipped: Mapping[str, WeightRecord]) -> dict[str, WeightRecord]:
    """One record for each layer: what an observer clipped, and how it was rounded."""
    both = {
        name: replace(
            found,
            rounding=weights[name].rounding,
            bias_correction=weights[name].bias_correction,
            moved_share=weights[name].moved_share,
            note=weights[name].note,
        )
        for name, found in clipped.items()
        if name in weights
    }
    return {**clipped, **weights, **both}


def _aligned(
    prepared: Prepared,
    calibrated: Calibrated,
    looked: CalibrationSubset | None,
    seen: Mapping[str, Channels] | None = None,
) -> QuantizedNetwork:
    """What tensors have to have in common, and the signs and order of channels that the target's kernels need.

    Args:
        prepared: the plan.
        calibrated: ranges of its tensors.
        looked: for channels that are scaled, and for what biases are corrected on.
        seen: what ``looked`` shows of channels, where that is known.
    """
    config, backend = prepared.config, prepared.backend
    network = _assigned(prepared, calibrated.thresholds, looked, seen)
    network = prepared.coding.of(backend.constrain(network)).with_given(calibrated.given)
    look = None if looked is None else partial(samples_of, looked, network.fused)
    at_work = look is not None and network.is_of_kernels and not network.exact and not network.at_run_time
    if look is not None and at_work and config.methods.bias.needs == "data":
        network = network.after(shift_streams(backend.spec, look))
    check_requests(network, backend.spec)
    if network.exact:
        return network
    network = network.after(PAIR_CHANNELS)
    look = None if looked is None else partial(samples_of, looked, network.fused)
    return network.after(narrow_weights(look))


def _assigned(
    prepared: Prepared,
    thresholds: Thresholds,
    looked: CalibrationSubset | None,
    seen: Mapping[str, Channels] | None = None,
) -> QuantizedNetwork:
    """The types that kernels and settings ask for, of channels scaled by what is ``looked`` at."""
    config, fused, trace = prepared.config, prepared.fused, NO_EVENTS
    requests = requested(prepared.choices, config)
    if looked is not None and config.methods.equalize:
        fused, thresholds, trace = equalized(looked, fused, prepared.plan, thresholds, prepared.coding.bits, seen)
    return assign(
        fused,
        prepared.plan,
        thresholds,
        prepared.backend.spec,
        requests=requests,
        target=target_of(config),
        input=fed_input(prepared.source, config, requests),
        at_run_time=config.calib_mode == NONE,
        trace=trace,
    )


def _asked_of_weights(prepared: Prepared) -> dict[str, WeightObserverRequest]:
    """What is to look at the weight of each int8 layer."""
    config, choices, table = prepared.config, prepared.choices, prepared.backend.spec
    found = {}
    for node in prepared.fused.graph.operators:
        spec = table.find(node.op)
        if node.name in prepared.plan.quantized and spec is not None and spec.role == "compute":
            names = (node.name, node.inputs[1].name)  # an override may name the layer or its weight
            chosen = next(filter(None, map(choices.weight_calib_mode, names)), config.weight_calib_mode)
            sources = (choices.source(name, "weight_calib_mode") for name in names)
            source = next(filter(None, sources), "weight_calib_mode")
            found[node.name] = WeightObserverRequest(chosen, source, *prepared.coding.of_weight(node.inputs[1].name))
    return found


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
