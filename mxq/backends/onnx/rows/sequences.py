"""Sequences: recurrent layers, parts by length, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Result, Unfit, Why, whole
from mxq.backends.onnx.row import Row, Rows
from mxq.graph.ir import Array
from mxq.graph.tensors import PerBatch, Side

# ---- recurrent layers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A recurrent layer: its ONNX operator, and of each of its gates, in ONNX's order, where MXNet has it."""

    operator: str
    gates: tuple[int, ...]
    activation: str = ""


_KINDS: Final[Mapping[str, _Kind]] = {
    "lstm": _Kind("LSTM", (0, 3, 1, 2)),  # i f c o -> i o f c
    "gru": _Kind("GRU", (1, 0, 2)),  # r z n -> z r n
    "rnn_tanh": _Kind("RNN", (0,), "Tanh"),
    "rnn_relu": _Kind("RNN", (0,), "Relu"),
}


def rnn(c: Context) -> Result:
    """``rnn-inl.h``: layers one after the other, whose parameters lie in one vector: matrices first, then biases."""
    kind = _KINDS[c.node.attrs["mode"]]
    for attr in ("projection_size", "lstm_state_clip_min", "lstm_state_clip_max"):
        if c.node.attrs.get(attr, "None") != "None":
            raise Unfit(Why.ATTRIBUTE, f"{attr}; allowed: plain cells")
    if c.node.flag("use_sequence_length"):
        raise Unfit(Why.ATTRIBUTE, "use_sequence_length; allowed: whole sequences")
    values = c.known(1, "the vector of parameters")
    layers, both = c.node.integer("num_layers", 1), 1 + c.node.flag("bidirectional")
    width = c.node.integer("state_size", 0)
    cells = [*_cells(c, values, kind, layers, both, width)]
    x, states = c.read(), [_state(c, place, both, layers) for place in range(2, 4 if kind.operator == "LSTM" else 3)]
    last: list[tuple[str, ...]] = []
    for layer in range(layers):
        x, *ends = _layer(c, kind, x, cells[layer], [state[layer] for state in states], width)
        last.append(tuple(ends))
    if not c.node.flag("state_outputs"):
        return x
    return (x, *(ends[0] if layers == 1 else c.emit("Concat", *ends, axis=0) for ends in zip(*last, strict=True)))


def _cells(c: Context, values: Array, kind: _Kind, layers: int, both: int, width: int) -> Sequence[tuple[Array, ...]]:
    """Of each layer the arrays W (directions, gates * width, in), R and B of ONNX."""
    gates, start = len(kind.gates), 0

    def taken(*shape: int) -> Array:
        nonlocal start
        start += int(np.prod(shape))
        return np.asarray(values[start - int(np.prod(shape)) : start].reshape(shape))

    def ordered(value: Array) -> Array:
        return value[list(kind.gates)].reshape(-1, *value.shape[2:])

    sizes = [c.fixed(0, 2), *(both * width,) * (layers - 1)]
    matrices = [[(taken(gates, width, n), taken(gates, width, width)) for _ in range(both)] for n in sizes]
    biases = [[(taken(gates, width), taken(gates, width)) for _ in range(both)] for _ in sizes]
    found = []
    for ws, bs in zip(matrices, biases, strict=True):
        w, r = (np.stack([ordered(pair[i]) for pair in ws]) for i in (0, 1))
        b = np.stack([np.concatenate([ordered(each) for each in pair]) for pair in bs])
        found.append((w, r, b))
    return found


def _state(c: Context, place: int, both: int, layers: int) -> Sequence[str]:
    """Of each layer the states that it begins with; "" for zeros, which ONNX has without being told."""
    source = c.builder.model.graph[c.node.inputs[place].name]
    value = c.parameter(place)
    if source.op in ("_zeros", "zeros_like") or (value is not None and not value.any()):
        return [""] * layers
    if layers == 1:
        return [c.read(place)]
    return c.emit_many("Split", c.read(place), c.integers(*(both,) * layers), outputs=layers, axis=0)


def _layer(
    c: Context, kind: _Kind, x: str, cell: tuple[Array, ...], states: Sequence[str], width: int
) -> tuple[str, ...]:
    """One layer's output (T, N, directions * width), and its last states."""
    names = [c.builder.constant(each, f"{c.node.name}_{what}") for each, what in zip(cell, "WRB", strict=True)]
    both = len(cell[0])
    found = c.emit_many(
        kind.operator,
        x,
        *names,
        "",
        *states,
        outputs=1 + len(states),
        hidden_size=width,
        direction="bidirectional" if both == 2 else "forward",
        linear_before_reset=1 if kind.operator == "GRU" else None,
        activations=[kind.activation] * both if kind.activation else None,
    )
    length, batch = c.shape()[:2]
    turned = c.emit("Transpose", found[0], perm=[0, 2, 1, 3])  # (T, directions, N, width)
    return (c.reshape(turned, (length, batch, both * width)), *found[1:])


