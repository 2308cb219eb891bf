"""What a command and a function of `mxq.api` have in common: all of the work, from a network and data to the result.

Nothing else puts these steps together, so the same network, data and settings give the same files by either door. What
is said meanwhile goes to a logger.
"""

from __future__ import annotations

from mxq.workflow.comparing import compare, pair_of, verify
from mxq.workflow.drawing import draw
from mxq.workflow.exporting import export_onnx, quantized_for_files
from mxq.workflow.files import verify_any, verify_file
from mxq.workflow.looking import inspect
from mxq.workflow.making import calibrate, quantize
from mxq.workflow.measuring import evaluate, input_of
from mxq.workflow.opening import Given, Measured, open_data, preparation_of, report_in
from mxq.workflow.racing import bench_files, best_runtime
from mxq.workflow.recalibrating import recalibrate_batchnorm
from mxq.workflow.reporting import PAGE_EXAMPLES, check_rereadable, report
from mxq.workflow.requesting import CodesRequest, FileForm, FileRequest
from mxq.workflow.searching import TrainingData, choose_bits, sensitivity, sweep_bits, tune
from mxq.workflow.timing import bench

__all__ = [
    "PAGE_EXAMPLES",
    "CodesRequest",
    "FileForm",
    "FileRequest",
    "Given",
    "Measured",
    "TrainingData",
    "bench",
    "bench_files",
    "best_runtime",
    "calibrate",
    "check_rereadable",
    "choose_bits",
    "compare",
    "draw",
    "evaluate",
    "export_onnx",
    "input_of",
    "inspect",
    "open_data",
    "pair_of",
    "preparation_of",
    "quantize",
    "quantized_for_files",
    "recalibrate_batchnorm",
    "report",
    "report_in",
    "sensitivity",
    "sweep_bits",
    "tune",
    "verify",
    "verify_any",
    "verify_file",
]
