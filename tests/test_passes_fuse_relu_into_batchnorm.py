"""ReLU by saturation: what the int8 BatchNorm writes, that readers take it back, and where it does not serve."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from graphs import (
    CHANNELS,
    CONV1,
    GOLDENS,
    RELU,
    bn,
    build,
    conv,
    decided,
    feeds,
    numbers,
    op_names,
    quantized,
    run,
    without_pairs,
)
from helpers import SATURATES, TARGETS, assert_close, assert_golden, has_vnni

from mxq import pipeline
from mxq.backends.mxnet import lower
from mxq.backends.mxnet.exact import exact
from mxq.graph.ir import Model, Ref
from mxq.graph.serde import write_text
from mxq.host import machine
from mxq.numerics import sqnr_db
from mxq.quant.records import saturating
from mxq.runtime import MxnetRunner
from mxq.verification import verify

pytestmark = pytest.mark.kernels

NORM = 'eps="1e-05" fix_gamma="False" use_global_stats="True"'
HEAD = (
    conv("a", "data"),
    "ra = Activation(a) " + RELU,
    conv("b", "data"),
    'x = Concat(ra, b) dim="1" num_args="2"',
    bn("n", "x", NORM),
    "r = Activation(n) " + RELU,
)
"""A BatchNorm that no convolution takes in, as in DenseNet."""
DATA = feeds(data=(4, CHANNELS, 9, 9))
BAR = 29 if SATURATES else 32
"""Of a layer's SQNR in dB; where there is no VNNI, weights of convolutions of s8 have even codes alone."""


def dense(*tail: str, bias: bool = True) -> Model:
    return build(*HEAD, *(tail or (conv("c", "r", CONV1, bias=bias), "return c")), data=(4, CHANNELS, 9, 9))


def has_absorbed_relu(model: Model, **options) -> bool:
    """Whether the int8 network does without the ReLU."""
    made = quantized(model, DATA, **options)
    offsets = any(node.note.offset for node in made.model.graph)
    assert offsets != ("_contrib_quantized_act" in op_names(made.model) or "Activation" in op_names(made.model))
    return offsets


@pytest.mark.parametrize("bias", [True, False])
def test_structure(bias, update_goldens):
    made = quantized(dense(bias=bias), DATA)
    name = f"fuse_relu_into_batchnorm_{'bias' if bias else 'no_bias'}.txt"
    text = "\n".join(
        " ".join(part for part in line.split(" ") if "calib_range" not in part and "__offset__" not in part)
        for line in write_text(made.model.graph).splitlines()
    )
    assert_golden(text + "\n", GOLDENS / name, update=update_goldens)


