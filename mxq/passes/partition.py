"""Partition: which operators of the fused float graph become int8, which tensors need a range, and why not the rest.

An operator becomes int8 when its row in the backend's table allows it, the user does not exclude it, and, in
mode "smart", it is a "compute" operator or a "passthrough" operator between two of those, but not a head's average
pooling. Layers that calibration data shows to be noisy come as ``kept`` (`mxq.noisy`).
The walk is that of ``MarkQuantizedNodes`` in ``quantize_graph_pass.cc``, with a reason kept for each refusal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

from mxq.backends import BackendSpec, OpSpec, layer_of, summand_place
from mxq.config import OP, QuantConfig, Selector, by_op, selector_name, selects
from mxq.errors import ConfigError, close_to
from mxq.graph.annotation import RouteKind
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.traits import traits_of
from mxq.passes.avgpool_to_depthwise import never_negative
from mxq.passes.fuse_relu_into_batchnorm import absorbed_relus
from mxq.passes.overrides import LayerChoices, override_source, views
from mxq.passes.shapes import is_global_pooling
from mxq.quant.plan import Decision, Plan
from mxq.quant.thresholds import Range, Thresholds
from mxq.rewrite import NO_EVENTS, Trace

NONE = "none"
"""The ``calib_mode`` in which ranges are found at run time."""


def partition(
    model: Model,
    config: QuantConfig,
    backend: BackendSpec,
    trace: Trace = NO_EVENTS,
    source: Graph | None = None,
    kept: Mapping[str, str] | None = None,
) -> Plan:
    """Decides for every operator of a fused float ``model``.

    Args:
        model: the network.
        config: the settings.
        backend: what has int8 kernels.
        trace: why operators were not fused.
        source: the graph as it was given: a pattern of ``exclude_layers`` may match there alone, what is gone since.
        kept: names of nodes that are to stay in float, unless the user asks for int8 -> why.

    Raises:
        ConfigError: a pattern of ``include_layers``, ``exclude_layers`` or ``overrides`` matches no node; the message
            names close ones. What else matches none is in `unmatched`.
    """
    graph = model.graph
    choices = LayerChoices.of(graph, config)
    chosen = {n: why for n, why in (kept or {}).items() if not choices.asks_int8(n)} | _choices(graph, config, source)
    reasons: dict[str, str] = {}
    specs: dict[str, OpSpec] = {}
    for node in graph.operators:
        spec = backend.find(node.op)
        reason = chosen.get(node.name, "") or _refusal(model, node, spec, config, backend, trace)
        if reason or spec is None:
            reasons[node.name] = reason
        else:
            specs[node.name] = spec
    if config.quantize_mode == "smart":
        isolated = _isolated_ops(graph, specs, _passed_through(graph) if backend.whole else ())
        reasons |= {name: why for name, why in isolated.items() if specs[name].between or not backend.whole}
        left = [name for name in specs if name not in reasons and not choices.asks_int8(name)]
        reasons |= {} if backend.whole else _of_speed(graph, left, config)
    why = {
        n.name: reasons.get(n.name) or _why_int8(specs[n.name], choices.source(n.name, "quantize"))
        for n in graph.operators
    }
    absorbed = absorbed_relus(model, specs.keys() - reasons.keys(), backend)
    why |= {relu: f"{why[relu]}, by saturation in {norm!r}" for relu, norm in absorbed.items()}
    decisions = tuple(
        Decision(
            node=node.name,
            op=chain(node),
            members=node.origins,
            int8=node.name not in reasons,
            reason="; ".join(filter(None, (why[node.name], node.note.why))),
        )
        for node in graph.operators
    )
    ranged = {n: specs[n] for n in specs if n not in reasons}
    observe = () if config.calib_mode == NONE else tuple(_observed(graph, ranged, absorbed))
    return Plan(decisions, observe, absorbed=absorbed)


def chain(node: Node) -> str:
    """The op type, for a fused node the chain inside it: "Convolution+elemwise_add+Activation"."""
    inner = [n.op for sub in node.subgraphs for n in sub.operators]
    return "+".join(inner) if inner else node.op


def data_inputs(node: Node, spec: OpSpec) -> tuple[int, ...]:
    """Indices of the inputs of ``node`` that must be int8: the data, and the operand of a fused sum."""
    if not spec.data_inputs:
        return tuple(range(len(node.inputs)))
    summed = summand_place(node)
    return spec.data_inputs if summed is None else (*spec.data_inputs, summed)


def writes_float(graph: Graph, node: Node, spec: OpSpec, quantized: Collection[str]) -> bool:
    """Whether an int8 operator writes float itself (``enable_float_output``): where it can and float is read.

    Its int8 readers, if there are any as well, read that quantized. The other way round, int8 and a dequantize node for
    the float readers, MXNet's ``get_backend_symbol`` does not survive: it takes such a pair for three nodes
    (``SelectOutput`` in ``mkldnn_fc_post_quantize_property.h`` falls through from one case to the next).
    """
    if not spec.float_output or spec.reduces_exactly(node):
        return False
    if node.name in graph.head_names:
        return True
    return not spec.codes_for_all and any(c.name not in quantized for c in graph.consumers[node.name])


def _read_as_int8(graph: Graph, node: Node, quantized: Collection[str]) -> bool:
    return any(c.name in quantized for c in graph.consumers[node.name])


def _choices(graph: Graph, config: QuantConfig, source: Graph | None) -> dict[str, str]:
    """Node name -> why the user's settings leave it in float. Later settings win: include, exclude, overrides."""
    reasons: dict[str, str] = {}
    if config.include_layers:
        included = {n for s in config.include_layers for n in _hits(graph, "include_layers", s)}
        reasons |= {n.name: "not among include_layers" for n in graph.operators if n.name not in included}
    for selector in config.exclude_layers:
        why = f"excluded by exclude_layers {selector_name(selector)!r}"
        gone = source is not None and _found(source, selector)
        hits = _found(graph, selector) if gone else _hits(graph, "exclude_layers", selector)
        reasons |= dict.fromkeys(hits, why)
    for part in config.exclude_layers_match:
        why = f"excluded by exclude_layers_match {part!r}"
        reasons |= dict.fromkeys(_found(graph, _Containing(part)), why)
    for op in config.exclude_operators:
        reasons |= dict.fromkeys(_with_op(graph, op), f"excluded by exclude_operators {op!r}")
    for pattern, layer in config.overrides.items():
        for name in _hits(graph, "overrides", pattern, inputs=True):
            if layer.quantize is False:
                reasons[name] = f"left in float by {override_source(pattern)}"
            elif layer.quantize:
                reasons.pop(name, None)
    return reasons


