"""A network written for other runtimes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxq import runtime
from mxq.backends import onnx
from mxq.config import Shape
from mxq.data.preparation import beside
from mxq.errors import ConfigError, QuantizeError
from mxq.graph.ir import Model
from mxq.passes.constants import fold_constants
from mxq.passes.simplify import FLOAT
from mxq.rewrite import run_pass


def export_onnx(
    net: runtime.Net,
    path: Path,
    *,
    shapes: Mapping[str, Shape],
    batch_size: int | None = None,
    epoch: int | None = None,
) -> tuple[Path, ...]:
    """Writes a float network as an ONNX file.

    Args:
        net: see `mxq.runtime.load_model`.
        path: the file.
        shapes: input -> shape of one example; under "" that of the only input.
        batch_size: examples to a batch; None: any number.
        epoch: for a prefix, which parameters.

    Returns:
        The files: ``path``, and ``path.data`` where the network is larger than one can be.

    Raises:
        ConfigError: onnx is not installed, or a shape is missing; the network does not take batches of any size.
        QuantizeError: the network is int8, or operators of it cannot be written: all of them are named.
        StorageError: a file cannot be written.
    """
    onnx.require_onnx()
    model = runtime.load_model(net, epoch)
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(f"the network is quantized: {refusal.reason}; allowed: the float network")
    examples = _examples(net, model, shapes)
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ConfigError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more, or None for any")
    model, _ = run_pass(fold_constants(runtime.MxnetRunner()), model)
    lowering = onnx.lower(model, runtime.tensors_of(model, examples, batch_size))
    return onnx.write(lowering, path, {"mxq.kind": "float"})


def _examples(net: runtime.Net, model: Model, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Input -> shape of one example: as given, as the network says, or as the preprocess.json beside it."""
    unknown = [name for name in given if name and name not in model.inputs]
    if unknown or ("" in given and len(model.inputs) != 1):
        raise ConfigError(f"input_shape is of {unknown or 'one input'}; the inputs are {', '.join(model.inputs)}")
    found = {name: model.graph[name].note.input_shape for name in model.inputs}
    found = {name: shape for name, shape in found.items() if shape} | _pictures(net, model)
    found |= {name or model.inputs[0]: shape for name, shape in given.items()}
    missing = [name for name in model.inputs if name not in found]
    if missing:
        raise ConfigError(
            f"the shape of input {missing[0]!r} is not known; give input_shape, such as 3x224x224, without the batch"
        )
    return found


def _pictures(net: Any, model: Model) -> dict[str, Shape]:
    if not isinstance(net, str | os.PathLike) or len(model.inputs) != 1:
        return {}
    shape = beside(Path(net)).settings.shape
    return {} if shape is None else {model.inputs[0]: shape}
