"""Training with quantization (QAT): a network computes in float what its integers would, and learns to live with it.

`fit` fine-tunes a block, `TrainConfig` says how. `mxq.qat.algorithms` has the ways to fake-quantize a tensor, one page
each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxq.qat.options import TrainOptions
    from mxq.qat.result import Trained
    from mxq.qat.schedule import TrainConfig
    from mxq.qat.training import fit

__all__ = ["TrainConfig", "TrainOptions", "Trained", "fit"]

_LAZY = {
    "TrainConfig": "mxq.qat.schedule",
    "TrainOptions": "mxq.qat.options",
    "Trained": "mxq.qat.result",
    "fit": "mxq.qat.training",
}


def __getattr__(name: str) -> Any:
    """What is public here, imported when it is asked for: it imports MXNet, which the algorithms do without."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mxq.qat' has no attribute {name!r}")
