"""From a trained float network to one that trains with quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from mxq import observers, pipeline, runtime
from mxq.calibration.collect import collect
from mxq.calibration.statistics import Statistics
from mxq.data.feeding import Feeds, feeds, peeked
from mxq.errors import ConfigError, DataError, QuantizeError
from mxq.graph.ir import Array, Model, Ref, Runner
from mxq.host import machine
from mxq.logs import LOG
from mxq.passes.assignment import assign, requested
from mxq.pipeline import Calibrated, Prepared
from mxq.qat.config import QatConfig
from mxq.qat.floating import trainable
from mxq.qat.folding import MERGED, UNFOLDED, in_training, merged
from mxq.qat.kernels_placement import origin, placed_as_planned
from mxq.qat.network import QatNetwork
from mxq.qat.placement import CONCAT, placed
from mxq.qat.quantizer import Quantizer
from mxq.qat.ranges import activation_ranges, with_initial
from mxq.qat.rounding import with_rounded_biases
from mxq.qat.signs import with_positive_factors
from mxq.quant import QuantizedNetwork


def prepare(
    net: runtime.Net, calib_data: object, config: QatConfig | None = None, **options: Any
) -> runtime.TrainableBlock:
    """A block that computes in float what the quantized network would, and learns to live with it.

    It trains as any other: with ``autograd.record`` and a ``gluon.Trainer``, hybridized or not, on its own, within a
    block of yours, or by gluon's Estimator. BatchNorms use the batch's statistics while it trains. Where the network
    ends in a softmax the block ends before it and gives the logits, which ``SoftmaxCrossEntropyLoss`` takes;
    `mxq.qat.convert` puts the softmax back.

    Args:
        net: float and trained, in any of the forms that `mxq.quantize_net` takes. It is not changed.
        calib_data: what the ranges start from: arrays, a loader or batches, as for `mxq.quantize_net`.
        config: the settings.
        **options: fields of `QatConfig`, instead of ``config`` or to change it.

    Returns:
        A block. Its parameters have the names of the float network's, and those of the quantizers beside them:
        ``NAME_fq_step`` and the like. ``block.qat``, a `QatNetwork`, says what is what: ``config``, ``quantizers``,
        the names of quantized ``weights``, of what the algorithms have ``learned`` (weight decay leaves it as it is
        unless you set ``wd_mult``) and of ``batch_norms``' factors. ``block.trained`` has all values by name, and
        ``block.assign`` sets them: they are all the state there is.

    Raises:
        ConfigError: a setting is not allowed, or an algorithm is not for what it is asked for.
        DataError: there is no calibration data, or it does not fit.
        QuantizeError: the network is quantized already, has no parameters, or nothing in it can be quantized.
    """
    config = _config(config, options)
    if calib_data is None:
        raise DataError("calib_data is None; allowed: data that the ranges start from, such as an array of examples")
    calib_data = _settled(net, calib_data)
    network = prepared(runtime.load_model(net), calib_data, config, runtime.MxnetRunner())
    for warning in network.warnings:
        LOG.warning(warning)
    return block_of(network)


def block_of(network: QatNetwork) -> runtime.TrainableBlock:
    """The block that trains ``network``."""
    block = runtime.trainable_block(network.model, network.constant, network.learned)
    block.qat = network
    return block


def _config(config: QatConfig | None, options: Mapping[str, Any]) -> QatConfig:
    if not isinstance(config, QatConfig | None):
        raise ConfigError(f"config is {config!r:.80}; allowed: a QatConfig, or None and its fields as options")
    given = QatConfig() if config is None else config
    return QatConfig.from_json({**given.to_json(), **options}) if options else given


def _settled(net: runtime.Net, calib_data: object) -> object:
    """``calib_data``, of which a block that waits for shapes has seen the first batch."""
    if isinstance(calib_data, str | Path):
        raise DataError(
            f"calib_data is {str(calib_data)!r}, a path; allowed: arrays, a loader or batches, such as mxq.data opens"
        )
    if isinstance(calib_data, Feeds) or not runtime.is_deferred(net):
        return calib_data
    feed, rest = peeked(calib_data, runtime.arguments(net))
    runtime.settle(net, feed)
    return rest


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a network before: ``statistics`` of tensors of ``fused``."""

    fused: Model
    statistics: Statistics

    def covers(self, plan: Prepared) -> bool:
        """Whether all that ``plan`` asks for is among them: of tensors by the same nodes, of the same parameters.

        The rest of the networks may differ: one trains without the softmax at its end.
        """
        fused, known = plan.fused, self.fused.graph.by_name
        states = self.statistics.states
        return (
            all(str(r) in states and o.reads(states[str(r)].statistic) for r, o in pipeline.wanted(plan).items())
            and all(known.get(node.name) == node for node in fused.graph)
            and all(_same(value, self.fused.args.get(name)) for name, value in fused.args.items())
            and all(_same(value, self.fused.auxs.get(name)) for name, value in fused.auxs.items())
        )


