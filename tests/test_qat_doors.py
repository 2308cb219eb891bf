"""Blocks in training at the doors of mxq: refused with what to do, or taken for what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training as small

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq import qat
from mxq.errors import ConfigError, QuantizeError

pytestmark = pytest.mark.filterwarnings("ignore:Cannot decide type")

X, Y = small.data(40)


@pytest.fixture(scope="module", params=["compiled", "operators"])
def block(request: pytest.FixtureRequest) -> Any:
    return qat.prepare(small.net(), X[:32], form=request.param)


def parts(block: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """As MXNet's functions take a network."""
    symbol = block._cached_graph[1]  # noqa: SLF001
    values, names = {name: p.data() for name, p in block.collect_params().items()}, symbol.list_auxiliary_states()
    return (
        symbol,
        {name: value for name, value in values.items() if name not in names},
        {n: values[n] for n in names},
    )


QUANTIZING: dict[str, Callable[[Any], Any]] = {
    "quantize_net": lambda net: mxq.quantize_net(net, X),
    "for files": lambda net: mxq.quantize_net(net, X, backend="onnx"),
    "simulate": lambda net: mxq.simulate(net, X, hardware="tvm"),
    "quantize_model": lambda net: mxq.quantize_model(*parts(net), calib_data=X),
    "quantize_graph": lambda net: mxq.quantize_graph(*parts(net)),
    "calibrate": lambda net: mxq.calibrate(net, X),
    "inspect": mxq.inspect,
    "sensitivity": lambda net: mxq.sensitivity(net, X),
    "sweep_bits": lambda net: mxq.sweep_bits(net, X, libraries=["tvm"], widths=[4]),
    "choose_bits": lambda net: mxq.choose_bits(net, X),
    "tune": lambda net: mxq.tune(net, X),
}


@pytest.mark.parametrize("door", QUANTIZING)
def test_it_is_not_quantized_once_more(block: Any, door: str) -> None:
    with pytest.raises(
        QuantizeError, match=r"trains with quantization: 'data_fq' fake-quantizes 'data'; allowed: mxq.qat.convert\("
    ):
        QUANTIZING[door](block)


def test_nor_is_its_exported_pair(block: Any, tmp_path: Path) -> None:
    block.hybridize()
    block(mx.nd.array(X))
    block.export(str(tmp_path / "net"))
    with pytest.raises(QuantizeError, match=r"'data_fq' fake-quantizes 'data'; allowed: mxq\.qat\.convert"):
        mxq.quantize_net(str(tmp_path / "net"), X)
    again = mx.gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    np.testing.assert_array_equal(again(mx.nd.array(X)).asnumpy(), block(mx.nd.array(X)).asnumpy())


def test_preparing_it_again_is_refused(block: Any) -> None:
    with pytest.raises(QuantizeError, match="trains with quantization already: 'data_fq' fake-quantizes 'data'"):
        qat.prepare(block, X)


def test_it_is_no_baseline(block: Any) -> None:
    with pytest.raises(ConfigError, match="baseline is a block that trains with quantization; allowed: the float"):
        qat.fit(block, (X, Y), baseline=block, epochs=1, progress=False)


def test_it_is_saved_when_it_is_converted(block: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"without a report; allowed: .*mxq\.qat\.convert"):
        mxq.save(block, tmp_path / "net")


def test_an_onnx_file_is_for_its_own_hardware(block: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    for given in ((), (X,)):
        with pytest.raises(QuantizeError, match=r"trained for oneDNN in MXNet 1.9.1, .*hardware 'onnx', .*mxq.save"):
            mxq.export_onnx(block, tmp_path / "net.onnx", *given, input_shape=(3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_it_is_measured_and_compared_as_what_it_computes(block: Any) -> None:
    found = mxq.evaluate(block, (X, Y)).metrics["top1"]
    right = block(mx.nd.array(X)).asnumpy().argmax(1) == Y
    assert found == pytest.approx(right.mean())
    assert mxq.verify(small.net(), block, X).examples == 40


def test_what_it_is_simulated_as_is_an_ordinary_float_network(block: Any) -> None:
    simulated = qat.convert(block, simulate=True)
    assert "float" in str(mxq.inspect(simulated))
