"""Simplify: what inference does not need goes, and what it means implicitly is written out.

Before:  x -> Dropout -> y        x -> _copy -> y        x -> sigmoid -> y      BatchNorm(use_global_stats=False)
After:   x ------------> y        x ----------> y        x -> Activation -> y   BatchNorm(use_global_stats=True)

And every operator gets its own name (``_Plus``, ``flatten`` and so on are aliases), sums, differences and so on of two
tensors one for each: see `mxq.passes.same_shape`.

Conditions: the node's result is not an output of the network (its name would change); Dropout is not in
mode "always"; BatchNorm's batch mean and variance are not read. In inference mode MXNet normalises with the
moving statistics whatever ``use_global_stats`` says (``src/operator/nn/batch_norm.cc``), so nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mxq.errors import QuantizeError
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Model
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.traits import operators, traits_of
from mxq.passes.same_shape import RENAMED, OfOneShape, shapes_of
from mxq.registration import OP_TYPE
from mxq.rewrite import NO_MATCH, Contract, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules


@dataclass(frozen=True)
class OwnName:
    """An alias gives way to the operator's own name, which is the one that rules and kernels know."""

    name: str = "own_name"
    pattern: Op = Op(tuple(OWN_NAME))

    def check(self, model: Model, match: Match) -> Reject | None:
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        return Rewrite({node.name: (replace(node, op=OWN_NAME[node.op]),)})


@dataclass(frozen=True)
class DropIdentity:
    """An operator that passes its input through in inference is removed."""

    name: str = "drop_identity"
    pattern: Op = Op(operators(lambda traits: traits.identity))

    def check(self, model: Model, match: Match) -> Reject | None:
        node = match.root
        if node.name in model.graph.head_names:
            return Reject("it is an output of the network, whose name must stay", (node.name,))
        if not traits_of(node).identity:
            return Reject("Dropout in mode 'always' also drops in inference", (node.name,))
        if any(r.output for c in model.graph.consumers[node.name] for r in c.inputs if r.name == node.name):
            return Reject("its second output (the mask) is read", (node.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        return Rewrite({match.root.name: ()}, {match.root.out: match.root.inputs[0]})


@dataclass(frozen=True)
class UseGlobalStats:
    """BatchNorm is told to use its moving statistics, as it does in inference anyway."""

    name: str = "use_global_stats"
    pattern: Op = Op(("BatchNorm",))

    def check(self, model: Model, match: Match) -> Reject | None:
        if match.root.flag("use_global_stats"):
            return NO_MATCH
        if match.root.flag("output_mean_var"):
            return Reject("its batch mean and variance are outputs", (match.root.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        return Rewrite({match.root.name: (match.root.with_attrs(use_global_stats="True"),)})


@dataclass(frozen=True)
class ExplicitGamma:
    """BatchNorm with ``fix_gamma`` gets a gamma of ones: the int8 kernel reads gamma whatever the flag says."""

    name: str = "explicit_gamma"
    pattern: Op = Op(("BatchNorm",))

    def check(self, model: Model, match: Match) -> Reject | None:
        node = match.root
        gamma = node.inputs[1].name
        if not node.flag("fix_gamma", default=True):
            return NO_MATCH
        if not model.is_own(gamma):
            return Reject(f"gamma {gamma!r} is not a parameter of this node alone", (node.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        gamma = node.inputs[1].name
        return Rewrite(
            {node.name: (node.with_attrs(fix_gamma="False"),)}, args={gamma: np.ones_like(model.args[gamma])}
        )


@dataclass(frozen=True)
class AsActivation:
    """An elementwise operator becomes the ``Activation`` that means the same.

    Kernels can fuse that one, and it is oneDNN's: sigmoid and tanh are 11 and 4 times as fast as MXNet's own.
    """

    name: str = "as_activation"
    pattern: Op = Op(("relu", "sigmoid", "tanh"))

    def check(self, model: Model, match: Match) -> Reject | None:
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        return Rewrite({node.name: (replace(node, op="Activation", attrs={"act_type": node.op}, note=Annotation()),)})


def _is_float(model: Model) -> Reject | None:
    for node in model.graph.operators:
        if (traits := traits_of(node)).reads_codes or traits.writes_codes or traits.recodes:
            return Reject(f"{node.name!r} ({node.op}) is already int8", (node.name,))
    return None


FLOAT = Contract("a float network", _is_float)


def check_float(model: Model, allowed: str) -> None:
    """Raises QuantizeError for an int8 network; says what is ``allowed`` instead."""
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(f"the network is quantized already: {refusal.reason}; allowed: {allowed}")


def _is_done(model: Model) -> Reject | None:
    found = {node.name: node.note.fakes for node in model.graph.operators if node.note.fakes}
    if not found:  # files of before have no such notes
        custom = (node for node in model.graph.operators if node.attrs.get("op_type") == OP_TYPE)
        found = {node.name: str(node.inputs[0]) for node in custom}
    name, tensor = next(iter(found.items()), ("", ""))
    return Reject(f"{name!r} fake-quantizes {tensor!r}", (name,)) if found else None


DONE = Contract("a network that does not train with quantization", _is_done)


def check_done(model: Model) -> None:
    """Raises QuantizeError for a network that trains with quantization."""
    refusal = DONE.check(model)
    if refusal is not None:
        raise QuantizeError(
            f"the network trains with quantization: {refusal.reason}; allowed: mxq.qat.convert(block), which gives the "
            "quantized network, or the float network that it was made of"
        )


def _run(model: Model) -> tuple[Model, Trace]:
    rules = (OwnName(), DropIdentity(), UseGlobalStats(), ExplicitGamma(), AsActivation())
    model, trace = apply_rules(model, rules, "simplify")
    if not any(node.op in RENAMED for node in model.graph.operators):
        return model, trace
    model, more = apply_rules(model, (OfOneShape(shapes_of(model)),), "simplify")
    return model, trace + more


SIMPLIFY = Pass("simplify", _run, requires=(FLOAT,), ensures=(FLOAT,))