def _same(value: Array, other: Array | None) -> bool:
    return other is not None and np.array_equal(value, other)


def prepared(
    model: Model, calib_data: object, config: QatConfig, runner: Runner, seen: Seen | None = None
) -> QatNetwork:
    """The network that `prepare` makes a block of; arguments as there.

    Args:
        model: float.
        calib_data: see `mxq.data.feeding.feeds`.
        config: the settings.
        runner: runs the float network.
        seen: what is known of the same network, which then is not run where that says enough.
    """
    source, head = trainable(model)
    source = merged(source) if config.folding is MERGED else in_training(source)
    source = with_positive_factors(source) if config.folding is UNFOLDED else source
    if config.row.planned:
        found = _by_plan(source, calib_data, config, runner, seen)
    else:
        found = _by_graph(source, calib_data, config, runner)
    if not found.quantizers:
        raise QuantizeError(
            "no operator of the network can be quantized; allowed: convolutions, fully connected layers"
        )
    quantizers, ranges = activation_ranges(found.quantizers, found.calibrated.statistics, config.calibrator)
    calibrated = found.calibrated.thresholds
    network = QatNetwork(source, config, quantizers, {}, (), head, calibrated, found.examples, found.warnings)
    network = with_rounded_biases(network) if config.row.rounds_biases else network
    return with_initial(network, ranges)


@dataclass(frozen=True)
class _Placed:
    """Where a network is fake-quantized, and what calibration found there."""

    quantizers: tuple[Quantizer, ...]
    calibrated: Calibrated
    warnings: tuple[str, ...]
    examples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _by_graph(source: Model, calib_data: object, config: QatConfig, runner: Runner) -> _Placed:
    """Quantizers by the block graph of the hardware's row, and the ranges of their tensors."""
    found = placed(source, config)
    observer = observers.get(config.calibrator)
    asked = {q.tensor: q.spec for q in found if not q.is_weight}
    batches = _batches(calib_data, source, config)
    statistics = collect(runner, source, batches, dict.fromkeys(asked, observer))
    scheme = config.row.scheme(config.row.activation())
    names = dict.fromkeys(map(str, asked), observer)
    ranges = statistics.thresholds(names, {str(ref): spec for ref, spec in asked.items()}, scheme)
    return _Placed(found, Calibrated(ranges, statistics), batches.warnings, batches.shapes)


def _by_plan(source: Model, calib_data: object, config: QatConfig, runner: Runner, seen: Seen | None) -> _Placed:
    """Quantizers where mxq's plan for the hardware quantizes, and the ranges of the tensors that it observes."""
    plan = pipeline.plan(source, config.planning, runner)
    if plan.nothing_int8:
        raise QuantizeError(plan.nothing_int8)
    shapes: Mapping[str, tuple[int, ...]] = {}
    if seen is not None and seen.covers(plan):
        calibrated = pipeline.ranges(plan, replace(seen.statistics, network={}))  # see `covers`
    else:
        batches = _batches(calib_data, plan.fused, config)
        calibrated, shapes = pipeline.calibrate(plan, batches, runner), batches.shapes
    found = placed_as_planned(source, decided(plan, calibrated), config)
    calibrated = replace(calibrated, statistics=_with_derived(calibrated.statistics, plan, found.quantizers))
    return _Placed(found.quantizers, calibrated, (*plan.warnings, *calibrated.warnings, *found.warnings), shapes)


def _with_derived(statistics: Statistics, plan: Prepared, quantizers: Iterable[Quantizer]) -> Statistics:
    """With those of tensors whose values others have: what is joined, or is read by another name."""
    graph, known, found = plan.fused.graph, plan.source.graph.by_name, dict(statistics.states)
    merge = observers.get(plan.config.calib_mode).merge
    for ref in plan.plan.observe:
        if str(ref) in found:
            found.setdefault(str(origin(graph, ref, known)), found[str(ref)])

    def state(ref: Ref) -> Any:
        if str(ref) not in found:
            found[str(ref)] = reduce(merge, map(state, graph[ref.name].inputs))
        return found[str(ref)]

    for q in quantizers:
        if not q.is_weight and q.tensor.name in graph and graph[q.tensor.name].op == CONCAT:
            state(q.tensor)
    return replace(statistics, states=found)


def decided(plan: Prepared, calibrated: Calibrated) -> QuantizedNetwork:
    """The types and ranges of the quantized network, on a CPU whose kernels add exactly."""
    backend, requests = plan.backend, requested(plan.choices, plan.config)
    network = assign(plan.fused, plan.plan, calibrated.thresholds, backend.spec, requests=requests, target=machine.VNNI)
    return backend.constrain(network)


def _batches(calib_data: object, model: Model, config: QatConfig) -> Feeds:
    if isinstance(calib_data, Feeds):
        return calib_data
    return feeds(calib_data, model.arguments, config.quantization.budget)
