"""OpenVINO; the only module that imports it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from mxq.engines.row import Engine
from mxq.engines.session import Session, called, engine_says, fed
from mxq.formats.onnx_file import read
from mxq.graph.ir import Array

TITLE: Final = "OpenVINO"
SHAPES: Final = 3
"""For how many a network is compiled."""


def _package() -> Any:
    return importlib.import_module("openvino")


def _version() -> str:
    """Without the name of the build after it."""
    return str(_package().__version__).partition("-")[0]


def _settings(threads: int) -> dict[str, Any]:
    """One request at a time on ``threads`` threads.

    What is float is computed in float32: on CPUs with AMX it would be in bfloat16, whose 8 bits cost an INT8 file whose
    first layers are float 1.3 dB (mobilenet_v1_0.75).
    """
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **precision}


def _open(path: Path, threads: int) -> Session:
    """See `_settings`.

    Raises:
        FormatError: the file is damaged, or of operators that this version does not know.
    """
    file, openvino = read(path), _package()
    with engine_says(f"{TITLE} {_version()} does not take {path} (opset {file.opset})"):
        requests = Requests(openvino.Core(), path, _settings(threads))

    def call(request: Any, feeds: Mapping[str, Array]) -> None:
        request.infer(dict(feeds), share_inputs=True, share_outputs=True)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        request = requests.of(feeds)
        call(request, feeds)
        return [np.array(request.get_output_tensor(i).data) for i in range(len(file.outputs))]

    return Session(OPENVINO.name, path, file.inputs, run, lambda feeds: partial(call, requests.of(feeds), feeds))


class Requests:
    """A network, compiled for the first few shapes that it is fed, and for any other.

    For one shape it is up to 1.1 times as quick; and 2026.4 can overwrite an output that is taken from the middle of a
    network that is compiled for batches of any size.
    """

    def __init__(self, core: Any, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises what OpenVINO does for a file that it does not take."""
        self._core, self._path, self._settings = core, path, settings
        self._any = self.request({})
        self._own = dict[tuple[tuple[int, ...], ...], Any]()

    def of(self, feeds: Mapping[str, Array]) -> Any:
        """The request for arrays of these shapes."""
        shapes = {name: array.shape for name, array in feeds.items()}
        key = tuple(shapes.values())
        if key not in self._own and len(self._own) < SHAPES:
            self._own[key] = self.request(shapes)
        return self._own.get(key, self._any)

    def request(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """One of the network compiled for ``shapes``; for any that it takes where there are none."""
        model = self._core.read_model(str(self._path))
        if not model.is_dynamic():
            shapes = {}
        if shapes:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


def _start(path: Path, threads: int, inputs: Sequence[str]) -> tuple[str, ...]:
    settings = json.dumps(_settings(threads))
    return (
        "import openvino",
        f"settings = {settings}",
        f"model = openvino.Core().read_model({called(path)})",
        f"model.reshape({{{fed(inputs, '.shape')}}})  # quicker than for batches of any size",
        'network = openvino.compile_model(model, "CPU", settings)',
        f"outputs = network({{{fed(inputs)}}}).to_tuple()",
    )


OPENVINO: Final = Engine("openvino", TITLE, "openvino", "2024.4", True, _version, _open, _start)
