"""Float against int8, mostly with a runner of a few numpy lines in MXNet's place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from graphs import RELU, bn, build, conv, quantized
from graphs import feeds as graph_feeds
from helpers import kernel_params
from hypothesis import given
from hypothesis import strategies as st

from mxq import numerics
from mxq.data.integers import feeding
from mxq.errors import DataError
from mxq.graph.annotation_text import annotated
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref
from mxq.quant import BY_DTYPE, MXNET, QParams
from mxq.runtime import MxnetRunner
from mxq.verification import Boxes, Energy, Output, Verification, corresponding, match_boxes, verify
from mxq.verification.taps import cut

Values = dict[str, tuple[Array, ...]]


@dataclass
class NumpyRunner:
    """Runs graphs whose nodes are all found in ``ops``: op -> function from inputs to outputs."""

    ops: Mapping[str, Callable[..., Any]]
    batches: list[int] = field(default_factory=list)

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Callable[[Mapping[str, Array]], tuple[Array, ...]]:
        def run(feeds: Mapping[str, Array]) -> tuple[Array, ...]:
            self.batches.append(len(next(iter(feeds.values()))))
            values: Values = {}
            for node in model.graph:
                if node.op == VARIABLE:
                    values[node.name] = (feeds[node.name],)
                    continue
                made = self.ops[node.op](*(values[r.name][r.output] for r in node.inputs))
                values[node.name] = made if isinstance(made, tuple) else (made,)
            return tuple(values[r.name][r.output] for r in (*model.graph.heads, *taps))

        return run


def network(*nodes: tuple[str, str, str], heads: Sequence[str], attrs: Mapping[str, str] | None = None) -> Model:
    """A model over the input "data" of (name, op, inputs) rows; those called "quantized_..." are int8."""
    made = [Node("data", VARIABLE)]
    for name, op, inputs in nodes:
        said = {**(attrs or {}), **({"quantized": "true"} if name.startswith("quantized_") else {})}
        made.append(annotated(Node(name, op, said, tuple(Ref(i) for i in inputs.split()))))
    return Model(Graph(tuple(made), tuple(Ref(h) for h in heads)))


def identity(x: Array) -> Array:
    return x


def rows(count: int, classes: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


FLOAT = network(("out", "same", "data"), heads=["out"])


def compare(
    change: Callable[[Array], Array], feeds: Sequence[Array], float_model: Model = FLOAT, **options: Any
) -> Any:
    """``verify`` of the identity against ``change``."""
    runner = NumpyRunner({"same": identity, "softmax": softmax, "change": change})
    int8_model = network(*((n.name, "change", "data") for n in float_model.graph.operators), heads=["out"])
    return verify(runner, float_model, int8_model, [{"data": f} for f in feeds], **options)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)


class TestEnergy:
    @given(st.integers(1, 5), st.floats(1e-3, 10))
    def test_sums_over_batches_equal_one_pass(self, batches: int, noise: float) -> None:
        x, e = rows(20), rows(20, seed=1) * np.float32(noise)
        energy = Energy()
        for part in np.array_split(np.arange(20), batches):
            energy = energy.update(x[part], (x + e)[part])
        assert energy.sqnr == pytest.approx(numerics.sqnr_db(x, x + e), rel=1e-9, abs=1e-9)
        assert energy.cosine == pytest.approx(numerics.cosine(x, x + e), rel=1e-9, abs=0)
        assert energy.largest == np.max(np.abs((x + e).astype(float) - x))

    def test_known_values(self) -> None:
        energy = Energy().update(np.float32([3, 4]), np.float32([3, 4.5]))
        assert energy.sqnr == pytest.approx(20.0, rel=1e-12, abs=0)
        assert energy.largest == 0.5

    def test_equal_zero_and_broken(self) -> None:
        zero, one, nan, inf = (np.float32([v]) for v in (0, 1, np.nan, np.inf))
        assert (Energy().update(one, one).sqnr, Energy().update(one, one).cosine) == (math.inf, 1.0)
        assert (Energy().update(zero, zero).sqnr, Energy().update(zero, zero).cosine) == (math.inf, 1.0)
        assert (Energy().update(zero, one).sqnr, Energy().update(zero, one).cosine) == (-math.inf, 0.0)
        for bad in (nan, inf):
            assert Energy().update(bad, bad).broken == 0
            assert Energy().update(one, bad).sqnr == -math.inf
            assert Energy().update(bad, one).broken == 1
        assert Energy().update(inf, -inf).broken == 1


class TestScores:
    def test_agreement_is_the_share_of_examples_over_unequal_batches(self) -> None:
        def change(x: Array) -> Array:
            y = x.copy()
            y[0] = -y[0]  # the best class of each batch's first example is now the worst
            return y

        found = compare(change, [rows(4), rows(3, seed=1), rows(1, seed=2)])
        assert (found.examples, found.agreement) == (8, 5 / 8)
        (output,) = found.outputs
        assert (output.name, output.kind) == ("out", "scores")

    def test_centring_ignores_a_constant(self) -> None:
        found = compare(lambda x: x + 5, [rows(4).astype(np.float64)])
        assert found.outputs[0].sqnr < 0
        assert found.outputs[0].centred_sqnr > 250
        assert found.sqnr == found.outputs[0].centred_sqnr
        assert found.outputs[0].max_abs_error == pytest.approx(5.0, rel=1e-9, abs=0)
        assert found.agreement == 1.0

    def test_centring_sees_the_logits_behind_a_softmax(self) -> None:
        noisy, logits = rows(50, seed=1) * np.float32(0.1), rows(50)
        plain = compare(lambda x: x + noisy, [logits])
        behind = compare(lambda x: softmax(x + noisy), [logits], network(("out", "softmax", "data"), heads=["out"]))
        expected = numerics.centred_sqnr_db(logits, logits + noisy)
        assert plain.outputs[0].centred_sqnr == pytest.approx(expected, rel=0, abs=1e-3)
        assert behind.outputs[0].centred_sqnr == pytest.approx(expected, rel=0, abs=1e-3)
        assert behind.outputs[0].sqnr != pytest.approx(expected, rel=0, abs=1)

    def test_accuracy(self) -> None:
        logits = np.tile(np.arange(8, dtype=np.float32), (4, 1))  # ranking 7, 6, 5, ...
        found = compare(lambda x: x[:, ::-1].copy(), [logits[:2], logits[2:]], labels=np.array([7, 3, 2, 0]))
        assert found.agreement == 0
        a = found.accuracy
        assert (a.float_top1, a.float_top5) == (1 / 4, 2 / 4)  # 7 | 7, 3
        assert (a.int8_top1, a.int8_top5) == (1 / 4, 3 / 4)  # 0 | 0, 2, 3

    def test_top5_needs_more_than_five_classes(self) -> None:
        found = compare(identity, [rows(3, 5)], labels=np.zeros(3, int))
        assert (found.accuracy.float_top5, found.accuracy.int8_top5) == (None, None)

    def test_labels_that_do_not_fit(self) -> None:
        with pytest.raises(DataError, match="there are 3 labels but more examples"):
            compare(identity, [rows(2), rows(2)], labels=np.zeros(3, int))
        with pytest.raises(DataError, match="there are 5 labels for 4 examples"):
            compare(identity, [rows(4)], labels=np.zeros(5, int))
        with pytest.raises(DataError, match="label 10 in a network of 10 classes; allowed: 0 to 9"):
            compare(identity, [rows(1)], labels=np.array([10]))
        with pytest.raises(DataError, match="label -1"):
            compare(identity, [rows(1)], labels=np.array([-1]))

    def test_what_is_no_score(self) -> None:
        found = compare(identity, [np.ones((2, 3, 4, 4), np.float32)])
        assert (found.agreement, found.outputs[0].kind, found.outputs[0].centred_sqnr) == (None, "tensor", None)
        assert compare(identity, [np.ones((2, 1), np.float32)]).agreement is None

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(DataError, match="no examples"):
            compare(identity, [])

    def test_outputs_that_differ(self) -> None:
        with pytest.raises(DataError, match=r"output 'out' has shape \(2, 10\) in the float model, \(2, 9\)"):
            compare(lambda x: x[:, 1:], [rows(2)])
        runner = NumpyRunner({"same": identity})
        two = network(("out", "same", "data"), heads=["out", "data"])
        with pytest.raises(DataError, match="has 1 outputs, the int8 model 2"):
            verify(runner, FLOAT, two, [{"data": rows(1)}])

    def test_progress(self) -> None:
        seen: list[int] = []
        compare(identity, [rows(4), rows(2)], progress=seen.append)
        assert seen == [4, 6]

    def test_broken_output(self) -> None:
        found = compare(lambda x: x * np.float32(np.nan), [rows(4)])
        assert found.sqnr == -math.inf
        assert found.failures(min_sqnr=-1000)

    def test_json(self) -> None:
        text = json.dumps(compare(identity, [rows(4)], layers=True, labels=np.zeros(4, int)).to_json(), allow_nan=False)
        data = json.loads(text)
        assert (data["examples"], data["agreement"], data["sqnr"]) == (4, 1.0, "inf")
        assert data["outputs"][0]["kind"] == "scores"
        assert [layer["name"] for layer in data["layers"]] == ["out"]


class TestFailures:
    def test_the_worst_output_counts(self) -> None:
        outputs = (
            Output("a", "tensor", sqnr=9.0),
            Output("b", "scores", sqnr=30.0, centred_sqnr=4.0),
            Output("c", "boxes"),
        )
        assert Verification(1, None, outputs).sqnr == 4.0
        assert Verification(1, None, outputs[:1]).sqnr == 9.0

    def test_bars(self) -> None:
        found = compare(lambda x: x * np.float32(0.9), [rows(4)])  # 20 dB
        assert found.failures(1.0, 19.9) == ()
        assert found.failures() == ()
        (message,) = found.failures(min_sqnr=20.1)
        assert message == "SQNR is 20.00 dB; asked for 20.1 dB or more"
        (message,) = compare(lambda x: -x, [rows(4)]).failures(min_agreement=0.99)
        assert message == "agreement is 0.00 %; asked for 99 % or more"

    def test_a_bar_on_what_cannot_be_measured(self) -> None:
        (message,) = compare(identity, [np.ones((2, 3, 4, 4), np.float32)]).failures(min_agreement=0.1)
        assert message == "agreement could not be measured; asked for 10 % or more"


class TestLayers:
    def test_int8_tensors_are_decoded_by_their_own_range(self) -> None:
        def coded(dtype: str, absmax: float) -> Callable[[Array], tuple[Array, ...]]:
            def run(x: Array) -> tuple[Array, ...]:
                codes = kernel_params(absmax, dtype).quantize(x)
                return codes, np.float32([-absmax if dtype == "int8" else 0]), np.float32([absmax])

            return run

        def wide(x: Array) -> tuple[Array, ...]:
            return np.rint(x / 4 * (2**31 - 1)).astype(np.int32), np.float32([-4]), np.float32([4])

        model = network(
            ("a", "same", "data"), ("b", "same", "a"), ("c", "same", "b"), ("out", "same", "c"), heads=["out"]
        )
        runner = NumpyRunner({"same": identity, "s8": coded("int8", 2.0), "u8": coded("uint8", 2.0), "s32": wide})
        int8 = network(
            ("quantized_a", "s8", "data"),
            ("quantized_b", "u8", "data"),
            ("quantized_c", "s32", "data"),
            ("out", "same", "data"),
            ("late_a", "same", "quantized_a"),
            ("late_b", "same", "quantized_b"),
            heads=["out"],
        )
        # A graph keeps what a head needs; here every node is listed by hand.
        x = np.abs(rows(200)).clip(0, 2)
        found = verify(runner, model, int8, [{"data": x[:150]}, {"data": x[150:]}], layers=True)
        assert [(layer.name, layer.dtype) for layer in found.layers] == [
            ("a", "int8"),
            ("b", "uint8"),
            ("c", "int32"),
            ("out", "float32"),
        ]
        assert [layer.name for layer in found.worst_first] == ["a", "b", "c", "out"]
        for layer, dtype in zip(found.layers[:2], ("int8", "uint8"), strict=True):
            expected = numerics.sqnr_db(x, kernel_params(2.0, dtype).fake(x))
            assert layer.sqnr == pytest.approx(expected, rel=0, abs=1e-6)
            assert layer.cosine > 0.999
        assert found.layers[2].sqnr > 100
        assert found.layers[3].sqnr == math.inf

    def test_float_output_of_an_int8_operator(self) -> None:
        model = network(("fc", "same", "data"), heads=["fc"])
        int8 = network(("quantized_fc", "same", "data"), heads=["quantized_fc"], attrs={"enable_float_output": "true"})
        (tap,) = corresponding(model, int8)
        assert tap.int8 == (Ref("quantized_fc"),)
        found = verify(NumpyRunner({"same": identity}), model, int8, [{"data": rows(2)}], layers=True)
        assert found.layers[0].dtype == "float32"

    def test_only_what_both_compute_is_compared(self) -> None:
        model = network(("a", "same", "data"), ("b", "same", "a"), ("c", "same", "b"), heads=["c"])
        int8 = network(("quantized_b", "s8", "data"), ("b", "same", "quantized_b"), ("c", "same", "b"), heads=["c"])
        taps = corresponding(model, int8)
        assert [(t.name, t.float, t.int8) for t in taps] == [
            ("b", Ref("b"), (Ref("quantized_b"), Ref("quantized_b", 1), Ref("quantized_b", 2))),
            ("c", Ref("c"), (Ref("c"),)),
        ]

    def test_a_name_that_means_another_shape_is_left_out(self) -> None:
        runner = NumpyRunner({"same": identity, "half": lambda x: x[:, ::2], "back": lambda x: np.repeat(x, 2, axis=1)})
        model = network(("a", "same", "data"), ("out", "same", "a"), heads=["out"])
        int8 = network(("a", "half", "data"), ("out", "back", "a"), heads=["out"])
        found = verify(runner, model, int8, [{"data": rows(2)}], layers=True)
        assert [layer.name for layer in found.layers] == ["out"]

    def test_without_layers_nothing_is_tapped(self) -> None:
        assert compare(identity, [rows(2)]).layers == ()


def codes(scale: float, dtype: str = "int8", of: Callable[[Array], Array] = identity) -> Callable[..., Any]:
    """An int8 operator: the codes of what ``of`` makes of its input, ``scale`` of them to a unit, with their range."""
    spec = BY_DTYPE[dtype]
    absmax = np.float32([MXNET.top(spec) / scale])
    return lambda x: (QParams(spec, scale).quantize(of(x)), -absmax, absmax)


def marked(model: Model, **attrs: Mapping[str, str]) -> Model:
    """``model`` with attributes for nodes by name, as files have them."""
    nodes = tuple(annotated(replace(n, attrs={**n.attrs, **attrs.get(n.name, {})})) for n in model.graph)
    return Model(Graph(nodes, model.graph.heads))


def db(signal: float, noise: float) -> Any:
    return pytest.approx(10 * math.log10(signal / noise), rel=1e-9, abs=0)


class TestOwnAndInherited:
    """Error introduced by a layer against error inherited; the numbers are worked out by hand."""

    MODEL = network(("a", "same", "data"), ("b", "twice", "a"), heads=["b"])
    INT8 = network(("quantized_a", "a", "data"), ("quantized_b", "b", "quantized_a"), heads=["quantized_b"])
    X = np.float32([[1, 4]])

    def layers(self, int8: Model = INT8, **ops: Callable[..., Any]) -> Any:
        runner = NumpyRunner({"same": identity, "twice": lambda x: 2 * x, **ops})
        return verify(runner, self.MODEL, int8, [{"data": self.X}], layers=True).layers

    def test_a_narrow_range_is_the_fault_of_its_layer_not_of_the_next(self) -> None:
        # a holds 1 and, of 4, 127/64; b makes 2 and 127/32 = 3.96875 of them and holds 2 and 4, in steps of 1/8.
        a, b = self.layers(a=codes(64), b=codes(8, of=lambda c: c / np.float32(32)))
        assert (a.introduced, a.inherited, a.clipped, a.levels) == (db(17, (4 - 127 / 64) ** 2), math.inf, 0.5, 2)
        assert a.sqnr == a.introduced
        assert b.inherited == db(68, (8 - 127 / 32) ** 2)
        assert b.introduced == db(68, (4 - 127 / 32) ** 2)
        assert b.sqnr == db(68, (8 - 4) ** 2)
        assert (b.clipped, b.levels) == (0.0, 2)
        assert b.sqnr < a.sqnr + 0.1
        found = Verification(1, None, (), layers=(b, a))
        assert [layer.name for layer in found.worst_first] == ["a", "b"]

    def test_all_is_in_the_document(self) -> None:
        layers = self.layers(a=codes(64), b=codes(8, of=lambda c: c / np.float32(32)))
        data = json.loads(json.dumps(Verification(1, None, (), layers=layers).to_json(), allow_nan=False))
        assert data["layers"][0]["inherited"] == "inf"
        assert data["layers"][0].keys() >= {"sqnr", "cosine", "introduced", "clipped", "levels"}

    def test_the_ends_of_the_range_are_not_clipped(self) -> None:
        a, _ = self.layers(a=codes(127.5 / 4), b=codes(8, of=lambda c: c * np.float32(2 * 4 / 127.5)))
        assert (a.clipped, a.levels) == (0.0, 2)

    def test_a_float_layer_has_no_codes(self) -> None:
        int8 = network(("a", "same", "data"), ("b", "off", "a"), heads=["b"])
        a, b = self.layers(int8, off=lambda x: 2 * x + np.float32([[0, 1]]))
        assert (a.introduced, a.clipped, a.levels) == (math.inf, None, None)
        assert (b.introduced, b.inherited) == (db(68, 1), math.inf)

    def test_a_quantizer_is_a_layer_of_its_own(self) -> None:
        int8 = network(
            ("a", "same", "data"), ("a_quantize", "_contrib_quantize_v2", "a"), ("quantized_b", "b", "a_quantize"),
            heads=["quantized_b"],
        )  # fmt: skip
        ops = {"_contrib_quantize_v2": codes(64), "b": codes(8, of=lambda c: c / np.float32(32))}
        _, quantize, b = self.layers(int8, **ops)
        assert (quantize.name, quantize.introduced) == ("a_quantize", db(17, (4 - 127 / 64) ** 2))
        assert b.inherited == db(68, (8 - 127 / 32) ** 2)

    def test_what_reads_an_unknown_tensor_is_measured_from_the_last_known_one(self) -> None:
        int8 = network(("part", "part", "data"), ("quantized_b", "b", "part"), heads=["quantized_b"])
        (b,) = self.layers(int8, part=lambda x: x + 1, b=codes(8, of=lambda x: 2 * x - 1))
        assert (b.introduced, b.inherited) == (db(68, 2), math.inf)

    def test_nothing_is_said_where_the_inputs_have_other_shapes(self) -> None:
        int8 = network(("a", "half", "data"), ("b", "back", "a"), heads=["b"])
        (b,) = self.layers(int8, half=lambda x: x[:, :1], back=lambda x: np.repeat(x, 2, axis=1))
        assert (b.introduced, b.inherited) == (None, None)
        assert b.blame == b.sqnr == db(68, 50)

    def test_scaled_shifted_and_reordered_tensors_are_put_back(self) -> None:
        def held(x: Array) -> Array:
            return x[:, ::-1] * np.float32([0.5, 2]) + 3  # 4 * 0.5 + 3, 1 * 2 + 3

        int8 = network(
            ("quantized_a_shifted", "a", "data"), ("quantized_b", "b", "quantized_a_shifted"), heads=["quantized_b"]
        )
        attrs = {"__channel_order__": "1,0", "__channel_scale__": "0.5,2", "__offset__": "3.0"}
        ops = {"a": codes(16, of=held), "b": codes(8, of=lambda c: (c / np.float32(16) - 3)[:, ::-1] * [1, 4])}
        a, b = self.layers(marked(int8, quantized_a_shifted=attrs), **ops)
        assert (a.name, a.sqnr, a.clipped) == ("a", math.inf, 0.0)
        assert (b.introduced, b.inherited) == (math.inf, math.inf)
        assert [layer.name for layer in self.layers(int8, **ops)] == ["b"]  # without attributes it is not known

    @pytest.mark.parametrize("axis", [1, -1])
    def test_scales_are_along_the_axis_that_is_named(self, axis: int) -> None:
        model = network(("a", "same", "data"), ("b", "relu", "a"), heads=["b"])
        int8 = network(("a", "scaled", "data"), ("b", "relu", "a"), heads=["b"])
        factors = np.float32([4, 0.5]).reshape((1, 2, 1) if axis == 1 else (1, 1, 2))
        ops = {"same": identity, "relu": lambda v: np.maximum(v, 0), "scaled": lambda v: v * factors}
        int8 = marked(int8, a={"__channel_scale__": "4,0.5", "__channel_axis__": str(axis)})
        found = verify(NumpyRunner(ops), model, int8, [{"data": rows(6, 4).reshape(6, 2, 2)}], layers=True).layers
        assert [(layer.name, layer.sqnr) for layer in found] == [("a", math.inf), ("b", math.inf)]

    def test_scales_go_on_through_what_commutes_with_them(self) -> None:
        model = network(("a", "same", "data"), ("f", "Flatten", "a"), ("b", "Flatten", "f"), heads=["b"])
        int8 = network(("a", "scaled", "data"), ("f", "Flatten", "a"), ("b", "unscale", "f"), heads=["b"])
        x = rows(8).reshape(2, 2, 4, 5)
        factors = np.float32([4, 0.5]).reshape(1, 2, 1, 1)
        ops = {
            "same": identity,
            "Flatten": lambda v: v.reshape(len(v), -1),
            "scaled": lambda v: v * factors,
            "unscale": lambda v: v / np.repeat(factors.ravel(), 20),
        }
        int8 = marked(int8, a={"__channel_scale__": "4,0.5"})
        found = verify(NumpyRunner(ops), model, int8, [{"data": x}], layers=True).layers
        assert [(layer.name, layer.sqnr, layer.introduced) for layer in found] == [
            (name, math.inf, math.inf) for name in "afb"
        ]

    def test_a_part_that_another_input_reaches_is_none(self) -> None:
        model = network(("a", "same", "data"), ("b", "sum", "a data"), heads=["b"])
        assert cut(model, Ref("b"), [Ref("a")]) is None
        part = cut(model, Ref("b"), [Ref("a"), Ref("data")])
        assert part is not None
        assert part.model.graph["b"].inputs == (Ref("a_0_fed"), Ref("data_0_fed"))
        assert part.model.graph.by_name.keys() == {"a_0_fed", "data_0_fed", "b"}


class TestLayersInMxnet:
    def layers(self, model: Model, int8: Model | None = None, **options: Any) -> dict[str, Any]:
        made = quantized(model, **options)
        runner = feeding(MxnetRunner(), made.report.input)
        found = verify(runner, model, int8 or made.model, [graph_feeds()], layers=True)
        return {layer.name: layer for layer in found.layers}

    def test_a_narrow_range(self) -> None:
        model = build(conv("a", "data"), "r = Activation(a) " + RELU, conv("b", "r"), "return b")
        wide = self.layers(model)
        narrow = self.layers(model, overrides={"r": {"threshold": (0.0, 0.3)}})
        assert wide.keys() == narrow.keys() == {"data_quantize", "r", "b"}
        assert wide["r"].introduced > 35
        assert wide["r"].clipped < 0.01
        assert narrow["r"].introduced == pytest.approx(narrow["r"].sqnr, rel=0, abs=0.1)
        assert narrow["r"].introduced < 10
        assert 0.3 < narrow["r"].clipped < 0.6
        assert narrow["b"].introduced > 35
        assert narrow["b"].inherited == pytest.approx(narrow["b"].sqnr, rel=0, abs=0.1)
        assert narrow["b"].inherited < 10

    def test_changed_weights_are_measured_against_the_original_ones(self) -> None:
        model = build(conv("a", "data"), bn("n", "a"), "r = Activation(n) " + RELU, conv("b", "r"), "return b")
        int8 = quantized(model).model
        worse = Model(int8.graph, {**int8.args, "b_weight": int8.args["b_weight"] * np.float32(0.9)}, int8.auxs)
        found = self.layers(model, worse)
        assert found["b"].introduced < 23
        assert found["b"].inherited > 35

    def test_an_unsigned_sum_in_a_signed_summands_memory_ends_at_127(self) -> None:
        lines = (conv("y", "data"), conv("c", "y"), "s = elemwise_add(c, y)", "r = Activation(s) " + RELU, "return r")
        found = self.layers(build(*lines), overrides={"r": {"threshold": (0.0, 0.3)}})["r"]
        assert found.dtype == "uint8"
        assert found.levels <= 128
        assert found.clipped > 0.2  # at the code 127

    @pytest.mark.parametrize("options", [{"input_dtype": "int8"}, {"calib_mode": "none"}])
    def test_other_doors(self, options: dict[str, Any]) -> None:
        found = self.layers(
            build(conv("a", "data"), "r = Activation(a) " + RELU, conv("b", "r"), "return b"), **options
        )
        door = found["data" if "input_dtype" in options else "data_quantize"]
        assert (door.dtype, door.inherited, door.introduced) == ("int8", math.inf, door.sqnr)
        assert all(layer.introduced > 35 for layer in found.values())


BOX = (0.1, 0.1, 0.5, 0.5)
MOVED = (0.15, 0.1, 0.55, 0.5)  # IoU 0.35 / 0.45 = 0.78
FAR = (0.35, 0.1, 0.75, 0.5)  # IoU 0.23


def boxes(*found: tuple[float, float, tuple[float, ...]]) -> Array:
    padding = [(-1.0, -1.0, *BOX)] * 2
    return np.array([(c, s, *b) for c, s, b in found] + padding, np.float32)


class TestBoxes:
    @pytest.mark.parametrize(
        ("other", "matched"),
        [
            (boxes((1, 0.9, BOX)), 1),
            (boxes((1, 0.9, MOVED)), 1),
            (boxes((1, 0.9, FAR)), 0),
            (boxes((2, 0.9, BOX)), 0),
            (boxes(), 0),
        ],
    )
    def test_class_and_overlap_decide(self, other: Array, matched: int) -> None:
        reference = boxes((1, 0.8, BOX))
        found = match_boxes(reference, other)
        assert found.matched == matched
        assert found.agreement == (1.0 if matched else 0.0)

    def test_weak_boxes_do_not_count(self) -> None:
        assert match_boxes(boxes((1, 0.5, BOX)), boxes((1, 0.51, BOX))) == Boxes(0, 1, 0)

    def test_each_box_is_used_once_and_order_does_not_matter(self) -> None:
        pair = boxes((1, 0.9, BOX), (1, 0.8, FAR))
        assert match_boxes(pair, boxes((1, 0.9, BOX))) == Boxes(2, 1, 1)
        assert match_boxes(boxes((1, 0.9, BOX), (1, 0.8, BOX)), boxes((1, 0.9, BOX))) == Boxes(2, 1, 1)
        assert match_boxes(pair, boxes((1, 0.7, FAR), (1, 0.6, MOVED))) == Boxes(2, 2, 2)

    def test_no_boxes_have_no_agreement(self) -> None:
        assert match_boxes(boxes(), boxes()).agreement is None
        assert Boxes(3, 1, 1).agreement == 0.5

    def test_detections_are_matched_not_subtracted(self) -> None:
        image = boxes((1, 0.9, BOX), (2, 0.8, FAR))
        found = compare(lambda x: x[:, ::-1], [np.stack([image, image]), image[None]])
        assert found.boxes == Boxes(6, 6, 6)
        assert (found.sqnr, found.agreement, found.outputs[0].sqnr) == (None, None, None)
        assert found.failures(min_agreement=1.0) == ()
        assert found.to_json()["boxes"]["agreement"] == 1.0

    def test_three_outputs_of_a_detector(self) -> None:
        image = boxes((1, 0.9, BOX), (2, 0.8, FAR))[None]
        parts = {"ids": lambda x: x[..., :1], "scores": lambda x: x[..., 1:2], "corners": lambda x: x[..., 2:]}
        model = network(*((n, n, "data") for n in parts), heads=list(parts))
        found = verify(NumpyRunner(parts), model, model, [{"data": image}])
        assert found.boxes == Boxes(2, 2, 2)
        assert [o.kind for o in found.outputs] == ["boxes"] * 3
