"""mxq takes a trained MXNet/Gluon network to INT8 for CPU inference.

    import mxq
    qnet = mxq.quantize_net(net, calib_data)     # a Gluon block
    mxq.save(qnet, "model-int8")                 # a pair that stock MXNet loads like the original

Import mxq before mxnet. The functions load on first use: ``import mxq`` does not import MXNet. It changes five things
of the process, each only where it is needed:

- numpy gets back the aliases (``np.bool``, ...) that it no longer has and MXNet reads (`mxq.compat`).
- ``distutils.version`` is offered where neither Python nor setuptools has it, which is from Python 3.12 on; MXNet and
  gluoncv import it.
- ``MXNET_CPU_PARALLEL_SIZE`` is set, unless it is: else a large copy in MXNet starts a second team of OpenMP threads,
  and all networks run slower from then on (`mxq.host.environment.disable_parallel_copy`).
- MXNet knows the operator of networks that train with quantization (`mxq.registration`).
- The logger "mxq" gets a handler that writes to stderr (`mxq.logs`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mxq import registration, threads
from mxq.compat import prepare
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import (
    CalibrationError,
    ConfigError,
    DataError,
    FormatError,
    GraphError,
    MxqError,
    QuantizeError,
    ReadError,
    RuntimeFailure,
    StorageError,
    TrainingError,
    WorkerError,
)
from mxq.host.openmp import use_physical_cores
from mxq.logs import install as install_log_handler
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.text import show_by
from mxq.version import __version__

if TYPE_CHECKING:
    from mxq import data, qat
    from mxq.api import (
        QuantizedModel,
        best_runtime,
        calibrate,
        choose_bits,
        compare,
        draw,
        evaluate,
        explain,
        export_onnx,
        inspect,
        inspect_onnx,
        load,
        pack,
        plot,
        quantize_model,
        quantize_net,
        recalibrate_batchnorm,
        report,
        save,
        sensitivity,
        simulate,
        sweep_bits,
        tune,
        unpack,
        verify,
        verify_onnx,
    )
    from mxq.calibration.statistics import Statistics
    from mxq.contrib import calib_graph, quantize_graph, quantize_model_mkldnn, quantize_net_v2
    from mxq.distributed import Partitions
    from mxq.options import Options
    from mxq.quant.plan import Report
    from mxq.runtime import LoadedBlock, QuantizedBlock

install_log_handler()
prepare()
registration.prepare()
show_by(
    lambda found: str(importlib.import_module("mxq.reporting.plain").plain(found)),
    lambda found: str(importlib.import_module("mxq.reporting.plain").html(found)),
)

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "FormatError",
    "GraphError",
    "LayerConfig",
    "LoadedBlock",
    "MxqError",
    "Options",
    "Partitions",
    "QuantConfig",
    "QuantizeError",
    "QuantizedBlock",
    "QuantizedModel",
    "Range",
    "ReadError",
    "Report",
    "RuntimeFailure",
    "Statistics",
    "StorageError",
    "Threshold",
    "Thresholds",
    "TrainingError",
    "WorkerError",
    "__version__",
    "best_runtime",
    "calib_graph",
    "calibrate",
    "choose_bits",
    "compare",
    "data",
    "draw",
    "evaluate",
    "explain",
    "export_onnx",
    "inspect",
    "inspect_onnx",
    "load",
    "pack",
    "plot",
    "qat",
    "quantize_graph",
    "quantize_model",
    "quantize_model_mkldnn",
    "quantize_net",
    "quantize_net_v2",
    "recalibrate_batchnorm",
    "report",
    "save",
    "sensitivity",
    "simulate",
    "sweep_bits",
    "threads",
    "tune",
    "unpack",
    "use_physical_cores",
    "verify",
    "verify_onnx",
]

_LAZY = {
    "LoadedBlock": "mxq.runtime",
    "Options": "mxq.options",
    "Partitions": "mxq.distributed",
    "QuantizedBlock": "mxq.runtime",
    "Report": "mxq.quant.plan",
    "evaluate": "mxq.api",
    "QuantizedModel": "mxq.api",
    "Statistics": "mxq.calibration.statistics",
    "best_runtime": "mxq.api",
    "calib_graph": "mxq.contrib",
    "calibrate": "mxq.api",
    "choose_bits": "mxq.api",
    "compare": "mxq.api",
    "draw": "mxq.api",
    "explain": "mxq.api",
    "export_onnx": "mxq.api",
    "inspect": "mxq.api",
    "inspect_onnx": "mxq.api",
    "load": "mxq.api",
    "pack": "mxq.api",
    "plot": "mxq.api",
    "quantize_graph": "mxq.contrib",
    "quantize_model": "mxq.api",
    "quantize_model_mkldnn": "mxq.contrib",
    "quantize_net": "mxq.api",
    "quantize_net_v2": "mxq.contrib",
    "recalibrate_batchnorm": "mxq.api",
    "report": "mxq.api",
    "save": "mxq.api",
    "sensitivity": "mxq.api",
    "simulate": "mxq.api",
    "sweep_bits": "mxq.api",
    "tune": "mxq.api",
    "unpack": "mxq.api",
    "verify": "mxq.api",
    "verify_onnx": "mxq.api",
}


_MODULES = ("data", "qat")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mxq.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mxq' has no attribute {name!r}")
