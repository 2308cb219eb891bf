"""Doors of ONNX files: networks quantized for them, pictures prepared in them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import CONV1, build, conv, fc, run
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.config import QuantConfig
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, QuantizeError, StorageError
from mxq.formats.onnx_file import read
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.images import Preprocess as Public
from mxq.numerics import sqnr_db
from mxq.runtime import to_block, write_pair
from mxq.workflow.making import Opened

onnx = pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

EXAMPLE = (3, 8, 10)
LINES = (conv("a", "data"), "r = relu(a)", 'p = Pooling(r) global_pool="True" pool_type="avg" kernel="(1, 1)"',
         fc("z", "p"), "return z")  # fmt: skip
PREPARED = {"mean": [10.0, 20.0, 30.0], "std": [50.0, 60.0, 70.0]}


@pytest.fixture(scope="module")
def model() -> Model:
    return build(*LINES, data=(1, *EXAMPLE))


def data(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *EXAMPLE)).astype(np.float32)


def outputs(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def command(*arguments: object, code: int = 0) -> str:
    ran = CliRunner().invoke(app, [*map(str, arguments)])
    assert ran.exit_code == code, ran.output
    return " ".join(ran.output.replace("│", " ").split())


class TestQuantizedForFiles:
    def test_it_is_called_and_written_without_calibrating_again(self, model: Model, tmp_path: Path) -> None:
        import mxnet as mx

        quantized = mxq.quantize_net(to_block(model), data(), backend="onnx", effort="fast")
        assert quantized.mxq_report.config["backend"] == "onnx"
        mxq.export_onnx(quantized, tmp_path / "a.onnx")
        mxq.export_onnx(to_block(model), tmp_path / "b.onnx", data(), effort="fast")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        x = data(4, 1)
        (found,) = outputs(tmp_path / "a.onnx", data=x)
        np.testing.assert_allclose(quantized(mx.nd.array(x)).asnumpy(), found, rtol=0.02, atol=0.02)

    def test_what_is_said_meanwhile(self, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        mxq.export_onnx(to_block(model), tmp_path / "a.onnx", data(), effort="fast")
        assert "3 of 3 operators are on codes (onnx W8A8)" in caplog.text

    def test_the_name_tells_a_file_from_a_pair(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"the file is '.*net'; allowed: a name that ends in \.onnx"):
            mxq.export_onnx(to_block(model), tmp_path / "net", input_shape=EXAMPLE)
        mxq.export_onnx(to_block(model), tmp_path / "net.ONNX", input_shape=EXAMPLE)

    def test_what_can_be_known_is_said_before_calibration(
        self, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(StorageError, match=r"cannot be written: there is no folder '.*gone'; make it first"):
            mxq.export_onnx(to_block(model), tmp_path / "gone" / "a.onnx", data())
        with pytest.raises(ConfigError, match="nothing says how pictures become inputs"):
            mxq.export_onnx(to_block(model), tmp_path / "a.onnx", data(), with_preprocess=True)
        assert "calibrated" not in caplog.text

    def test_nothing_to_quantize(self, tmp_path: Path) -> None:
        with pytest.raises(
            QuantizeError, match="no operator of the network can be int8, it stays as it is: it has none"
        ):
            mxq.export_onnx(
                to_block(Model(Graph((Node("data", "null"),), (Ref("data"),)))),
                tmp_path / "a.onnx",
                data()[:, 0, 0, :3],
            )

    def test_shapes_that_do_not_fit_are_one_error(
        self, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ConfigError, match="the network does not take examples of 'data' 3x8"):
            mxq.export_onnx(to_block(model), tmp_path / "a.onnx", input_shape=(3, 8))
        assert capsys.readouterr().out == ""  # MXNet would print every shape

    @pytest.mark.parametrize("side", [4, 2])
    def test_a_3d_convolution_before_a_dense_layer(self, side: int, tmp_path: Path) -> None:
        """Also one that leaves 1 x 1 x 1."""
        lines = ('c = Convolution(data, c_weight) kernel="(2, 2, 2)" num_filter="4" no_bias="True"',
                 fc("z", "c"), "return z")  # fmt: skip
        shape = (3, side, side, side)
        net, x = build(*lines, data=(1, *shape)), np.random.default_rng(0).normal(size=(8, *shape))
        mxq.export_onnx(to_block(net), tmp_path / "a.onnx", x.astype(np.float32), effort="fast")
        (found,) = outputs(tmp_path / "a.onnx", data=x.astype(np.float32))
        assert sqnr_db(run(net, {"data": x.astype(np.float32)})[0], found) > 25

    def test_what_it_does_not_take(self, model: Model, tmp_path: Path) -> None:
        quantized = mxq.quantize_net(to_block(model), data(), backend="onnx", effort="fast")
        for more, odd in (
            ({"calib_data": data()}, "data"),
            ({"effort": "best"}, "effort"),
            ({"runtime": "openvino", "target": "avx2"}, "target, runtime"),
        ):
            with pytest.raises(
                ConfigError, match=f"{odd} given for a network that is quantized for ONNX files already"
            ):
                mxq.export_onnx(quantized, tmp_path / "a.onnx", **more)
        with pytest.raises(QuantizeError, match=r"save got .*; allowed: mxq.export_onnx\(quantized, path\)"):
            mxq.save(quantized, tmp_path / "pair")
        assert not [*tmp_path.iterdir()]

    def test_a_pair_is_refused_with_what_to_do(self, model: Model, tmp_path: Path) -> None:
        pair = mxq.quantize_net(to_block(model), data(), effort="fast")
        for given in ((), (data(),)):
            with pytest.raises(QuantizeError, match=r"quantized already: .*; allowed: the float network"):
                mxq.export_onnx(pair, tmp_path / "a.onnx", *given, input_shape=EXAMPLE)
        mxq.save(pair, tmp_path / "pair")
        arguments = ("export", tmp_path / "pair", "--float", "--input-shape", "3x8x10", "--out", tmp_path / "a.onnx")
        assert "backend='onnx'" in command(*arguments, code=2)

    def test_settings(self, model: Model, tmp_path: Path) -> None:
        for more, match in (
            ({"backend": "cuda"}, "backend is 'cuda'; allowed: 'mxnet', 'onnx'"),
            ({"backend": "onnx", "hardware": "tvm"}, "hardware is 'tvm' for an ONNX file; allowed: "),
            ({"backend": "onnx", "bits": 4}, "bits is 'W4A4' for an ONNX file; allowed: W4A8 to W8A8"),
            ({"backend": "onnx", "bits": "W3A8"}, "bits is 'W3A8' for an ONNX file"),
            ({"backend": "onnx", "input_dtype": "uint8"}, "input_dtype is 'uint8'"),
        ):
            with pytest.raises(ConfigError, match=match):
                mxq.quantize_net(to_block(model), data(), preprocess=PREPARED, **more)
        write_pair(model, tmp_path / "net")
        found = command("quantize", tmp_path / "net", "--backend", "onnx", "--out", tmp_path / "q", code=2)
        assert "allowed: mxq export PREFIX" in found
        assert QuantConfig.from_json(QuantConfig(backend="onnx").to_json()) == QuantConfig(backend="onnx")


class TestBeforeCalibration:
    """What needs no ranges is said before the network sees data."""

    @pytest.fixture(autouse=True)
    def _not_calibrated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def calibrated(opened: Opened) -> None:
            pytest.fail(f"{opened.prepared.config} was calibrated")

        monkeypatch.setattr(Opened, "calibrated", calibrated)

    @pytest.mark.parametrize("door", ["export", "quantize"])
    def test_all_operators_without_a_form_are_named_at_once(self, door: str, tmp_path: Path) -> None:
        net = to_block(build(conv("a", "data"), "e = erfinv(a)", "g = gammaln(e)", "h = gammaln(g)", fc("z", "h"),
                             "return z", data=(1, *EXAMPLE)))  # fmt: skip
        doors = {
            "export": lambda: mxq.export_onnx(net, tmp_path / "a.onnx", data()),
            "quantize": lambda: mxq.quantize_net(net, data(), backend="onnx"),
        }
        said = r"3 operators cannot be written as ONNX: 'e' \(erfinv\): .*; 'g', 'h' \(gammaln\): "
        with pytest.raises(QuantizeError, match=said):
            doors[door]()
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize("name", ["folder.onnx", f"{'a' * 300}.onnx", "/proc/a.onnx", "a\0b.onnx"])
    def test_a_file_that_cannot_be_written(self, model: Model, name: str, tmp_path: Path) -> None:
        (tmp_path / "folder.onnx").mkdir()
        with pytest.raises(StorageError, match="cannot be"):
            mxq.export_onnx(to_block(model), tmp_path / name, data())
        assert [*tmp_path.iterdir()] == [tmp_path / "folder.onnx"]

    @pytest.mark.parametrize(
        ("lines", "options", "said"),
        [
            ((conv("a", "data"), 'z = Reshape(a) shape="(4, 8, 8, 10)"', "return z"), {}, "batches of any size"),
            ((conv("a", "data"), fc("z", "a"), "return z"), {"dynamic_size": True}, "pictures of any size"),
            ((conv("a", "data"), "return a"), {"with_preprocess": True}, "nothing says how pictures become inputs"),
            ((conv("a", "data"), "return a"), {"input_shape": {"other": EXAMPLE}}, r"input_shape is of \['other'\]"),
            ((conv("a", "data"), "return a"), {"overrides": {"a": {"bits": "W2A8"}}}, r"overrides 'a': bits is 'W2A8'"),
            (("z = relu(data)", "return z"), {}, r"no operator of the network can be int8.*; allowed: the float file"),
        ],
    )
    def test_and_what_does_not_fit(
        self, lines: tuple[str, ...], options: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        with pytest.raises(mxq.MxqError, match=said):
            mxq.export_onnx(to_block(build(*lines, data=(4, *EXAMPLE))), tmp_path / "a.onnx", data(), **options)


class TestPictures:
    @pytest.mark.parametrize(
        "settings",
        [
            PREPARED,
            {**PREPARED, "color": "BGR", "rotate180": True},
            {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2], "scale": 1 / 255},
            {"scale": 1.0},
        ],
    )
    @pytest.mark.parametrize("int8", [False, True])
    def test_pixels_give_what_prepared_pictures_do(
        self, model: Model, tmp_path: Path, settings: dict[str, Any], int8: bool
    ) -> None:
        prepare = Public(**settings)
        pixels = np.random.default_rng(0).integers(0, 256, (4, *EXAMPLE[1:], 3)).astype(np.uint8)
        x = prepared(pixels, prepare)
        more = {"calib_data": x, "effort": "fast"} if int8 else {"input_shape": EXAMPLE}
        mxq.export_onnx(model, tmp_path / "a.onnx", **more)
        mxq.export_onnx(model, tmp_path / "b.onnx", **more, preprocess=settings, with_preprocess=True)
        (wanted,), (found,) = outputs(tmp_path / "a.onnx", data=x), outputs(tmp_path / "b.onnx", data=pixels)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        about = read(tmp_path / "b.onnx")
        assert [(port.dtype, port.shape) for port in about.inputs] == [("uint8", ("batch", 8, 10, 3))]
        assert about.record is not None
        assert Preprocess.from_json(dict(about.record.preprocess)) == prepare
        assert about.record.inputs == {"data": (8, 10, 3)}

    def test_of_several_inputs(self, tmp_path: Path) -> None:
        model = build(
            'f = Flatten(data)', 'g = Flatten(other)', 'c = Concat(f, g, more) dim="1" num_args="3"',
            fc("z", "c"), "return z", data=(1, 3, 4, 4), other=(1, 3, 4, 4), more=(1, 5),
        )  # fmt: skip
        shapes = {"data": (3, 4, 4), "other": (3, 4, 4), "more": (5,)}
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
        feeds = {name: rng.normal(size=(2, *shape)).astype(np.float32) for name, shape in shapes.items()}
        settings = {"input_shape": shapes, "preprocess": PREPARED}
        mxq.export_onnx(model, tmp_path / "a.onnx", **settings, with_preprocess="other")
        (wanted,) = run(model, {**feeds, "other": prepared(pixels, Public(**PREPARED))})
        (found,) = outputs(tmp_path / "a.onnx", **{**feeds, "other": pixels})
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        for asked, match in (
            (True, "2 inputs take such pictures, 'data', 'other': name one"),
            ("more", r"with_preprocess is 'more'; .*allowed: an input of pictures, 3 channels in NCHW"),
            (1, "with_preprocess is 1; allowed: True, False"),
        ):
            with pytest.raises(ConfigError, match=match):
                mxq.export_onnx(model, tmp_path / "b.onnx", **settings, with_preprocess=asked)

    def test_what_nothing_says_is_refused(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nothing says how pictures become inputs"):
            mxq.export_onnx(model, tmp_path / "a.onnx", input_shape=EXAMPLE, with_preprocess=True)
        gray = {"mean": 1.0, "color": "GRAY"}
        with pytest.raises(ConfigError, match="an input of pictures, 1 channels in NCHW"):
            mxq.export_onnx(model, tmp_path / "a.onnx", input_shape=EXAMPLE, preprocess=gray, with_preprocess=True)
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize("how", ["file", "options"])
    def test_from_the_command(self, model: Model, tmp_path: Path, how: str) -> None:
        write_pair(model, tmp_path / "net")
        options: tuple[object, ...] = ("--mean", "10,20,30", "--std", "50,60,70")
        if how == "file":
            (tmp_path / "preprocess.json").write_text(json.dumps(PREPARED))
            options = ()
        shape = ("--float", "--input-shape", "3x8x10", "--with-preprocess", "--out", tmp_path / "a.onnx")
        command("export", tmp_path / "net", *shape, *options)
        pixels = np.random.default_rng(0).integers(0, 256, (2, *EXAMPLE[1:], 3)).astype(np.uint8)
        (wanted,) = run(model, {"data": prepared(pixels, Public(**PREPARED))})
        (found,) = outputs(tmp_path / "a.onnx", data=pixels)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def prepared(pixels: np.ndarray, settings: Preprocess) -> np.ndarray:
    """What `Preprocess` makes of pictures (N, H, W, C)."""
    from PIL import Image

    return np.stack([settings(Image.fromarray(one)) for one in pixels])


class TestShapes:
    def test_a_wrong_one_is_named(self, model: Model, tmp_path: Path) -> None:
        dense = build(conv("a", "data", CONV1), fc("z", "a"), "return z", data=(1, 3, 6, 6))
        with pytest.raises(ConfigError, match=r"does not take examples of 'data' 3x6x7: .*; allowed: an input_shape"):
            mxq.export_onnx(dense, tmp_path / "a.onnx", input_shape=(3, 6, 7))

    def test_every_operator_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        model = build("g = gamma(data)", "h = gammaln(g)", "return h", data=(1, 4))
        write_pair(model, tmp_path / "net")
        arguments = ("export", tmp_path / "net", "--float", "--input-shape", "4", "--out", tmp_path / "a.onnx")
        found = command(*arguments, code=2)
        assert "2 operators cannot be written as ONNX" in found
        assert "'g' (gamma): mxq has no ONNX form" in found
        assert "'h' (gammaln): mxq has no ONNX form" in found


class TestPicturesOfAnySize:
    LINES = (
        conv("a", "data"), 'r = Pooling(a) kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)" pool_type="max"',
        'u = UpSampling(r) scale="2" sample_type="nearest" num_args="1"', conv("b", "u"),
        'p = Pooling(b) global_pool="True" pool_type="avg" kernel="(1, 1)"', fc("z", "p"), "return z, b",
    )  # fmt: skip

    @pytest.mark.parametrize("int8", [False, True])
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_it_gives_what_mxnet_does(self, tmp_path: Path, int8: bool, batch_size: int | None) -> None:
        model = build(*self.LINES, data=(1, *EXAMPLE))
        more = {"calib_data": data(), "effort": "fast"} if int8 else {"input_shape": EXAMPLE}
        mxq.export_onnx(model, tmp_path / "a.onnx", **more, dynamic_size=True, batch_size=batch_size)
        (port,) = read(tmp_path / "a.onnx").inputs
        assert port.shape == (batch_size or "batch", 3, "height", "width")
        for size in ((8, 10), (16, 14), (30, 8)):
            x = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
            for found, wanted in zip(outputs(tmp_path / "a.onnx", data=x), run(model, {"data": x}), strict=True):
                assert found.shape == wanted.shape
                assert sqnr_db(wanted, found) > (20 if int8 else 100)

    def test_pixels(self, tmp_path: Path) -> None:
        model = build(*self.LINES, data=(1, *EXAMPLE))
        settings = {"input_shape": EXAMPLE, "preprocess": PREPARED, "with_preprocess": True}
        mxq.export_onnx(model, tmp_path / "a.onnx", **settings, dynamic_size=True)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 12, 16, 3)).astype(np.uint8)
        (wanted, _), (found, _) = (
            run(model, {"data": prepared(pixels, Public(**PREPARED))}),
            outputs(tmp_path / "a.onnx", data=pixels),
        )
        assert sqnr_db(wanted, found) > 100
        assert read(tmp_path / "a.onnx").inputs[0].shape == ("batch", "height", "width", 3)

    @pytest.mark.parametrize(
        ("lines", "error", "match"),
        [
            ((fc("z", "data"), "return z"), ConfigError, "pictures of any size do not fit the network: .*z"),
            (
                ('a = contrib.AdaptiveAvgPooling2D(data) output_size="(2, 2)"'.replace("contrib.", "_contrib_"),
                 "return a"),
                QuantizeError,
                r"'a' \(_contrib_AdaptiveAvgPooling2D\): this takes pictures of one size alone: axis 2",
            ),
            (
                ('p = Pooling(data) kernel="(2, 2)" stride="(2, 2)" pooling_convention="full"', "return p"),
                QuantizeError,
                "'p' .*: this takes pictures of one size alone: pooling_convention 'full'",
            ),
            (
                ('m = _contrib_MultiBoxPrior(data) sizes="(0.5, 0.2)"', "return m"),
                QuantizeError,
                "'m' .*: this takes pictures of one size alone",
            ),
        ],
    )  # fmt: skip
    def test_where_it_cannot_be(
        self, tmp_path: Path, lines: tuple[str, ...], error: type[Exception], match: str
    ) -> None:
        model = build(*lines, data=(1, *EXAMPLE))
        with pytest.raises(error, match=match):
            mxq.export_onnx(model, tmp_path / "a.onnx", input_shape=EXAMPLE, dynamic_size=True)
        assert not [*tmp_path.iterdir()]

    def test_of_no_pictures(self, tmp_path: Path) -> None:
        model = build(fc("z", "data"), "return z", data=(1, 6))
        for asked, match in ((True, r"dynamic_size is for pictures.*'data' \(6,\)"), ("yes", "dynamic_size is 'yes'")):
            with pytest.raises(ConfigError, match=match):
                mxq.export_onnx(model, tmp_path / "a.onnx", input_shape=(6,), dynamic_size=asked)
