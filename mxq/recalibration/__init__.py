"""BatchNorm recalibration: quantization moves what BatchNorm normalises, and its statistics are taken anew.

Quantized layers give other means and variances than those that BatchNorm keeps from training. Li et al., "MQBench",
arXiv:2111.03759, appendix C.3: ranges stay, the network runs over calibration data once more, and BatchNorm's moving
mean and variance become those of its inputs there.

`statistics` does it where BatchNorm is still an operator: in a float network, or one that is trained with fake
quantization. `folded` does what comes to the same after BatchNorm was folded into the layer before it.
"""

from mxq.recalibration.folded import restored
from mxq.recalibration.statistics import Recalibrated, recalibrated

__all__ = ["Recalibrated", "recalibrated", "restored"]
