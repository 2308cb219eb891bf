"""The rows of hardware against MQBench's table 1 and appendix E, written out here a second time."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from mxq.errors import ConfigError
from mxq.quant import AFFINE, MXNET, SYMMETRIC
from mxq.quant.hardware import HARDWARE, ROWS, hardware_of

TABLE_1 = {  # form of scale, granularity of weights, symmetry of weights and of activations, graph, BatchNorm folded
    "tensorrt": ("float", "channel", True, True, 2, True),
    "acl": ("float", "channel", True, False, 1, True),
    "tvm": ("power_of_two", "tensor", True, True, 3, True),
    "snpe": ("float", "tensor", False, False, 3, True),
    "fbgemm": ("float", "channel", False, False, 3, True),
    "academic": ("float", "tensor", True, True, 1, False),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_a_row_is_that_of_the_paper(name: str) -> None:
    row = hardware_of(name)
    form, granularity, weights, activations, graph, folded = TABLE_1[name]
    assert row.weights.scale == row.activations.scale == form
    assert row.weights.axis == (0 if granularity == "channel" else None)
    assert row.activations.axis is None
    assert (row.weights.symmetric, row.activations.symmetric) == (weights, activations)
    assert (row.graph, row.folds_batch_norm) == (graph, folded)
    assert row.joins_concat == (name != "academic")


def test_the_row_of_onednn_is_what_the_kernels_hold() -> None:
    row = hardware_of("oneDNN")
    assert str(row.weight(8)) == "int8, per channel on axis 0"
    assert {str(row.activation(8, low)) for low in (0.0, -1.0)} == {"int8", "uint8"}
    assert row.scheme(row.weight(8)) is MXNET


@pytest.mark.parametrize("name", HARDWARE.names())
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_have_as_many_bits_as_are_asked_for_and_the_signs_of_the_paper(name: str, bits: int) -> None:
    row = hardware_of(name)
    weight, positive, mixed = row.weight(bits), row.activation(bits, 0.0), row.activation(bits, -1.0)
    assert {weight.bits, positive.bits, mixed.bits} == {bits}
    assert all(spec.highest - spec.lowest == 2**bits - 1 for spec in (weight, positive, mixed))
    by_data = name in ("onednn", "academic")
    assert positive.signed == (row.activations.symmetric and not by_data)
    assert mixed.signed == row.activations.symmetric
    assert weight.signed == row.weights.symmetric


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_has_a_scheme_that_makes_parameters_of_its_specs(row) -> None:  # type: ignore[no-untyped-def]
    low, high = np.float32([-1, -2]), np.float32([3, 1])
    weight = row.weight(4)
    ends = (low, high) if weight.axis == 0 else (low.min(), high.max())
    assert row.scheme(weight).params(weight, *ends).spec == weight
    expected = AFFINE if not row.activations.symmetric else MXNET if row.from_kernels else SYMMETRIC
    assert row.scheme(row.activation(4, -1.0)) is expected


def test_unknown_hardware_and_widths_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"hardware is 'ncnn'; allowed: 'onednn', 'tensorrt', 'acl', 'tvm'"):
        hardware_of("ncnn")
    with pytest.raises(ConfigError, match="hardware is None"):
        hardware_of(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bits is 9; allowed: 2 to 8"):
        hardware_of("tvm").weight(9)
    with pytest.raises(FrozenInstanceError):
        hardware_of("tvm").graph = 1  # type: ignore[misc]