def test_codes():
    model = dense()
    made = quantized(model, DATA)
    record = made.report.tensors["quantized_r"]
    top = made.thresholds.range("r").max
    step = top / 255.5
    assert record.dtype == "int8"
    assert_close([record.min, record.max], [-127.5 * step, 127.5 * step], rtol=1e-6, atol=0)
    assert record.offset == pytest.approx(-128 * step)
    assert "zero" in record.note
    node = made.model.graph["quantized_r"]
    assert node.op == "_contrib_quantized_batch_norm"
    assert node.note.offset == record.offset
    codes, low, high = run(made.model, DATA, tuple(Ref(node.name, i) for i in range(3)))[1:]
    assert codes.min() == -128
    assert codes.max() == 127 or (SATURATES and codes.max() > 120)  # what is read has weights of even codes there
    (wanted,) = run(pipeline.fuse_float(model), DATA, (model.graph["r"].out,))[1:]
    assert np.all(codes[wanted == 0] <= -126)
    assert_close(low.item(), -high.item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_better_than_apart(bias, seed, target, monkeypatch):
    model = build(*HEAD, conv("c", "r", CONV1, bias=bias), "return c", seed=seed, data=(4, CHANNELS, 9, 9))
    (wanted,), (better,) = run(model, DATA), numbers(quantized(model, DATA, target=target).model, target, DATA)
    monkeypatch.setattr(sys.modules["mxq.passes.partition"], "absorbed_relus", lambda *_: {})
    made = quantized(model, DATA, target=target)
    assert "_contrib_quantized_act" in op_names(made.model)
    (worse,) = numbers(made.model, target, DATA)
    assert sqnr_db(wanted, better) > sqnr_db(wanted, worse) + (0.5 if has_vnni(target) else 0)


def test_the_exact_form_has_the_same_numbers():
    made = quantized(without_pairs(dense()), DATA)
    (codes,), (values,) = run(made.model, DATA), run(exact(made.model, halved=SATURATES), DATA)
    step = made.report.tensors["quantized_c"].max / 127.5
    off = np.abs(codes - values)
    assert off.max() <= 2.01 * step  # of codes in between that are halves, or nearly, in float32
    assert np.mean(off > 0.5 * step) < 0.01


def test_halved_weights_have_halved_sums():
    model = dense()
    prepared = pipeline.plan(model, quantized(model, DATA).prepared.config)
    thresholds = pipeline.calibrate(prepared, DATA["data"], MxnetRunner(), progress=False).thresholds
    targets = {True: "avx512_vnni", False: "avx2"}
    made = {k: prepared.backend.lower(decided(prepared, thresholds, target=t)).model for k, t in targets.items()}
    weight = prepared.fused.args["c_weight"]
    scale = (np.float32(127.5) / np.abs(weight).max(axis=(1, 2, 3)))[:, None]
    offset = made[True].graph["quantized_r"].note.offset
    codes = weight[:, :, 0, 0] * scale
    each, even = (np.clip(np.rint(codes), -128, 127) / scale).sum(axis=1), (2 * np.rint(codes / 2) / scale).sum(axis=1)
    for kind, sums in ((True, each), (False, even)):
        assert_close(made[kind].args["c_bias"], prepared.fused.args["c_bias"] - offset * sums, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", machine.TARGETS[:-1])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_every_target_and_effort(target, effort):
    model = dense()
    made = quantized(model, DATA, target=target, effort=effort)
    assert "_contrib_quantized_act" not in op_names(made.model)
    if target in (machine.VNNI, machine.resolve_target(machine.NATIVE, machine.detect())):
        (wanted,), (found,) = run(model, DATA), numbers(made.model, target, DATA)
        assert sqnr_db(wanted, found) > (30 if has_vnni(target) else 26)


POOLED = {
    "average": 'kernel="(2, 2)" stride="(2, 2)" pool_type="avg"',
    "maximum": 'kernel="(3, 3)" stride="(2, 2)" pool_type="max"',
}


@pytest.mark.parametrize("kind", POOLED)
def test_poolings_keep_the_offset(kind):
    model = dense("p = Pooling(r) " + POOLED[kind], conv("c", "p", CONV1), "return c")
    made = quantized(model, DATA)
    assert made.report.tensors["quantized_p"].offset == made.report.tensors["quantized_r"].offset
    found = verify(MxnetRunner(), model, made.model, [DATA], layers=True)
    layers = {layer.name: layer for layer in found.layers}
    assert min(layers["r"].sqnr, layers["p"].sqnr, layers["c"].sqnr) > BAR


@pytest.mark.parametrize("attrs", ['kernel="(3, 3)" num_filter="8"', 'kernel="(3, 3)" num_filter="16" num_group="16"'])
def test_other_convolutions_without_padding(attrs):
    model = dense(conv("c", "r", attrs), "return c")
    assert has_absorbed_relu(model)
    found = verify(MxnetRunner(), model, quantized(model, DATA).model, [DATA], layers=True)
    assert min(layer.sqnr for layer in found.layers if layer.name in ("r", "c")) > BAR


def test_layers_are_compared():
    model = dense()
    found = verify(MxnetRunner(), model, quantized(model, DATA).model, [DATA], layers=True)
    layers = {layer.name: layer for layer in found.layers}
    assert "n" not in layers
    assert layers["r"].clipped < 0.001
    assert layers["r"].levels > 160
    assert layers["r"].sqnr > 34


def test_the_report_says_so():
    made = quantized(dense(), DATA)
    assert made.report.plan["r"].reason.endswith("by saturation in 'n'")


FULL = 'kernel="(2, 2)" stride="(2, 2)" pool_type="max" pooling_convention="full"'
APART = {
    "padding": (conv("c", "r", CONV1 + ' pad="(1, 1)"'), "return c"),
    "an output": (conv("c", "r", CONV1), "return c, r"),
    "the BatchNorm is read elsewhere": (conv("c", "r", CONV1), conv("d", "n", CONV1), "return c, d"),
    "another reader": (conv("c", "r", CONV1), conv("d", "r"), "return c, d"),
    "a summand": (conv("c", "r", 'kernel="(1, 1)" num_filter="16"'), "s = elemwise_add(c, r)", conv("d", "s", CONV1),
                  "return d"),
    "pooling that pads": ('p = Pooling(r) kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)" pool_type="max"',
                          conv("c", "p", CONV1), "return c"),
    "pooling beyond the end": ("p = Pooling(r) " + FULL, conv("c", "p", CONV1), "return c"),
    "a shared bias": (conv("c", "r", CONV1), conv("d", "r", CONV1).replace("d_bias", "c_bias"), "return c, d"),
}  # fmt: skip


@pytest.mark.parametrize("why", APART)
def test_where_it_does_not_serve(why):
    model = dense(*APART[why])
    assert not has_absorbed_relu(model)
    made = quantized(model, DATA)
    for wanted, found in zip(run(model, DATA), run(made.model, DATA), strict=True):
        assert sqnr_db(wanted, found) > (20 if machine.detect().saturates else 28)


def test_a_float_reader():
    model = dense(conv("c", "r", CONV1), conv("d", "r", CONV1), "return c, d")
    assert has_absorbed_relu(model)
    assert not has_absorbed_relu(model, exclude_layers=("d",))


def test_a_bias_that_is_no_parameter():
    model = dense('k = sum(data) axis="(0, 2, 3)"', conv("c", "r", CONV1).replace("c_bias", "k"), "return c")
    assert not has_absorbed_relu(model)


def test_a_shared_beta():
    second = (bn("m", "x", NORM).replace("m_beta", "n_beta"), "q = Activation(m) " + RELU)
    assert not has_absorbed_relu(dense(*second, conv("c", "r", CONV1), conv("d", "q", CONV1), "return c, d"))


@pytest.mark.parametrize("factor", [0.0, 0.98, -1.0])
def test_wrong_offsets_are_noticed(factor, monkeypatch):
    model = dense()
    (wanted,), (right,) = run(model, DATA), run(quantized(model, DATA).model, DATA)
    good = lower.with_bias
    monkeypatch.setattr("mxq.backends.mxnet.lower.with_bias", lambda m, n, offset: good(m, n, factor * offset))
    (wrong,) = run(quantized(model, DATA).model, DATA)
    assert sqnr_db(wanted, wrong) < sqnr_db(wanted, right) - 2
    assert saturating(255.5)[1] == -128
