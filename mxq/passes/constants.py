"""Constants: what parameters alone determine is computed once and becomes a parameter.

Before:  weight -> Reshape -> y          w0, b0, w1, b1 -> Reshape, _rnn_param_concat -> RNN
After:   parameter -> y                  parameter -> RNN

Conditions: every input of the operator is a parameter or such a constant itself, it draws nothing at random, and its
size is its own: zeros of shape (0, H), as begin states are, learn it from what reads them. Its result is float32, takes
at most `LARGEST` bytes, and is no output of the network.
Formula: MXNet itself computes the values, so they are the same bit by bit.

What depends on an input through its size alone, such as anchors cut to a feature map, stays: a graph cannot hold its
users to one size (``bind`` does not look at ``__shape__``), and after `mxq.passes.shape_only` little is left to gain.
Where the user says that there is one size, `mxq.passes.fix_shape` goes before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Runner, toposort
from mxq.graph.traits import traits_of
from mxq.passes.simplify import FLOAT
from mxq.rewrite import Event, Pass, Trace

STEP, RULE = "constants", "fold_constant"
LARGEST = 2**26
"""Bytes up to which a result is kept: a small parameter tiled to a large one is quicker made than read from a file."""


def fold_constants(runner: Runner) -> Pass:
    """Computes once what every batch would compute again.

    Args:
        runner: computes the values.
    """
    return Pass(STEP, lambda model: _folded(model, runner), requires=(FLOAT,), ensures=(FLOAT,))


def _folded(model: Model, runner: Runner) -> tuple[Model, Trace]:
    found = _constants(model)
    wanted = [n for n in found.values() if n.inputs and _is_read_outside(model.graph, n, found)]
    values, refusals = _values(model, runner, wanted)
    refused = [Event(STEP, RULE, name, reason) for name, reason in refusals.items() if reason]
    trace = Trace((*refused, *(Event(STEP, RULE, name) for name in values)))
    if not values:
        return model, trace
    changes = {name: (_parameter(model.graph[name], value),) for name, value in values.items()}
    return model.with_graph(model.graph.replace(changes), values), trace


def _parameter(node: Node, value: Array) -> Node:
    """What stands for ``node``; its shape is written, as ``simple_bind`` cannot tell it from what reads it."""
    return Node(node.name, VARIABLE, {"__shape__": str(value.shape)}, label=node.label)


def _constants(model: Model) -> dict[str, Node]:
    """Operators that compute the same every time, in graph order."""
    found: dict[str, Node] = {}
    for node in model.graph.operators:
        steady = all(ref.name in found or ref.name in model.args for ref in node.inputs)
        known = node.inputs or (traits_of(node).fills and not _is_sized_by_readers(node))
        if steady and known and not traits_of(node).random:
            found[node.name] = node
    return found


def _is_sized_by_readers(source: Node) -> bool:
    """Whether a source leaves a size open: one of its shape is 0 (-1 in numpy's), or ``_arange`` has no end."""
    return any(size <= 0 for size in source.ints("shape")) or source.flag("infer_range")


def _is_read_outside(graph: Graph, node: Node, inside: Mapping[str, Node]) -> bool:
    """Whether an operator that is no constant, or the caller, reads ``node``."""
    return node.name in graph.head_names or any(c.name not in inside for c in graph.consumers[node.name])


def _values(model: Model, runner: Runner, wanted: Sequence[Node]) -> tuple[dict[str, Array], dict[str, str]]:
    """The results that may be kept, by name, and why others may not."""
    refusals = {node.name: _use_refusal(model.graph, node) for node in wanted}
    kept = [node for node in wanted if not refusals[node.name]]
    made = dict[str, Array]()
    if kept:
        part = model.with_graph(toposort(model.graph.nodes, [n.out for n in kept], model.graph.attrs))
        made = {node.name: np.array(value) for node, value in zip(kept, runner.compile(part)({}), strict=True)}
        refusals |= {name: _value_refusal(value) for name, value in made.items()}
    return {name: value for name, value in made.items() if not refusals[name]}, refusals


def _use_refusal(graph: Graph, node: Node) -> str:
    if node.name in graph.head_names:
        return "it is an output of the network"
    if any(r.output for c in graph.consumers[node.name] for r in c.inputs if r.name == node.name):
        return "more than its first output is read"
    return ""


def _value_refusal(value: Array) -> str:
    if value.dtype != np.float32:
        return f"it is {value.dtype}; parameters are float32"
    if value.nbytes > LARGEST:
        return f"it takes {value.nbytes} bytes; {LARGEST} at most are kept"
    return ""
