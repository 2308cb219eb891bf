"""Which layers a network has to choose about, and the settings under which some of them stay in float.

A layer is an operator that is worth int8 by itself (role "compute" in the backend's table) and would become int8. What
lies between layers follows from them: `mxq.passes.partition` decides anew for every choice, so that a pooling or a sum
never is int8 on its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from mxq.config import LayerConfig, QuantConfig
from mxq.errors import ConfigError
from mxq.graph.ir import Ref
from mxq.passes.partition import data_inputs
from mxq.pipeline import Prepared

ALL: Final = "**"
"""A pattern for every name that no user gives."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the fused network: its ``name``, and ``op``, the chain of op types in it."""

    name: str
    op: str


def layers(prepared: Prepared) -> tuple[Layer, ...]:
    """The layers that the plan makes int8, in graph order."""
    graph = prepared.fused.graph
    found = []
    for decision in prepared.plan.decisions:
        spec = prepared.backend.spec.find(graph[decision.node].op)
        if decision.int8 and spec is not None and spec.role == "compute":
            found.append(Layer(decision.node, decision.op))
    return tuple(found)


def with_floats(config: QuantConfig, floats: Collection[str]) -> QuantConfig:
    """``config`` with the nodes ``floats`` left in float, whatever it says of them otherwise."""
    if not floats:
        return config
    kept = {pattern: layer for pattern, layer in config.overrides.items() if pattern not in floats}
    last = {name: replace(config.overrides.get(name, LayerConfig()), quantize=False) for name in floats}
    return replace(config, overrides={**kept, **last})  # later ones win


def with_only(config: QuantConfig, all_layers: Collection[str], name: str) -> QuantConfig:
    """``config`` with the layer ``name`` alone in int8; in mode "smart", so that no other operator is.

    Hardware that is simulated quantizes what lies between layers whatever they are, so that has to be excluded, too.
    """
    others = with_floats(config, [other for other in all_layers if other != name])
    if config.simulate:
        others = replace(others, overrides={**others.overrides, ALL: LayerConfig(quantize=False)})
    chosen = replace(others.overrides.get(name, LayerConfig()), quantize=True)
    kept = {pattern: layer for pattern, layer in others.overrides.items() if pattern != name}
    return replace(others, overrides={**kept, name: chosen}, quantize_mode="smart")


def wholly_int8(config: QuantConfig) -> QuantConfig:
    """``config`` with noisy layers that are choices like any other, unless it says what they are to be (``stem``)."""
    return replace(config, stem="int8") if config.stem is None else config


def observing_more(prepared: Prepared) -> Prepared:
    """``prepared`` with every tensor to observe whose range may be needed when some layers stay in float.

    Those are what its int8 operators read and write: one that int8 kernels hand on now is quantized from float where
    what makes it has stayed in float.

    Raises:
        ConfigError: the int8 network would be fed integers.
    """
    if prepared.config.input_dtype != "float32":
        raise ConfigError(
            f"input_dtype is {prepared.config.input_dtype!r} where networks are compared; allowed: 'float32' (then "
            "quantize_net, with the settings that were found and this input_dtype)"
        )
    if not prepared.plan.observe:  # ranges at run time
        return prepared
    wanted = dict.fromkeys((*prepared.plan.observe, *_around(prepared)))
    return replace(prepared, plan=replace(prepared.plan, observe=tuple(wanted), removed=()))


def _around(prepared: Prepared) -> Iterator[Ref]:
    for node in prepared.fused.graph.operators:
        spec = prepared.backend.spec.find(node.op)
        if node.name in prepared.plan.quantized and spec is not None:
            yield from (node.inputs[i] for i in data_inputs(node, spec))
            yield node.out
