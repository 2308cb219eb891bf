"""`QatNetwork`: a float network, where it is fake-quantized, and all parameters; `model` is what trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref, reduced, toposort
from mxq.qat import algorithms
from mxq.qat.algorithms import Algorithm, compiled_name, fake_nodes, scale_name
from mxq.qat.biases import BiasNodes, RoundedBias
from mxq.qat.config import QatConfig
from mxq.qat.folding import RESCALED, UNFOLDED, FoldedPair, as_it_is, folded_weight, nodes, pairs
from mxq.qat.quantizer import Quantizer, by_reader
from mxq.quant.thresholds import Thresholds


@dataclass(frozen=True)
class QatNetwork:
    """A network that trains with quantization.

    Attributes:
        source: the float network; with strategy "merged" without BatchNorm. Its parameters are those that train.
        config: the settings.
        quantizers: where it is fake-quantized.
        parameters: of the algorithms, by name, (C,) float32 each.
        biases: those that are rounded.
        head: the softmax at the end of the network as it was given, without which it trains; empty where there is none.
        calibrated: the ranges that training began with, by tensor; also of tensors that it does not quantize.
        examples: input -> the shape of one example, as calibration data had it.
        warnings: what the user should know.
    """

    source: Model
    config: QatConfig
    quantizers: tuple[Quantizer, ...]
    parameters: Mapping[str, Array] = field(default_factory=dict)
    biases: tuple[RoundedBias, ...] = ()
    head: tuple[Node, ...] = ()
    calibrated: Thresholds = field(default_factory=Thresholds)
    examples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    __reduce__ = reduced

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    # ---- algorithms ----

    def algorithm(self, quantizer: Quantizer) -> Algorithm:
        """How a tensor is fake-quantized."""
        return algorithms.get(self.algorithm_name(quantizer))

    def algorithm_name(self, quantizer: Quantizer) -> str:
        """The same by name, with its settings."""
        return self.config.of_weights if quantizer.is_weight else self.config.algorithm

    def names(self, quantizer: Quantizer) -> tuple[str, ...]:
        """The names of its parameters, in the algorithm's order."""
        return tuple(map(quantizer.parameter, self.algorithm(quantizer).parameters(quantizer.site)))

    def of(self, quantizer: Quantizer) -> dict[str, Array]:
        """Its parameters, as its algorithm calls them."""
        which = self.algorithm(quantizer).parameters(quantizer.site)
        return {name: self.parameters[quantizer.parameter(name)] for name in which}

    # ---- groups of parameters ----

    @cached_property
    def learned(self) -> frozenset[str]:
        """Names of the algorithms' parameters that have gradients: steps, zero points, bounds."""
        return frozenset(q.parameter(which) for q in self.quantizers for which in self.algorithm(q).learned(q.site))

    @cached_property
    def constant(self) -> frozenset[str]:
        """Names of what gradients do not change: other parameters of algorithms, and moving statistics."""
        return frozenset(self.parameters) - self.learned | frozenset(self.source.auxs)

    @cached_property
    def weights(self) -> frozenset[str]:
        """Names of the weights that are quantized."""
        return frozenset(q.tensor.name for q in self.quantizers if q.is_weight)

    @cached_property
    def batch_norms(self) -> frozenset[str]:
        """Names of gammas and betas."""
        norms = (node for node in self.source.graph.operators if node.op == "BatchNorm")
        return frozenset(ref.name for node in norms for ref in node.inputs[1:3])

    # ---- values ----

    def with_values(self, values: Mapping[str, Array]) -> QatNetwork:
        """With other values of some parameters, such as those that were trained."""
        source = self.source
        args = {name: values.get(name, value) for name, value in source.args.items()}
        auxs = {name: values.get(name, value) for name, value in source.auxs.items()}
        own = {name: values.get(name, value) for name, value in self.parameters.items()}
        return replace(self, source=Model(source.graph, args, auxs), parameters=own)

    @property
    def values(self) -> dict[str, Array]:
        """All parameters, by name."""
        return {**self.source.args, **self.source.auxs, **self.parameters}

    def weight(self, quantizer: Quantizer) -> Array:
        """The weight that is quantized, in inference: folded where the strategy folds it. (O, ...) float32."""
        pair = self._pair(quantizer)
        return self.source.args[quantizer.tensor.name] if pair is None else folded_weight(self.source, pair)

    def _pair(self, quantizer: Quantizer) -> FoldedPair | None:
        """The layer of a weight with the BatchNorm whose factor the weight has where it is quantized."""
        return None if self.config.folding is UNFOLDED else self.pairs.get(quantizer.readers[0])

    @cached_property
    def pairs(self) -> Mapping[str, FoldedPair]:
        """Layer -> itself and its BatchNorm, of those that are quantized and have one that folds."""
        quantized = {name for q in self.quantizers if q.is_weight for name in q.readers}
        return {name: pair for name, pair in pairs(self.source).items() if name in quantized}

    # ---- the graph ----

    @property
    def model(self) -> Model:
        """What trains: the source with a node for each quantizer, and BatchNorms as the strategy wants them.

        All parameters declare their shapes, which MXNet cannot infer back through the operator of `fake_nodes`.
        """
        return _Writer(self).model


