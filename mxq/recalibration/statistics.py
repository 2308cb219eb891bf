"""Take the moving mean and variance of every BatchNorm anew, from data.

Formula, per channel c of a BatchNorm's input x over N examples and their places (MQBench, arXiv:2111.03759, C.3):

    mean_c = avg x_c        var_c = avg (x_c - mean_c)^2

One BatchNorm after the other, in graph order: each sees what those before it make with their new statistics, so that
the result is that of inference, and the size of batches does not matter. Batches normalised by their own statistics, as
in training, would give averages over batches of something a little different.

Conditions: the moving statistics are parameters that no other BatchNorm reads, and nothing that leads to x: in training
with quantization the factor of a folded weight may, and x would change with it. The rounding of a bias to the units of
its kernel reads them as well; while the network runs here it is that of the statistics before, half a unit off at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mxq.graph.ir import Array, Model, Node, Runner
from mxq.graph.operator_names import OWN_NAME
from mxq.recalibration.moments import Moments
from mxq.weights.layerwise_executor import LayerwiseExecutor, Schedule, ancestors

BATCH_NORM = "BatchNorm"


@dataclass(frozen=True)
class Recalibrated:
    """The ``model`` with new statistics; ``kept`` are the BatchNorms whose statistics stay, and why."""

    model: Model
    kept: Mapping[str, str] = field(default_factory=dict)


def norms_of(model: Model) -> tuple[Node, ...]:
    """The BatchNorms of a network, in graph order."""
    return tuple(node for node in model.graph.operators if OWN_NAME.get(node.op, node.op) == BATCH_NORM)


def recalibrated(runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]) -> Recalibrated:
    """``model`` with the statistics that ``feeds`` show.

    Args:
        runner: what runs an operator.
        model: float, or fake-quantized; BatchNorm is not folded.
        feeds: batches of data, at least one; all of them are in memory, with every tensor that is still to be read.
    """
    kept = {node.name: why for node in norms_of(model) if (why := _refusal(model, node))}
    wanted = [node.name for node in norms_of(model) if node.name not in kept]
    live, schedule = LayerwiseExecutor.of(runner, model, feeds), Schedule.of(ancestors(model.graph, wanted))
    for node in schedule.nodes:
        if node.name in wanted and node.inputs[0] not in live.lost:
            model = with_statistics(model, node, Moments.of(live.held[node.inputs[0]], channels(node)))
        live.held |= live.step(model, node, schedule.outputs(node))
        live.forget(schedule.done(node))
    lost = {name: live.lost[ref] for name in wanted if (ref := model.graph[name].inputs[0]) in live.lost}
    return Recalibrated(model, kept | lost)


def channels(norm: Node) -> int:
    """The axis of a BatchNorm's channels."""
    return norm.integer("axis", 1)


def with_statistics(model: Model, norm: Node, found: Moments) -> Model:
    """``model`` with another moving mean and variance of one BatchNorm."""
    names = [ref.name for ref in norm.inputs[3:5]]
    values = [value.astype(np.float32) for value in (found.mean, found.var)]
    return Model(model.graph, model.args, {**model.auxs, **dict(zip(names, values, strict=True))})


def _refusal(model: Model, norm: Node) -> str:
    """Why the statistics of a BatchNorm cannot change; empty where they can."""
    for ref in norm.inputs[3:5]:
        if ref.name not in model.auxs:
            return f"{ref.name!r} is no parameter of the network"
        others = [reader for reader in model.graph.consumers[ref.name] if reader.name != norm.name]
        before = {node.name for node in ancestors(model.graph, [norm.inputs[0].name])} if others else set()
        for other in others:
            if OWN_NAME.get(other.op, other.op) == BATCH_NORM or other.name in before:
                return f"{ref.name!r} is shared with {other.name!r}"
    return ""
