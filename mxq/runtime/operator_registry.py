"""MXNet's operators, asked one by one through its C interface: `mxq.operators.Registry`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mxq.errors import FormatError
from mxq.operators import Ports, Signature
from mxq.runtime.mxnet import mx, mxnet_says

_LIB = mx.base._LIB  # noqa: SLF001  (Python's interface has no call for it)
_STRINGS = ctypes.POINTER(ctypes.c_char_p)


class MxnetRegistry:
    """`mxq.operators.Registry` on this MXNet. An operator is made alone, without a graph, and asked."""

    def find(self, op: str) -> Signature | None:
        return _signature(op)

    def ports(self, op: str, attrs: Mapping[str, str]) -> Ports:
        return _ports(op, tuple(sorted(attrs.items())))


def _handle(op: str) -> ctypes.c_void_p | None:
    found = ctypes.c_void_p()
    known = _LIB.NNGetOpHandle(op.encode(), ctypes.byref(found)) == 0
    return found if known and found.value else None


@lru_cache(maxsize=4096)
def _signature(op: str) -> Signature | None:
    handle = _handle(op)
    if handle is None:
        return None
    name, about, variadic, result = (ctypes.c_char_p() for _ in range(4))
    names, kinds, texts = _STRINGS(), _STRINGS(), _STRINGS()
    count = ctypes.c_uint()
    where = (name, about, count, names, kinds, texts, variadic, result)
    mx.base.check_call(_LIB.MXSymbolGetAtomicSymbolInfo(handle, *map(ctypes.byref, where)))
    return Signature({names[i].decode(): kinds[i].decode() for i in range(count.value)})


@lru_cache(maxsize=16384)
def _ports(op: str, attrs: tuple[tuple[str, str], ...]) -> Ports:
    with mxnet_says("MXNet does not take its attributes", FormatError):
        symbol = _alone(op, attrs)
        return Ports(tuple(n.removeprefix("x_") for n in symbol.list_inputs()), len(symbol.list_outputs()))


def _alone(op: str, attrs: tuple[tuple[str, str], ...]) -> Any:
    """The operator as a symbol, with a variable for each input."""
    keys, values = (mx.base.c_str_array([pair[i] for pair in attrs]) for i in range(2))
    handle = mx.base.SymbolHandle()
    mx.base.check_call(
        _LIB.MXSymbolCreateAtomicSymbol(_handle(op), ctypes.c_uint(len(attrs)), keys, values, ctypes.byref(handle))
    )
    symbol = mx.sym.Symbol(handle)
    mx.base.check_call(_LIB.MXSymbolCompose(handle, b"x", ctypes.c_uint(0), None, None))
    return symbol


REGISTRY = MxnetRegistry()
