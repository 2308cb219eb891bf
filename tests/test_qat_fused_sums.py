"""Sums within convolutions: which summand stays a float in training for OpenVINO, and that OpenVINO computes it so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coded_files import openvino_outputs
from graphs import RELU, conv, fc
from test_qat_converting import agreement, images, run, small
from test_qat_to_onnx import cifar

import mxq
from mxq import qat

pytestmark = pytest.mark.filterwarnings("ignore:Cannot decide type")

SAME = 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'
R2 = f"r2 = Activation(s) {RELU}"


def act(name: str, source: str) -> tuple[str, str]:
    """A convolution and its ReLU."""
    return conv(f"conv_{name}", source, SAME), f"{name} = Activation(conv_{name}) {RELU}"


def network(*lines: str, last: str) -> tuple[str, ...]:
    """A layer, ``lines`` on what it makes, r0, and a head on ``last``."""
    pool = 'g = Pooling(r9) global_pool="True" pool_type="avg" kernel="(1, 1)"'
    return (*act("r0", "data"), *lines, *act("r9", last), pool, fc("z", "g"), "return z")


NETWORKS = {
    "a block": (network(*act("rb", "r0"), conv("a", "rb", SAME), "s = elemwise_add(a, r0)", R2, last="r2"), {"a"}),
    "rectified": (network(*act("rb", "r0"), *act("ra", "rb"), "s = elemwise_add(r0, ra)", last="s"), {"ra"}),
    "two": (network(conv("a", "r0", SAME), conv("b", "r0", SAME), "s = elemwise_add(b, a)", R2, last="r2"), {"b"}),
    "a first with other readers": (
        network(conv("b", "r0", SAME), *act("re", "b"), conv("a", "re", SAME), "s = elemwise_add(b, a)", last="s"),
        {"a"},
    ),
    "on its peer": (network(conv("a", "r0", SAME), "s = elemwise_add(a, r0)", R2, last="r2"), set()),
    "a peer that is read later": (
        network(*act("rb", "r0"), conv("a", "rb", SAME), "s = elemwise_add(r0, a)", R2, *act("rd", "r0"),
                "s2 = elemwise_add(r2, rd)", last="s2"),
        {"rd"},
    ),
}  # fmt: skip


def given(path: Path, data: np.ndarray) -> np.ndarray:
    """What OpenVINO makes of ``data``."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    return openvino_outputs(path, {"data": data})[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_convolution_adds_to_is_not_rounded(name: str) -> None:
    """Other runtimes round both summands."""
    lines, floats = NETWORKS[name]

    def summands(hardware: str) -> set[str]:
        quantizers = small(lines, hardware=hardware).qat.quantizers
        return {q.tensor.name for q in quantizers if not q.is_weight and {*q.readers} & {"s", "s2"}}

    assert summands("onnx") - summands("openvino") == floats


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_gives_what_training_showed(tmp_path: Path, name: str) -> None:
    """Rounded, the summand made 41 to 49 dB of these."""
    block, data = small(NETWORKS[name][0], hardware="openvino"), images(200, 2)
    mxq.export_onnx(qat.convert(block, target="avx512_vnni"), tmp_path / "net.onnx")
    equal, decibels = agreement(run(block, data), given(tmp_path / "net.onnx", data))
    assert equal >= 0.995
    assert decibels >= 52


def test_on_a_real_network(tmp_path: Path, mxq_data: Path) -> None:
    block, data = cifar(mxq_data, "openvino")
    mxq.export_onnx(qat.convert(block, target="avx512_vnni"), tmp_path / "net.onnx")
    equal, decibels = agreement(run(block, data), given(tmp_path / "net.onnx", data))
    assert equal >= 0.995
    assert decibels >= 35
