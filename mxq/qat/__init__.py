"""Training with quantization (QAT): a network computes in float what its integers would, and learns to live with it.

    block = mxq.qat.prepare(net, calib_data, mxq.qat.QatConfig(bits_w=4, bits_a=4, hardware="tensorrt"))
    ...                                  # train it as any gluon block, or by mxq.qat.fit
    qnet = mxq.qat.convert(block)        # 8 bits on oneDNN: the int8 network, as `mxq.quantize_net` gives it

`mxq.qat.algorithms` has the ways to fake-quantize a tensor, one page each, `mxq.quant.hardware` whose quantizers there
are, and `mxq.qat.folding` what BatchNorm is meanwhile. `fit` fine-tunes a block, `TrainConfig` says how.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxq.qat.config import QatConfig
    from mxq.qat.converting import convert
    from mxq.qat.network import QatNetwork
    from mxq.qat.options import TrainOptions
    from mxq.qat.preparing import prepare
    from mxq.qat.result import Trained
    from mxq.qat.saving import load, save
    from mxq.qat.schedule import TrainConfig
    from mxq.qat.training import fit

__all__ = [
    "QatConfig",
    "QatNetwork",
    "TrainConfig",
    "TrainOptions",
    "Trained",
    "convert",
    "fit",
    "load",
    "prepare",
    "save",
]

_LAZY = {
    "QatConfig": "mxq.qat.config",
    "QatNetwork": "mxq.qat.network",
    "TrainConfig": "mxq.qat.schedule",
    "TrainOptions": "mxq.qat.options",
    "Trained": "mxq.qat.result",
    "convert": "mxq.qat.converting",
    "fit": "mxq.qat.training",
    "load": "mxq.qat.saving",
    "prepare": "mxq.qat.preparing",
    "save": "mxq.qat.saving",
}


def __getattr__(name: str) -> Any:
    """What is public here, imported when it is asked for: it imports MXNet, which the algorithms do without."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mxq.qat' has no attribute {name!r}")