@dataclass
class _Writer:
    network: QatNetwork
    made: list[Node] = field(default_factory=list)

    @property
    def model(self) -> Model:
        source, network = self.network.source, self.network
        for q in network.quantizers:
            if not q.is_weight:
                self.made += self._fake(q, q.tensor)
        folded = network.pairs if network.config.folding is not UNFOLDED else {}
        norms = {pair.norm.name for pair in folded.values()}
        for node in source.graph:
            if node.name in folded:
                self._folded(folded[node.name])
            elif node.name not in norms:
                self._plain(node)
        self.made += [Node(name, VARIABLE) for name in network.parameters]
        outputs = {q.tensor: Ref(q.name) for q in network.quantizers if q.is_output}
        heads = tuple(outputs.get(head, head) for head in source.graph.heads)
        graph = toposort(map(self._shaped, self.made), heads, source.graph.attrs)
        return Model(graph, source.args, source.auxs).with_graph(graph, network.parameters)

    def _plain(self, node: Node) -> None:
        bias = self._rounded.get(node.name)
        self.made += (self._redirected(node),) if bias is None else self._with_rounded(self._redirected(node), bias)
        weight = self._weight_of(node)
        if weight is not None:
            made = self._fake(weight, weight.tensor) if node.name == weight.readers[0] else ()
            self.made += made

    def _folded(self, pair: FoldedPair) -> None:
        weight = self._weight_of(pair.layer)
        if weight is None:
            raise ValueError("a pair is of a layer that is quantized")
        quantizer, graph = weight, self.network.source.graph

        def quantized(ref: Ref) -> tuple[tuple[Node, ...], Ref]:
            return self._fake(quantizer, ref), Ref(quantizer.name)

        data = self._redirects.get((pair.layer.name, pair.layer.inputs[0]))
        inputs = (Ref(data) if data else pair.layer.inputs[0], *pair.layer.inputs[1:])
        moved = replace(pair, layer=replace(pair.layer, inputs=inputs))
        bias, folding = self._biases.get(pair.layer.name), self.network.config.folding
        rounded = as_it_is if bias is None else self._bias(bias).rounded
        made = nodes(moved, folding, quantized, graph.by_name, rounded)
        if bias is not None and folding is RESCALED:
            made = (*made[:-1], *self._bias(bias).norm(pair, made[-1], folded=True))
        self.made += made

    # ---- biases ----

    @cached_property
    def _biases(self) -> Mapping[str, RoundedBias]:
        return {bias.layer: bias for bias in self.network.biases}

    @cached_property
    def _rounded(self) -> Mapping[str, RoundedBias]:
        """The nodes that have the biases of layers which do not become others: those layers, and their BatchNorms."""
        pairs = self.network.pairs
        return {pairs[name].norm.name if name in pairs else name: bias for name, bias in self._biases.items()}

    def _with_rounded(self, node: Node, bias: RoundedBias) -> tuple[Node, ...]:
        pair = self.network.pairs.get(bias.layer)
        if pair is not None:
            return self._bias(bias).norm(pair, node, folded=False)
        made, ref = self._bias(bias).rounded(node.inputs[2])
        return (*made, replace(node, inputs=(*node.inputs[:2], ref)))

    def _bias(self, bias: RoundedBias) -> BiasNodes:
        data, weight = map(self._scale, (bias.data, bias.weight))
        return BiasNodes(bias.layer, data, weight, self.network.source.graph.by_name)

    def _scale(self, quantizer: str) -> Ref:
        """Codes per unit of value in what a quantizer makes."""
        plain = self.network.config.form == "operators"
        return Ref(scale_name(quantizer)) if plain else Ref(compiled_name(quantizer), 1)

    @cached_property
    def _scaled(self) -> frozenset[str]:
        """The quantizers whose scales are read."""
        return frozenset(name for bias in self.network.biases for name in (bias.data, bias.weight))

    # ---- quantizers ----

    def _redirected(self, node: Node) -> Node:
        if not node.inputs:
            return node
        names = (self._redirects.get((node.name, ref)) for ref in node.inputs)
        inputs = tuple(ref if name is None else Ref(name) for name, ref in zip(names, node.inputs, strict=True))
        return node if inputs == node.inputs else replace(node, inputs=inputs)

    @cached_property
    def _redirects(self) -> Mapping[tuple[str, Ref], str]:
        return by_reader(self.network.quantizers)

    def _weight_of(self, layer: Node) -> Quantizer | None:
        return self._weights.get(layer.name)

    @cached_property
    def _weights(self) -> Mapping[str, Quantizer]:
        return {name: q for q in self.network.quantizers if q.is_weight for name in q.readers}

    def _fake(self, quantizer: Quantizer, ref: Ref) -> tuple[Node, ...]:
        """The nodes that fake-quantize ``ref``; the last has the quantizer's name."""
        algorithm = self.network.algorithm(quantizer)
        parameters = tuple(map(Ref, self.network.names(quantizer)))
        if self.network.config.form == "operators":
            made = algorithm.nodes(quantizer.name, quantizer.site, ref, parameters)
        else:
            name, scaled = self.network.algorithm_name(quantizer), quantizer.name in self._scaled
            made = fake_nodes(quantizer.name, name, quantizer.site, ref, parameters, scaled=scaled)
        return (*made[:-1], made[-1].noted(fakes=str(quantizer.tensor)))

    def _shaped(self, node: Node) -> Node:
        value = self._shapes.get(node.name)
        return node if value is None else node.with_attrs(__shape__=str(value.shape))

    @cached_property
    def _shapes(self) -> Mapping[str, Array]:
        return self.network.values


def softmax_head(model: Model) -> tuple[Model, tuple[Node, ...]]:
    """``model`` without the softmax that gives its only output, and that; labels train what it reads, the logits."""
    graph = model.graph
    last = graph[graph.heads[0].name]
    if len(graph.heads) != 1 or last.op not in ("softmax", "log_softmax", "SoftmaxActivation"):
        return model, ()
    return model.with_graph(toposort(graph.nodes, last.inputs[:1], graph.attrs)), (last,)


def with_head(model: Model, head: tuple[Node, ...]) -> Model:
    """What `softmax_head` took apart."""
    if not head:
        return model
    graph = model.graph
    return model.with_graph(toposort((*graph.nodes, *head), (head[-1].out,), graph.attrs))
