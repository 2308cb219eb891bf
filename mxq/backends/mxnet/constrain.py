"""Constrain: what stock MXNet's kernels and files ask of a quantized network before it is written.

What a Concat joins has one range (`mxq.passes.align_ranges`), a signed summand under a ReLU is shifted until it is u8
(`mxq.passes.shift_summand`), and an input that is fed integers has their codes (`mxq.passes.fed_codes`). That a ReLU is
done by saturation, `mxq.passes.partition` has decided by the table, as ranges are observed for it.
"""

from __future__ import annotations

from mxq.backends.spec import BackendSpec
from mxq.passes.align_ranges import align_ranges
from mxq.passes.assignment import assigned_anew
from mxq.passes.fed_codes import CHOOSE_CODES
from mxq.passes.shift_summand import shift_summands
from mxq.quant import QuantizedNetwork


def constrained(network: QuantizedNetwork, spec: BackendSpec) -> QuantizedNetwork:
    """``network`` as the int8 kernels of ``spec`` need it, with the types that follow.

    Raises:
        QuantizeError: something is stored as it cannot be held.
        ConfigError: settings of the input contradict the data.
    """
    of_ranges = () if network.at_run_time else (align_ranges(spec), shift_summands(spec))
    found = assigned_anew(network.after(*of_ranges, CHOOSE_CODES), spec)
    spec.check(found)
    return found
