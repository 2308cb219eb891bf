"""Integer input: codes give the bits that floats gave, pixels come within one code, and when it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import CONV3, GOLDENS, RELU, build, conv, fc, feeds, quantized, run
from helpers import assert_golden, kernel_params
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq import pipeline, quant
from mxq.backends.mxnet import integer_input
from mxq.config import QuantConfig
from mxq.data.integers import IntegerTransform
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, FormatError, GraphError, QuantizeError
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.serde import write_text
from mxq.numerics import sqnr_db
from mxq.passes import fed_codes
from mxq.passes.fed_codes import _check_span
from mxq.quant import QParams
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.verification.stored import Counterparts

pytestmark = pytest.mark.kernels

SHAPE = (4, 3, 16, 16)
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
UNIT = {"scale": 1 / 255}
PIXELS = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
PIXELS[0, :, 0, :2] = 0, 255  # the ends, so that the calibrated range has them


def floats(preprocess: dict[str, Any], pixels: np.ndarray = PIXELS) -> np.ndarray:
    """The float network's input: (N, C, H, W) float32."""
    made = Preprocess.from_json(preprocess).normalized(pixels.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(made.transpose(0, 3, 1, 2))


def small(*extra: str, outputs: str = "f") -> Model:
    lines = (conv("c", "data", CONV3), "r = Activation(c) " + RELU, fc("f", "r"))
    return build(*lines, *extra, f"return {outputs}", data=SHAPE)


def made(model: Model, dtype: str, preprocess: dict[str, Any] | None = None, **options: Any) -> pipeline.Quantized:
    given = floats(preprocess or IMAGENET)
    return quantized(model, given, input_dtype=dtype, preprocess=preprocess, **options)


def fired(done: pipeline.Quantized) -> list[str]:
    return [e.rule for e in done.trace.events if e.step == "integer_input"]


# ---- codes ---------------------------------------------------------------------------------------------------


class TestCodes:
    def test_structure_and_bits(self, update_goldens):
        model = small()
        done, before = made(model, "int8", IMAGENET), made(model, "float32")
        assert fired(done) == ["take_codes"]
        assert_golden(write_text(done.model.graph), GOLDENS / "integer_input_codes.txt", update=update_goldens)
        fed = done.report.input
        assert (fed.name, fed.dtype, fed.holds, fed.preprocess) == ("data", "int8", "codes", IMAGENET)
        codes = QParams(quant.INT8, fed.scale).quantize(floats(IMAGENET))
        np.testing.assert_array_equal(run(done.model, {"data": codes}), run(before.model, {"data": floats(IMAGENET)}))

    def test_the_record_has_the_input_instead_of_the_quantize_node(self):
        done, before = made(small(), "int8"), made(small(), "float32")
        mine, theirs = dict(done.report.tensors), dict(before.report.tensors)
        assert replace(mine.pop("data"), note="") == theirs.pop("data_quantize")
        assert mine == theirs
        assert before.report.input is None

    def test_beyond_the_calibrated_range_codes_saturate_as_the_node_did(self):
        model = small()
        done, before = made(model, "int8"), made(model, "float32")
        far = 3 * feeds(data=SHAPE)["data"]
        codes = IntegerTransform(done.report.input).from_floats(far)
        assert (codes.min(), codes.max()) == (-128, 127)
        np.testing.assert_array_equal(run(done.model, {"data": codes}), run(before.model, {"data": far}))

    def test_a_range_without_negative_values_is_coded_as_int8_too(self):
        done = made(small(), "int8", UNIT)
        assert done.report.tensors["data"].dtype == "int8"
        codes = IntegerTransform(done.report.input).from_floats(floats(UNIT))
        assert sqnr_db(run(done.prepared.source, {"data": floats(UNIT)})[0], run(done.model, {"data": codes})[0]) > 30

    def test_float_readers_read_the_codes_dequantized(self):
        model = small("e = exp(data)", outputs="f, e")
        done = made(model, "int8", IMAGENET)
        assert done.model.graph["e"].inputs == (Ref("data_dequantize"),)
        x, fed = floats(IMAGENET), done.report.input
        params = QParams(quant.INT8, fed.scale)
        codes = params.quantize(x)
        _, exp = run(done.model, {"data": codes})
        np.testing.assert_allclose(np.log(exp), params.dequantize(codes), rtol=0, atol=1e-5)
        assert np.abs(np.log(exp) - x).max() <= 0.5001 / fed.scale

    def test_the_input_itself_as_an_output(self):
        done = made(small(outputs="f, data"), "int8", IMAGENET)
        assert done.model.graph.heads[1] == Ref("data_dequantize")

    def test_a_summand_of_the_other_type(self):
        """The input is read as uint8 and, by a sum whose kernel wants its result's type, as int8."""
        lines = (conv("c", "data", 'kernel="(1, 1)" num_filter="3"'), "s = elemwise_add(c, data)")
        model = build(*lines, "return s", data=SHAPE)
        done, before = made(model, "uint8", UNIT), made(model, "float32", UNIT)
        assert done.model.graph["data_quantize_int8"].inputs == (Ref("data_dequantize"),)
        wanted, found = run(before.model, {"data": floats(UNIT)})[0], run(done.model, {"data": PIXELS})[0]
        assert sqnr_db(wanted, found) > 35


# ---- pixels --------------------------------------------------------------------------------------------------


def codes_of_pixels(done: pipeline.Quantized, pixels: np.ndarray) -> np.ndarray:
    """What the normalising convolution makes."""
    return run(done.model, {"data": pixels}, (Ref("data_normalize"),))[-1]


class TestPixels:
    def test_structure(self, update_goldens):
        done = made(small(), "uint8", IMAGENET)
        assert fired(done) == ["normalize_pixels"]
        assert_golden(write_text(done.model.graph), GOLDENS / "integer_input_pixels.txt", update=update_goldens)
        fed = done.report.input
        assert (fed.dtype, fed.holds, fed.scale) == ("uint8", "pixels", None)
        assert done.report.tensors["data_normalize"].note == "normalised from pixels"

    @pytest.mark.parametrize("asked", ["auto", "int8"])
    def test_every_pixel_within_one_code(self, asked):
        done = made(small(), "uint8", IMAGENET, quantized_dtype=asked)
        every = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 3, 16, 16))
        record = done.report.tensors["data_normalize"]
        wanted = kernel_params(max(-record.min, record.max), "int8").quantize(floats(IMAGENET, every)).astype(int)
        apart = np.abs(codes_of_pixels(done, every).astype(int) - wanted)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.02

    @settings(deadline=None, max_examples=15)
    @given(
        mean=st.lists(st.floats(1, 200), min_size=3, max_size=3),
        std=st.lists(st.floats(10, 300), min_size=3, max_size=3),
    )
    def test_any_normalisation_within_one_code(self, mean, std):
        settings_ = {"mean": mean, "std": std}
        done = made(small(), "uint8", settings_)
        record = done.report.tensors["data_normalize"]
        wanted = kernel_params(max(-record.min, record.max), record.dtype).quantize(floats(settings_)).astype(int)
        assert np.abs(codes_of_pixels(done, PIXELS).astype(int) - wanted).max() <= 1

    def test_outputs_are_those_of_the_float_input_network(self):
        model = small()
        done, before = made(model, "uint8", IMAGENET), made(model, "float32", IMAGENET)
        wanted, found = run(before.model, {"data": floats(IMAGENET)})[0], run(done.model, {"data": PIXELS})[0]
        assert sqnr_db(wanted, found) > 45

    def test_borders_are_padded_with_the_float_networks_zero(self):
        """A black border of zeros in x, which no pixel is, has to be the convolution's own."""
        model = build(conv("c", "data", 'kernel="(3, 3)" num_filter="4" pad="(1, 1)"'), "return c", data=SHAPE)
        done = made(model, "uint8", IMAGENET)
        wanted, found = run(model, {"data": floats(IMAGENET)})[0], run(done.model, {"data": PIXELS})[0]
        edge = np.ones(wanted.shape[2:], bool)
        edge[1:-1, 1:-1] = False
        assert sqnr_db(wanted[:, :, edge], found[:, :, edge]) > 30

    def test_u8_codes_where_nothing_is_negative(self):
        settings_ = {"std": [50.0, 60.0, 70.0]}
        done = made(small(), "uint8", settings_)
        assert done.report.tensors["data_normalize"].dtype == "uint8"
        params = kernel_params(done.report.tensors["data_normalize"].max, "uint8")
        wanted = params.quantize(floats(settings_)).astype(int)
        assert np.abs(codes_of_pixels(done, PIXELS).astype(int) - wanted).max() <= 1

    def test_pixels_are_codes_where_only_a_scale_is(self, update_goldens):
        done = made(small(), "uint8", UNIT)
        assert fired(done) == ["take_codes"]
        assert_golden(write_text(done.model.graph), GOLDENS / "integer_input_scale.txt", update=update_goldens)
        assert done.report.tensors["data"].max == float(np.float32(255.5 / 255))
        assert done.report.thresholds["tensors"]["data"]["source"] == "input_dtype"
        wanted, found = run(done.prepared.source, {"data": floats(UNIT)})[0], run(done.model, {"data": PIXELS})[0]
        assert sqnr_db(wanted, found) > 30

    def test_only_a_scale_but_int8_was_asked_for(self):
        assert fired(made(small(), "uint8", UNIT, quantized_dtype="int8")) == ["normalize_pixels"]

    def test_one_channel(self):
        gray = {"color": "GRAY", "mean": [33.0], "std": [78.0]}
        model = build(conv("c", "data", CONV3), "return c", data=(4, 1, 16, 16))
        pixels = PIXELS[:, :1]
        done = quantized(model, floats(gray, pixels), input_dtype="uint8", preprocess=gray)
        assert fired(done) == ["normalize_pixels"]
        assert sqnr_db(run(model, {"data": floats(gray, pixels)})[0], run(done.model, {"data": pixels})[0]) > 30


