"""The simulation against the int8 kernels, code for code, and against numpy for specs that no kernel has."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import CONV1, RELU, bn, build, conv, decided, fc, feeds, run
from test_saturation_kernels import of_images, of_rows

from mxq import observers, pipeline
from mxq.backends import get
from mxq.backends.mxnet import MXNET_191
from mxq.backends.mxnet.exact import exact
from mxq.backends.mxnet.lower import int8_graph
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.errors import QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.quant import QuantizedNetwork, QuantSpec, scheme_of
from mxq.quant.thresholds import Thresholds
from mxq.runtime import MxnetRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import simulated

pytestmark = pytest.mark.kernels

NETS = {
    "chain": (conv("a", "data"), "b = Activation(a) " + RELU, conv("c", "b"), fc("f", "c"), "return f"),
    "sum": (
        conv("a", "data"), "b = Activation(a) " + RELU, conv("c", "b"), "d = elemwise_add(c, b)",
        "e = Activation(d) " + RELU, conv("f", "e"), "return f",
    ),
    "signed sum": (conv("a", "data"), conv("b", "a"), "c = elemwise_add(b, a)", "d = Activation(c) " + RELU,
                   conv("e", "d", CONV1), "return e"),
    "norm": (conv("a", "data"), "p = Activation(a) " + RELU, bn("n", "p"), "r = Activation(n) " + RELU,
             conv("c", "r", CONV1), "return c"),
    "pools": (conv("a", "data"), "b = Activation(a) " + RELU,
              'm = Pooling(b) kernel="(2, 2)" stride="(2, 2)" pool_type="max"', conv("c", "m"),
              'p = Pooling(c) kernel="(3, 3)" global_pool="True" pool_type="avg"', fc("f", "p"), "return f"),
    "concat": (conv("a", "data"), "b = Activation(a) " + RELU, conv("c", "data"),
               'd = Concat(b, c) dim="1" num_args="2"', conv("e", "d", CONV1), "return e"),
}  # fmt: skip


def planned(model: Model, data: np.ndarray | None = None, **options: object) -> QuantizedNetwork:
    """What is decided for ``model``, with ranges of ``data`` or of that of `feeds`."""
    config = QuantConfig(quantize_mode="full", effort="fast", num_calib_examples="100%", **options)
    prepared = pipeline.plan(model, config)
    data = feeds()["data"] if data is None else data
    thresholds = pipeline.calibrate(prepared, data, MxnetRunner(), progress=False).thresholds
    return decided(prepared, thresholds)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_codes_are_those_of_the_kernels(name: str, seed: int) -> None:
    """Of kernels that add products exactly; a few values lie so near the middle that float32 decides."""
    quantized = planned(build(*NETS[name], seed=seed))
    refs = [ref for ref in quantized.made if not quantized.operations[ref.name].passes_on]
    made, tensors = int8_graph(quantized, MXNET_191)
    kernels = exact(made)
    codes = run(kernels, taps=tuple(Ref(tensors.names[ref]) for ref in refs))[len(kernels.graph.heads) :]
    values = run(simulate(quantized), taps=tuple(refs))[len(kernels.graph.heads) :]
    for ref, code, value in zip(refs, codes, values, strict=True):
        record = quantized.made[ref]
        mine = np.rint((value + record.offset) * quantized.made_as(ref).scale)
        # BatchNorm halves the u8 codes that it reads, and rounds halves up in one part of a tensor, down in another.
        halves = quantized.operations[ref.name].halves
        assert np.mean(mine == code) > (0.9 if halves else 0.995), str(ref)
        assert np.abs(mine - code).max() <= (4 if halves else 1), str(ref)
        if halves:
            return  # what follows it reads other codes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [of_images, of_rows])
def test_every_code_that_differs_has_a_cause(kind: Callable[..., tuple[list[str], tuple[int, ...]]], seed: int) -> None:
    """Given what the kernel read, on random networks."""
    lines, shape = kind(np.random.default_rng(seed))
    given = feeds(seed, data=shape)
    found = simulated.compare(planned(build(*lines, seed=seed, data=shape), given["data"]), given)
    assert found.causes[simulated.Cause.OTHER] == 0, found.first
    assert found.causes.total() < 0.01 * found.codes


@pytest.mark.parametrize("name", NETS)
def test_the_causes_are_those_of_the_operators(name: str) -> None:
    found = simulated.compare(planned(build(*NETS[name])), feeds())
    assert found.causes[simulated.Cause.OTHER] == 0, found.first
    assert (found.causes[simulated.Cause.HALVED] > 0) == (name == "norm")


@pytest.mark.parametrize("offset", [0.02, 0.2])
def test_a_result_that_is_off_is_no_known_cause(offset: float) -> None:
    network = planned(build(*NETS["chain"]))
    ref, rng = Ref("b"), np.random.default_rng(0)
    value = rng.uniform(0, 1, (2, 8, 50, 50)).astype(np.float32)
    code = np.rint((value + offset / network.made_as(ref).scale) * network.made_as(ref).scale)
    found = simulated.causes(network, ref, value, code)
    assert found[simulated.Cause.OTHER] > 0.5 * offset * value.size


SPECS = [
    (QuantSpec(bits, signed, symmetric, scale=scale), QuantSpec(weight_bits, True, weight_symmetric, axis, scale))
    for (bits, weight_bits), (signed, symmetric), weight_symmetric, axis, scale in itertools.product(
        ((2, 2), (3, 4), (4, 8), (8, 5), (8, 6), (7, 7), (5, 3)),
        ((True, True), (None, True), (True, False), (None, False)),
        (True, False),
        (None, 0),
        ("float", "power_of_two"),
    )
]


@pytest.fixture(scope="module")
def dense() -> QuantizedNetwork:
    return planned(build(fc("f", "data", 'num_hidden="8"'), "r = Activation(f) " + RELU, fc("g", "r"), "return g"))


def test_every_spec_against_numpy(dense: QuantizedNetwork) -> None:
    data, args = feeds()["data"], dense.fused.args
    plain = [args[f"{name}_{kind}"].astype(np.float64) for name in "fg" for kind in ("weight", "bias")]
    for activation, weight in SPECS:
        model = dense.respecified(activation, weight)
        found = run(simulate(model))[0]
        x = model.read_as(Ref("data"), dense.operations["r"].reads[0])
        h = model.made_as(Ref("r"))
        w, v = (scheme_of(weight).params(weight, *_ends(weight, args[f"{n}_weight"])) for n in "fg")
        hidden = x.fake(data.reshape(len(data), -1)) @ w.fake(args["f_weight"]).T.astype(np.float64) + plain[1]
        wanted = h.fake(np.maximum(hidden, 0)) @ v.fake(args["g_weight"]).T.astype(np.float64) + plain[3]
        near = np.isclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        step = float(h.step) * np.abs(v.fake(args["g_weight"])).max()
        assert near.mean() > 0.8, (str(activation), str(weight))  # one code of a hidden value is seen in a whole row
        assert np.abs(found - wanted).max() <= 2 * step


def _ends(spec: QuantSpec, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axes = None if spec.axis is None else (1,)
    low, high = weight.min(axis=axes), weight.max(axis=axes)
    size = np.maximum(-low, high)
    return (-size, size) if spec.symmetric else (low, high)


@pytest.mark.parametrize(
    ("activation", "weight", "says"),
    [
        (
            QuantSpec(4),
            QuantSpec(axis=0),
            "tensor 'r' is int4; MXNet 1.9.1 holds int8 or uint8 or",
        ),
        (
            QuantSpec(8, None),
            QuantSpec(4, axis=0),
            "weight 'f_weight' is int4, per channel on axis 0; MXNet",
        ),
        (QuantSpec(8, None, symmetric=False), QuantSpec(axis=0), "tensor 'r' is uint8, zero point; MXNet 1.9.1 holds"),
    ],
)
def test_what_mxnet_cannot_hold(dense: QuantizedNetwork, activation: QuantSpec, weight: QuantSpec, says: str) -> None:
    with pytest.raises(QuantizeError, match=says):
        get("mxnet").lower(dense.respecified(activation, weight))


def test_fewer_bits_are_worse(dense: QuantizedNetwork) -> None:
    wanted = run(dense.fused)[0]
    off = [
        float(np.square(run(simulate(dense.respecified(QuantSpec(b, None), QuantSpec(b, axis=0))))[0] - wanted).mean())
        for b in (2, 4, 6, 8)
    ]
    assert off == sorted(off, reverse=True)


def test_ranges_found_for_the_codes_that_there_are() -> None:
    """Of four bits, those that `mse` finds for four bits are better than for eight, and than all that was seen."""
    config = QuantConfig(calib_mode="mse", quantize_mode="full", effort="fast", num_calib_examples="100%")
    prepared = pipeline.plan(build(*NETS["chain"]), config)
    seen = pipeline.calibrate(prepared, feeds()["data"], MxnetRunner(), progress=False).statistics
    spec, refs = QuantSpec(4, signed=None), [str(ref) for ref in prepared.plan.observe]

    def noise(observer: str, of: QuantSpec) -> float:
        found = seen.thresholds(dict.fromkeys(refs, observers.get(observer)), of, scheme_of(of))
        quantized = decided(prepared, found).respecified(spec, QuantSpec(axis=0))
        return float(np.square(run(simulate(quantized))[0] - run(prepared.fused)[0]).mean())

    fitted, other, naive = noise("mse", spec), noise("mse", QuantSpec(signed=None)), noise("naive", spec)
    assert fitted < min(other, naive)


def test_names_stay(dense: QuantizedNetwork) -> None:
    model = simulate(dense)
    assert model.graph.heads == dense.fused.graph.heads
    assert {"r", "g"} <= {node.name for node in model.graph}


def test_ranges_that_are_found_at_run_time() -> None:
    config = QuantConfig(calib_mode="none")
    prepared = pipeline.plan(build(conv("a", "data"), conv("b", "a"), "return b"), config)
    quantized = decided(prepared, Thresholds())
    with pytest.raises(QuantizeError, match="the range of tensor 'data' is found at run time; allowed: a calibrated"):
        simulate(quantized)


def test_activations_with_a_scale_for_each_channel(dense: QuantizedNetwork) -> None:
    with pytest.raises(QuantizeError, match="activations are int8, per channel on axis 1; allowed: one scale"):
        dense.respecified(QuantSpec(axis=1), QuantSpec())
