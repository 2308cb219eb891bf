"""Sizes and types that MXNet does not check when it binds a network to data: it then writes where it must not.

``ReshapeShape`` of MXNet 1.9.1 lets a Reshape change the number of values (its check is within ``#if 0``), and the
kernel then reads or writes beyond an array. An operator whose inputs do not fit each other runs, if others tell the
size of what it makes. Integers divided by 0 end the process. Linux promises memory that it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.formats.params import LARGEST
from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.traits import Arithmetic, Operand, traits_of
from mxq.operators.limits import is_of_numpy
from mxq.runtime.mxnet import mx, to_symbol

SMALL = 2**24
"""Values that any machine has room for."""
COUNTS, PARTS, PRODUCTS = (
    ("shape_array", "size_array"),
    ("SliceChannel", "slice_axis"),
    ("elemwise_mul", "broadcast_mul"),
)
"""Operators that count sides or values, that give some of these, and that multiply them."""
FACTORS = 2
"""Counts that may be multiplied."""


class Sizes:
    """What a graph's tensors are, for given inputs and parameters."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._operators = graph.operators
        self._divisions = tuple(node for node in self._operators if _divides(node))

    @cached_property
    def _tensors(self) -> tuple[Ref, ...]:
        """What operators read, and the first tensor that each makes."""
        return tuple(dict.fromkeys(ref for node in self._operators for ref in (*node.inputs, node.out)))

    @cached_property
    def _symbol(self) -> Any:
        """Gives `_tensors`."""
        return to_symbol(Graph(self._graph.nodes, self._tensors, self._graph.attrs))

    def _read(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``arrays`` that operators read: MXNet refuses others, such as an input that is an output."""
        names = {ref.name for ref in self._tensors}
        return {name: array for name, array in arrays.items() if name in names}

    @cached_property
    def _each(self) -> Any:
        """Gives the first tensor of every operator, which reads variables of its own, named by `_part`."""
        nodes: list[Node] = []
        for i, node in enumerate(self._operators):
            own = [Node(_part(i, j), "null") for j in range(len(node.inputs))]
            nodes += [*own, replace(node, name=f"{i}", label="", inputs=tuple(part.out for part in own))]
        heads = tuple(Ref(f"{i}") for i in range(len(self._operators)))
        return to_symbol(Graph(tuple(nodes), heads, self._graph.attrs))

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Nothing is too large, and what MXNet would corrupt memory with is refused.

        Args:
            arrays: those of inputs and parameters, by name: MXNet's.

        Raises:
            RuntimeFailure: names the operator, and what it would make of what.
        """
        if not self._operators:
            return
        arrays = self._read(arrays)
        if mx.util.is_np_shape() or any(is_of_numpy(node.op) for node in self._operators):
            with mx.util.np_shape(active=True):  # elsewhere MXNet says () of what it does not know, too
                self._check_reshapes({name: array.shape for name, array in arrays.items()})
        _, found, _ = self._symbol.infer_shape_partial(**{k: v.shape for k, v in arrays.items()})
        shapes = dict(zip(self._tensors, found, strict=True))
        for node in self._operators:
            made, read = shapes[node.out], [shapes[ref] for ref in node.inputs]
            _check_size(node, made)
            if traits_of(node).keeps_order and _is_known(made) and _is_known(read[0]) and prod(read[0]) != prod(made):
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) would make {list(made)} of {list(read[0])}; allowed: as many values"
                )
        self._check_fits(shapes)
        if self._divisions:
            self._check_types(arrays)

    def _check_reshapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """What each Reshape reads, before MXNet infers what it makes: that ends the process for what numpy alone has.

        Code -3 of a tensor without axes reads beyond its shape; code -1 of one without values divides by 0
        (``InferReshapeShape``).
        """
        for node in self._operators:
            if any(_joins_or_infers(inner) for sub in node.subgraphs for inner in sub.operators):
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) holds a Reshape by code -1 or -3, which MXNet does not check among "
                    "numpy's operators; allowed: sizes, or npx.reshape"
                )
            if not _joins_or_infers(node):
                continue
            symbol = to_symbol(Graph(self._graph.nodes, node.inputs[:1], self._graph.attrs))
            names = set(symbol.list_inputs())
            _, (read,), _ = symbol.infer_shape_partial(**{k: shape for k, shape in shapes.items() if k in names})
            if read == () or 0 in (read or ()):
                raise RuntimeFailure(
                    f"{node.name!r} (Reshape) by {node.attrs['shape']} reads a tensor of shape {list(read)}; "
                    "allowed: one with axes and values"
                )

    def _check_fits(self, shapes: Mapping[Ref, tuple[int, ...] | None]) -> None:
        """Where MXNet cannot tell what an operator makes from its inputs alone, these do not fit each other.

        It would run the operator all the same, if others that read or make the same tensors say their sizes.
        """
        reads = [[shapes[ref] for ref in node.inputs] for node in self._operators]
        parts = {_part(i, j): shape for i, read in enumerate(reads) for j, shape in enumerate(read) if _is_known(shape)}
        _, found, _ = self._each.infer_shape_partial(**parts)
        for node, read, made in zip(self._operators, reads, found, strict=True):
            sized = not traits_of(node).sized_by_values
            if read and sized and not _is_known(made) and all(map(_is_known, read)):
                of = ", ".join(str(list(shape or ())) for shape in read)
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) would make a tensor of unknown size of {of}; "
                    "allowed: shapes that fit the operator, and each other"
                )

    def _check_types(self, arrays: Mapping[str, Any]) -> None:
        _, found, _ = self._symbol.infer_type_partial(**{k: v.dtype for k, v in arrays.items()})
        types = dict(zip(self._tensors, found, strict=True))
        for node in self._divisions:
            dtype = types[node.inputs[0]]
            safe = self._by_no_zero(node)
            if not safe and dtype is not None and np.issubdtype(dtype, np.integer):
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) divides {np.dtype(dtype)}, and a divisor of 0 would end the process; "
                    "allowed: floating point"
                )

    def _by_no_zero(self, node: Node) -> bool:
        """Whether a division is by a number other than 0, or by what counts sides and values alone."""
        if traits_of(node).operand is Operand.SCALAR:
            return abs(node.number("scalar", 1)) >= 1
        return len(node.inputs) > 1 and node.inputs[1].name in self._counts

    @cached_property
    def _counts(self) -> Mapping[str, int]:
        """Operators that give sides of shapes, numbers of values or products of these -> of how many, at most.

        A side has 31 bits: a product of two is no 0 in 64 bits, while one of many may be.
        """
        found = dict[str, int]()
        for node in self._operators:
            op = OWN_NAME.get(node.op, node.op)
            factors = [found.get(ref.name, FACTORS + 1) for ref in node.inputs]
            many = 1 if op in COUNTS else max(factors) if op in PARTS else sum(factors)
            if op in (*COUNTS, *PARTS, *PRODUCTS) and many <= FACTORS:
                found[node.name] = many
        return found


