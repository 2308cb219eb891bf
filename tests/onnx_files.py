"""What tests of ONNX files share: a model exported, checked, run in ONNX Runtime and held against MXNet.

Import it as ``from onnx_files import assert_same``, after ``pytest.importorskip("onnxruntime")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from graphs import run
from helpers import assert_close

from mxq.backends import onnx as backend
from mxq.graph.ir import Model
from mxq.passes.constants import fold_constants
from mxq.rewrite import run_pass
from mxq.runtime import MxnetRunner, tensors_of


def lowered(model: Model, shapes: Mapping[str, tuple[int, ...]], batch: int | None = None) -> backend.Lowering:
    """The ONNX graph of ``model``; ``shapes`` are those of one example."""
    folded, _ = run_pass(fold_constants(MxnetRunner()), model)
    return backend.lower(folded, tensors_of(folded, shapes, batch))


def session(path: Path) -> Any:
    """The file in ONNX Runtime, without its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(opened: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of the file; inputs that it does not read are left out."""
    read = {one.name for one in opened.get_inputs()}
    return list(opened.run(None, {name: value for name, value in feeds.items() if name in read}))


def assert_same(
    model: Model, path: Path, *batches: Mapping[str, np.ndarray], batch: int | None = None, rtol: float, atol: float
) -> None:
    """The file of ``model`` gives what MXNet gives, for each of the ``batches``."""
    shapes = {name: value.shape[1:] for name, value in batches[0].items()}
    backend.write(lowered(model, shapes, batch), path)
    opened = session(path)
    assert [one.name for one in opened.get_outputs()] == [str(head) for head in model.graph.heads]
    for feeds in batches:
        for found, wanted in zip(outputs(opened, feeds), run(model, feeds), strict=True):
            assert found.dtype == wanted.dtype
            assert_close(found, wanted, rtol=rtol, atol=atol)
