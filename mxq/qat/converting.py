"""From a network that was trained with quantization to the int8 network: the ordinary one, with what was learned.

::

    trained parameters -> float network -> plan, as before training -> ranges from steps -> int8 network
                                        -> weights on the kernel's grid, code for code

Formula. A range is what the kernels turn into the step that was learned: with ``s`` the step, ``[0, 255.5 s]`` of u8,
``[-127.5 s, 127.5 s]`` of s8, ``[0, 127.5 s]`` of u8 in s8 memory, and ``[-z s, (255.5 - z) s]`` with a zero point
``z`` (``GetQuantizeScale`` in ``quantization_utils.h``; `mxq.quant.records`; `mxq.passes.shift_summand`). A layer's
weight is written as the codes of the fake-quantized one by the step that folding leaves, ``s |gamma| / sqrt(var +
eps)`` where BatchNorm was not folded in training (`mxq.weights.grid`).

What the int8 network gives differs from what training showed by these alone:

* The kernel multiplies whole sums by one float32, where training multiplies codes by steps, and sums by BatchNorm's
  factor: a value within 1e-5 codes of the middle of two becomes the other one. Each layer passes such differences on
  to the next. Biases are rounded in training as well (`mxq.qat.biases`).
* A factor of BatchNorm that became negative in training turns code -128 into 127 (`mxq.qat.signs`).
* Where weights have learned steps, and -127 is the largest code of a channel, no float32 is read as that in 1 % of
  channels (ends between 1.99 and 2 times a power of two); -128 it is there.
* A range that was learned beyond the bound of a clip ends at the bound.
* A range with values of both signs under a Concat is coded twice where the tensor has none below zero.
* Without VNNI sums may saturate, which networks for such CPUs are kept from (`mxq.passes.limit_saturation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mxq import pipeline, runtime
from mxq.backends import default
from mxq.data.preparation import Preparation
from mxq.errors import QuantizeError, one_of
from mxq.graph.ir import Array, Model, Runner
from mxq.logs import LOG
from mxq.pipeline import Calibrated, Prepared, Quantized
from mxq.planned import Planned
from mxq.qat.folding import UNFOLDED
from mxq.qat.kernels_placement import origin
from mxq.qat.network import QatNetwork, with_head
from mxq.qat.quantizer import Quantizer
from mxq.quant import MXNET, QParams
from mxq.quant.spec import LEAST_IN_FILES, MOST_BITS
from mxq.quant.thresholds import FIXED, Range, Threshold, Thresholds
from mxq.weights.grid import FULL, written

LEARNED: Final = "training"
"""What reports say asked for a range."""
_DEAD: Final = 1e-30
"""The least step of a channel of a weight, one whose values are all 0."""
_LITTLE: Final = 1e-6
"""In steps: how far below 0 a range begins that is to be shifted though its zero point is 0."""


def convert(block: runtime.TrainableBlock, *, target: str = "native", simulate: bool = False) -> runtime.QuantizedBlock:
    """The int8 network of what `mxq.qat.prepare` gave and was trained since: what training showed, in stock kernels.

    `mxq.save` writes it as a pair that stock MXNet loads. What was trained for runtimes of ONNX files (hardware "onnx",
    "onnxruntime" or "openvino") is as `mxq.quantize_net` with ``backend="onnx"`` gives it: `mxq.export_onnx` writes it.

    Args:
        block: from `mxq.qat.prepare` or `mxq.qat.load`. It is not changed, and can be trained further.
        target: the CPU that the network is for, as of `mxq.QuantConfig`.
        simulate: give instead a float network of MXNet's own operators that computes the same as ``block`` does in
            inference, whatever bits and hardware it was trained for. It is no faster than float.

    Raises:
        ConfigError: a setting is not allowed.
        QuantizeError: ``block`` is no such block; or neither MXNet's kernels nor a file hold what it was trained for,
            which can only be simulated.
    """
    network = trained(block)
    if not isinstance(simulate, bool):
        raise one_of("simulate", simulate, (True, False))
    if simulate:
        return runtime.to_block(simulated(network))
    made = converted(network, target, runtime.MxnetRunner(), runtime.versions())
    for warning in made.warnings:
        LOG.warning(warning)
    if network.config.is_for_files:
        return planned(network, made).block
    return runtime.reported_block(made.model, made.report)


def trained(block: Any) -> QatNetwork:
    """The network of a block, with the values that it has now.

    Raises:
        QuantizeError: it is no block that trains with quantization, or its training diverged.
    """
    network = getattr(block, "qat", None)
    if not isinstance(block, runtime.TrainableBlock) or not isinstance(network, QatNetwork):
        raise QuantizeError(
            f"block is a {type(block).__name__}; allowed: what mxq.qat.prepare or mxq.qat.load returned"
        )
    values = block.trained
    lost = next((name for name, value in values.items() if not np.isfinite(value).all()), None)
    if lost is not None:
        raise QuantizeError(
            f"parameter {lost!r} is not finite, so that the training diverged; allowed: the parameters of an earlier "
            "epoch (block.assign, load_parameters)"
        )
    return network.with_values(values)


def simulated(network: QatNetwork) -> Model:
    """What ``network`` computes in inference, in MXNet's own operators, with the softmax that it was given with."""
    plain = replace(network, config=replace(network.config, form="operators")).model
    done = {node.name: (node.noted(fakes=""),) for node in plain.graph if node.note.fakes}  # it trains no more
    return with_head(plain.with_graph(plain.graph.replace(done)), network.head)


