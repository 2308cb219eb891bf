"""The int8 graph: names, types, ranges and guards; and that stock MXNet computes what the float network does."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from graphs import (
    CONV1,
    GOLDENS,
    RELU,
    SHAPE,
    bn,
    build,
    conv,
    decided,
    fc,
    feeds,
    graph,
    op_names,
    quantized,
    run,
    without_pairs,
)
from helpers import assert_close, assert_golden

from mxq import pipeline
from mxq.artifacts.record import find, tensor_of
from mxq.backends.mxnet.lower import int8_graph
from mxq.config import QuantConfig
from mxq.errors import CalibrationError, ConfigError, QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.graph.serde import read_symbol, write_symbol, write_text
from mxq.numerics import sqnr_db
from mxq.passes.assignment import check_requests
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.runtime import MxnetRunner, to_symbol
from mxq.verification.taps import corresponding

pytestmark = pytest.mark.kernels

HALF = 255.5 / 127.5
POSITIVE = {"data": np.abs(feeds()["data"])}
POOL = 'p = Pooling(r) kernel="(2, 2)" pool_type="max"'
ZERO_RANGE, RUN_TIME = "the calibrated range was zero", "range found at run time"


def written(model: Model, ranges: dict[str, tuple[float, float]], observer: str = "fixed", **options):
    """The int8 model and its records, for ranges given by hand."""
    config = QuantConfig(**options)
    prepared = pipeline.plan(model, config)
    table = Thresholds({k: Threshold(Range(*v), observer) for k, v in ranges.items()})
    return int8_graph(checked(prepared, table), prepared.backend.spec)


def checked(prepared: pipeline.Prepared, table: Thresholds) -> QuantizedNetwork:
    network = decided(prepared, table)
    check_requests(network, prepared.backend.spec)
    return network


def conv_relu() -> Model:
    return build(conv("c", "data"), "r = Activation(c) " + RELU, "return r")


class TestARangeThatIsGiven:
    """It is kept, and where kernels ask for another the record says so."""

    model = build(conv("c", "data"), 'k = clip(c) a_min="0" a_max="0.5"', conv("z", "k"), "return z")

    @pytest.mark.parametrize(
        ("given", "kept", "said"),
        [
            ((0, 0.4), (0, 0.4), ""),
            ((0, 3), (0, 0.5), "up to 0.5, where the values end: the kernel saturates there"),
            ((0.1, 0.4), (0, 0.4), "from zero: u8 codes have no zero point"),
        ],
    )
    @pytest.mark.parametrize("observer", ["fixed", "fixed:0,1", "naive"])
    def test_the_record_says_what_kernels_ask_for(self, given, kept, said, observer):
        ranges = {"data": (-1, 1), "k": given, "z": (-9, 9)}
        record = written(self.model, ranges, observer)[1]["quantized_k"]
        assert (record.dtype, record.min, record.max) == ("uint8", *map(np.float32, kept))
        assert record.note == (said if observer != "naive" else "")


class TestClipAfterASum:
    """The int8 kernel does not know it: ReLU and a range that ends at the clip's bound stand for it."""

    model = build(conv("c", "data"), "s = elemwise_add(c, data)", 'k = clip(s) a_min="0" a_max="0.5"', "return k")

    def inside(self, model: Model) -> list[str]:
        return [n.op for n in model.graph["quantized_k"].subgraphs[0].operators]

    def test_is_written_as_relu(self):
        model, records = written(self.model, {"data": (-1, 1), "k": (0, 0.5)})
        assert self.inside(model) == ["Convolution", "elemwise_add", "Activation"]
        assert records["quantized_k"].max == pytest.approx(0.5 * HALF)  # its summand is s8: see the module

    def test_a_wider_range_is_cut_to_the_bound(self):
        narrow, wide = (written(self.model, {"data": (-1, 1), "k": (0, m)})[1] for m in (0.5, 3.0))
        assert narrow["quantized_k"].max == wide["quantized_k"].max

    def test_without_a_sum_the_clip_stays(self):
        model = build(conv("c", "data"), 'k = clip(c) a_min="0" a_max="0.5"', "return k")
        assert self.inside(written(model, {"data": (-1, 1), "k": (0, 0.5)})[0]) == ["Convolution", "clip"]


