"""Which layers suffer most from int8, and the search for the fastest network that meets an accuracy bar.

`sensitivity` and `tune` make many networks from one calibration pass (`Material`), score them (`Judge`), and write
every measurement into a journal at once: ended in any way and called again, they go on where they were.
"""

from __future__ import annotations

from mxq.tuning import rendering as rendering  # its import makes these results printable
from mxq.tuning.bit_sweep import BitSweep, asked, swept
from mxq.tuning.budget import Budget
from mxq.tuning.choices import observing_more, wholly_int8
from mxq.tuning.kept_data import Loaded, repeatable
from mxq.tuning.layer_sensitivity import BOTH, LayerSensitivity, Sensitivity
from mxq.tuning.material import Material
from mxq.tuning.mixed_bits import MixedBits, choices_of
from mxq.tuning.running import choose_bits, sensitivity, tune
from mxq.tuning.scoring import FloatAgreement, Judge, judge_of
from mxq.tuning.search import Trial
from mxq.tuning.training import Training
from mxq.tuning.tuned import Tuned
from mxq.tuning.tuner import STATISTICS, check

__all__ = [
    "BOTH",
    "STATISTICS",
    "BitSweep",
    "Budget",
    "FloatAgreement",
    "Judge",
    "LayerSensitivity",
    "Loaded",
    "Material",
    "MixedBits",
    "Sensitivity",
    "Training",
    "Trial",
    "Tuned",
    "asked",
    "check",
    "choices_of",
    "choose_bits",
    "judge_of",
    "observing_more",
    "repeatable",
    "sensitivity",
    "swept",
    "tune",
    "wholly_int8",
]
