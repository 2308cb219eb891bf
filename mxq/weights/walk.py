"""Walks through a network layer after layer and gives each the weights, bias and range that serve its output best.

Each layer is seen with two inputs: what the float network gives it, and what the network quantized so far does. Its
weights are rounded (`rounding`), its bias is set, and the range of its output is chosen (`ranges`) on the second, to
come close to what it makes of the first. So a layer also makes up for the errors of those before it. Source: the
asymmetric reconstruction of AdaRound, arXiv:2004.10568, eq. 25; empirical bias correction, Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section 4.2 and appendix D.

The arithmetic is that of exact int8 kernels, simulated in float32 (`coding`), so the result does not depend on the
machine it is made on. Tensors are kept while they are to be read, as in a run of the network; batches stay apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from mxq.backends import MXNET_191, BackendSpec
from mxq.config import Methods
from mxq.ir import VARIABLE, Array, Graph, Model, Node, Ref, Runner
from mxq.plan import Plan, TensorRecord, WeightRecord
from mxq.thresholds import Range, Thresholds
from mxq.weights import grid, patches
from mxq.weights.bias import Activation, correction
from mxq.weights.coding import Code, code_all, codes_of
from mxq.weights.live import Batches, Live, ancestors, last_reader, outputs_read
from mxq.weights.patches import Geometry
from mxq.weights.ranges import Reader, narrowed
from mxq.weights.rounding import Moments, descend, error_of, shrunk, successive

PLACES = 8192
EXAMPLES_FOR_RANGES = 8
import os
DAMPING = float(os.environ.get('DAMP','0.01'))
SWEEPS = 2


@dataclass(frozen=True)
class Walked:
    """What a walk gives: the ``model`` with new weights and biases, its ``thresholds``, and a record for each layer."""

    model: Model
    thresholds: Thresholds
    weights: Mapping[str, WeightRecord]


@dataclass
class _Walk:
    model: Model
    plan: Plan
    spans: dict[str, Range]
    codes: Mapping[Ref, Code]
    methods: Methods
    backend: BackendSpec
    runner: Runner
    float: Live
    int8: Live
    args: dict[str, Array] = field(default_factory=dict)
    seen: dict[str, Array] = field(default_factory=dict)
    records: dict[str, WeightRecord] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    # ---- tensors ----

    def coded(self, ref: Ref) -> Batches:
        """What an int8 operator reads of tensor ``ref`` in the quantized network."""
        made_int8 = ref.name in self.plan.quantized
        if made_int8 or ref not in self.codes:
            return self.int8.held[ref]
        return code_all(self.int8.held[ref], self.codes[ref], self.spans[str(ref)])

    def is_data(self, ref: Ref) -> bool:
        return self.model.param(ref.name) is None

    # ---- nodes ----

    def visit(self, node: Node, outputs: Sequence[Ref]) -> None:
        """Runs ``node`` in both networks; where it is an int8 layer, changes it first."""
        spec = self.backend.find(node.op)
        quantized = node.name in self.plan.quantized and spec is not None
        if quantized and spec is not None and spec.role == "compute":
            self.improve(node)
        made = self.float.run(self.model, node, outputs)
        changed = Model(self.model.graph, {**self.model.args, **self.args, **self.seen}, self.model.auxs)
        if not quantized:
            found = self.int8.run(changed, node, outputs)
        else:
            inputs = Live(self.runner, {r: self.coded(r) for r in node.inputs if self.is_data(r)})
            found = inputs.run(changed, node, outputs)
        self.float.held |= made
        self.int8.held |= {ref: self.written(node, ref, value) for ref, value in found.items()}

    def written(self, node: Node, ref: Ref, value: Batches) -> Batches:
        """``value`` as the quantized network holds it; chooses its range."""
        if node.name not in self.plan.quantized:
            if str(ref) in self.spans and ref in self.codes and self.methods.range_choice == "layer":
                self.choose_range(ref, value)
            return value
        if ref in self.codes:
            if self.methods.range_choice == "layer":
                self.choose_range(ref, value)
            return code_all(value, self.codes[ref], self.spans[str(ref)])
        if str(ref) in self.spans or not any(self.is_data(r) for r in node.inputs):
            return value
        return value

    def choose_range(self, ref: Ref, value: Batches) -> None:
        readers = self.readers(ref)
        if readers:
            some = np.concatenate([v[:: max(1, len(v) * len(value) // EXAMPLES_FOR_RANGES)] for v in value])
            self.spans[str(ref)] = narrowed(some[:EXAMPLES_FOR_RANGES], self.spans[str(ref)], self.codes[ref], readers)

    def readers(self, ref: Ref) -> list[Reader]:
        """The linear part of each int8 operator that reads ``ref``."""
        found: list[Reader] = []
        for node in self.model.graph.consumers[ref.name]:
            if node.name not in self.plan.quantized or ref not in node.inputs:
                continue
            spec = self.backend.find(node.op)
            if spec is not None and spec.role == "compute" and node.inputs[0] == ref:
                found.append(self.linear(node, spec.float_op))
            elif spec is not None and spec.float_op == "Concat":
                return []
            if spec is None or spec.role != "compute" or ref in node.inputs[1:]:
                found.append(lambda x: x)
        return found

    def linear(self, node: Node, op: str) -> Reader:
        """The layer in ``node`` without bias, sum and activation."""
        layer = inner_layer(node, op)
        weight = self.model.args[node.inputs[1].name]
        plain = Node("layer", op, {**layer.attrs, "no_bias": "True"}, (Ref("x"), Ref("w")))
        graph = Graph((Node("x", VARIABLE), Node("w", VARIABLE), plain), (plain.out,))
        call = self.runner.compile(Model(graph, {"w": weight}))
        return lambda x: call({"x": x})[0]

    # ---- weights ----

    def improve(self, node: Node) -> None:
        """New weights and bias for ``node``."""
        spec = self.backend.find(node.op)
        assert spec is not None
        layer = inner_layer(node, spec.float_op)
        geometry = Geometry.of(layer)
        weight = geometry.grouped(self.model.args[node.inputs[1].name])
        x, target = self.samples(node, geometry, weight)
        moments = Moments.of(weight, x, target)
        importance = np.einsum("gkk->gk", moments.second) + moments.mean_input**2
        step = grid.steps(weight, importance)
        fixed = grid.extremes(weight, step)
        wanted, hessian = shrunk(weight, moments, DAMPING)
        if os.environ.get("SYM"): wanted = weight.astype(float)
        nearest = np.clip(np.rint(weight / step[:, :, None]), -127, 127).astype(np.int16)
        nearest = np.where(fixed != 0, fixed, nearest)
        codes = nearest
        if self.methods.rounding == "reconstruction":
            codes = successive(wanted, hessian, step, fixed)
            codes = descend(codes, wanted, hessian, step, fixed, SWEEPS)
            before, after = (error_of(c, wanted, hessian, step) for c in (nearest, codes))
            codes = np.where((after < before)[:, :, None], codes, nearest)
        shape = self.model.args[node.inputs[1].name].shape
        self.args[node.inputs[1].name] = grid.written(codes, step).reshape(shape)
        self.seen[node.inputs[1].name] = grid.values(codes, step).astype(np.float32).reshape(shape)
        if self.methods.bias_correction == "empirical":
            made = x @ np.swapaxes(grid.values(codes, step), 1, 2).astype(np.float32)
            bias = self.model.args[node.inputs[2].name]
            offset = bias.reshape(geometry.groups, 1, -1)
            added = correction(target + offset, made + offset, Activation.of(node))
            self.args[node.inputs[2].name] = (bias + added.ravel()).astype(np.float32)

    def samples(self, node: Node, geometry: Geometry, weight: Array) -> tuple[Array, Array]:
        """Samples of the quantized input (G, N, K), and of what the weights should make of it (G, N, O)."""
        data = node.inputs[0]
        exact, noisy = self.float.held[data], self.coded(data)
        places = self.places(node, geometry, noisy)
        x = patches.inputs_at(noisy, places, geometry)
        target = patches.inputs_at(exact, places, geometry) @ np.swapaxes(weight, 1, 2)
        if node.flag("with_sum"):
            operand = node.inputs[-1]
            target += patches.outputs_at(self.float.held[operand], places, geometry)
            target -= patches.outputs_at(self.coded(operand), places, geometry)
        return x, target

    def places(self, node: Node, geometry: Geometry, batches: Batches) -> patches.Places:
        counts = [geometry.places_of(b.shape) for b in batches]
        size = self.model.args[node.inputs[1].name][0].size
        return patches.choose_places(counts, max(PLACES, 2 * size), self.rng)


def inner_layer(node: Node, op: str) -> Node:
    """The Convolution or FullyConnected node inside a fused one."""
    return next((n for n in node.subgraphs[0].operators if n.op == op), node) if node.subgraphs else node


def walk(
    runner: Runner,
    model: Model,
    plan: Plan,
    thresholds: Thresholds,
    records: Mapping[str, TensorRecord],
    feeds: Sequence[Mapping[str, Array]],
    methods: Methods,
    *,
    backend: BackendSpec = MXNET_191,
    progress: bool = True,
) -> Walked:
    spans = {name: t.range for name, t in thresholds.items()}
    graph = model.graph
    layers = [n for n in graph.operators if n.name in plan.quantized]
    nodes = ancestors(graph, (n.name for n in layers))
    inputs = {Ref(name): [np.asarray(f[name]) for f in feeds] for name in model.inputs}
    state = _Walk(
        model,
        plan,
        spans,
        codes_of(records, spans),
        methods,
        backend,
        runner,
        Live(runner, dict(inputs)),
        Live(runner, dict(inputs)),
    )
    until, read = last_reader(nodes), outputs_read(nodes)
    if methods.range_choice == "layer":
        for ref, value in inputs.items():
            if ref in state.codes:
                state.choose_range(ref, value)
    bar = tqdm(nodes, desc="weights", unit="layer", leave=False, disable=None if progress else True)
    for node in bar:
        state.visit(node, read.get(node.name, (node.out,)))
        done = {r.name for r in node.inputs if until.get(r.name) == node.name}
        for live in (state.float, state.int8):
            live.forget(done)
    table = {
        name: t
        if spans[name] == t.range
        else replace(
            t,
            range=spans[name],
            note="; ".join(
                filter(
                    None, (t.note, f"narrowed from [{t.range.min:.6g}, {t.range.max:.6g}] for the layers that read it")
                )
            ),
        )
        for name, t in thresholds.items()
    }
    return Walked(model.with_graph(graph, state.args), Thresholds(table), state.records)