@dataclass(frozen=True)
class _Containing:
    """A predicate: the node's name contains ``part``, as `exclude_layers_match` of MXNet means it."""

    part: str

    @property
    def __name__(self) -> str:
        return self.part

    def __call__(self, node: Node) -> bool:
        return self.part in node.name


def unmatched(graph: Graph, config: QuantConfig) -> tuple[str, ...]:
    """A sentence for each pattern that excludes nothing of a fused graph, but is no error.

    That is what ``exclude_layers`` names and inference does not need, and as in MXNet, whose scripts give one list to
    many networks, ``exclude_layers_match`` and ``exclude_operators``.
    """
    names, ops = _names(graph), sorted(set().union(*map(_ops, graph.operators)))
    parts = [p for p in config.exclude_layers_match if not _found(graph, _Containing(p))]
    types = [op for op in config.exclude_operators if not _with_op(graph, op)]
    asked = [_no_match("exclude_layers_match", p, names) for p in parts]
    asked += [_no_match("exclude_operators", op, ops) for op in types]
    gone = [selector_name(s) for s in config.exclude_layers if not _found(graph, s)]
    return (
        *(f"{sentence}; nothing is excluded by it" for sentence in asked),
        *(f"exclude_layers: {name!r} is no operator of the fused network; inference does not need it" for name in gone),
    )


def _hits(graph: Graph, field: str, selector: Selector, *, inputs: bool = False) -> set[str]:
    """As `_found`.

    Raises:
        ConfigError: there is none.
    """
    found = _found(graph, selector, inputs=inputs)
    if not found:
        types = sorted({OP + view.op for node in graph.operators for view in views(node)})
        raise ConfigError(_no_match(field, selector, types if by_op(selector) else _names(graph, inputs=inputs)))
    return found


