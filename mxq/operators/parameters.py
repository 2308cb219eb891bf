"""Parameter shapes against what attributes and neighbours ask for.

MXNet says so only when the network runs, on data; the passes that fold one layer into another work before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from mxq.errors import FormatError
from mxq.graph.ir import Model, Node, Ref
from mxq.graph.layers import groups_of
from mxq.graph.traits import traits_of

_CHANNELS = ("", "C", "C", "C", "C")

SHAPES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Convolution": ("", "num_filter . *kernel", "num_filter"),
        "Deconvolution": ("", ". num_filter/num_group *kernel", "num_filter"),
        "FullyConnected": ("", "num_hidden .", "num_hidden"),
        "BatchNorm": _CHANNELS,
        "LayerNorm": _CHANNELS[:3],
        "InstanceNorm": _CHANNELS[:3],
        "GroupNorm": _CHANNELS[:3],
        "Embedding": ("", "input_dim output_dim"),
        "LeakyReLU": ("", "C|1"),
    }
)
"""Operator -> the dimensions of each input, by words: an attribute's value (``*`` all of them, ``/`` divided by
another), ``.`` for any, ``C`` for one number that is the same in all of the node's inputs, ``C|1`` for that or 1.
An empty text: anything."""

_CONVOLUTIONS = ("Convolution", "Deconvolution")


def check_parameters(model: Model) -> None:
    """Every parameter has the shape that the attributes of its reader, and the channels of the data, ask for.

    Raises:
        FormatError: one has not; names it, its shape and what is asked for.
    """
    channels: dict[Ref, int] = {}  # of the outputs where they are known
    for node in model.graph.operators:
        traits = traits_of(node)
        data = [node.inputs[place] for place in traits.places(node)]
        given = [channels[ref] for ref in data if ref in channels]
        _check_shapes(model, node, given[0] if given and traits.channel_axis == 1 else None)
        found = _channels(model, node, given)
        if found is not None:
            channels[node.out] = found


def _check_shapes(model: Model, node: Node, free: int | None) -> None:
    """Parameters are as the node's row of `SHAPES` says; ``free`` is what ``C`` stands for, where that is known."""
    if not node.is_channels_first:
        return
    for ref, words in zip(node.inputs, SHAPES.get(node.op, ()), strict=False):
        value = model.param(ref.name)
        if not words or value is None:
            continue
        wanted = list(_dimensions(node, words, free))
        if not _fits(value.shape, wanted) and not (words == "C|1" and value.shape == (1,)):
            raise _misfit(node, ref, value.shape, wanted)
        if 0 in value.shape:
            raise FormatError(f"the parameter {ref.name!r} of {node.name!r} is empty, of shape {list(value.shape)}")
        free = int(value.shape[0]) if words == "C" else free


def _fits(shape: tuple[int, ...], wanted: list[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == d for w, d in zip(wanted, shape, strict=True))


def _dimensions(node: Node, words: str, free: int | None) -> Iterator[int | None]:
    for word in words.split():
        if word == ".":
            yield None
        elif word in ("C", "C|1"):
            yield free
        elif word.startswith("*"):
            yield from node.ints(word[1:])
        else:
            attr, _, divisor = word.partition("/")
            yield node.integer(attr, 0) // max(node.integer(divisor, 1) if divisor else 1, 1)


def _misfit(node: Node, ref: Ref, shape: tuple[int, ...], wanted: list[int | None]) -> FormatError:
    asked = ", ".join("*" if d is None else str(d) for d in wanted)
    return FormatError(
        f"the parameter {ref.name!r} of {node.name!r} has shape {list(shape)}; the graph asks for [{asked}]"
    )


def _channels(model: Model, node: Node, given: list[int]) -> int | None:
    """The second axis of the node's result, where it is known.

    Raises:
        FormatError: its parameters or data do not go together.
    """
    if not node.is_channels_first:
        return None
    if node.op in _CONVOLUTIONS:
        _check_convolution(model, node, given)
        return node.integer("num_filter", 0)
    if node.op == "Concat" and node.attrs.get("dim", "1") == "1":
        return sum(given) if len(given) == len(node.inputs) else None
    if given and (traits_of(node).keeps_shape or traits_of(node).per_channel):
        if len(set(given)) > 1:
            raise FormatError(f"{node.name!r} ({node.op}) reads tensors of {' and '.join(map(str, given))} channels")
        return given[0]
    return None


def _check_convolution(model: Model, node: Node, given: list[int]) -> None:
    groups, filters = groups_of(node), node.integer("num_filter", 0)
    if filters % groups:
        raise FormatError(f"{node.name!r} ({node.op}): num_filter {filters} is no multiple of num_group {groups}")
    weight = model.param(node.inputs[1].name)
    if weight is None or not given:
        return
    taken = weight.shape[1] * groups if node.op == "Convolution" else weight.shape[0]
    if taken != given[0]:
        wanted = [filters, given[0] // groups] if node.op == "Convolution" else [given[0], filters // groups]
        raise _misfit(node, node.inputs[1], weight.shape, [*wanted, *weight.shape[2:]])
