"""Engines: what runs a network file. MXNet its pairs, ONNX Runtime and OpenVINO ``.onnx`` files.

    engine_of("onnxruntime").check() -> open(path, threads) -> Session: {input: (N, ...)} -> outputs, in order

* `table`: one `Engine` for each: its package and the least version of it, how it opens a file, and the lines that do
  the same without mxq. The modules `onnxruntime` and `openvino` alone import these packages, when they are asked for.
* `session.Session` knows what a file takes, so a feed that does not fit is one `DataError`; and whatever an engine
  raises leaves as one of mxq's errors.
* `served.Served` is a session in a process of its own. The threads of two engines do not disturb each other there,
  each has the same CPUs, and a file that ends the process of its engine is an error like others. Comparing and timing
  go that way.
"""

from __future__ import annotations

from mxq.engines.mxnet import MXNET
from mxq.engines.row import Engine
from mxq.engines.served import Served
from mxq.engines.session import Session
from mxq.engines.table import ENGINES, FILE_ENGINES, chosen, engine_of, missing

__all__ = [
    "ENGINES",
    "FILE_ENGINES",
    "MXNET",
    "Engine",
    "Served",
    "Session",
    "chosen",
    "engine_of",
    "missing",
]