def _found(graph: Graph, selector: Selector, *, inputs: bool = False) -> set[str]:
    """Operators (with ``inputs``, variables too) of which ``selector`` chooses any member."""
    nodes = graph.nodes if inputs else graph.operators
    return {node.name for node in nodes if any(selects(selector, view) for view in views(node))}


def _names(graph: Graph, *, inputs: bool = False) -> list[str]:
    """What selectors may name."""
    return [view.name for node in (graph.nodes if inputs else graph.operators) for view in views(node)]


def _with_op(graph: Graph, op: str) -> set[str]:
    """Nodes that are, or contain, an operator of type ``op``, by any of MXNet's names for it."""
    return {node.name for node in graph.operators if {op, OWN_NAME.get(op, op)} & _ops(node)}


def _ops(node: Node) -> set[str]:
    return {node.op, *(inner.op for sub in node.subgraphs for inner in sub.operators)}


def _no_match(field: str, selector: Selector, candidates: Iterable[str]) -> str:
    """Says that a pattern matches nothing; names close candidates."""
    known = list(dict.fromkeys(candidates))
    close = close_to(selector_name(selector).strip("*"), known) or known[:3]
    kind = "op types" if by_op(selector) else "names"
    return f"{field}: {selector_name(selector)!r} matches none of {len(known)} {kind}; close ones: {', '.join(close)}"


def _refusal(
    model: Model, node: Node, spec: OpSpec | None, config: QuantConfig, backend: BackendSpec, trace: Trace
) -> str:
    if spec is None:
        return backend.why_not(node.op)
    if spec.fused_op and node.op != spec.fused_op:
        refused = [e.reason for e in trace.refusals(node.name)]
        return spec.broken_need(node) or (refused[-1] if refused else f"{node.op} could not be fused for its kernel")
    broken = spec.broken_need(layer_of(node) or node)  # of a fused one the layer inside; the float kernels take more
    if broken:
        return broken
    if spec.role == "compute" and model.param(node.inputs[1].name) is None:
        return f"its weight {node.inputs[1].name!r} is computed or fed, not a parameter"
    if spec.role == "compute" and (why := backend.refusal(model, node)):
        return why
    smart = spec.full_only if config.quantize_mode == "smart" else ""
    return _constant_refusal(model, node, spec) or _sign_refusal(model.graph, node, spec) or smart


def _constant_refusal(model: Model, node: Node, spec: OpSpec) -> str:
    """Why what ``node`` reads as data has no range: no calibration sees a parameter."""
    names = [node.inputs[i].name for i in data_inputs(node, spec)]
    found = next((name for name in names if model.param(name) is not None), "")
    return f"it reads {found!r} as data, which is a parameter" if found else ""


def _sign_refusal(graph: Graph, node: Node, spec: OpSpec) -> str:
    """Why an input of ``node`` cannot be of the type that the kernel takes."""
    for place, dtype in zip(spec.data_inputs, spec.takes, strict=False):
        if dtype == "uint8" and not never_negative(graph, node.inputs[place]):
            return f"the int8 kernel takes {str(node.inputs[place])!r} as uint8; nothing shows that it is never below 0"
    return ""


