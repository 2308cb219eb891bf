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
        network = openvino.Core().compile_model(str(path), "CPU", _settings(threads))
        request = network.create_infer_request()

    def call(feeds: Mapping[str, Array]) -> None:
        request.infer(dict(feeds), share_inputs=True, share_outputs=True)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        call(feeds)
        return [np.array(request.get_output_tensor(i).data) for i in range(len(network.outputs))]

    return Session(OPENVINO.name, path, file.inputs, run, lambda feeds: partial(call, feeds))


def _start(path: Path, threads: int, inputs: Sequence[str]) -> tuple[str, ...]:
    settings = json.dumps(_settings(threads))
    return (
        "import openvino",
        f"settings = {settings}",
        f'network = openvino.compile_model({called(path)}, "CPU", settings)',
        f"outputs = network({{{fed(inputs)}}}).to_tuple()",
    )


OPENVINO: Final = Engine("openvino", TITLE, "openvino", "2024.4", True, _version, _open, _start)