class TestNames:
    def test_heads_stay_and_new_nodes_are_prefixed(self):
        model = build(conv("c", "data"), "r = Activation(c) " + RELU, conv("d", "r"), "s = sin(d)", "return s, r")
        result = quantized(model).model.graph
        assert [str(h) for h in result.heads] == ["s", "r"]
        assert {n.name: n.op for n in result.operators} == {
            "data_quantize": "_contrib_quantize_v2",
            "quantized_r": "_sg_mkldnn_conv",
            "quantized_d": "_sg_mkldnn_conv",
            "d": "_contrib_dequantize",
            "s": "sin",
            "r": "_contrib_dequantize",
        }
        assert [str(r) for r in result["d"].inputs] == ["quantized_d", "quantized_d:1", "quantized_d:2"]
        assert result["quantized_r"].origins == ("c", "r")

    def test_a_layer_that_writes_float_keeps_its_name(self):
        result = quantized(build(fc("f", "data"), "s = softmax(f)", "return s")).model.graph
        assert result["f"].op == "_sg_mkldnn_fully_connected"
        assert result["f"].flag("enable_float_output")
        assert "f_quantized" not in result

    @pytest.mark.parametrize("outputs", ["s, g", "g, r"], ids=["reader", "output"])
    def test_a_layer_that_float_and_int8_read_writes_float(self, outputs):
        """Of an int8 layer with a dequantize node, MXNet's ``get_backend_symbol`` asks for a third node and fails."""
        lines = (fc("f", "data"), "r = Activation(f) " + RELU, fc("g", "r"), "s = softmax(r)", f"return {outputs}")
        model = build(*lines)
        result = quantized(model)
        assert result.model.graph["r"].flag("enable_float_output")
        assert result.model.graph["r_quantize"].attrs["out_type"] == "uint8"
        assert result.report.tensors["r_quantize"].of == "r"
        assert "_contrib_dequantize" not in op_names(result.model)
        to_symbol(result.model.graph).get_backend_symbol("MKLDNN_QUANTIZE")
        assert all(sqnr_db(a, b) > 25 for a, b in zip(run(model), run(result.model), strict=True))

    def test_other_outputs_are_told_apart(self):
        model = build(
            's = SliceChannel(data) num_outputs="2" axis="1"', conv("c", "s"), conv("d", "s:1"), "return c, d"
        )
        assert {"s_quantize", "s_1_quantize"} <= {n.name for n in quantized(model).model.graph}

    TAKEN: ClassVar = (
        conv("c", "data"),
        "r = Activation(c) " + RELU,
        "{0} = tanh(data)",
        conv("{1}", "{0}"),
        "{2} = Activation({1}) " + RELU,
        "{3} = sin(r)",
        "s = elemwise_mul({2}, {3})",
        conv("d", "s"),
        "return d, r",
    )

    def test_taken_names_are_avoided_and_change_nothing(self):
        """Those that int8 forms and quantizers would have: parameters, ranges, records verify's tensors are alike."""
        plain, taken = ("x0", "x1", "x2", "x3"), ("data_quantize", "quantized_r", "quantized_d", "s_quantize")
        made = []
        for names in (plain, taken):
            lines = [line.format(*names) for line in self.TAKEN]
            prepared = pipeline.plan(build(*lines), QuantConfig(num_calib_examples="100%", target="avx512_vnni"))
            ranges = pipeline.calibrate(prepared, feeds()["data"], MxnetRunner(), progress=False)
            done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[feeds()])
            known = dict(zip(names, plain, strict=True))
            taps = corresponding(done.prepared.fused, done.model)
            made.append(
                {
                    "parameters": [v.tobytes() for v in done.model.args.values()],
                    "thresholds": list(done.thresholds.values()),
                    "refined": [known.get(name, name) for name in done.report.weights],
                    "coded": [tensor_of(done.report, name) is not None for name in ("c", "r", names[2], names[3], "d")],
                    "taps": [(known.get(t.float.name, t.float.name), t.op, t.stored.scale) for t in taps],
                    "outputs": [v.tobytes() for v in run(done.model)],
                }
            )
            for name in names:
                if name in done.prepared.fused.graph:
                    assert find(done.report, name).node == name
        one, other = made
        assert other == one
        assert one["coded"] == [False, True, True, False, True]

    def test_a_relu_that_has_nothing_to_do_is_coded_as_what_it_reads(self):
        model = build(
            conv("c", "data"),
            "r = Activation(c) " + RELU,
            POOL,
            "a = Activation(p) " + RELU,
            conv("d", "a"),
            "return d",
        )
        _, tensors = written(model, {"data": (-1, 1), "r": (0, 1), "d": (-1, 1)}, quantize_mode="full")
        assert tensors.of(Ref("a")) == tensors["quantized_p"]
        assert tensors.of(Ref("data")) == tensors["data_quantize"]
        assert tensors.of(Ref("c")) is None

    @pytest.mark.parametrize("first", ["data_quantize = exp(data)", conv("c", "data")], ids=["before", "after"])
    def test_a_taken_quantizer_name_is_avoided(self, first):
        lines = sorted(["data_quantize = exp(data)", conv("c", "data")], key=lambda line: line != first)
        model = build(*lines, "a = elemwise_mul(c, data_quantize)", "return a")
        result = quantized(model).model
        assert result.graph["data_quantize"].op == "exp"
        assert result.graph["data_quantize_int8"].op == "_contrib_quantize_v2"
        assert sqnr_db(run(model)[0], run(result)[0]) > 30

    def test_duplicated_operator_names_are_written_back(self):
        net = graph(conv("x", "data"), "y = exp(x)", "return y")
        doubled = net.replace({"y": (replace(net["y"], label="x"),)})
        model = Model(doubled, build(conv("x", "data"), "return x").args)
        text = write_symbol(quantized(model).model.graph)
        assert [n.label or n.name for n in read_symbol(text).operators][-2:] == ["x", "x"]
        assert sqnr_db(run(model)[0], run(quantized(model).model)[0]) > 25


