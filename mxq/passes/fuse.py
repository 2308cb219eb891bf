"""Fuse: a convolution or fully connected layer with what the kernel can apply to its result before writing it.

Before:  x -> Convolution [-> elemwise_add(., y)] [-> Activation | LeakyReLU | clip] -> z
Before:  x -> Convolution -> leaky ReLU -> elemwise_add(., y) -> z
After:   x, y -> _sg_mkldnn_conv{the same nodes as a subgraph} -> z

Before:  x -> FullyConnected [-> Activation | LeakyReLU | clip | abs] -> z
After:   x -> _sg_mkldnn_fully_connected{...} -> z

Before:  x -> _contrib_interleaved_matmul_selfatt_qk | _contrib_interleaved_matmul_selfatt_valatt -> z
After:   x -> _sg_mkldnn_selfatt_qk | _sg_mkldnn_selfatt_valatt -> z

Conditions: results inside are read by nothing else; the convolution has 2 or 3 spatial axes in NCHW; the
post-op is one the kernel computes right (rows of a `BackendSpec`, which differ for float and int8).
The fused node takes the name of its last member, so readers and thresholds keep the tensor's name, and the sum
operand comes last among its inputs, as ``ConnectSubgraphInputs`` in ``mkldnn_conv_property.h`` demands.

A fused fully connected layer that reads a fused convolution which leaves less of an image reads a Flatten of it: where
that is 1x1, MXNet ends in "We can't generate TBlob for MKLDNN data" (``SgMKLDNNFCOp::Forward``), in float and in int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from mxq.backends import BackendSpec, OpSpec, the_layer_of
from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Graph, Model, Node, Ref, origins
from mxq.graph.layers import CONVOLUTION, FULLY_CONNECTED
from mxq.passes.shapes import keeps_size
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Rule, Trace, exhaust_each
from mxq.rewrite.rule import single_consumer

_SUM = "elemwise_add"


@dataclass(frozen=True)
class Fuse:
    """One shape of fusion: ``pattern`` with a node bound as "layer" and perhaps "early", "sum", "act", in this order.

    ``int8`` selects which post-ops are allowed.
    """

    name: str
    pattern: Op
    spec: OpSpec
    int8: bool

    def check(self, model: Model, match: Match) -> Reject | None:
        layer = match["layer"]
        broken = self.spec.broken_need(layer, int8=self.int8)
        if broken:
            return Reject(broken, (layer.name,))
        if match.refs.get("operand") in [node.out for node in match.interior]:
            return Reject("both operands of the sum are the layer's own result", (layer.name,))
        return single_consumer(model, match) or self._post_op_refusal(match)

    def _post_op_refusal(self, match: Match) -> Reject | None:
        early = "early" in match.nodes
        act = match.nodes.get("early" if early else "act")
        if act is None:
            return None
        row = self.spec.post_op(act)
        if early and row is not None and not row.before_sum:
            return Reject(f"{act.op} with {dict(act.attrs)} is fused after a sum, not before it", (act.name,))
        if row is None:
            return Reject(f"the kernel has no post-op {act.op} with {dict(act.attrs)}", (act.name,))
        if self.int8 and not row.int8:
            return Reject(row.reason, (act.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        root = match.root
        outside, subgraph = _subgraph(match)
        flags = _flags(self.spec, match)
        fused = Node(root.name, self.spec.fused_op, flags, outside, (subgraph,), root.label, _note(match))
        dropped = {n.name: () for n in match.interior if n is not root}
        return Rewrite({**dropped, root.name: (fused,)})


def _note(match: Match) -> Annotation:
    """What earlier passes said of the members: why each is what it is, once, and which pixels the last one makes."""
    routes = chain.from_iterable(dict.fromkeys(n.note.routes for n in match.interior))
    return Annotation(origins(*match.interior), tuple(routes), stride=match.root.note.stride)


def _flags(spec: OpSpec, match: Match) -> dict[str, str]:
    if spec.float_op == CONVOLUTION:
        after = "with_postsum_act" if "sum" in match.nodes else "with_act"
        flags = {"early": "with_act", "sum": "with_sum", "act": after}
        return {flag: "true" for member, flag in flags.items() if member in match.nodes}
    kept = {attr: match["layer"].attrs[attr] for attr in spec.kept if attr in match["layer"].attrs}
    return {"with_eltwise": "True", **kept} if "act" in match.nodes else kept


def _subgraph(match: Match) -> tuple[tuple[Ref, ...], Graph]:
    """The fused node's inputs (the layer's own, then the sum operand), and the subgraph over variables for them."""
    layer, early, total, act = (match.nodes.get(k) for k in ("layer", "early", "sum", "act"))
    if layer is None:
        raise ValueError("the pattern binds no 'layer'")
    nodes, outside, names = [], list(layer.inputs), []
    for slot, _ in zip(("data", "weight", "bias"), layer.inputs, strict=False):
        names.append(_free(slot, match))
        nodes.append(Node(names[-1], VARIABLE))
    nodes.append(replace(layer, inputs=tuple(map(Ref, names)), label=""))
    if early is not None:
        nodes.append(replace(early, inputs=(layer.out,), label=""))
    if total is not None:
        outside.append(match.refs["operand"])
        summed, operand = nodes[-1].out, Node(_free("sum", match), VARIABLE)
        nodes += [operand, replace(total, inputs=(summed, operand.out), label="")]
    if act is not None:
        nodes.append(replace(act, inputs=(nodes[-1].out,), label=""))
    return tuple(outside), Graph(tuple(nodes), (nodes[-1].out,))


def _free(name: str, match: Match) -> str:
    taken = {n.name for n in match.interior}
    while name in taken:
        name += "0"
    return name


def _rules(spec: BackendSpec, *, int8: bool) -> Iterator[Rule]:
    """The longest chains first."""
    fusable = [s for s in spec.ops if s.fused_op]
    for row in fusable:
        layer = Op((row.float_op,), bind="layer")
        total = Op((_SUM,), (layer, Any_("operand")), bind="sum", commutative=True)
        acts = tuple(dict.fromkeys(p.op for p in row.post_ops))
        short = row.fused_op.removeprefix("_sg_mkldnn_")
        if row.with_sum:
            early = Op(acts, (layer,), bind="early")
            yield Fuse(f"fuse_{short}_add_act", Op(acts, (total,), bind="act"), row, int8)
            yield Fuse(
                f"fuse_{short}_act_add", Op((_SUM,), (early, Any_("operand")), bind="sum", commutative=True), row, int8
            )
        yield Fuse(f"fuse_{short}_act", Op(acts, (layer,), bind="act"), row, int8)
        if row.with_sum:
            yield Fuse(f"fuse_{short}_add", total, row, int8)
    for row in fusable:
        short = row.fused_op.removeprefix("_sg_mkldnn_")
        yield Fuse(f"fuse_{short}", Op((row.float_op,), bind="layer"), row, int8)


@dataclass(frozen=True)
class FlattenBetween:
    """A Flatten between a fused convolution and the fused layer that flattens its result."""

    layer: str
    conv: str
    name: str = "flatten_between"

    @property
    def pattern(self) -> Op:
        return Op((self.layer,), (Op((self.conv,), bind="conv"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        flattens = the_layer_of(match.root).flag("flatten", default=True)
        return NO_MATCH if not flattens or keeps_size(the_layer_of(match["conv"])) else None

    def build(self, model: Model, match: Match) -> Rewrite:
        layer = match.root
        note = Annotation(routes=(Route.of(RouteKind.FLATTENED),))
        flat = Node(model.graph.unused(f"{layer.name}_flat"), "Flatten", {}, layer.inputs[:1], note=note)
        return Rewrite({layer.name: (flat, replace(layer, inputs=(flat.out, *layer.inputs[1:])))})


def fuse(model: Model, spec: BackendSpec, *, int8: bool) -> tuple[Model, Trace]:
    """Fuses for the float kernels of a table or, with ``int8``, for its int8 ones."""
    # Each rule is exhausted before a shorter one starts, or the short one would take the head of a long chain.
    return exhaust_each(model, (*_rules(spec, int8=int8), *_flattens(spec.for_float)), "fuse")


def _flattens(spec: BackendSpec) -> Iterator[Rule]:
    dense, conv = spec.find(FULLY_CONNECTED), spec.find(CONVOLUTION)
    if dense is not None and conv is not None:
        yield FlattenBetween(dense.fused_op, conv.fused_op)


def fuse_float(spec: BackendSpec) -> Pass:
    """For the float kernels of a backend."""
    return _pass("fuse_float", lambda model: fuse(model, spec.for_float, int8=False))


def fuse_int8(spec: BackendSpec) -> Pass:
    """For the int8 kernels of a backend, and what they do not take for the float ones."""

    def run(model: Model) -> tuple[Model, Trace]:
        model, int8 = fuse(model, spec, int8=True)
        model, rest = fuse(model, spec.for_float, int8=False)
        return model, int8 + rest

    return _pass("fuse_int8", run)


def _pass(name: str, run: Callable[[Model], tuple[Model, Trace]]) -> Pass:
    return Pass(name, run, requires=(FLOAT,), ensures=(FLOAT,))