def converted(network: QatNetwork, target: str, runner: Runner, versions: dict[str, str]) -> Quantized:
    """The int8 network; see `convert`."""
    config = network.config
    _check_held(network)
    bits = (config.bits_w, config.bits_a) if config.is_for_files else None
    settings = replace(config.planning if config.is_for_files else config.quantization, bits=bits, target=target)
    plan = pipeline.plan(with_head(network.source, network.head), settings, runner)
    weights, given = Weights(network, plan.fused), dict[str, QParams]()
    if config.is_for_files:
        given = {**learned(network, plan), **weights.params}
    plan = replace(plan, fused=plan.fused.with_graph(plan.fused.graph, weights.written))
    return pipeline.quantize(plan, Calibrated(thresholds(network, plan), given=given), versions)


def planned(network: QatNetwork, made: Quantized, preparation: Preparation | None = None) -> Planned:
    """What `converted` made of ``network`` on its way to an ONNX file.

    Raises:
        QuantizeError: nothing of it is int8.
    """
    if made.network is None:
        raise QuantizeError(f"{made.prepared.nothing_int8}; allowed: convert(block, simulate=True)")
    same = simulated(network) if made.network.exact else made.model  # sums that saturate training does not show
    return Planned(made.network, same, made.report, network.examples, preparation or Preparation())


def _check_held(network: QatNetwork) -> None:
    """Whether the kernels, or a file, hold what was trained."""
    config = network.config
    if config.is_held:
        return
    if config.is_for_files:
        other = next((q for q in network.quantizers if not _in_files(q)), None)
        holds = f"an ONNX file holds tensors of {MOST_BITS} bits and weights of {LEAST_IN_FILES} to {MOST_BITS}"
    else:
        held, spec = config.row.from_kernels, default().spec
        other = next((q for q in network.quantizers if q.spec.bits != MOST_BITS or not held), None)
        holds = f"{spec.name} holds {' or '.join(map(str, spec.holds))}, for hardware 'onednn'"
    if other is not None:
        raise QuantizeError(
            f"{'weight' if other.is_weight else 'tensor'} {str(other.tensor)!r} was trained as {other.spec} for "
            f"{config.row.library}; {holds}; convert(block, simulate=True) gives a float network that computes the same"
        )


def _in_files(quantizer: Quantizer) -> bool:
    """Whether an ONNX file holds such codes."""
    return quantizer.spec.bits >= (LEAST_IN_FILES if quantizer.is_weight else MOST_BITS)


# ---- ranges ----------------------------------------------------------------------------------------------------


def thresholds(network: QatNetwork, plan: Prepared) -> Thresholds:
    """The range of every tensor that the plan observes: as it was learned, else as it was calibrated."""
    span_of = _whole_range if network.config.is_for_files else learned_range
    spans = {name: span_of(params) for name, params in learned(network, plan).items()}
    found = dict[str, Threshold]()
    for name in map(str, plan.plan.observe):
        if name not in network.calibrated:  # which `mxq.pipeline.quantize` names
            continue
        calibrated, span = network.calibrated[name], spans.get(name)
        if span is not None:
            # Types, and what is shifted, follow from whether a range begins below 0, which has to stay as it was.
            low = min(span.min, 0.0) if calibrated.range.min < 0 else 0.0
            calibrated = Threshold(Range(low, span.max), FIXED, source=LEARNED)
        found[name] = calibrated
    return Thresholds(found)


def learned(network: QatNetwork, plan: Prepared) -> dict[str, QParams]:
    """Scale and zero point of every tensor that was quantized in training, and of those that have its values."""
    own = {q.tensor: params_of(network, q) for q in network.quantizers if not q.is_weight}
    origins = {str(ref): origin(plan.fused.graph, ref, network.source.graph.by_name) for ref in plan.plan.observe}
    return {str(ref): params for ref, params in own.items()} | {n: own[ref] for n, ref in origins.items() if ref in own}