def _head_average_pools(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """Global average poolings of heads: the int8 kernel keeps the range of what it averages, though means are small.

    Of ResNet-50's 256 codes 39 are left, which costs 1.4 dB of its outputs; float costs 1 % of the time. In
    squeeze-and-excitation, which reads the pooled tensor once more, float would cost 3 to 6 %, and a sigmoid follows.
    Not where ranges are found at run time: means would be coded as signed.
    """
    why = "int8 would keep the range of what it averages, of which means take up little; float costs next to nothing"
    pools = [n for n in map(graph.__getitem__, names) if is_global_pooling(n) and n.attrs.get("pool_type") == "avg"]
    return {pool.name: why for pool in pools if len(graph.consumers[pool.inputs[0].name]) == 1}


def _of_float(graph: Graph, names: Collection[str]) -> dict[str, str]:
    """Averages that are convolutions (`mxq.passes.avgpool_to_depthwise`) of what no int8 operator makes."""
    why = "it averages a float tensor, so converting would cost more than it saves"
    averages = filter(_is_average, map(graph.__getitem__, names))
    return {node.name: why for node in averages if node.inputs[0].name not in names}


def _is_average(node: Node) -> bool:
    return node.note.took(RouteKind.AVERAGE)


def _of_speed(graph: Graph, names: Collection[str], config: QuantConfig) -> dict[str, str]:
    """What of ``names`` mode "smart" leaves in float because it is no slower so."""
    reasons = _head_average_pools(graph, names) if config.calib_mode != NONE else {}
    return reasons | _of_float(graph, [name for name in names if name not in reasons])


def _passed_through(graph: Graph) -> frozenset[str]:
    """Operators of numbers one by one, or that move them: kernels of the layers beside them may hold such, too."""
    return frozenset(n.name for n in graph.operators if (found := traits_of(n)).pointwise or found.moves)


def _isolated_ops(graph: Graph, specs: Mapping[str, OpSpec], through: Collection[str]) -> dict[str, str]:
    """Passthrough nodes that are not, by way of others or of ``through``, between two compute nodes.

    Exact ones need but one.
    """
    after: set[str] = set()
    before: set[str] = set()
    carried = specs.keys() | set(through)
    for node in graph.operators:
        if node.name in carried and any(_computes(specs, r.name) or r.name in after for r in node.inputs):
            after.add(node.name)
    for node in reversed(graph.operators):
        readers = graph.consumers[node.name]
        if node.name in carried and any(_computes(specs, c.name) or c.name in before for c in readers):
            before.add(node.name)
    sides = {name: (name in after) + (name in before) for name in specs}
    return {
        name: "it does not lie between two int8 layers, so converting would cost more than it saves"
        for name, spec in specs.items()
        if spec.role == "passthrough" and sides[name] < (1 if spec.reduces_exactly(graph[name]) else 2)
    }


def _computes(specs: Mapping[str, OpSpec], name: str) -> bool:
    return name in specs and specs[name].role == "compute"


def _why_int8(spec: OpSpec, asked_by: str) -> str:
    why = "int8 kernel" if spec.role == "compute" else "carries int8 between int8 layers"
    return f"{why}, asked for by {asked_by}" if asked_by else why


def with_carried(graph: Graph, plan: Plan, thresholds: Thresholds) -> Thresholds:
    """``thresholds`` with ranges of what a plan observes that was not: that of all that operators carry to it."""
    found = dict(thresholds)
    for ref in plan.observe:
        if str(ref) not in found:
            spans = [thresholds[str(r)] for r in _carried(graph, ref, thresholds)]
            whole = reduce(Range.union, (t.range for t in spans))
            found[str(ref)] = replace(spans[0].unobserved(), range=whole, note="the range of what is carried to it")
    return Thresholds(found)


def _carried(graph: Graph, ref: Ref, thresholds: Thresholds) -> list[Ref]:
    """The nearest tensors before ``ref`` that have ranges, each once."""
    found, waiting, seen = list[Ref](), [ref], {ref}
    while waiting:
        for source in dict.fromkeys(graph[waiting.pop().name].inputs):
            if source not in seen:
                seen.add(source)
                (found if str(source) in thresholds else waiting).append(source)
    return found


def _observed(graph: Graph, quantized: Mapping[str, OpSpec], absorbed: Collection[str]) -> Iterable[Ref]:
    """Float tensors whose range the int8 graph needs: what is quantized, and what calibrated kernels write.

    Args:
        graph: fused.
        quantized: the rows of what becomes int8.
        absorbed: the ReLUs that their BatchNorms do.
    """
    found: dict[Ref, None] = {}
    for node in graph.operators:
        if node.name not in quantized:
            continue
        spec = quantized[node.name]
        for i in data_inputs(node, spec):
            if node.inputs[i].name not in quantized:
                found[node.inputs[i]] = None
        is_float = writes_float(graph, node, spec, quantized)
        if spec.has_range(node) and (not is_float or _read_as_int8(graph, node, quantized)):
            found[node.out] = None
        if node.name in absorbed:  # and its BatchNorm's own, for where a reader is float
            found[node.out] = None
    return found
