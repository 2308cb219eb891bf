"""ONNX files of codes held against the simulation of the same network, tensor by tensor, in ONNX Runtime."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from graphs import run

from mxq import pipeline
from mxq.backends import onnx as backend
from mxq.backends.onnx.context import plain
from mxq.formats.onnx_record import FileRecord
from mxq.graph.ir import VARIABLE, Graph, Node, Ref, toposort
from mxq.runtime import tensors_of


def session(path: Path, *, optimized: bool, saved: Path | None = None) -> Any:
    """A session of ONNX Runtime on one thread; ``saved`` is where it writes what it made of the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kinds(path: Path, folder: Path) -> collections.Counter[str]:
    """How many operators of each kind ONNX Runtime makes of a file."""
    import onnx

    session(path, optimized=True, saved=folder / "optimized.onnx")
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def openvino_outputs(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What OpenVINO computes, with floats where it computes in float."""
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
    found = compiled(dict(feeds))
    return [np.asarray(found[i]) for i in range(len(compiled.outputs))]


def differences(
    made: pipeline.Quantized, feeds: Mapping[str, np.ndarray], folder: Path
) -> dict[Ref, tuple[int, float]]:
    """Of each tensor of codes, how far codes are apart at most, and the share of those that differ.

    Node by node: the file is run by ONNX Runtime without optimizations, and every operator in it reads what the
    simulation has in MXNet, so that no difference lets others follow.
    """
    if made.network is None:
        raise ValueError("nothing is quantized")
    coded = backend.Coded.of(made.network)
    taps = tuple(coded.tensors)
    values = run(made.model, dict(feeds), taps)[-len(taps) :]
    again = {ref: Ref(f"{ref.name}_again") for ref in taps}
    fed = {f"{ref.name}_fed": value for ref, value in zip(taps, values, strict=True)}
    model = coded.model.with_graph(_cut(coded.model.graph, again))
    coded = replace(coded, model=model, tensors={**coded.tensors, **{again[ref]: coded.tensors[ref] for ref in taps}})
    every = {**feeds, **fed}
    tensors = tensors_of(model, {name: value.shape[1:] for name, value in every.items()})
    path = folder / "tapped.onnx"
    backend.write(backend.lower(model, tensors, backend.CodeFeed(coded)), path, FileRecord("int8"))
    opened = session(path, optimized=False)
    read = {one.name for one in opened.get_inputs()}
    found = opened.run(None, {name: value for name, value in every.items() if name in read})
    return {ref: _apart(coded.tensors[ref], a, b) for ref, a, b in zip(taps, found, values, strict=True)}


def _cut(graph: Graph, again: Mapping[Ref, Ref]) -> Graph:
    """Readers of each of these tensors read a copy of an input instead; the tensors are outputs."""
    nodes = [replace(node, inputs=tuple(again.get(plain(ref), ref) for ref in node.inputs)) for node in graph]
    for ref, copy in again.items():
        nodes += [Node(f"{ref.name}_fed", VARIABLE), Node(copy.name, "_copy", {}, (Ref(f"{ref.name}_fed"),))]
    return toposort(nodes, tuple(again), graph.attrs)


def _apart(params: Any, a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    apart = np.abs(params.quantize(a).astype(int) - params.quantize(b).astype(int))
    return int(apart.max()), float(np.mean(apart > 0))
