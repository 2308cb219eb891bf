"""What an operator does, in a few words: "Convolution 3x3 / 2, 64 + relu"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mxq.graph.ir import Node
from mxq.graph.operator_names import OWN_NAME

PREFIXES: Final = ("_contrib_quantized_", "_contrib_", "_np_", "_npi_", "_npx_", "_sg_mkldnn_", "_")
"""Of names of operators; they say nothing about what one does."""
WORDS: Final[Mapping[str, str]] = {
    "elemwise_add": "add",
    "broadcast_add": "add",
    "elemwise_mul": "multiply",
    "broadcast_mul": "multiply",
    "quantize_v2": "quantize",
    "fully_connected": "FullyConnected",
    "conv": "Convolution",
    "pooling": "Pooling",
    "concat": "Concat",
    "flatten": "Flatten",
    "act": "Activation",
}
"""Names that are read at once -> for those that are not."""


def title_of(node: Node) -> str:
    """What ``node`` does; of a fused one, each of its operators in turn."""
    first, *others = (node.subgraphs[0].operators if node.op.startswith("_sg_") and node.subgraphs else ()) or (node,)
    return " + ".join([_whole(first), *map(_short, others)])


def _whole(part: Node) -> str:
    word = _word(part.op)
    if word in _NAMED:
        return _short(part)
    say = _SAID.get(word)
    return f"{word} {say(part)}" if say else word


def _word(op: str) -> str:
    name = OWN_NAME.get(op, op)
    for prefix in PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    return WORDS.get(name, name)


def _short(part: Node) -> str:
    """What comes after the first of a fused chain."""
    word = _word(part.op)
    return part.attrs.get("act_type", _NAMED[word]) if word in _NAMED else word


def _window(part: Node) -> str:
    """Sides, and the stride where it is above 1: "3x3 / 2"."""
    stride = max(part.ints("stride"), default=1)
    return "x".join(map(str, part.ints("kernel"))) + (f" / {stride}" if stride > 1 else "")


def _convolution(part: Node) -> str:
    groups, filters = part.integer("num_group", 1), part.integer("num_filter", 0)
    depthwise = groups > 1 and groups == filters
    kind = ", depthwise" if depthwise else f", {groups} groups" if groups > 1 else ""
    return f"{_window(part)}, {filters}{kind}"


def _pooling(part: Node) -> str:
    kind = part.attrs.get("pool_type", "max")
    if part.flag("global_pool"):
        return f"{kind}, global"
    return f"{kind} {_window(part)}"


def _type(part: Node) -> str:
    return part.attrs.get("out_type", "int8")


_NAMED: Final[Mapping[str, str]] = {"Activation": "relu", "LeakyReLU": "leaky"}
"""Operators that are called by their function -> the function where none is named."""
_SAID: Final[Mapping[str, Callable[[Node], str]]] = {
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "FullyConnected": lambda part: str(part.integer("num_hidden", 0)),
    "Pooling": _pooling,
    "quantize": _type,
    "requantize": _type,
}
"""Kind of operator -> what is said of it beside its name."""