class TestPixelsInFloat:
    """Where nothing int8 reads the input in a known range, it is normalised in float and the bits stay."""

    @pytest.mark.parametrize("options", [{"exclude_layers": "c"}, {"calib_mode": "none"}])
    def test_bits(self, options):
        model = small()
        done, before = (made(model, d, {**IMAGENET, "scale": 0.5}, **options) for d in ("uint8", "float32"))
        assert fired(done) == ["normalize_in_float"]
        x = floats({**IMAGENET, "scale": 0.5})
        np.testing.assert_array_equal(run(done.model, {"data": PIXELS}), run(before.model, {"data": x}))

    def test_channels_last(self):
        lines = ('t = transpose(data) axes="(0, 3, 1, 2)"', conv("c", "t", CONV3), "return c")
        model, settings_ = build(*lines, data=(4, 16, 16, 3)), {**IMAGENET, "layout": "NHWC"}
        pixels = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))
        x = Preprocess.from_json(settings_).normalized(pixels)
        done, before = (quantized(model, x, input_dtype=d, preprocess=settings_) for d in ("uint8", "float32"))
        np.testing.assert_array_equal(run(done.model, {"data": pixels}), run(before.model, {"data": x}))


# ---- teeth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("affine", lambda s: (s.scale / np.asarray(s.std), np.asarray(s.mean) / np.asarray(s.std))),
        ("affine", lambda s: (s.scale / np.asarray(s.std)[::-1], -np.asarray(s.mean) / np.asarray(s.std))),
        ("affine", lambda s: (1.03 * s.scale / np.asarray(s.std), -np.asarray(s.mean) / np.asarray(s.std))),
        ("PIXEL_TOP", 250.0),
    ],
)
def test_wrong_normalisations_are_noticed(name, wrong, monkeypatch):
    settings_ = {"mean": [90.0, 120.0, 150.0], "std": [40.0, 60.0, 80.0]}
    for module in (fed_codes, integer_input):
        monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(fed_codes, "_check_span", lambda *_: None)
    done = made(small(), "uint8", settings_)
    record = done.report.tensors["data_normalize"]
    wanted = kernel_params(max(-record.min, record.max), "int8").quantize(floats(settings_)).astype(int)
    assert np.abs(codes_of_pixels(done, PIXELS).astype(int) - wanted).max() > 1


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [
        (0, 1, True),
        (-0.015, 1.015, True),  # as interpolation leaves it
        (-0.03, 1, False),
        (0, 1.03, False),
        (0, 255, False),  # not divided
        (0.5, 0.525, True),
        (0.5, 0.515, False),  # divided twice
    ],
)
def test_calibration_data_is_what_preprocess_makes_of_pixels(low, high, fits):
    found = Threshold(Range(0.0, 1.0), "naive", observed=Range(low, high))
    if fits:
        _check_span("data", found, Preprocess(scale=1 / 255))
        return
    with pytest.raises(
        ConfigError, match=r"^preprocess takes pixels to 0 \.\. 1, but the data that 'data' was calibrated"
    ):
        _check_span("data", found, Preprocess(scale=1 / 255))