class TestStructure:
    CASES: ClassVar = {
        "conv_relu": ((conv("c", "data"), "r = Activation(c) " + RELU, "return r"), {"data": (-2, 3), "r": (0, 4)}),
        "fc": ((fc("f", "data"), "return f"), {"data": (0, 3)}),
        "fc_chain": (
            (fc("f", "data"), "r = Activation(f) " + RELU, fc("g", "r"), "return g"),
            {"data": (-2, 3), "r": (0, 1.5)},
        ),
        "pool_concat": (
            (
                conv("c", "data"),
                "r = Activation(c) " + RELU,
                conv("d", "data"),
                'k = Concat(r, d) dim="1" num_args="2"',
                'p = Pooling(k) kernel="(2, 2)" pool_type="max"',
                conv("e", "p", CONV1),
                "return e",
            ),
            {"data": (-2, 3), "r": (0, 4), "d": (-3, 5), "e": (-1, 1)},
        ),
        "sum_half": (
            (conv("c", "data"), "s = elemwise_add(c, data)", "r = Activation(s) " + RELU, "return r"),
            {"data": (-2, 3), "r": (0, 4)},
        ),
        "sum_u8_under_s8": (
            (conv("c", "data"), "r = Activation(c) " + RELU, conv("d", "r"), "s = elemwise_add(d, r)", "return s"),
            {"data": (-2, 3), "r": (0, 4), "s": (-5, 6)},
        ),
    }

    @pytest.mark.parametrize("name", CASES)
    def test_golden(self, name, update_goldens):
        lines, ranges = self.CASES[name]
        result, records = written(build(*lines), ranges)
        notes = "".join(
            f"# {n}: {r.dtype} {r.min} {r.max} {r.note}".rstrip() + "\n" for n, r in sorted(records.items())
        )
        assert_golden(notes + write_text(result.graph), GOLDENS / f"quantize_{name}.txt", update=update_goldens)
        run(result)

    def test_run_time_ranges(self, update_goldens):
        model = build(conv("c", "data"), "r = Activation(c) " + RELU, fc("f", "r"), fc("g", "f"), "return g")
        model = without_pairs(model)
        result, records = written(model, {}, calib_mode="none")
        assert_golden(write_text(result.graph), GOLDENS / "quantize_none.txt", update=update_goldens)
        assert {r.note for n, r in records.items() if "quantize" in n} == {RUN_TIME}
        assert sqnr_db(run(model)[0], run(result)[0]) > 30


