"""Flat ranges: they end where readers tell no values apart, and stay where one does."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, conv, decided, feeds, quantized, run

from mxq import pipeline
from mxq.backends import hardware
from mxq.config import QuantConfig
from mxq.numerics import sqnr_db
from mxq.passes.flat_ranges import FLAT_RANGES
from mxq.quant import NetworkPass
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.rewrite import NO_EVENTS

C, END = conv("c", "data"), (conv("d", "y"), "return d")
GATE = 'g = hard_sigmoid(c) alpha="0.25" beta="0.5"'
SWISH = (C, GATE, "y = elemwise_mul(c, g)")
GAIN_DB = 1.0
"""1.5 dB on every CPU."""
ON_CODES = {"simulate": True, "hardware": "onnx", "effort": "fast"}


def limited(*lines: str, given: bool = False, found: tuple[float, float] = (-9, 9)) -> Range:
    """The range of "c" after the pass."""
    prepared = pipeline.plan(build(*lines), QuantConfig(**ON_CODES))
    table = {str(ref): Threshold(Range(*found), "fixed" if given else "naive") for ref in prepared.plan.observe}
    return decided(prepared, Thresholds(table)).after(FLAT_RANGES).thresholds["c"].range


LIMITED = {
    "hard-swish": ((*SWISH, *END), (-2, 9)),
    "turned": ((C, GATE, "y = broadcast_mul(g, c)", *END), (-2, 9)),
    "gate alone": ((C, GATE, conv("d", "g"), "return d"), (-2, 2)),
    "two gates": ((C, GATE, 'h = hard_sigmoid(c) alpha="0.2" beta="0.8"', "y = elemwise_mul(g, h)", *END), (-4, 2)),
    "another reader": ((*SWISH, conv("d", "y"), conv("e", "c"), "return d, e"), (-9, 9)),
    "an output": ((*SWISH, conv("d", "y"), "return d, c"), (-9, 9)),
    "gate of another": (
        (C, conv("o", "data"), 'g = hard_sigmoid(o) alpha="0.25" beta="0.5"', "y = elemwise_mul(c, g)", *END), (-9, 9),
    ),
    "falling": ((C, 'y = hard_sigmoid(c) alpha="-0.25" beta="0.5"', *END), (-9, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITED)
def test_ranges(name):
    lines, wanted = LIMITED[name]
    assert limited(*lines) == Range(*wanted)


def test_a_range_that_is_given_stays():
    assert limited(*SWISH, *END, given=True) == Range(-9, 9)


def test_what_lies_beyond_altogether():
    """A gate that is always shut: one value stands for all of them."""
    assert limited(*SWISH, *END, found=(-9, -4)) == Range(-2, -2)


def test_more_codes_are_left_for_what_counts(monkeypatch):
    """A hard-swish of values far below 0, in a network for runtimes: closer to float than without the pass."""
    model, data = build(*SWISH, *END), feeds(seed=3)
    args = {**model.args, "c_bias": np.full(8, -2, np.float32), "c_weight": model.args["c_weight"] * 3}
    model = model.with_graph(model.graph, args)
    with_it = quantized(model, data, **ON_CODES)
    monkeypatch.setattr(hardware, "FLAT_RANGES", NetworkPass("nothing", lambda network: (network, NO_EVENTS)))
    without = quantized(model, data, **ON_CODES)
    assert with_it.network is not None
    assert "all that read it are flat" in with_it.network.thresholds["c"].note
    (wanted,) = run(model, data)
    gained = sqnr_db(wanted, run(with_it.model, data)[0]) - sqnr_db(wanted, run(without.model, data)[0])
    assert gained > GAIN_DB