def test_codes_of_a_wrong_scale_are_noticed():
    done = made(small(), "int8")
    fed, x = done.report.input, floats(IMAGENET)
    fed_with = (QParams(quant.INT8, scale).quantize(x) for scale in (fed.scale, fed.scale * 0.9))
    right, wrong = (run(done.model, {"data": codes})[0] for codes in fed_with)
    assert sqnr_db(right, wrong) < 30


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "options", "error", "message"),
    [
        ("int4", {}, ConfigError, "input_dtype is 'int4'; allowed: 'float32', 'int8', 'uint8'"),
        ("uint8", {}, ConfigError, "input_dtype is 'uint8', but preprocess is missing"),
        ("uint8", {"preprocess": [1]}, ConfigError, r"preprocess is \[1\]; allowed: a mapping"),
        ("uint8", {"preprocess": {"sdt": [1]}}, FormatError, "preprocess has an unknown field 'sdt'; allowed"),
        ("float32", {"preprocess": {"std": [0, 1, 1]}}, ConfigError, "preprocess: std is .* allowed: numbers from"),
        ("uint8", {"preprocess": UNIT}, ConfigError, r"takes pixels to 0 \.\. 1, but the data that 'data' .* -2\.1"),
        ("int8", {"preprocess": {"scale": 100.0}}, ConfigError, "give the preprocess that this data was made with"),
        ("int8", {"calib_mode": "none"}, QuantizeError, "input 'data' has no range: its range is found at run time"),
        ("int8", {"exclude_layers": "c"}, QuantizeError, "input 'data' has no range: it is read by no int8 layer"),
        ("int8", {"overrides": {"data": {"dtype": "uint8"}}}, ConfigError, "overrides say that 'data' is 'uint8'"),
    ],
)
def test_refuses(dtype, options, error, message):
    with pytest.raises(error, match=message):
        quantized(small(), floats(IMAGENET), input_dtype=dtype, **options)