class TestTypes:
    @pytest.mark.parametrize(
        ("dtype", "data", "wanted"),
        [
            ("auto", (-1, 1), "int8"),
            ("auto", (0, 1), "uint8"),
            ("auto", (0.5, 1), "uint8"),
            ("auto", (-1, 0), "int8"),
            ("int8", (-1, 1), "int8"),
            ("int8", (0, 1), "int8"),
            ("uint8", (0, 1), "uint8"),
        ],
    )
    def test_of_what_is_quantized_from_float(self, dtype, data, wanted):
        result, records = written(conv_relu(), {"data": data, "r": (0, 1)}, quantized_dtype=dtype)
        assert result.graph["data_quantize"].attrs["out_type"] == wanted
        assert records["data_quantize"].dtype == wanted
        assert records["quantized_r"].dtype == "uint8"  # the kernel's choice

    def test_uint8_of_a_negative_tensor(self):
        with pytest.raises(QuantizeError, match=r"'uint8', but tensor 'data' goes down to -0.25; .* use 'auto'"):
            written(conv_relu(), {"data": (-0.25, 1), "r": (0, 1)}, quantized_dtype="uint8")

    @pytest.mark.parametrize(("wanted", "allowed"), [("auto", True), ("uint8", True), ("int8", False)])
    def test_the_kernel_decides_what_it_writes(self, wanted, allowed):
        ranges, overrides = {"data": (-1, 1), "r": (0, 1)}, {"r": {"dtype": wanted}}
        if allowed:
            written(conv_relu(), ranges, overrides=overrides)
            return
        with pytest.raises(ConfigError, match=r"dtype is 'int8' for 'r', but its kernel writes uint8 after Activation"):
            written(conv_relu(), ranges, overrides=overrides)

    def test_an_override_for_an_input(self):
        model, ranges = conv_relu(), {"data": (0, 1), "r": (0, 1)}
        _, records = written(model, ranges, overrides={"data": {"dtype": "int8"}})
        assert records["data_quantize"].dtype == "int8"

    def test_uint8_runs(self):
        model = build(conv("c", "data"), "r = Activation(c) " + RELU, conv("d", "r"), "return d")
        found = quantized(model, POSITIVE, quantized_dtype="uint8")
        assert found.model.graph["data_quantize"].attrs["out_type"] == "uint8"
        assert sqnr_db(run(model, POSITIVE)[0], run(found.model, POSITIVE)[0]) > 30

    def test_relu_alone_on_u8_goes(self):
        model = build(conv("c", "data"), "r = Activation(c) " + RELU, "t = Activation(r) " + RELU, "return t")
        result = quantized(model, quantize_mode="full").model
        assert "_contrib_quantized_act" not in [n.op for n in result.graph]
        assert [str(h) for h in result.graph.heads] == ["t"]
        assert sqnr_db(run(model)[0], run(result)[0]) > 30


class TestRanges:
    @pytest.mark.parametrize("bounds", [(-0.1, 0.3), (-1 / 3, 1e-7), (0.0, np.pi), (-1e30, 1e30)])
    def test_written_as_exact_float32(self, bounds):
        result, records = written(conv_relu(), {"data": bounds, "r": (0, 1)})
        attrs = result.graph["data_quantize"].attrs
        for name, bound in zip(("min", "max"), bounds, strict=True):
            wanted = float(np.float32(bound))
            assert attrs[f"{name}_calib_range"] == repr(wanted)
            assert getattr(records["data_quantize"], name) == wanted

    @pytest.mark.parametrize("low", [-0.5, 0.7])
    def test_u8_is_written_from_zero(self, low):
        result, records = written(conv_relu(), {"data": (-1, 1), "r": (low, 2)})
        assert result.graph["quantized_r"].attrs["min_calib_range"] == "0.0"
        assert records["quantized_r"].max == 2.0
        run(result)

    @pytest.mark.parametrize("bounds", [(0, 0), (-1e-31, 1e-31)])
    def test_zero_width(self, bounds):
        result, records = written(conv_relu(), {"data": (-1, 1), "r": bounds})
        record = records["quantized_r"]
        assert (record.min, record.max, record.note) == (0.0, 1.0, ZERO_RANGE)
        assert all(np.isfinite(a).all() for a in run(result))

    def test_all_negative_before_relu(self):
        _, records = written(conv_relu(), {"data": (-1, 1), "r": (-2, -1)})
        assert records["quantized_r"].note == ZERO_RANGE

    def test_a_missing_one(self):
        with pytest.raises(CalibrationError, match="no range was calibrated for tensor 'r'"):
            written(conv_relu(), {"data": (-1, 1)})

    def test_clip_is_done_by_the_range(self):
        model = build(conv("c", "data"), 'r = clip(c) a_min="0" a_max="0.5"', "return r")
        (got,) = run(quantized(model).model)
        assert got.min() == 0
        assert got.max() <= 0.5 * 1.001
        assert sqnr_db(run(model)[0], got) > 30


