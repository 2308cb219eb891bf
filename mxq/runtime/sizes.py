"""Sizes and types that MXNet does not check when it binds a network to data: it then writes where it must not.

``ReshapeShape`` of MXNet 1.9.1 lets a Reshape change the number of values (its check is within ``#if 0``), and the
kernel then reads or writes beyond an array. Integers divided by 0 end the process. Linux promises memory that it does
not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.ir import Graph, Node, Ref
from mxq.runtime.mxnet import to_symbol

_RESHAPES = frozenset({"Reshape", "reshape", "_np_reshape", "_npi_reshape", "_npx_reshape"})
_DIVISIONS = frozenset(
    {
        "elemwise_div", "_div", "_Div", "broadcast_div", "broadcast_mod", "_mod", "_Mod", "_npi_mod", "_npi_fmod",
        "_npi_true_divide", "_npi_floor_divide", "_npi_lcm", "_rdiv_scalar", "_RDivScalar", "_rmod_scalar",
        "_RModScalar", "_npi_rmod_scalar", "_npi_rtrue_divide_scalar", "_npi_rfmod_scalar", "_div_scalar",
        "_DivScalar", "_mod_scalar", "_ModScalar", "_npi_mod_scalar", "_npi_fmod_scalar", "_npi_true_divide_scalar",
    }
)  # fmt: skip
"""Operators that divide by what they read, or by their ``scalar``."""
_BY_SCALAR = frozenset(
    {"_div_scalar", "_DivScalar", "_mod_scalar", "_ModScalar", "_npi_mod_scalar", "_npi_fmod_scalar"}
)
LARGEST = 2**31 - 1
"""Values in a tensor: MXNet counts them in 32 bits."""

SMALL = 2**24
"""Values that any machine has room for."""


class Sizes:
    """What a graph's tensors are, for given inputs and parameters."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._operators = graph.operators
        self._places = {node.name: i for i, node in enumerate(self._operators)}

    @cached_property
    def _symbol(self) -> Any:
        """Its outputs are the first output of every operator, then what each is made from that is checked."""
        results = [node.out for node in self._operators]
        return to_symbol(Graph(self._graph.nodes, (*results, *(ref for _, ref in self._read)), self._graph.attrs))

    @cached_property
    def _read(self) -> list[tuple[Node, Ref]]:
        checked = (n for n in self._operators if n.op in _RESHAPES | _DIVISIONS)
        return [(node, node.inputs[0]) for node in checked]

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Nothing is too large, and what MXNet would corrupt memory with is refused.

        Args:
            arrays: those of inputs and parameters, by name: MXNet's.

        Raises:
            RuntimeFailure: names the operator, and what it would make of what.
        """
        if not self._operators:
            return
        _, shapes, _ = self._symbol.infer_shape_partial(**{k: v.shape for k, v in arrays.items()})
        for node, shape in zip(self._operators, shapes, strict=False):
            _check_size(node, shape)
        for (node, _), shape in zip(self._read, shapes[len(self._operators) :], strict=True):
            made = shapes[self._places[node.name]]
            known = shape and made and 0 not in shape  # MXNet says () or a side of 0 of what it does not know
            if node.op in _RESHAPES and known and prod(shape) != prod(made):
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) would make {list(made)} of {list(shape)}; allowed: as many values"
                )
        if any(node.op in _DIVISIONS for node, _ in self._read):
            self._check_types(arrays)

    def _check_types(self, arrays: Mapping[str, Any]) -> None:
        _, types, _ = self._symbol.infer_type_partial(**{k: v.dtype for k, v in arrays.items()})
        for (node, _), dtype in zip(self._read, types[len(self._operators) :], strict=True):
            by_zero = node.op in _DIVISIONS and not (node.op in _BY_SCALAR and abs(node.number("scalar", 1)) >= 1)
            if by_zero and dtype is not None and np.issubdtype(dtype, np.integer):
                raise RuntimeFailure(
                    f"{node.name!r} ({node.op}) divides {np.dtype(dtype)}, and a divisor of 0 would end the process; "
                    "allowed: floating point"
                )


def _check_size(node: Node, shape: tuple[int, ...]) -> None:
    count = prod(shape)
    if count > LARGEST or (count > SMALL and 4 * count > _free()):
        raise RuntimeFailure(
            f"{node.name!r} ({node.op}) would make {list(shape)}, {4 * count / 1e9:.1f} GB; allowed: {LARGEST} values "
            f"and {_free() / 1e9:.1f} GB, which are free"
        )


def _free() -> int:
    """Bytes of memory that can still be had."""
    return next((1024 * size for name, size in _memory() if name == "MemAvailable"), 2**62)


def _memory() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, size = line.partition(":")
        yield name, int(size.split()[0])
