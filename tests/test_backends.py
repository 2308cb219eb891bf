"""Backends: found by name, and one added from outside that takes a network all the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from graphs import CONV1, RELU, build, conv, fc, feeds, run

from mxq import backends, pipeline
from mxq.backends import Backend, BackendSpec, Lowered
from mxq.backends.mxnet.table import CONVOLUTION, FULLY_CONNECTED
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.errors import ConfigError, QuantizeError
from mxq.numerics import sqnr_db
from mxq.passes.align_ranges import align_ranges
from mxq.quant import QuantizedNetwork, QuantSpec
from mxq.runtime import MxnetRunner

pytestmark = pytest.mark.kernels

INT4, UINT4, WEIGHT4 = QuantSpec(4), QuantSpec(4, signed=False), QuantSpec(4, axis=0)
LINES = (
    conv("a", "data"), "b = Activation(a) " + RELU, conv("c", "b", CONV1), "s = elemwise_add(c, b)",
    "r = Activation(s) " + RELU, fc("f", "r"), "return f",
)  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """Hardware with layers of 4 bits that add no summand; ``bits`` is what it makes of a network."""

    spec: BackendSpec
    bits: int = 4
    name: str = "toy"

    def constrain(self, network: QuantizedNetwork) -> QuantizedNetwork:
        aligned = network.after(align_ranges(self.spec))
        found = aligned.respecified(QuantSpec(self.bits, None), QuantSpec(self.bits, axis=0))
        self.spec.check(found)
        return found

    def lower(self, network: QuantizedNetwork) -> Lowered:
        return Lowered(simulate(network))


TABLE = BackendSpec(
    "Toy hardware",
    ops=(replace(CONVOLUTION, with_sum=False), FULLY_CONNECTED),
    no_kernel={"elemwise_add": "the toy adds nothing"},
    holds=(INT4, UINT4, WEIGHT4),
)
TOY = Toy(TABLE)


def made(backend: Backend, **options: object) -> pipeline.Quantized:
    config, runner, data = QuantConfig(num_calib_examples="100%", **options), MxnetRunner(), feeds()["data"]
    prepared = pipeline.plan(build(*LINES), config, runner, backend)
    calibrated = pipeline.calibrate(prepared, data, runner, progress=False)
    return pipeline.quantize(prepared, calibrated, runner=runner, data=[{"data": data}])


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"target": "avx512_vnni"}, {"target": "avx2"}])
def test_a_backend_of_its_own_takes_a_network_all_the_way(options: dict[str, object]) -> None:
    done = made(TOY, **options)
    assert done.prepared.plan["s"].reason == "the toy adds nothing"
    assert {d.node for d in done.prepared.plan.decisions if d.int8} == {"b", "c", "f"}
    assert not any("quantize" in n.op or n.flag("quantized") for n in done.model.graph)
    network, tensors = done.network, done.report.tensors
    assert network is not None
    assert {spec for _, spec in network.specs} == {INT4, UINT4, WEIGHT4}
    assert not tensors
    (wanted,), (found,) = run(build(*LINES)), run(done.model)
    assert 5 < sqnr_db(wanted, found) < 25
    codes = run(done.model, taps=(done.model.graph["b"].out,))[1]
    assert len(np.unique(codes)) <= 16


def test_it_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(QuantizeError, match=r"tensor 'b' is uint5; Toy hardware holds int4 or uint4 or int4, per chan"):
        made(Toy(TABLE, bits=5))


def test_what_is_simulated_is_what_is_written() -> None:
    int8, simulated = (made(backends.get(name), effort="fast", target="avx512_vnni") for name in ("mxnet", "simulate"))
    assert int8.prepared.plan == simulated.prepared.plan
    assert int8.thresholds == simulated.thresholds
    (wanted,), (found,) = (run(done.model) for done in (int8, simulated))
    assert sqnr_db(wanted, found) > 25  # where sums saturate, too


def test_backends_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.BACKENDS, "_known", {})
    assert backends.default() is backends.get("mxnet")
    assert backends.default(at_run_time=True) is backends.get("mxnet_run_time")
    assert all(backends.get(name).name == name for name in backends.names())
    backends.register(TOY)
    assert backends.get("toy") is TOY
    assert backends.names()[-1] == "toy"
    with pytest.raises(ConfigError, match="a backend named 'toy' exists already; known: mxnet, "):
        backends.register(Toy(TABLE, bits=5))
    with pytest.raises(ConfigError, match="backend is 'cuda'; allowed: 'mxnet', 'mxnet_run_time', 'simulate'"):
        backends.get("cuda")
