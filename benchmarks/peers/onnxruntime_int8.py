"""ONNX Runtime's int8: ``quantize_static``, QDQ, weights per channel, activations u8. Runs in the peers' environment.

    python onnxruntime_int8.py quantize|serve FOLDER BATCH

BATCH is the fixed batch size; the images are those that `mxnet_nets.py` wrote into FOLDER.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import protocol
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images, in batches of ``size``."""

    def __init__(self, images: Any, name: str, size: int) -> None:
        self._items = iter([{name: images[i : i + size]} for i in range(0, len(images) - size + 1, size)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)


def quantize(folder: Path, batch: str) -> None:
    """Writes ``onnxruntime-BATCH.onnx`` from ``net-BATCH.onnx``."""
    source = folder / f"net-{batch}.onnx"
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    quantize_static(
        str(source),
        str(folder / f"onnxruntime-{batch}.onnx"),
        Reader(np.load(folder / "calibration.npy"), session.get_inputs()[0].name, int(batch)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class Server:
    """A sequential session. Its threads may spin while it runs, which is its default, and stop when a run ends."""

    def __init__(self, folder: Path, batch: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.inter_op_num_threads = 1
        settings = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        path = folder / f"onnxruntime-{batch}.onnx"
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._images = np.load(folder / f"input-{batch}.npy")
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input(self._session.get_inputs()[0].name, self._images)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        self.about = {"onnxruntime": ort.__version__, "threads": options.intra_op_num_threads, **settings}

    def __call__(self) -> object:
        return self._session.run_with_iobinding(self._binding)

    def profile(self, calls: int) -> protocol.Kinds:
        raise NotImplementedError("onnxruntime is not profiled")

    def outputs(self) -> Sequence[Any]:
        return list(self._binding.copy_outputs_to_cpu())


if __name__ == "__main__":
    protocol.main(quantize, Server)
