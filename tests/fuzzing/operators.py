"""Mutations of symbol JSON by what MXNet says of its operators: any of them, with attributes of the right types."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from random import Random
from typing import Any

from fuzzing.graphs import VALUES, graph_mutated
from fuzzing.trees import copied
from mxq.runtime.mxnet import mx
from mxq.runtime.operator_registry import REGISTRY

INTEGERS = ("0", "-1", "1", "2", "3", "5", "8", "-7", "32768", "1000000", "2147483647", "-2147483648", "4294967295")
FLOATS = ("0", "1", "-1", "0.5", "inf", "-inf", "nan", "1e40", "1e-40")
OF_VARIABLES = (
    "__shape__",
    "__dtype__",
    "__storage_type__",
    "__init__",
    "__input_shape__",
    "lr_mult",
    "weight_lr_mult",
)
VERSIONS = (0, 700, 800, 899, 900, 905, 1000, 10800, 10901, 20000, -5, 2**40)


def operators_mutated(tree: Any, rng: Random) -> Any:
    """A changed copy of a symbol's JSON object."""
    if not isinstance(tree, dict) or rng.random() < 0.3:
        return graph_mutated(tree, rng)
    tree = copied(tree)
    try:
        graph = rng.choice(_graphs(tree)) if rng.random() < 0.6 else tree
        rng.choice(CHANGES)(graph, rng)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # it is no graph any more
        return graph_mutated(tree, rng)
    return tree


def _graphs(tree: Any) -> list[Any]:
    """The graph and all of its subgraphs."""
    return [tree, *(g for node in tree["nodes"] for sub in node.get("subgraphs", ()) for g in _graphs(sub))]


@cache
def arguments() -> Mapping[str, Mapping[str, str]]:
    """MXNet's operators: the names and types of inputs and attributes."""
    count, names = ctypes.c_uint(), ctypes.POINTER(ctypes.c_char_p)()
    mx.base.check_call(mx.base._LIB.MXListAllOpNames(ctypes.byref(count), ctypes.byref(names)))  # noqa: SLF001
    found = {name: REGISTRY.find(name) for name in sorted(names[i].decode() for i in range(count.value))}
    return {name: signature.attributes for name, signature in found.items() if signature}


def _attributes(op: str) -> dict[str, str]:
    return {n: k for n, k in arguments().get(op, {}).items() if not k.startswith(("NDArray", "Symbol"))}


def _value(kind: str, rng: Random) -> str:
    """One of the type ``kind``, mostly."""
    if rng.random() < 0.1:
        return rng.choice(VALUES)
    if kind.startswith("{"):
        return rng.choice([word.strip().strip("'") for word in kind[1 : kind.index("}")].split(",")])
    if kind.startswith("boolean"):
        return rng.choice(("True", "False"))
    if "Shape" in kind or kind.startswith("tuple"):
        return (
            "(" + "".join(f"{rng.choice(INTEGERS[:8])}, " for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 4, 40)))) + ")"
        )
    if kind.startswith(("int", "long")):
        return rng.choice(INTEGERS)
    return rng.choice(FLOATS)


def _operator(graph: Any, rng: Random) -> Any:
    return rng.choice([n for n in graph["nodes"] if n["op"] != "null"])


def _typed(graph: Any, rng: Random) -> None:
    """An attribute that the operator has, of its type."""
    node = _operator(graph, rng)
    name, kind = rng.choice(list(_attributes(node["op"]).items()))
    node.setdefault("attrs", {})[name] = _value(kind, rng)


def _swapped(graph: Any, rng: Random) -> None:
    """Any operator in the place of another."""
    _operator(graph, rng)["op"] = rng.choice(list(arguments()))


def _made(graph: Any, rng: Random) -> None:
    """Any operator, with attributes of its own, and the right number of inputs."""
    node = _operator(graph, rng)
    before = [[i, 0, 0] for i in range(graph["nodes"].index(node))] or [[0, 0, 0]]
    node["op"] = rng.choice(list(arguments()))
    kinds = _attributes(node["op"])
    node["attrs"] = {n: _value(k, rng) for n, k in kinds.items() if "required" in k or rng.random() < 0.2}
    wanted = sum(kind.startswith("NDArray-or-Symbol") for kind in arguments()[node["op"]].values())
    node["inputs"] = (node["inputs"] + [list(rng.choice(before)) for _ in range(wanted)])[:wanted]
    node.pop("subgraphs", None)


def _rewired(graph: Any, rng: Random) -> None:
    """Earlier nodes in the place of a node's inputs."""
    node = _operator(graph, rng)
    node["inputs"] = [[rng.randrange(graph["nodes"].index(node)), 0, 0] for _ in node["inputs"]]


def _heads(graph: Any, rng: Random) -> None:
    every = [[i, 0, 0] for i in range(len(graph["nodes"]))]
    graph["heads"] = rng.choice(([], graph["heads"] * 2, every, [rng.choice(every)], [[0, 0, 0]]))


def _variable(graph: Any, rng: Random) -> None:
    node = rng.choice([n for n in graph["nodes"] if n["op"] == "null"])
    node.setdefault("attrs", {})[rng.choice(OF_VARIABLES)] = rng.choice((*VALUES, *INTEGERS))


def _version(graph: Any, rng: Random) -> None:
    graph["attrs"] = rng.choice(({}, {"mxnet_version": ["int", rng.choice(VERSIONS)]}, {"x": ["int", 1]}))


def _subgraphs(graph: Any, rng: Random) -> None:
    node = rng.choice([n for n in graph["nodes"] if n.get("subgraphs")])
    node["subgraphs"] = rng.choice(([], node["subgraphs"] * 2, [_operator(graph, rng).get("subgraphs", [])]))


CHANGES: tuple[Callable[[Any, Random], None], ...] = (
    *(_typed, _typed, _typed, _typed, _swapped, _made, _made, _made, _rewired, _rewired),
    *(_heads, _variable, _version, _subgraphs),
)
