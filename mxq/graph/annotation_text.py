"""Annotations as text: attributes of nodes that hold `mxq.graph.annotation.Annotation`. MXNet ignores them.

An attribute that says nothing, or nothing that can be understood and need not be, stays an attribute as it was.

Names tell where an attribute would repeat them: no file says which tensor ``quantized_x`` gives the codes of. That is
read back here, in `_tensor_by_name` and `_unshifted_by_name`, and nowhere else; files of any release, and those that
stock MXNet quantized, have these names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mxq.errors import FormatError
from mxq.graph.annotation import NOTHING, Annotation, Route, RouteKind
from mxq.graph.ir import Node
from mxq.graph.traits import traits_of

T = TypeVar("T")

MADE, REMADE = "quantized_", "requantize_"
"""What the name of an int8 operator begins with, and that of what gives its sums a range found at run time."""
SHIFTED = "_shifted"
"""What the name of a tensor that is shifted in float, too, ends with."""
NORMALIZE = "_normalize"
"""What the name of the convolution that makes codes of the pixels of an input ends with."""
CENTRED, NORMALIZED = "_centred", "_normalized"
"""What the names of the last two operators that make an input of its pixels in float end with."""

_ORIGIN, _ROUTE, _TENSOR, _STRIDE = "__origin__", "__route__", "__tensor__", "__stride__"
_FAKES = "__fake_quantizes__"
_ORDER, _SCALE, _AXIS, _OFFSET = "__channel_order__", "__channel_scale__", "__channel_axis__", "__offset__"
INPUT_SHAPE, _PLACE = "__input_shape__", "__input_place__"
_NEXT = "; "
"""Between the sentences of several routes."""
_INTEGERS = re.compile(r"\s*[(\[]\s*(-?\d{1,9}(?:\s*,\s*-?\d{1,9})*)\s*,?\s*[)\]]\s*", re.ASCII)
_TWO = re.compile(r"(\d{1,9}),(\d{1,9})", re.ASCII)
_OF_TWO = re.compile(r"\((\d{1,4}), (\d{1,4})\)", re.ASCII)


# ---- reading -------------------------------------------------------------------------------------------------


def annotated(node: Node) -> Node:
    """``node``, as a file has it, with what its attributes and its name say in its note.

    Raises:
        FormatError: an attribute is damaged; names it and the node.
    """
    said: dict[str, Any] = {}
    left = dict(node.attrs)
    for attr in (a for a in _READERS if a in node.attrs):
        found = _read(node, attr)
        if found:
            said |= found
            del left[attr]
    if said:
        node = replace(node, attrs=left, note=Annotation(**said))
    tensor = node.note.tensor or _tensor_by_name(node)
    note = replace(node.note, tensor=tensor, unshifted=_unshifted_by_name(tensor or node.name, node.note))
    return node if note == node.note else replace(node, note=note)


def _read(node: Node, attr: str) -> dict[str, Any]:
    try:
        return _READERS[attr](node.attrs[attr])
    except ValueError as error:
        where = f"node {node.name!r} ({node.op}): {attr} is {node.attrs[attr][:60]!r}"
        raise FormatError(f"{where}; allowed: {error}") from None


def _tensor_by_name(node: Node) -> str:
    """The float tensor whose codes ``node`` gives, as its name tells; empty where it does not."""
    first = node.inputs[0].name if node.inputs else ""
    traits = traits_of(node)
    if traits.reads_codes and traits.writes_codes and traits.recodes:
        return node.name.removeprefix(REMADE) if node.name.startswith(REMADE) else ""
    if traits.reads_codes and not traits.recodes:
        if node.name.startswith(MADE):
            return node.name.removeprefix(MADE)
        return first if node.name == first + NORMALIZE else ""
    end = node.name.removesuffix(NORMALIZED)
    return end if end != node.name and first == end + CENTRED else ""


def _unshifted_by_name(tensor: str, note: Annotation) -> str:
    """The tensor of which ``tensor`` is a shifted form; empty where it is none."""
    return tensor.removesuffix(SHIFTED) if note.offset and tensor.endswith(SHIFTED) else ""


def _read_origins(text: str) -> dict[str, Any]:
    """A JSON list of names; older files have them joined by spaces."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return {"origins": tuple(found)}
    return {"origins": tuple(text.split(" "))}


