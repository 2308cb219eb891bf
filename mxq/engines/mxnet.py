"""MXNet, which runs pairs; it is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mxq.engines.row import Engine
from mxq.engines.session import Session, called
from mxq.formats.onnx_file import Port
from mxq.storage.checksums import params_of


def _runtime() -> Any:
    return importlib.import_module("mxq.runtime")


def _version() -> str:
    return str(_runtime().versions()["mxnet"])


def _open(path: Path, _threads: int) -> Session:
    """A pair, by its prefix. MXNet takes its threads from ``OMP_NUM_THREADS``, before it is imported."""
    runtime = _runtime()
    model = runtime.load_model(path)
    inputs = tuple(Port(name, model.graph[name].input_dtype, None) for name in model.inputs)
    bound = runtime.MxnetRunner().compile(model)
    return Session(
        MXNET.name, path, inputs, lambda feeds: list(bound(feeds)), lambda feeds: runtime.serve(model, feeds)
    )


def _start(path: Path, _threads: int, inputs: Sequence[str]) -> tuple[str, ...]:
    symbol, names = path.with_name(f"{path.name}-symbol.json"), ", ".join(map(called, inputs))
    return (
        "import mxnet as mx",
        f"net = mx.gluon.SymbolBlock.imports({called(symbol)}, [{names}], {called(params_of(path) or '')})",
        "net.hybridize(static_alloc=True, static_shape=True)",
        f"outputs = net({'mx.nd.array(batch)' if len(inputs) == 1 else '*map(mx.nd.array, batch)'})",
    )


MXNET: Final = Engine("mxnet", "MXNet", "mxnet", "1.9.1", False, _version, _open, _start)
