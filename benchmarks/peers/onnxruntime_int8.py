"""ONNX Runtime: its own int8 (``quantize_static``, QDQ, weights per channel, activations u8), and a server of any file.

    python onnxruntime_int8.py quantize KIND FOLDER
    python onnxruntime_int8.py serve FILE FOLDER BATCH

KIND is onnxruntime, or onnxruntime_reduced: weights of 7 bits (``reduce_range``), for CPUs without VNNI. Runs in the
peers' environment, on what `mxnet_nets.py` wrote into FOLDER.
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
from onnxruntime.quantization.shape_inference import quant_pre_process

SIZE = 10
"""Examples of a batch that calibrates."""
BATCH = "batch"
"""What the files call the batch size."""


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration examples in batches."""

    def __init__(self, feeds: protocol.Feeds) -> None:
        self._items = iter([part for part, valid in protocol.batches(feeds, SIZE) if valid == SIZE])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)


def quantize(kind: str, folder: Path) -> None:
    """Writes ``KIND.onnx`` from ``net.onnx``."""
    ready = folder / "net-ready.onnx"
    quant_pre_process(str(folder / "net.onnx"), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(folder / f"{kind}.onnx"),
        Reader(protocol.read(folder / "calibration.npz")),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=kind == "onnxruntime_reduced",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class Server:
    """A sequential session. Its threads may spin while it runs, which is its default, and stop when a run ends."""

    def __init__(self, path: Path, feeds: protocol.Feeds) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.inter_op_num_threads = 1
        self.batch = len(next(iter(feeds.values())))
        options.add_free_dimension_override_by_name(BATCH, self.batch)
        settings = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._feeds = dict(feeds)
        self._binding = self._session.io_binding()
        for name, values in feeds.items():
            self._binding.bind_cpu_input(name, values)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        self.about = {"onnxruntime": ort.__version__, "threads": options.intra_op_num_threads, **settings}

    def __call__(self) -> object:
        return self._session.run_with_iobinding(self._binding)

    def profile(self, calls: int) -> protocol.Kinds:
        raise NotImplementedError("onnxruntime is not profiled")

    def outputs(self) -> Sequence[Any]:
        return list(self._binding.copy_outputs_to_cpu())

    def infer(self, feeds: protocol.Feeds) -> Sequence[Any]:
        return [np.asarray(a) for a in self._session.run(None, dict(feeds))]


if __name__ == "__main__":
    protocol.main(quantize, Server)
