"""The only door to MXNet: networks in, executables, blocks and file pairs out.

Everything else in mxq works on `mxq.graph.ir.Model`. MXNet's errors become `RuntimeFailure` or `FormatError` with
MXNet's own sentence in them.
"""

from mxq.runtime.blocks import REMEDY, arguments, is_block, is_deferred, left_out, set_values, settle
from mxq.runtime.executor import MxnetRunner, serve
from mxq.runtime.fake_quantization import FakeQuantizeProp
from mxq.runtime.loading import data_loader
from mxq.runtime.monitor import monitored
from mxq.runtime.mxnet import features, to_arrays, to_symbol, versions
from mxq.runtime.networks import Net, from_symbol, load_model, load_params, other_precision, params_path
from mxq.runtime.saving import (
    BLOCK_ATTRIBUTE,
    Files,
    LoadedBlock,
    QuantizedBlock,
    pair_at,
    read_block,
    reported_block,
    to_block,
    write_pair,
)
from mxq.runtime.tensors import tensors_of
from mxq.runtime.trainable import TrainableBlock, trainable_block

__all__ = [
    "BLOCK_ATTRIBUTE",
    "REMEDY",
    "FakeQuantizeProp",
    "Files",
    "LoadedBlock",
    "MxnetRunner",
    "Net",
    "QuantizedBlock",
    "TrainableBlock",
    "arguments",
    "data_loader",
    "features",
    "from_symbol",
    "is_block",
    "is_deferred",
    "left_out",
    "load_model",
    "load_params",
    "monitored",
    "other_precision",
    "pair_at",
    "params_path",
    "read_block",
    "reported_block",
    "serve",
    "set_values",
    "settle",
    "tensors_of",
    "to_arrays",
    "to_block",
    "to_symbol",
    "trainable_block",
    "versions",
    "write_pair",
]
