"""Running: `mxq.graph.ir.Runner` on MXNet's executor, and a network as a server holds it, to time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.graph.ir import Array, Executable, Graph, Model, Ref, Watched
from mxq.graph.traits import traits_of
from mxq.host.openmp import release_openmp_threads
from mxq.runtime.monitor import Monitor
from mxq.runtime.mxnet import mx, mxnet_says, to_ndarray, to_symbol
from mxq.runtime.sizes import Sizes

_CHANNELS = (1, 3, 4)
"""Of pictures."""

_ENVIRONMENT = threading.Lock()
"""Held while MXNet binds."""


class MxnetRunner:
    """`mxq.graph.ir.Runner` on MXNet's executor, on the CPU."""

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        """Binds ``model``; see `Runner`. Feeds may change shape between calls (the executable binds anew)."""
        heads = (*model.graph.heads, *taps)
        graph = Graph(model.graph.nodes, heads, model.graph.attrs)
        return _Bound(to_symbol(graph), model)

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        """Binds ``model``; see `Runner` and `mxq.runtime.monitor`."""
        nodes = tuple(replace(n, label="") for n in model.graph.nodes)  # labels may repeat, names do not
        read = {(r.name, r.output) for n in nodes for i, r in enumerate(n.inputs) if i != traits_of(n).shape_input}
        read |= {(head.name, head.output) for head in model.graph.heads}
        known = (ref for ref in refs if ref.name in model.graph)  # the monitor refuses others
        unread = tuple(ref for ref in known if (ref.name, ref.output) not in read)  # MXNet would not compute them
        return _WatchedBound(to_symbol(Graph(nodes, (*model.graph.heads, *unread), model.graph.attrs)), model, refs)


_Shapes: TypeAlias = Mapping[str, tuple[tuple[int, ...], Any]]
"""Input -> its shape and type."""