def _divides(node: Node) -> bool:
    """Whether it divides by what it reads, or by its ``scalar``."""
    return traits_of(node).arithmetic in (Arithmetic.DIVIDE, Arithmetic.MODULO)


def _is_known(shape: tuple[int, ...] | None) -> bool:
    """Of a size that MXNet does not know it says None, or -1 for a side; () or 0 without numpy's semantics."""
    if mx.util.is_np_shape():
        return shape is not None and min(shape, default=0) >= 0
    return bool(shape) and min(shape or ()) > 0


def _joins_or_infers(node: Node) -> bool:
    """Whether it is a Reshape that joins axes, or infers a size."""
    return OWN_NAME.get(node.op, node.op) == "Reshape" and not {-1, -3}.isdisjoint(node.ints("shape"))


def _part(operator: int, place: int) -> str:
    """The variable that the operator of this number reads at ``place``."""
    return f"{operator}_{place}"


def _check_size(node: Node, made: tuple[int, ...] | None) -> None:
    count = prod(made or ())
    if count > LARGEST or (count > SMALL and 4 * count > _free()):
        raise RuntimeFailure(
            f"{node.name!r} ({node.op}) would make {list(made or ())}, {4 * count / 1e9:.1f} GB; "
            f"allowed: {LARGEST} values and {_free() / 1e9:.1f} GB, which are free"
        )


def _free() -> int:
    """Bytes of memory that can still be had."""
    return next((1024 * size for name, size in _memory() if name == "MemAvailable"), 2**62)


def _memory() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, size = line.partition(":")
        yield name, int(size.split()[0])