# ---- parts by length -----------------------------------------------------------------------------------------


def _lengths(c: Context) -> bool:
    """Whether each sequence has a length of its own, the second input."""
    return c.node.flag("use_sequence_length") and len(c.node.inputs) > 1


def _batch_first(c: Context, x: str) -> str:
    if c.node.integer("axis", 0) == 1:
        return x
    return c.emit("Transpose", x, perm=[1, 0, *range(2, c.rank())])


def sequence_last(c: Context) -> str:
    axis = c.node.integer("axis", 0)
    if not _lengths(c):
        return c.emit("Gather", c.read(), c.constant(-1, np.int64), axis=axis)
    last = c.emit("Sub", c.indices(1), c.constant(1, np.int64))
    return c.emit("GatherND", _batch_first(c, c.read()), c.emit("Unsqueeze", last, c.integers(1)), batch_dims=1)


def sequence_mask(c: Context) -> str:
    if not _lengths(c):
        return c.raw()
    axis = c.node.integer("axis", 0)
    length = c.fixed(0, axis)
    places = np.arange(length).reshape(-1, *(1,) * (c.rank() - 1 - axis))
    sides = [1] * c.rank()
    sides[1 - axis] = -1
    lengths = c.emit("Reshape", c.indices(1), c.integers(*sides))
    inside = c.emit("Less", c.constant(places, np.int64), lengths)
    return c.emit("Where", inside, c.read(), c.number(c.node.number("value", 0.0)))


def sequence_reverse(c: Context) -> str:
    if not _lengths(c):
        return c.sliced(c.read(), 0, -1, None, -1)
    return c.emit("ReverseSequence", c.read(), c.indices(1), time_axis=0, batch_axis=1)


# ---- attention -----------------------------------------------------------------------------------------------


def _parts(c: Context, place: int, count: int) -> list[str]:
    """Queries, keys and values that lie side by side in each head of (length, batch, heads * count * width).

    Each becomes (batch * heads, length, width), as ``transformer.cc`` has them.
    """
    heads = c.node.integer("heads", 1)
    length, batch, units = c.shape(place)
    width = whole(units, "the width") // heads // count
    apart = c.reshape(c.read(place), (length, _times(batch, heads), count, width))
    return [
        c.emit("Transpose", c.emit("Gather", apart, c.constant(i, np.int64), axis=2), perm=[1, 0, 2])
        for i in range(count)
    ]


def _times(side: Side, factor: int) -> Side:
    if isinstance(side, PerBatch):
        return PerBatch(side.times * factor, side.plus * factor)
    return whole(side, "the number of examples") * factor


def _scores(c: Context, queries: str, keys: str, width: int) -> str:
    scaled = c.emit("Mul", queries, c.number(1 / np.sqrt(width)))
    return c.emit("MatMul", scaled, c.emit("Transpose", keys, perm=[0, 2, 1]))


def selfatt_qk(c: Context) -> str:
    queries, keys, _ = _parts(c, 0, 3)
    return _scores(c, queries, keys, c.fixed(0, 2) // c.node.integer("heads", 1) // 3)


def selfatt_valatt(c: Context) -> str:
    return _mixed(c, _parts(c, 0, 3)[2])


def encdec_qk(c: Context) -> str:
    (queries,), (keys, _) = _parts(c, 0, 1), _parts(c, 1, 2)
    return _scores(c, queries, keys, c.fixed(0, 2) // c.node.integer("heads", 1))


def encdec_valatt(c: Context) -> str:
    return _mixed(c, _parts(c, 0, 2)[1])


def _mixed(c: Context, values: str) -> str:
    """Values by how much attention each gets, the second input; (length, batch, heads * width)."""
    mixed = c.emit("MatMul", c.read(1), values)
    return c.reshape(c.emit("Transpose", mixed, perm=[1, 0, 2]), c.made.shape)


def div_sqrt_dim(c: Context) -> str:
    return c.emit("Div", c.read(), c.number(float(np.sqrt(c.fixed(0, c.rank() - 1)))))


ROWS: Final[Rows] = {
    "RNN": Row(rnn, "constant parameters, whole sequences, no projection or clipping"),
    "SequenceLast": Row(sequence_last),
    "SequenceMask": Row(sequence_mask),
    "SequenceReverse": Row(sequence_reverse),
    "_contrib_interleaved_matmul_selfatt_qk": Row(selfatt_qk),
    "_contrib_interleaved_matmul_selfatt_valatt": Row(selfatt_valatt),
    "_contrib_interleaved_matmul_encdec_qk": Row(encdec_qk),
    "_contrib_interleaved_matmul_encdec_valatt": Row(encdec_valatt),
    "_contrib_div_sqrt_dim": Row(div_sqrt_dim),
}
