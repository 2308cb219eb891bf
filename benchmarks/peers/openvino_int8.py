"""OpenVINO's int8, by NNCF's post-training quantization with its defaults. Runs in the peers' environment.

    python openvino_int8.py quantize|serve FOLDER BATCH

BATCH is the fixed batch size; the images are those that `mxnet_nets.py` wrote into FOLDER.
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


def quantize(folder: Path, batch: str) -> None:
    """Writes ``openvino-BATCH.xml`` from ``net-BATCH.onnx``."""
    images, size = np.load(folder / "calibration.npy"), int(batch)
    items = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
    model = ov.Core().read_model(folder / f"net-{batch}.onnx")
    quantized = nncf.quantize(model, nncf.Dataset(items), subset_size=len(items))
    ov.save_model(quantized, folder / f"openvino-{batch}.xml", compress_to_fp16=False)


class Server:
    """One stream that is asked for latency. OpenVINO's threads sleep between calls."""

    def __init__(self, folder: Path, batch: str) -> None:
        threads = int(os.environ["OMP_NUM_THREADS"])
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
        profiled = {"PERF_COUNT": "YES"} if protocol.PROFILED in os.environ else {}
        compiled = ov.Core().compile_model(folder / f"openvino-{batch}.xml", "CPU", {**settings, **profiled})
        self._request = compiled.create_infer_request()
        self._images = np.load(folder / f"input-{batch}.npy")
        self._request.set_input_tensor(ov.Tensor(self._images, shared_memory=True))
        precision = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        self.about = {
            "openvino": ov.get_version(), "nncf": nncf.__version__, **settings, "INFERENCE_PRECISION_HINT": precision,
        }  # fmt: skip

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


if __name__ == "__main__":
    protocol.main(quantize, Server)
