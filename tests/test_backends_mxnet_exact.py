"""The exact form of an int8 network: the kernels' numbers to one code where no sum saturates, not where one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, build, conv, fc, feeds, op_names, quantized, run, without_pairs
from helpers import assert_close, kernel_params

from mxq.backends.mxnet.exact import exact
from mxq.errors import QuantizeError
from mxq.graph.ir import Ref
from mxq.host import machine
from mxq.numerics import sqnr_db
from mxq.pipeline import Quantized
from mxq.weights.grid import on_grid

pytestmark = pytest.mark.kernels

X = np.abs(feeds()["data"])  # u8: weights of convolutions that read s8 are halved where there is no VNNI
RELU0 = 'relu0 = Activation(conv0) act_type="relu"'
NETS = {
    "conv": (conv("conv0", "data"), "return conv0"),
    "relu": (conv("conv0", "data"), RELU0, conv("conv1", "relu0"), "return conv1"),
    "clip": (conv("conv0", "data"), 'relu0 = clip(conv0) a_min="0.0" a_max="1.0"', conv("c1", "relu0"), "return c1"),
    "depthwise": (conv("conv0", "data", 'kernel="(3, 3)" num_filter="8" num_group="8"'), RELU0, "return relu0"),
    "sum": (
        conv("conv0", "data"),
        conv("conv1", "data", CONV1),
        "sum = elemwise_add(conv0, conv1)",
        'relu1 = Activation(sum) act_type="relu"',
        "return relu1",
    ),
    "sum_of_u8": (
        conv("conv0", "data"),
        RELU0,
        conv("conv1", "data", CONV1),
        "sum = elemwise_add(conv1, relu0)",
        'relu1 = Activation(sum) act_type="relu"',
        "return relu1",
    ),
    "signed_sum": (
        conv("conv0", "data"),
        conv("conv1", "data", CONV1),
        "sum = elemwise_add(conv0, conv1)",
        "return sum",
    ),
    "fc": (fc("fc0", "data"), "return fc0"),
    "fc_of_codes": (
        conv("conv0", "data"),
        RELU0,
        'pool = Pooling(relu0) pool_type="max" kernel="(2, 2)" stride="(2, 2)"',
        fc("fc0", "pool"),
        "return fc0",
    ),
}


def int8(lines: Sequence[str], **options: object) -> Quantized:
    return quantized(without_pairs(build(*lines)), X, effort="fast", target="avx512_vnni", **options)


def step_of(done: Quantized, head: Ref) -> float:
    """The step of a head's code; of a float head what one code of its layer's bias is at most, and a little."""
    record = done.report.tensors.get(f"quantized_{head.name}")
    if record is None:
        return 0.0
    assert record.max is not None
    assert record.min is not None
    return 1 / float(kernel_params(max(abs(record.min), record.max), record.dtype).scale)


@pytest.mark.parametrize("name", NETS)
def test_equals_the_kernels_to_one_code(name: str) -> None:
    done = int8(NETS[name])
    other = exact(done.model)
    (wanted,), (found,) = run(done.model, {"data": X}), run(other, {"data": X})
    step = step_of(done, done.model.graph.heads[0])
    scale = float(np.abs(wanted).max())
    off = np.abs(found - wanted)
    assert off.max() <= 1.01 * step + 2e-3 * scale * (step == 0)
    assert (off > 0.5 * step).mean() < 0.02 if step else off.mean() < 1e-3 * scale
    assert scale > 20 * step


@pytest.mark.parametrize("name", NETS)
def test_no_layer_is_int8_and_names_stay(name: str) -> None:
    done = int8(NETS[name])
    other = exact(done.model)
    layers = [n for n in other.graph.operators if n.op.startswith(("_sg_", "Convolution", "FullyConnected"))]
    assert layers
    assert not any(n.flag("quantized") for n in layers)
    assert "_contrib_dequantize" in op_names(other)
    assert other.graph.heads == done.model.graph.heads
    assert other.inputs == done.model.inputs
    quantizers = {n.name for n in done.model.graph.operators if n.name.startswith("quantized_")}
    assert quantizers <= {n.name for n in other.graph.operators}


def test_codes_in_between_are_the_kernels() -> None:
    done = int8(NETS["fc_of_codes"])
    (name,) = [n for n in done.report.tensors if n == "quantized_relu0"]
    one, other = (run(m, {"data": X}, (Ref(name),))[-1] for m in (done.model, exact(done.model)))
    assert one.dtype == other.dtype == np.uint8
    off = np.abs(one.astype(int) - other)
    assert off.max() <= 1
    assert (off != 0).mean() < 0.01
    assert len(np.unique(one)) > 50


@pytest.mark.skipif(not machine.detect().saturates, reason="sums are exact on this CPU")
def test_differs_where_sums_saturate() -> None:
    """Neighbouring channels that are large at once, with weights of one sign."""
    model = build(*NETS["relu"])
    rng = np.random.default_rng(0)
    alike = rng.choice([-1.0, 1.0], (CHANNELS, CHANNELS // 2, 3, 3)).repeat(2, axis=1)
    weight = (alike * rng.uniform(0.9, 1, alike.shape)).astype(np.float32)
    twins = np.repeat(model.args["conv0_weight"][::2], 2, axis=0)
    changed = replace(model, args={**model.args, "conv0_weight": twins, "conv1_weight": weight})
    done = quantized(changed, X, effort="fast", target="avx512_vnni")
    (kernels,), (numbers,), (wanted,) = (run(m, {"data": X}) for m in (done.model, exact(done.model), changed))
    assert np.abs(kernels - numbers).max() > 5 * step_of(done, done.model.graph.heads[0])
    assert sqnr_db(wanted, numbers) > 30
    assert sqnr_db(wanted, numbers) > sqnr_db(wanted, kernels) + 6


def test_a_doubled_range_ends_where_the_kernels_does() -> None:
    """conv + sum + ReLU on an s8 summand that is read elsewhere: the kernel writes 0..127, also beyond the range."""
    lines = (
        conv("conv0", "data"),
        conv("conv1", "data", CONV1),
        "sum = elemwise_add(conv0, conv1)",
        'relu1 = Activation(sum) act_type="relu"',
        conv("conv2", "conv1"),
        "return relu1, conv2",
    )
    done = int8(lines, overrides={"relu1": {"threshold": (0.0, 0.5)}})
    assert "doubled" in done.report.tensors["quantized_relu1"].note
    one, other = (run(m, {"data": X})[0] for m in (done.model, exact(done.model)))
    step = step_of(done, done.model.graph.heads[0])
    assert one.max() == pytest.approx(0.5, rel=0.01)
    assert np.abs(one - other).max() <= 1.01 * step


def test_on_grid_is_what_the_codes_stand_for() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    weight[3] = 0
    found = on_grid(weight)
    for row, made in zip(weight, found, strict=True):
        assert_close(made, kernel_params(np.abs(row).max(), "int8").fake(row), rtol=0, atol=0)
    assert not found[3].any()
    assert np.abs(found - weight).max() <= 0.51 * np.abs(weight).max() / 127.5


def test_a_shared_weight_is_put_on_its_grid_once() -> None:
    again = 'again = Convolution(conv0, conv0_weight, conv0_bias) kernel="(3, 3)" num_filter="8" pad="(1, 1)"'
    model = build(conv("conv0", "data"), again, "return again")
    done = quantized(model, X, effort="fast", target="avx512_vnni")
    args = exact(done.model).args
    name = next(n for n in args if n.endswith("weight"))
    assert_close(args[name], on_grid(done.model.args[name]), rtol=0, atol=0)


def test_ranges_found_at_run_time() -> None:
    done = quantized(build(*NETS["conv"]), X, calib_mode="none")
    with pytest.raises(QuantizeError, match="finds its range at run time; allowed: calibrated ranges"):
        exact(done.model)


def test_a_float_network_stays() -> None:
    model = build(*NETS["relu"])
    other = exact(model)
    assert op_names(other) == op_names(model)
    np.testing.assert_array_equal(run(other, {"data": X})[0], run(model, {"data": X})[0])
