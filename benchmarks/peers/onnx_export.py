"""Exports a network of `mxnet_nets.py` to ONNX and checks that it computes the same. For the peers' environment.

    python onnx_export.py FOLDER BATCH

MXNet's exporter is of 2022. It knows operators up to set 13 and reads ``onnx.mapping``, which is gone; both are given
to it. It writes arithmetic on shapes that are known, which OpenVINO stumbles over (SSD); ONNX Runtime's basic
optimizations, which its quantizer wants anyway, fold that and BatchNorms, and both peers take the result. Where what
it writes computes something else than MXNet (its ``box_nms`` suppresses boxes across classes), comparing speeds would
mislead, and the export counts as failed.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import mxq  # noqa: F401  (it makes MXNet importable)
from mxq.numerics import sqnr_db

import onnx  # isort: skip
import onnx.defs
import onnx.shape_inference
import onnxruntime
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 13, 8
LEAST_DB = 40.0
"""Below this agreement with MXNet (in float, where 100 dB is usual) an export is another network."""

DTYPES = ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float16", "float64", "uint32")


def main() -> None:
    """Export and check."""
    folder, batch = Path(sys.argv[1]), sys.argv[2]
    images = np.load(folder / f"input-{batch}.npy")
    written, path = folder / f"net-{batch}-written.onnx", folder / f"net-{batch}.onnx"
    prepare()
    from mxnet import onnx as exporter  # noqa: PLC0415  (only now)

    pair = (str(folder / f"float32{end}") for end in ("-symbol.json", "-0000.params"))
    exporter.export_model(*pair, [images.shape], np.float32, str(written))
    model = onnx.load(written)
    tidy(model)
    freeze_shapes(model, images)
    onnx.save(model, written)
    fold(written, path)
    check(path, folder / f"reference-{batch}.npz", images)


def prepare() -> None:
    """Gives MXNet's exporter what it expects of onnx."""
    mapping: Any = types.ModuleType("onnx.mapping")
    mapping.NP_TYPE_TO_TENSOR_TYPE = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in DTYPES}
    mapping.TENSOR_TYPE_TO_NP_TYPE = {number: dtype for dtype, number in mapping.NP_TYPE_TO_TENSOR_TYPE.items()}
    sys.modules["onnx.mapping"] = onnx.mapping = mapping
    onnx.defs.onnx_opset_version = lambda: OPSET
    helper.make_tensor = _make_tensor


def _make_tensor(name: str, data_type: int, dims: Any, vals: Any, raw: bool = False) -> Any:
    # As onnx's own, but from an array: that one goes number by number, a minute for VGG16.
    del raw
    return numpy_helper.from_array(np.asarray(vals, helper.tensor_dtype_to_np_dtype(data_type)).reshape(dims), name)


def tidy(model: Any) -> None:
    """States the versions that were written, and takes the parameters out of the inputs, where none is constant."""
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    parameters = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in parameters]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def freeze_shapes(model: Any, images: Any) -> None:
    """Makes constants of the shapes that Reshape computes; they follow from that of the input, which is fixed.

    ONNX Runtime fails over some of that arithmetic (YOLOv3).
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in constants]
    names = list(dict.fromkeys(node.input[1] for node in nodes))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None) for n in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(names, {graph.input[0].name: images}) if names else []
    graph.initializer.extend(numpy_helper.from_array(v, f"{n}_frozen") for n, v in zip(names, found, strict=True))
    for node in nodes:
        node.input[1] += "_frozen"
    _drop_unread(graph)


def _drop_unread(graph: Any) -> None:
    read, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if read & set(node.output):
            read |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def fold(source: Path, target: Path) -> None:
    """ONNX Runtime's basic optimizations, and the shape of every tensor."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(target)), target)


def check(path: Path, reference: Path, images: Any) -> None:
    """Compares the exported network, in ONNX Runtime, with MXNet's outputs.

    Raises:
        ValueError: they differ.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images})
    with np.load(reference) as file:
        wanted = [file[str(i)] for i in range(len(file.files))]
    for expected, actual in zip(wanted, found, strict=True):
        agreement = sqnr_db(expected, actual)
        if not agreement >= LEAST_DB:
            raise ValueError(f"the exported network computes something else ({agreement:.0f} dB in float)")


if __name__ == "__main__":
    main()
