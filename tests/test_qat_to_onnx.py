"""From training to ONNX files: what training showed is what the file gives in ONNX Runtime; what no file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import RELU, build, conv, fc
from helpers import assert_close
from onnx_files import outputs, session
from test_qat_converting import SMALL, agreement, images, run, small, train

import mxq
from mxq import qat
from mxq.errors import ConfigError, QuantizeError
from mxq.qat.converting import converted, trained
from mxq.qat.network import softmax_head
from mxq.runtime import MxnetRunner, load_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:Cannot decide type")

BRANCHES = (
    conv("c0", "data", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'),
    f"r0 = Activation(c0) {RELU}",
    conv("c1", "r0", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'),
    f"r1 = Activation(c1) {RELU}",
    conv("c2", "r0", 'kernel="(1, 1)" num_filter="16"'),
    'pa = Pooling(r0) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"',
    'cat = Concat(r1, c2, pa) dim="1" num_args="3"',
    conv("c3", "cat", 'kernel="(3, 3)" num_filter="16"'),
    'g = Pooling(c3) global_pool="True" pool_type="avg" kernel="(1, 1)"',
    fc("z", "g"),
    "return z",
)
"""What is joined has three ranges of its own."""
ENLARGED = (
    conv("c0", "data", 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'),
    f"r0 = Activation(c0) {RELU}",
    'p = Pooling(r0) kernel="(2, 2)" stride="(2, 2)" pool_type="max"',
    conv("c1", "p", 'kernel="(1, 1)" num_filter="16"'),
    f"r1 = Activation(c1) {RELU}",
    'up = UpSampling(r1) scale="2" sample_type="nearest" num_args="1"',
    'cat = Concat(up, r0) dim="1" num_args="2"',
    conv("c2", "cat", 'kernel="(3, 3)" num_filter="16"'),
    'g = Pooling(c2) global_pool="True" pool_type="avg" kernel="(1, 1)"',
    fc("z", "g"),
    "return z",
)
"""What is joined was enlarged, as in YOLO v3: nobody observed it, but what it was enlarged from."""


def given(path: Path, data: np.ndarray) -> np.ndarray:
    """What the file gives."""
    return np.asarray(outputs(session(path), {"data": data})[0])


class TestTheFileGivesWhatTrainingShowed:
    @pytest.mark.parametrize(
        ("lines", "settings"),
        [
            (SMALL, {}),
            (SMALL, {"bits_w": 4}),
            (SMALL, {"algorithm": "lsq_plus", "bits_w": 5, "edge_bits": 8}),
            (SMALL, {"algorithm": "pact", "bn_strategy": 4}),
            (SMALL, {"hardware": "onnxruntime", "weight_algorithm": "max"}),
            (BRANCHES, {"hardware": "onnxruntime"}),
            (ENLARGED, {}),
        ],
    )
    def test_on_small_networks(self, tmp_path: Path, lines: tuple[str, ...], settings: dict[str, Any]) -> None:
        """Weights, ranges, biases and what is joined: all but a few codes that lie between two."""
        block, data = small(lines, **{"hardware": "onnx", **settings}), images(200, 2)
        mxq.export_onnx(qat.convert(block, target="avx512_vnni"), tmp_path / "net.onnx")
        equal, decibels = agreement(run(block, data), given(tmp_path / "net.onnx", data))
        assert equal >= 0.995
        assert decibels >= 60

    def test_on_a_real_network(self, tmp_path: Path, mxq_data: Path) -> None:
        """8 bits are 18 dB from float in these 20 layers; what ONNX Runtime does otherwise is 23 dB below that."""
        block, data = cifar(mxq_data)
        mxq.export_onnx(qat.convert(block, target="avx512_vnni"), tmp_path / "net.onnx")
        equal, decibels = agreement(run(block, data), given(tmp_path / "net.onnx", data))
        assert equal >= 0.995
        assert decibels >= 35

    def test_the_block_that_stands_for_the_file_computes_what_training_showed(self) -> None:
        block, data = small(hardware="onnx"), images(16, 2)
        found = qat.convert(block, target="avx512_vnni")
        assert_close(run(found, data), run(block, data), rtol=1e-4, atol=1e-4)
        assert found.mxq_report.config["backend"] == "onnx"

    def test_for_cpus_without_vnni_sums_do_not_saturate(self) -> None:
        """Weights that would are coded anew; channels that were put in another order keep their steps."""
        block, data = small(hardware="onnx"), images(200, 2)
        made = converted(trained(block), "avx2", MxnetRunner(), {})
        assert made.network is not None
        assert not made.network.exact
        assert made.trace.fired("narrow_weights")
        assert made.trace.fired("pair_channels")
        equal, decibels = agreement(run(block, data), run(qat.convert(block, target="avx2"), data))
        assert equal >= 0.995
        assert decibels >= 40

    def test_weights_have_the_steps_that_were_learned(self, tmp_path: Path) -> None:
        block = small(hardware="onnx", bits_w=4)
        block.assign({"conv2_weight_fq_step": 2 * block.trained["conv2_weight_fq_step"]})
        mxq.export_onnx(qat.convert(block), tmp_path / "net.onnx")
        model = onnx.load(str(tmp_path / "net.onnx"))
        assert model.opset_import[0].version == 21
        steps = next(t for t in model.graph.initializer if t.name.startswith("conv2_weight_scale"))
        wanted = block.trained["conv2_weight_fq_step"]
        assert_close(onnx.numpy_helper.to_array(steps), wanted, rtol=1e-6, atol=0)


def cifar(root: Path, hardware: str = "onnx") -> tuple[Any, np.ndarray]:
    """CIFAR ResNet-20 prepared for ONNX files, after a few steps, and pictures."""
    with np.load(root / "cifar10" / "cifar10_test_jpeg.npz") as file:
        pixels, labels = file["images"][:628].astype(np.float32) / 255, file["labels"]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    data = np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))
    net = softmax_head(load_model(root / "models" / "cifar_resnet20" / "cifar_resnet20"))[0]
    block = qat.prepare(net, data[:64], hardware=hardware)
    train(block, data[:128], labels[:128], 1e-4, 64)
    return block, data[128:]


class TestDoors:
    def test_a_block_in_training_is_written_as_what_it_converts_to(self, tmp_path: Path) -> None:
        block = small(hardware="onnx")
        mxq.export_onnx(qat.convert(block), tmp_path / "a.onnx")
        mxq.export_onnx(block, tmp_path / "b.onnx")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_a_block_that_was_saved_knows_the_shape_of_an_example(self, tmp_path: Path) -> None:
        qat.save(small(hardware="onnx"), tmp_path / "net.params")
        again = qat.load(tmp_path / "net.params")
        assert again.qat.examples == {"data": (8, 10, 10)}
        mxq.export_onnx(again, tmp_path / "a.onnx")
        assert given(tmp_path / "a.onnx", images(3)).shape == (3, 10)

    def test_data_beside_a_block_in_training_is_refused(self, tmp_path: Path) -> None:
        block = small(hardware="onnx")
        with pytest.raises(ConfigError, match="data given for a network that is quantized for ONNX files already"):
            mxq.export_onnx(block, tmp_path / "a.onnx", images(8))

    def test_it_is_no_pair(self, tmp_path: Path) -> None:
        with pytest.raises(QuantizeError, match=r"allowed: mxq.export_onnx\(quantized, path\)"):
            mxq.save(qat.convert(small(hardware="onnx")), tmp_path / "net")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"bits_w": 3}, "weight 'conv0_weight' was trained as int3, per channel on axis 0 for ONNX Runtime and Open"),
        ({"bits_a": 4}, "tensor '.*' was trained as uint4, zero point for ONNX Runtime and OpenVINO"),
        ({"edge_bits": 4}, "tensor 'relu2' was trained as uint4, zero point for ONNX Runtime and OpenVINO"),
    ],
)
def test_what_no_file_holds_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    block = qat.prepare(build(*SMALL, data=(2, 8, 10, 10)), images(32), hardware="onnx", **settings)
    for call in (qat.convert, lambda each: mxq.export_onnx(each, tmp_path / "a.onnx")):
        with pytest.raises(QuantizeError, match=what + ".*; an ONNX file holds tensors of 8 bits and"):
            call(block)
    assert_close(run(qat.convert(block, simulate=True), images(4)), run(block, images(4)), rtol=1e-4, atol=1e-4)