class TestFusedSums:
    lines = (conv("c", "data"), "s = elemwise_add(c, data)", "r = Activation(s) " + RELU, "return r")

    def test_s8_under_u8_uses_half_the_range(self):
        result, records = written(build(*self.lines), {"data": (-2, 3), "r": (0, 4)})
        record = records["quantized_r"]
        assert record.max == float(np.float32(4 * HALF))
        assert record.note.startswith("range doubled: the kernel writes this u8 tensor into s8 memory")
        assert result.graph["quantized_r"].attrs["max_calib_range"] == repr(record.max)

    def test_u8_under_u8_does_not(self):
        _, records = written(build(*self.lines), {"data": (0, 3), "r": (0, 4)})
        assert records["quantized_r"].max == 4.0

    def test_u8_under_s8_is_converted(self):
        lines = (conv("c", "data"), "r = Activation(c) " + RELU, conv("d", "r"), "s = elemwise_add(d, r)", "return s")
        result, records = written(build(*lines), {"data": (-2, 3), "r": (0, 4), "s": (-5, 6)})
        assert records["r_quantize"].dtype == "int8"
        assert result.graph["quantized_s"].inputs[0].name == "quantized_r"  # the data stays u8
        assert result.graph["quantized_s"].inputs[3].name == "r_quantize"

    @pytest.mark.parametrize(
        "passthrough",
        [
            'p = Pooling(r) kernel="(3, 3)" pad="(1, 1)" pool_type="max"',
            'p = Pooling(r) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"',
            'h = Concat(r) num_args="1" dim="1"\np = Pooling(h) kernel="(1, 1)" pool_type="max"',
        ],
    )
    @pytest.mark.parametrize("calib", ["naive", "none"])
    def test_u8_that_a_carrier_makes_under_s8(self, passthrough, calib):
        model = build(
            conv("b", "data"),
            "r = Activation(b) " + RELU,
            passthrough,
            conv("c", "data"),
            "s = elemwise_add(c, p)",
            conv("e", "s"),
            "return e",
        )
        assert sqnr_db(run(model)[0], run(quantized(model, calib_mode=calib).model)[0]) > 30


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_after_a_convolution_of_a_whole_image(channels, batch):
    """MXNet ends in "We can't generate TBlob for MKLDNN data" without the Flatten between them."""
    one, whole = (f'kernel="({k}, {k})" num_filter="{channels}"' for k in (1, 7))
    size = (batch, channels, 7, 7)
    lines = (conv("a", "data", one), "ra = Activation(a) " + RELU, conv("b", "ra", whole), "rb = Activation(b) " + RELU)
    model, data = build(*lines, fc("f", "rb"), fc("g", "rb"), "return f, g", data=size), feeds(data=size)
    made = quantized(model, data).model
    assert [n.op for n in made.graph.operators].count("_contrib_quantized_flatten") == 2
    assert all(sqnr_db(wanted, found) > 25 for wanted, found in zip(run(model, data), run(made, data), strict=True))
    fused = pipeline.fuse_float(model)
    assert [n.op for n in fused.graph.operators].count("Flatten") == 2
    for wanted, found in zip(run(model, data), run(fused, data), strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_origins_survive_into_the_int8_graph():
    found = quantized(conv_relu())
    assert found.model.graph["quantized_r"].origins == ("c", "r")
    assert set(found.report.tensors) == {"data_quantize", "quantized_r"}


def test_the_source_model_is_untouched():
    model = build(conv("c", "data"), bn("b", "c"), "r = Activation(b) " + RELU, "return r")
    before = {k: v.copy() for k, v in {**model.args, **model.auxs}.items()}
    quantized(model)
    for name, value in before.items():
        assert_close(model.param(name), value, rtol=0, atol=0)


def test_an_empty_plan_leaves_the_network_as_it_is():
    model = build("s = sin(data)", "return s")
    assert quantized(model).model is model


def test_new_shapes_after_quantization():
    model = build(conv("c", "data"), "r = Activation(c) " + RELU, conv("d", "r"), "return d")
    found = quantized(model)
    wide = feeds(data=(1, *SHAPE[1:3], 9))
    assert sqnr_db(run(model, wide)[0], run(found.model, wide)[0]) > 25