def params_of(network: QatNetwork, quantizer: Quantizer) -> QParams:
    """Scale and zero point of an activation, as they were learned."""
    algorithm = network.algorithm(quantizer)
    return algorithm.deployed(quantizer.site, np.zeros((1, 1, 1), np.float32), network.of(quantizer))[1]


def learned_range(params: QParams) -> Range:
    """The range that the kernels turn into these parameters."""
    spec, step, zero = params.spec, float(params.step), float(params.zero_point)
    if not spec.symmetric:
        top = spec.highest - spec.lowest + 0.5
        return Range(-max(zero, _LITTLE) * step, (top - zero) * step)
    end = _end(MXNET.top(spec), params.scale)
    return Range(-end if spec.signed else 0.0, end)


def _whole_range(params: QParams) -> Range:
    """From the value of the lowest code to that of the highest."""
    return Range(float(params.low), float(params.high))


def _end(top: float, scale: Array) -> float:
    """The end of a range that kernels turn into ``scale``, to the last bit where float32 has one; ``top`` in codes."""
    near = np.float32(top) / np.float32(scale)
    tried = [near, *(np.nextafter(near, np.float32(way * np.inf)) for way in (1, -1))]
    return float(next((end for end in tried if np.float32(top) / end == scale), near))


# ---- weights ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The weights of the float network that is to be quantized, as the kernels read them code for code."""

    network: QatNetwork
    fused: Model

    @property
    def written(self) -> dict[str, Array]:
        """Of each that is quantized and has its own shape still, by name."""
        held = self._in_file if self.network.config.is_for_files else self._written
        return {q.tensor.name: held(q).reshape(self.fused.args[q.tensor.name].shape) for q in self._own_ones}

    @property
    def params(self) -> dict[str, QParams]:
        """The scales of the same, with which a file has them."""
        steps = ((q, self.codes(q)[1]) for q in self._own_ones)
        return {q.tensor.name: QParams(q.spec, 1 / np.maximum(step, _DEAD)) for q, step in steps}

    @property
    def _own_ones(self) -> Iterator[Quantizer]:
        args = self.fused.args
        for q in self.network.quantizers:
            if q.is_weight and q.tensor.name in args and args[q.tensor.name].size == self._own(q).size:
                yield q

    def _in_file(self, quantizer: Quantizer) -> Array:
        """(O, K) float32, what the codes stand for."""
        codes, step = self.codes(quantizer)
        return np.asarray(codes * step[:, None], np.float32)

    def _own(self, quantizer: Quantizer) -> Array:
        return self.network.source.args[quantizer.tensor.name]

    def _written(self, quantizer: Quantizer) -> Array:
        """(O, K) float32: on the kernel's grid where a code of the channel is one of the last, else as they are.

        127.5 steps are read as 127 whatever the last bit says, so an end is moved only where all such are below 0.
        """
        codes, step = self.codes(quantizer)
        plain = codes * step[:, None]
        if not len(codes):
            return np.asarray(plain, np.float32)
        lowest, highest = codes.min(axis=1, keepdims=True), codes.max(axis=1, keepdims=True)
        risen = np.where(codes == FULL.top, FULL.span * step[:, None], plain)
        moved = written(codes[None], step[None], FULL)[0]
        kept = np.where(highest == FULL.top, risen, np.where(lowest == -FULL.top, moved, plain))
        found = np.where((lowest < -FULL.top) | ((lowest == 0) & (highest == 0)), moved, kept)
        return np.asarray(found, np.float32)

    def codes(self, quantizer: Quantizer) -> tuple[Array, Array]:
        """The codes of a weight (O, K), and their step in the folded layer (O,), float64."""
        weight = np.ascontiguousarray(self.network.weight(quantizer), np.float32)
        folded = weight.reshape(quantizer.site.folded(weight.shape))
        parameters = self.network.of(quantizer)
        values, params = self.network.algorithm(quantizer).deployed(quantizer.site, folded, parameters)
        codes = params.quantize(values.reshape(len(weight), -1)).astype(np.int16)
        factor = self._factor(quantizer, len(weight))
        turned = np.minimum(codes * np.sign(factor)[:, None].astype(np.int16), quantizer.spec.highest)
        return turned, np.abs(factor) / params.scale.astype(np.float64)

    def _factor(self, quantizer: Quantizer, channels: int) -> Array:
        """By what folding multiplies each channel after it was quantized: (C,) float64."""
        pair = self.network.pairs.get(quantizer.readers[0])
        if self.network.config.folding is not UNFOLDED or pair is None:
            return np.ones(channels)
        return pair.factor(self.network.source)