def _read_routes(text: str) -> dict[str, Any]:
    return {"routes": tuple(Route(_kind(why), why) for why in text.split(_NEXT))} if text else {}


def _kind(sentence: str) -> RouteKind:
    return next(kind for kind in RouteKind if sentence.startswith(kind.value))  # the last one's is empty


def _read_order(text: str) -> dict[str, Any]:
    order = _parts(text, int, "integers such as 1,0")
    if sorted(order) != list(range(len(order))):
        raise ValueError("each of 0, 1, ... once")
    return {"order": order} if order else {}


def _read_scale(text: str) -> dict[str, Any]:
    scale = _parts(text, _finite, "numbers such as 0.5,2")
    return {"scale": scale} if scale else {}


def _read_axis(text: str) -> dict[str, Any]:
    if text not in ("1", "-1"):
        raise ValueError("1 or -1")
    return {"axis": -1} if text == "-1" else {}


def _read_offset(text: str) -> dict[str, Any]:
    offsets = _parts(text, _finite, "a number")
    if len(offsets) > 1:
        raise ValueError("a number")
    return {"offset": offsets[0]} if any(offsets) else {}


def _read_stride(text: str) -> dict[str, Any]:
    found = _TWO.fullmatch(text)
    stride = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(stride) < 1:
        raise ValueError("two integers from 1 on, such as 2,2")
    return {"stride": stride} if stride != (1, 1) else {}


def _read_shape(text: str) -> dict[str, Any]:
    """Whether MXNet can be given it is for `mxq.operators.check_graph` to say."""
    found = _INTEGERS.fullmatch(text)
    return {"input_shape": tuple(int(v) for v in found[1].split(","))} if found else {}


def _read_place(text: str) -> dict[str, Any]:
    """A damaged place is as good as none: see `Model.arguments`."""
    found = _OF_TWO.fullmatch(text)
    return {"input_place": (int(found[1]), int(found[2]))} if found and int(found[1]) < int(found[2]) else {}


def _parts(text: str, read: Callable[[str], T], allowed: str) -> tuple[T, ...]:
    """What stands between commas."""
    try:
        return tuple(read(part) for part in text.split(",") if part)
    except ValueError:
        raise ValueError(allowed) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_READERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    _ORIGIN: _read_origins,
    _ROUTE: _read_routes,
    _TENSOR: lambda text: {"tensor": text} if text else {},
    _FAKES: lambda text: {"fakes": text} if text else {},
    _ORDER: _read_order,
    _SCALE: _read_scale,
    _AXIS: _read_axis,
    _OFFSET: _read_offset,
    _STRIDE: _read_stride,
    INPUT_SHAPE: _read_shape,
    _PLACE: _read_place,
}
"""What the text of an attribute says, as fields of `Annotation`: nothing where it is not understood, or the default."""


# ---- writing -------------------------------------------------------------------------------------------------


def attributes(node: Node) -> dict[str, str]:
    """The attributes of ``node`` as files have them, with what its note says; `annotated` reads them back."""
    note = node.note
    if note == NOTHING:
        return dict(node.attrs)
    said = {
        _ORIGIN: json.dumps(list(note.origins)) if note.origins else "",
        _ROUTE: note.why,
        _TENSOR: note.tensor if note.tensor != _tensor_by_name(node) else "",
        _FAKES: note.fakes,
        _ORDER: ",".join(map(str, note.order)),
        _SCALE: ",".join(map(scale_text, note.scale)),
        _AXIS: str(note.axis) if note.axis != NOTHING.axis else "",
        _OFFSET: repr(note.offset) if note.offset else "",
        _STRIDE: ",".join(map(str, note.stride)) if note.stride != NOTHING.stride else "",
        INPUT_SHAPE: str(note.input_shape) if note.input_shape else "",
        _PLACE: str(note.input_place) if note.input_place else "",
    }
    return {**node.attrs, **{attr: text for attr, text in said.items() if text}}


def scale_text(factor: float) -> str:
    """A factor of `Annotation.scale`, with no more digits than it has."""
    short = f"{factor:.8g}"
    return short if float(short) == factor else repr(factor)