class _Bound:
    def __init__(self, sym: Any, model: Model) -> None:
        self._sym, self._inputs, self._sizes = sym, model.inputs, Sizes(model.graph)
        arguments, states = set(sym.list_arguments()), set(sym.list_auxiliary_states())
        params = {**model.args, **model.auxs}
        self._args = {k: to_ndarray(params[k]) for k in arguments if k in params}
        self._auxs = {k: to_ndarray(params[k]) for k in states if k in params}
        self._needed = [name for name in model.inputs if name in arguments]
        types = {name: model.graph[name].input_dtype for name in self._needed}
        self._integers = {name: np.dtype(dtype) for name, dtype in types.items() if dtype != "float32"}
        self._fixed = {n: shape for n in self._needed if (shape := model.graph[n].note.input_shape)}
        self._shapes: _Shapes | None = None
        self._executor: Any = None

    def __call__(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        outputs = self.forward(feeds)
        _wait(outputs)  # what fails belongs to this network, also where nobody reads it
        return _Outputs(outputs)

    def forward(self, feeds: Mapping[str, Array]) -> list[Any]:
        """Runs, and returns MXNet's arrays without waiting for or copying them."""
        missing = [name for name in self._needed if name not in feeds]
        if missing:
            raise RuntimeFailure(f"input {missing[0]!r} is not fed; fed: {', '.join(map(repr, feeds)) or 'nothing'}")
        arrays = {name: np.asarray(feeds[name]) for name in self._needed}
        for name, shape in self._fixed.items():
            if arrays[name].shape[1:] != shape:
                raise RuntimeFailure(
                    f"input {name!r} takes examples of shape {shape} alone (input_shape), but one of "
                    f"{arrays[name].shape[1:]} was fed"
                )
        for name, dtype in self._integers.items():
            if arrays[name].dtype != dtype:
                raise RuntimeFailure(
                    f"input {name!r} takes {dtype}, but {arrays[name].dtype} was fed; mxq.data makes what it takes"
                )
        shapes = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        with self._one_size(shapes), mxnet_says("MXNet cannot run the network on input " + _describe(shapes)):
            if shapes != self._shapes:
                self._bind(arrays)
                self._shapes, arrays = shapes, {}  # they are bound
            return list(self._executor.forward(is_train=False, **arrays))

    def again(self) -> list[Any]:
        """Runs on what was fed last: nothing is copied."""
        return list(self._executor.forward(is_train=False))

    @contextmanager
    def _one_size(self, shapes: _Shapes) -> Iterator[None]:
        """Says in an error, where the network ran on batches of another size before, that it may take those alone."""
        before = self._shapes
        try:
            yield
        except RuntimeFailure as failure:
            if before is None or before == shapes:
                raise
            raise RuntimeFailure(
                f"{failure}. It ran on {_describe(before)} before; a network that is made for one batch size takes "
                "whole batches alone: give a multiple of it, or the batch_size that it is made for"
            ) from failure

    def _bind(self, arrays: Mapping[str, Array]) -> None:
        inputs = {name: to_ndarray(value) for name, value in arrays.items()}
        self._executor = None  # its memory goes before the next one's comes
        self._sizes.check({**self._args, **self._auxs, **inputs})
        with _as_written():
            self._executor = self._sym.bind(mx.cpu(), {**self._args, **inputs}, aux_states=self._auxs, grad_req="null")


class _WatchedBound(_Bound):
    def __init__(self, sym: Any, model: Model, refs: Sequence[Ref]) -> None:
        super().__init__(sym, model)
        self._monitor = Monitor(sym, refs)

    def _bind(self, arrays: Mapping[str, Array]) -> None:
        super()._bind(arrays)
        self._monitor.install(self._executor)

    def __call__(self, feeds: Mapping[str, Array], visit: Callable[[Ref, Array], None]) -> None:  # type: ignore[override]
        with self._monitor.showing(visit):
            _wait(self.forward(feeds))


def _wait(outputs: Sequence[Any]) -> None:
    """Waits until MXNet, which runs behind our back, has made ``outputs``, and says what it complains of."""
    with mxnet_says("MXNet failed while it ran the network"):
        for output in outputs:
            output.wait_to_read()


@contextmanager
def _as_written() -> Iterator[None]:
    """Binds graphs as they are written.

    Left alone, ``bind`` fuses on its own, and where a convolution has a second reader it fuses wrongly: the float
    ``cifar_resnet20_v2`` of gluoncv is 30 % off. A reference must not be. The backend "default" fuses only operators
    that were named to it, here none; "NONE" does the same with a line on stderr for every bind. MXNet takes this from
    the environment alone, which is the process's: threads take turns, or one would leave it as another had set it.
    """
    wanted = {
        "MXNET_SUBGRAPH_BACKEND": "default",
        "MXNET_SUBGRAPH_VERBOSE": "0",
        "MXNET_ELIMINATE_COMMON_EXPR": "0",  # an operator that went would not be seen
    }
    with _ENVIRONMENT:
        before = {key: os.environ.get(key) for key in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


class _Outputs(Sequence[Array]):
    """MXNet's results, each copied to numpy when it is read, so that not all of them are in memory twice."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        found = self._arrays[index]
        return [a.asnumpy() for a in found] if isinstance(index, slice) else found.asnumpy()


def _describe(shapes: _Shapes) -> str:
    text = ", ".join(f"{name!r} {dtype}{list(shape)}" for name, (shape, dtype) in shapes.items())
    last = [name for name, (shape, _) in shapes.items() if _channels_last(shape)]
    if last:
        text += f" ({last[0]!r} looks like (N, H, W, C); MXNet takes (N, C, H, W): .transpose(0, 3, 1, 2))"
    integers = [name for name, (_, dtype) in shapes.items() if dtype.kind in "iu"]
    if integers:
        text += f" ({integers[0]!r} is fed integers; where the network computes with floats: .astype('float32'))"
    return text


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether ``shape`` looks like that of pictures with the channels last."""
    return len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS


class Served:
    """A network as a server holds it: each call runs it on ``feeds`` and waits for the result.

    It is an executor whose inputs are in its memory already. A hybridized block with static memory runs the same
    operators, but is 3 % slower with ResNet-18 at batch 1, and 5 % with the 600 parameters of DenseNet-121: it
    hands over all of them with every call. The OpenMP threads of the caller's own end, as they would slow it down.

    Raises:
        RuntimeFailure: MXNet cannot run the network on ``feeds``.
    """

    def __init__(self, model: Model, feeds: Mapping[str, Array]) -> None:
        self._bound = _Bound(to_symbol(model.graph), model)
        self._outputs = self._bound.forward(feeds)
        _wait(self._outputs)
        release_openmp_threads()

    def __call__(self) -> None:
        self._outputs = self._bound.again()
        _wait(self._outputs)

    def outputs(self) -> list[Array]:
        """The results of the last call."""
        return list(_Outputs(self._outputs))


def serve(model: Model, feeds: Mapping[str, Array]) -> Served:
    """``model``, held on ``feeds``; see `Served`."""
    return Served(model, feeds)
