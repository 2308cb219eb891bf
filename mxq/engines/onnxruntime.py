"""ONNX Runtime; the only module that imports it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mxq.engines.row import Engine
from mxq.engines.session import Session, called, engine_says, fed
from mxq.formats.onnx_file import read

TITLE: Final = "ONNX Runtime"
_SILENT: Final = 4
"""Of its own log: what fails is raised too."""


def _package() -> Any:
    return importlib.import_module("onnxruntime")


def _version() -> str:
    return str(_package().__version__)


def _open(path: Path, threads: int) -> Session:
    """All optimizations; one operator at a time, each on ``threads`` threads.

    Raises:
        FormatError: the file is damaged, or of operators that this version does not know.
    """
    file, ort = read(path), _package()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _SILENT
    with engine_says(f"{TITLE} {ort.__version__} does not take {path} (opset {file.opset})"):
        opened = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Session(ONNXRUNTIME.name, path, file.inputs, lambda feeds: opened.run(None, dict(feeds)))


def _start(path: Path, threads: int, inputs: Sequence[str]) -> tuple[str, ...]:
    return (
        "import onnxruntime",
        "options = onnxruntime.SessionOptions()",
        f"options.intra_op_num_threads = {threads}",
        f'session = onnxruntime.InferenceSession({called(path)}, options, providers=["CPUExecutionProvider"])',
        f"outputs = session.run(None, {{{fed(inputs)}}})",
    )


ONNXRUNTIME: Final = Engine("onnxruntime", TITLE, "onnxruntime", "1.19", True, _version, _open, _start)
