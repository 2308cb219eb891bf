"""OpenVINO: int8 by NNCF's post-training quantization, and a server of any file. Runs in the peers' environment.

    python openvino_int8.py quantize KIND FOLDER
    python openvino_int8.py serve FILE FOLDER BATCH

KIND is openvino (NNCF's preset "performance": symmetric activations, its default) or openvino_mixed (asymmetric ones).
Both get bias correction, which NNCF leaves out without a word where the network comes from ``Core.read_model``; so it
comes from ``convert_model``. What holds attention is said to be a transformer. FOLDER is what `mxnet_nets.py` wrote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import protocol

PRESETS = {"openvino": nncf.QuantizationPreset.PERFORMANCE, "openvino_mixed": nncf.QuantizationPreset.MIXED}


FLOAT = "net.onnx"


def quantize(kind: str, folder: Path) -> None:
    """Writes ``KIND.xml`` from ``net.onnx``."""
    items = [part for part, _ in protocol.batches(protocol.read(folder / "calibration.npz"), 1)]
    model = ov.convert_model(folder / FLOAT)
    names = {operation.get_type_name() for operation in model.get_ops()}
    attends = {"MatMul", "Softmax"} <= names and "LSTMSequence" not in names and "Convolution" not in names
    settings = {"model_type": nncf.ModelType.TRANSFORMER} if attends else {}
    quantized = nncf.quantize(model, nncf.Dataset(items), preset=PRESETS[kind], subset_size=len(items), **settings)
    ov.save_model(quantized, folder / f"{kind}.xml", compress_to_fp16=False)


class Server:
    """One stream that is asked for latency. OpenVINO's threads sleep between calls.

    What is float computes in float32, in int8 networks too; on CPUs with AMX it would be bfloat16.
    """

    def __init__(self, path: Path, feeds: protocol.Feeds) -> None:
        threads = int(os.environ["OMP_NUM_THREADS"])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        profiled = {"PERF_COUNT": "YES"} if protocol.PROFILED in os.environ else {}
        core = ov.Core()
        model = core.read_model(path)
        model.reshape({name: list(values.shape) for name, values in feeds.items()})
        compiled = core.compile_model(model, "CPU", {**settings, **profiled})
        self.batch = len(next(iter(feeds.values())))
        self._request = compiled.create_infer_request()
        self._again = compiled.create_infer_request()
        self._feeds = dict(feeds)
        for name, values in self._feeds.items():
            self._request.set_tensor(name, ov.Tensor(values, shared_memory=True))
        self.about = {"openvino": ov.get_version(), "nncf": nncf.__version__, **settings}

    def __call__(self) -> object:
        return self._request.infer(share_outputs=True)

    def profile(self, calls: int) -> protocol.Kinds:
        found: dict[str, tuple[float, float]] = {}
        for _ in range(calls):
            self._request.infer(share_outputs=True)
            for node in self._request.profiling_info:
                if node.status == ov.ProfilingInfo.Status.EXECUTED:
                    count, seconds = found.get(node.node_type, (0.0, 0.0))
                    taken = node.real_time.total_seconds()
                    found[node.node_type] = (count + 1 / calls, seconds + taken / calls)
        return found

    def outputs(self) -> Sequence[Any]:
        return [tensor.data for tensor in self._request.output_tensors]

    def infer(self, feeds: protocol.Feeds) -> Sequence[Any]:
        self._again.infer(dict(feeds))
        return [np.array(tensor.data) for tensor in self._again.output_tensors]


if __name__ == "__main__":
    protocol.main(quantize, Server)
