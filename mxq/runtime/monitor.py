"""Looking at tensors inside a network while MXNet runs it.

An executor calls its monitor after each operator (``ExecuteMonOutputCallback`` in
``src/executor/graph_executor.cc``). A tensor is read right then, before the memory plan gives its place to another, so
watching every tensor takes no more memory than running does. (Making them outputs keeps all of a batch's tensors alive:
340 MB for eight images in a ResNet-50.)

Kernels write in blocked layouts (nChw8c, nChw16c). ``reshape`` reorders into memory of ours in one pass; ``asnumpy``
would reorder and then copy, into pages that are new each time.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.graph.ir import Array, Ref
from mxq.runtime.mxnet import drain, mx, mxnet_says

_NO_REORDER: Final = "reorder primitive"
"""What oneDNN says of a Flatten after a 3-D convolution: it cannot bring its memory into order. A copy can."""
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)


class Monitor:
    """Shows the outputs ``refs`` of ``sym`` to whoever looks."""

    def __init__(self, sym: Any, refs: Sequence[Ref]) -> None:
        self._refs = _output_names(sym, refs)
        self._visit: Callable[[Ref, Array], None] | None = None
        self._unseen: set[Ref] = set()
        self._raised: BaseException | None = None
        self._scratch: Any = None
        self._callback = _CALLBACK(self._called)  # MXNet keeps only its address

    def install(self, executor: Any) -> None:
        """Has ``executor`` call this monitor."""
        lib = mx.base._LIB  # noqa: SLF001  (Executor.set_monitor_callback would wrap, and print, what we raise)
        mx.base.check_call(lib.MXExecutorSetMonitorCallbackEX(executor.handle, self._callback, None, 0))

    @contextmanager
    def showing(self, visit: Callable[[Ref, Array], None]) -> Iterator[None]:
        """While inside, ``visit`` is shown every watched tensor; what it raised is raised at the end."""
        self._visit, self._raised, self._unseen = visit, None, set(self._refs.values())
        try:
            yield
        finally:
            self._visit = None
            if self._raised is not None:
                raise self._raised
        if self._unseen:
            raise RuntimeFailure(f"MXNet ran the network without making {str(min(self._unseen))!r}")

    def _called(self, name: bytes, handle: int, _: int | None) -> None:
        """Called by MXNet, through which no exception passes."""
        try:
            ref = self._refs.get(name.decode())
            array = monitored(handle)  # wanted or not
            if ref is not None and self._visit is not None and self._raised is None:
                self._unseen.discard(ref)
                with mxnet_says(f"MXNet failed while it made {str(ref)!r}"):
                    values = self._values(array)
                self._visit(ref, values)
        except BaseException as error:  # an interrupt too
            self._raised = error

    def _values(self, array: Any) -> Array:
        """All values of ``array``, (n,); of float32 in memory that the next call uses again."""
        if array.dtype != np.float32 or array.size == 0:
            return np.asarray(array.asnumpy()).reshape(-1)
        if self._scratch is None or self._scratch.size < array.size:
            self._scratch = mx.nd.empty((array.size,))
        try:
            flat = mx.nd.reshape(array, shape=(-1,), out=self._scratch[: array.size])
            flat.wait_to_read()
        except mx.base.MXNetError as error:
            if _NO_REORDER not in str(error):
                raise
            drain()
            self._scratch = None
            return np.asarray(array.asnumpy()).reshape(-1)
        address = ctypes.c_void_p()
        mx.base.check_call(mx.base._LIB.MXNDArrayGetData(flat.handle, ctypes.byref(address)))  # noqa: SLF001
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (array.size,))


def monitored(array: Any) -> Any:
    """MXNet's array for the handle that a monitor is given, which is the monitor's to free; an array as it is."""
    if isinstance(array, mx.nd.NDArray):
        return array
    return mx.nd.NDArray(ctypes.cast(array, mx.base.NDArrayHandle), writable=False)


def _output_names(sym: Any, refs: Sequence[Ref]) -> dict[str, Ref]:
    """What MXNet calls each output -> the ref that we call it by.

    Raises:
        RuntimeFailure: a ref is no output of an operator, or two share a name.
    """
    internals, wanted = sym.get_internals(), {(ref.name, ref.output): ref for ref in refs}
    found: dict[str, Ref] = {}
    seen: Counter[str] = Counter()
    for name, entry in zip(internals.list_outputs(), internals, strict=True):
        ref = wanted.pop((entry.name, seen[entry.name]), None)
        seen[entry.name] += 1
        if ref is not None and found.setdefault(name, ref) != ref:
            raise RuntimeFailure(f"MXNet calls two tensors {name!r}: {str(ref)!r} and {str(found[name])!r}")
    for ref in wanted.values():
        raise RuntimeFailure(f"MXNet has no output {str(ref)!r} to watch")
    return found
