"""MXNet itself: its import, its errors in mxq's words, and conversions between its objects and ours."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from mxq.compat import unloadable
from mxq.errors import MxqError, RuntimeFailure
from mxq.graph.ir import Array, Graph
from mxq.graph.serde import write_symbol
from mxq.host.environment import check_omp_num_threads
from mxq.version import __version__

if "mxnet" not in sys.modules:
    check_omp_num_threads(os.environ)  # it would abort the process
try:
    import mxnet as mx
except Exception as error:  # whatever it is, the import is over
    raise unloadable(error) from error

__all__ = [
    "check_idle",
    "drain",
    "features",
    "mx",
    "mxnet_says",
    "of_mode",
    "sentence",
    "to_arrays",
    "to_ndarray",
    "to_numpy",
    "to_symbol",
    "variable",
    "versions",
]

_NOISE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |Error in operator \S+: (?=Error in operator)")
"""Time stamps, source positions and outer operators in MXNet's messages."""

FAILURES = (
    mx.base.MXNetError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError, AssertionError
)  # fmt: skip
"""What MXNet raises: its own error, those it is told to (``mxnet.error``), and where its sentence is no UTF-8."""


OPERATORS_SAID: list[str] = []
"""What operators of ours raised since MXNet was last asked; it knows only that one of them failed."""


@contextmanager
def mxnet_says(what: str, error: type[MxqError] = RuntimeFailure) -> Iterator[None]:
    """MXNet's errors as one of ours that begins with ``what``; none of them is left to be raised later."""
    OPERATORS_SAID.clear()
    try:
        yield
    except MxqError:
        raise
    except FAILURES as failure:
        drain()
        said = OPERATORS_SAID[0] if OPERATORS_SAID else sentence(str(failure))
        raise error(f"{what}: {said}") from failure


def drain() -> None:
    """Waits for all that MXNet has been asked to do, and drops what it has to complain of.

    An operator runs behind the caller's back. Its failure stays with what it wrote to, such as memory that operators
    share, and would be raised by whoever uses that next: for another network.
    """
    with suppress(*FAILURES):
        mx.nd.waitall()


def check_idle() -> None:
    """Waits for what MXNet was asked to do before.

    Raises:
        RuntimeFailure: some of that failed, and nobody has been told.
    """
    with mxnet_says("MXNet failed in work begun before this call, which has nothing to do with it; call again"):
        mx.nd.waitall()


def sentence(text: str) -> str:
    """The informative line of an MXNet error, which comes with a stack trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [x for x in lines if not x.startswith(("Traceback", "File ", "[bt]", "Stack trace"))]
    return _NOISE.sub("", (useful or lines or ["no message"])[0]).removeprefix("MXNetError: ")


def to_numpy(value: Any) -> Array:
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)


def to_ndarray(value: Array) -> Any:
    return mx.nd.array(value, dtype=value.dtype)


def of_mode(value: Any) -> Any:
    """A symbol or array, with numpy's semantics where those are set (``mx.npx.set_np``): blocks then deal with such."""
    return value.as_np_ndarray() if mx.util.is_np_array() else value


def variable(name: str) -> Any:
    """A variable of the semantics that are set."""
    return of_mode(mx.sym.var(name))


def to_symbol(graph: Graph) -> Any:
    """MXNet's symbol of ``graph``.

    Raises:
        RuntimeFailure: MXNet refuses it.
    """
    with mxnet_says("MXNet refuses the graph"):
        return mx.sym.load_json(write_symbol(graph))


def to_arrays(table: Mapping[str, Array]) -> dict[str, Any]:
    """The same table with MXNet's arrays."""
    return {name: to_ndarray(value) for name, value in table.items()}


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "mxq": __version__,
        "mxnet": mx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def features() -> dict[str, bool]:
    """MXNet's build features that matter here."""
    found = mx.runtime.Features()
    return {name: found.is_enabled(name) for name in ("MKLDNN", "OPENMP", "INT64_TENSOR_SIZE")}
