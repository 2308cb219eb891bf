"""What reads a tensor, as `ranges` asks: the linear part of each operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mxq.backends import OpSpec, the_layer_of
from mxq.graph.ir import Array, Model, Node, Ref, Runner
from mxq.graph.layers import without_bias
from mxq.weights.layerwise_executor import alone
from mxq.weights.ranges import Reader


@dataclass(frozen=True)
class Readers:
    """Of the tensors of a fused float ``model``; ``row`` gives a node's in the backend's table where it is int8."""

    runner: Runner
    model: Model
    row: Callable[[Node], OpSpec | None]

    def of(self, ref: Ref) -> list[Reader]:
        """The linear part of each operator that reads ``ref``; none where one wants a range that others have."""
        found: list[Reader] = []
        for node in self.model.graph.consumers[ref.name]:
            spec = self.row(node)
            if ref not in node.inputs:
                continue
            if spec is None:
                found.append(self._alone(node) if _averages(node) else lambda x: x)
                continue
            if self._joined(node):
                return []
            if spec.role == "compute" and node.inputs[0] == ref:
                found.append(self._linear(node))
            if spec.role != "compute" or ref in node.inputs[1:]:
                found.append(lambda x: x)
        return found

    def _joined(self, node: Node) -> bool:
        """Whether ``node`` is a Concat, or what it carries goes into one: its inputs share a range."""
        spec = self.row(node)
        if spec is None or spec.role == "compute" or spec.has_range(node):
            return False
        return node.op == "Concat" or any(map(self._joined, self.model.graph.consumers[node.name]))

    def _linear(self, node: Node) -> Reader:
        """The layer in ``node`` without bias, sum and activation; words of a text count as examples do."""
        layer = the_layer_of(node)
        made = self._alone(without_bias(replace(layer, inputs=node.inputs)))
        if layer.op == "FullyConnected" and not layer.flag("flatten", default=True):
            return lambda x: _rows(made(x))
        return made

    def _alone(self, node: Node) -> Reader:
        """``node``, which reads one tensor."""
        model = alone(self.model, node)
        call, name = self.runner.compile(model), model.inputs[0]
        return lambda x: call({name: x})[0]


def _rows(x: Array) -> Array:
    """(N, ..., O) as (N * ..., O)."""
    return x.reshape(-1, x.shape[-1])


def _averages(node: Node) -> bool:
    return node.op == "Pooling" and node.attrs.get("pool_type") == "avg"