def test_refuses_several_inputs():
    model = build("s = elemwise_add(data, other)", conv("c", "s", CONV3), "return c", data=SHAPE, other=SHAPE)
    with pytest.raises(QuantizeError, match=r"the network has 2 inputs \(data, other\); allowed: a network with one"):
        pipeline.plan(model, QuantConfig(input_dtype="int8"))


def test_refuses_a_name_that_is_taken():
    clash = build(conv("c", "data", CONV3), "data_min = exp(c)", "return data_min", data=SHAPE)
    with pytest.raises(GraphError, match="input_dtype 'int8' needs the name 'data_min', but a node has it"):
        made(clash, "int8")


def test_ranges_by_hand_are_not_compared_with_pixels():
    prepared = pipeline.plan(small(), QuantConfig(input_dtype="uint8", preprocess=IMAGENET))
    table = {str(r): Threshold(Range(0.0 if r.name != "data" else -9.0, 9.0), "fixed") for r in prepared.plan.observe}
    done = pipeline.quantize(prepared, pipeline.Calibrated(Thresholds(table)))
    assert done.report.tensors["data_normalize"].min == -9.0


@pytest.mark.parametrize(("dtype", "preprocess"), [("int8", None), ("uint8", UNIT), ("uint8", IMAGENET)])
def test_whatever_its_bounds_are_called_an_input_can_be_compared(dtype, preprocess):
    """Which they are, the operator that reads the codes says."""
    done = made(small(), dtype, preprocess)
    called = {"data_min": "lowest", "data_max": "highest"}

    def renamed(node: Node) -> Node:
        inputs = tuple(Ref(called.get(ref.name, ref.name), ref.output) for ref in node.inputs)
        return replace(node, name=called.get(node.name, node.name), inputs=inputs)

    nodes = tuple(map(renamed, done.model.graph))
    args = {called.get(name, name): value for name, value in done.model.args.items()}
    other = Model(Graph(nodes, done.model.graph.heads, done.model.graph.attrs), args)
    for model, names in ((done.model, ("data_min", "data_max")), (other, ("lowest", "highest"))):
        held = Counterparts(done.prepared.fused, model).stored(Ref("data"))
        assert held.refs == (Ref("data"), *map(Ref, names))


def test_an_input_that_float_operators_read_has_no_bounds():
    done = made(small(), "uint8", IMAGENET, calib_mode="none")
    assert Counterparts(done.prepared.fused, done.model).stored(Ref("data")).refs == (Ref("data"),)


def test_float32_changes_nothing():
    model = small()
    done, other = made(model, "float32", IMAGENET), made(model, "float32")
    assert done.model.graph.nodes == other.model.graph.nodes
    assert isinstance(done.model.graph["data_quantize"], Node)
