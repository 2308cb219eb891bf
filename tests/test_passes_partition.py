"""Partition: who becomes int8 and why not, what the user may exclude and include, which tensors are observed."""

from __future__ import annotations

import re

import pytest
from graphs import CONV1, CONV3, RELU, SHAPE, bn, build, conv, fc

from mxq import pipeline
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import ConfigError
from mxq.graph.ir import VARIABLE, Graph, Model, Node, Ref
from mxq.passes.partition import unmatched, with_carried
from mxq.quant.plan import Plan
from mxq.quant.thresholds import Range, Threshold, Thresholds

LONELY = "it does not lie between two int8 layers, so converting would cost more than it saves"
POOL = 'kernel="(2, 2)" stride="(2, 2)" pool_type="max"'
POOL_ALL = 'kernel="(1, 1)" pool_type="avg" pooling_convention="full" global_pool="True"'


def planned(model: Model, **options) -> Plan:
    return pipeline.plan(model, QuantConfig(**options)).plan


def small() -> Model:
    return build(
        conv("stem_conv", "data"),
        bn("stem_bn", "stem_conv"),
        "stem_relu = Activation(stem_bn) " + RELU,
        f"pool = Pooling(stem_relu) {POOL}",
        conv("body_conv", "pool"),
        "flat = Flatten(body_conv)",
        fc("out", "flat"),
        "prob = softmax(out)",
        "return prob",
    )


class TestDecisions:
    def test_every_operator_has_one_in_order(self):
        plan = planned(small())
        assert [(d.node, d.op, d.int8) for d in plan.decisions] == [
            ("stem_relu", "Convolution+Activation", True),
            ("pool", "Pooling", True),
            ("body_conv", "Convolution", True),
            ("flat", "Flatten", True),
            ("out", "FullyConnected", True),
            ("prob", "softmax", False),
        ]
        assert plan["stem_relu"].members == ("stem_conv", "stem_bn", "stem_relu")
        assert plan["stem_relu"].reason == "int8 kernel"
        assert plan["pool"].reason == "carries int8 between int8 layers"
        assert "softmax needs float exponentials" in plan["prob"].reason
        assert plan.quantized == {"stem_relu", "pool", "body_conv", "flat", "out"}

    @pytest.mark.parametrize(
        ("lines", "node", "reason"),
        [
            ((conv("c", "data"), "x = sin(c)", "return x"), "x", "MXNet 1.9.1 has no int8 kernel for sin"),
            (
                (
                    'r = Reshape(data) shape="(0, 0, -1)"',
                    conv("c", "r", 'kernel="(3,)" num_filter="4"'),
                    fc("f", "c"),
                    "return f",
                ),
                "c",
                "kernel has 1 dimensions; int8 kernels take 2 or 3",
            ),
            (
                ('s = sum(data) axis="3"', fc("f", "s"), 'p = Pooling(s) kernel="(2,)" pool_type="max"', "return f, p"),
                "p",
                "kernel has 1 dimensions; int8 kernels take 2 or 3",
            ),
            (
                (conv("c", "data"), 'p = Pooling(c) kernel="(2, 2)" pool_type="sum"', conv("d", "p"), "return d"),
                "p",
                "pool_type is 'sum'; the int8 kernel takes 'max' or 'avg'",
            ),
            (
                (
                    conv("c", "data"),
                    'p = Pooling(c) kernel="(2, 2)" pool_type="avg" pooling_convention="full"',
                    conv("d", "p"),
                    "return d",
                ),
                "p",
                (
                    "count_include_pad is 'True'; the int8 kernel takes 'False' or '0' (it counts positions "
                    "beyond the padding, as float pooling does not)"
                ),
            ),
            (
                (conv("c", "data"), 'k = Concat(c, data) dim="-1" num_args="2"', conv("d", "k"), "return d"),
                "k",
                (
                    "dim is '-1'; the int8 kernel takes '0' or '1' or '2' or '3' or '4' (an axis counted from the end "
                    "kills the process)"
                ),
            ),
            (
                (conv("c", "data"), 'a = Activation(c) act_type="tanh"', conv("d", "a"), "return d"),
                "a",
                "act_type is 'tanh'; the int8 kernel takes 'relu'",
            ),
            (
                (conv("c", "data", CONV3 + ' num_group="2"'), fc("f", "c"), "return f"),
                "c",
                (
                    "num_group is '2'; the int8 kernel takes '1' or '8' (with several channels in each group it "
                    "scales a channel's weights by another channel's maximum)"
                ),
            ),
            (
                ("e = exp(data)", bn("b", "e", 'fix_gamma="True" output_mean_var="True"'), conv("c", "b"), "return c"),
                "b",
                "output_mean_var is 'True'; the int8 kernel takes 'False' or '0'",
            ),
            (
                ("e = exp(data)", bn("b", "e", 'fix_gamma="False" axis="2"'), conv("c", "b"), "return c"),
                "b",
                "axis is '2'; the int8 kernel takes '1'",
            ),
            (
                (conv("c", "data"), "m = elemwise_mul(c, data)", conv("d", "m"), "return d"),
                "m",
                "the int8 elemwise_mul kernel does not read oneDNN memory; it is left in float",
            ),
        ],
    )
    def test_reasons_for_float(self, lines, node, reason):
        decision = planned(build(*lines))[node]
        assert not decision.int8
        assert decision.reason == reason

    def test_a_gamma_that_is_not_one_although_fixed(self):
        fixed = 'BatchNorm({0}, g, {1}_beta, {1}_moving_mean, {1}_moving_var) fix_gamma="True"'
        model = build("b1 = " + fixed.format("data", "b1"), "b2 = " + fixed.format("b1", "b2"), "return b2")
        plan = planned(model, quantize_mode="full")
        assert not plan.quantized
        assert plan["b1"].reason.startswith("fix_gamma is 'True'; the int8 kernel takes 'False' or '0' (it multiplies")

    def test_a_computed_weight(self):
        model = build(
            '_w = _mul_scalar(v) scalar="2"',
            'c = Convolution(data, _w) no_bias="True" ' + CONV3,
            fc("f", "c"),
            "return f",
            v=(8, 8, 3, 3),
            data=SHAPE,
        )
        plan = planned(model)
        assert plan["c"].reason == "its weight '_w' is computed or fed, not a parameter"
        assert plan.quantized == {"f"}

    def test_average_pooling_over_all_is_carried_whatever_its_convention(self):
        model = build(conv("c", "data"), "p = Pooling(c) " + POOL_ALL, fc("f", "p"), "return f")
        assert planned(model, quantize_mode="full")["p"].int8

    def test_a_head_averages_in_float(self):
        model = build(conv("c", "data"), "p = Pooling(c) " + POOL_ALL, "t = Flatten(p)", fc("f", "t"), "return f")
        plan = planned(model)
        assert plan.quantized == {"c", "t", "f"}
        assert plan["p"].reason.startswith("int8 would keep the range of what it averages")

    def test_what_comes_before_an_averaging_head_is_carried_to_it(self):
        lines = (conv("c", "data"), conv("d", "data"), 'cat = Concat(c, d) num_args="2"')
        model = build(*lines, "p = Pooling(cat) " + POOL_ALL, fc("f", "p"), "return f")
        assert planned(model).quantized == {"c", "d", "cat", "f"}

    def test_squeeze_and_excitation_averages_in_int8(self):
        lines = (conv("c", "data"), "p = Pooling(c) " + POOL_ALL, conv("f", "p", CONV1))
        assert planned(build(*lines, "y = broadcast_mul(c, f)", "return y"))["p"].int8


class TestModes:
    lines = (
        f"p0 = Pooling(data) {POOL}",
        conv("c", "p0"),
        "e = Activation(c) " + RELU,
        conv("d", "e", CONV1),
        f"p1 = Pooling(d) {POOL}",
        "f = Flatten(p1)",
        "return f",
    )

    def test_smart_leaves_what_is_at_the_ends(self):
        plan = planned(build(*self.lines))
        assert plan.quantized == {"p0", "e", "d", "p1"}  # max pooling needs one int8 layer beside it
        assert plan["f"].reason == LONELY

    def test_full_takes_all(self):
        assert planned(build(*self.lines), quantize_mode="full").quantized == {"p0", "e", "d", "p1", "f"}

    def test_a_float_operator_breaks_the_way(self):
        lines = (
            conv("c", "data"),
            f"p = Pooling(c) {POOL}",
            "s = sin(p)",
            f"q = Pooling(s) {POOL}",
            conv("d", "q"),
            "return d",
        )
        plan = planned(build(*lines, data=(2, 8, 12, 12)))
        assert plan.quantized == {"c", "p", "q", "d"}

    @pytest.mark.parametrize("how", ['pool_type="avg"', 'pool_type="max" global_pool="True"'])
    def test_only_max_pooling_may_end_the_way(self, how):
        model = build(conv("c", "data"), f'p = Pooling(c) kernel="(2, 2)" stride="(2, 2)" {how}', "return p")
        assert planned(model)["p"].reason == LONELY

    def test_carriers_in_a_row_are_carried(self):
        lines = (
            conv("c", "data"),
            f"p = Pooling(c) {POOL}",
            'k = Concat(p, p) dim="1" num_args="2"',
            "f = Flatten(k)",
            fc("o", "f"),
            "return o",
        )
        assert planned(build(*lines)).quantized == {"c", "p", "k", "f", "o"}


class TestObserved:
    def test_what_is_quantized_and_what_kernels_write(self):
        assert [str(r) for r in planned(small()).observe] == ["data", "stem_relu", "body_conv"]

    def test_a_fully_connected_layer_before_another_is_observed(self):
        model = build(fc("a", "data"), fc("b", "a"), "return b")
        assert [str(r) for r in planned(model).observe] == ["data", "a"]

    def test_an_excluded_layer_in_the_middle(self):
        plan = planned(small(), exclude_layers="body_conv")
        assert [str(r) for r in plan.observe] == ["data", "stem_relu", "flat"]

    def test_other_outputs_of_a_node(self):
        model = build('s = SliceChannel(data) num_outputs="2" axis="1"', conv("c", "s:1"), "return c")
        assert [str(r) for r in planned(model).observe] == ["s:1", "c"]

    def test_nothing_where_ranges_are_found_at_run_time(self):
        assert planned(small(), calib_mode="none").observe == ()


class TestWithoutCalibration:
    def test_a_clip_is_not_fused(self):
        model = build(conv("c", "data"), 'r = clip(c) a_min="0" a_max="6"', fc("f", "r"), "return f")
        plan = planned(model, calib_mode="none")
        assert {d.node: d.int8 for d in plan.decisions}["c"]
        assert not plan["r"].int8


def is_conv(node: Node) -> bool:
    return node.op == "Convolution"


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "floats", "reason"),
        [
            ({"exclude_layers": "stem_relu"}, {"stem_relu"}, "excluded by exclude_layers 'stem_relu'"),
            ({"exclude_layers": "stem_bn"}, {"stem_relu"}, "excluded by exclude_layers 'stem_bn'"),  # a member
            ({"exclude_layers": "*_conv"}, {"stem_relu", "body_conv"}, "excluded by exclude_layers '*_conv'"),
            ({"exclude_layers": is_conv}, {"stem_relu", "body_conv"}, "excluded by exclude_layers 'is_conv'"),
            ({"exclude_layers_match": "stem"}, {"stem_relu"}, "excluded by exclude_layers_match 'stem'"),
            ({"exclude_layers_match": "dy_c"}, {"body_conv"}, "excluded by exclude_layers_match 'dy_c'"),
            ({"exclude_operators": "FullyConnected"}, {"out"}, "excluded by exclude_operators 'FullyConnected'"),
            ({"exclude_operators": "Activation"}, {"stem_relu"}, "excluded by exclude_operators 'Activation'"),
            (
                {"exclude_operators": "_npx_fully_connected"},
                {"out"},
                "excluded by exclude_operators '_npx_fully_connected'",
            ),
            (
                {"exclude_layers": "op:_npx_fully_connected"},
                {"out"},
                "excluded by exclude_layers 'op:_npx_fully_connected'",
            ),
            (
                {"exclude_layers": "op:Convolution"},
                {"stem_relu", "body_conv"},
                "excluded by exclude_layers 'op:Convolution'",
            ),
            ({"exclude_layers": "op:Activ*"}, {"stem_relu"}, "excluded by exclude_layers 'op:Activ*'"),
            ({"include_layers": "body_*"}, {"stem_relu", "out"}, "not among include_layers"),
            ({"include_layers": "op:Convolution"}, {"out"}, "not among include_layers"),
            ({"include_layers": "op:Activation"}, {"body_conv", "out"}, "not among include_layers"),
            (
                {"overrides": {"op:Conv*": {"quantize": False}}},
                {"stem_relu", "body_conv"},
                "left in float by overrides 'op:Conv*'",
            ),
            (
                {"overrides": {"body_conv": LayerConfig(quantize=False)}},
                {"body_conv"},
                "left in float by overrides 'body_conv'",
            ),
        ],
    )
    def test_what_stays_in_float(self, options, floats, reason):
        plan = planned(small(), **options)
        assert {n for n in ("stem_relu", "body_conv", "out") if not plan[n].int8} == floats
        assert {plan[n].reason for n in floats} == {reason}

    def test_an_excluded_member_leaves_its_whole_chain_in_float(self):
        plan = planned(small(), exclude_layers=("stem_conv", "body_conv", "out"))
        assert not plan.quantized

    def test_exclude_beats_include_and_overrides_beat_both(self):
        include = {"include_layers": ("stem_*", "pool", "body_conv")}
        assert planned(small(), **include).quantized == {"stem_relu", "pool", "body_conv"}
        assert not planned(small(), **include, exclude_layers="stem_*")["stem_relu"].int8
        back = {"overrides": {"stem_relu": {"quantize": True}}}
        assert planned(small(), **include, exclude_layers="stem_*", **back)["stem_relu"].int8

    def test_what_overrides_put_back_says_so(self):
        plan = planned(
            small(), exclude_layers="*", overrides={"op:Pooling": {"quantize": True}, "*v": {"quantize": True}}
        )
        assert plan.quantized == {"stem_relu", "pool", "body_conv"}
        assert plan["stem_relu"].reason == plan["body_conv"].reason == "int8 kernel, asked for by overrides '*v'"
        assert plan["pool"].reason == "carries int8 between int8 layers, asked for by overrides 'op:Pooling'"
        assert plan["out"].reason == "excluded by exclude_layers '*'"

    def test_later_overrides_win(self):
        plan = planned(small(), overrides={"*": {"quantize": False}, "out": {"quantize": True}})
        assert plan.quantized == {"out"}
        plan = planned(small(), overrides={"out": {"quantize": True}, "op:FullyConnected": {"quantize": False}})
        assert plan["out"].reason == "left in float by overrides 'op:FullyConnected'"

    @pytest.mark.parametrize("options", [{"exclude_layers": "op:_sg*"}, {"overrides": {"op:_sg_mkldnn_conv": {}}}])
    def test_the_ops_are_those_before_fusion(self, options):
        with pytest.raises(ConfigError, match=r"matches none of .* op types"):
            planned(small(), **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"exclude_layers": "bodyconv"}, "exclude_layers: 'bodyconv' matches none of .* close ones: body_conv"),
            ({"include_layers": "stem_con"}, "include_layers: 'stem_con' matches none .* close ones: stem_conv"),
            ({"overrides": {"outt": {}}}, "overrides: 'outt' matches none .* close ones: out"),
            ({"exclude_layers": lambda node: False}, "exclude_layers: '<lambda>' matches none"),
            ({"exclude_layers": "data"}, "exclude_layers: 'data' matches none"),
            (
                {"exclude_layers": "op:convolution"},
                "exclude_layers: 'op:convolution' matches none of 6 op types; close ones: op:Convolution",
            ),
            ({"include_layers": "op:*Poolin"}, "include_layers: 'op:.Poolin' matches none .* close ones: op:Pooling"),
            ({"overrides": {"op:Conv2D": {}}}, "overrides: 'op:Conv2D' matches none .* close ones: op:Convolution"),
            ({"overrides": {"op:": {}}}, "overrides: 'op:' matches none of 6 op types; close ones: op:"),
            ({"overrides": {"Convolution": {}}}, "overrides: 'Convolution' matches none of .* names"),
            ({"exclude_layers": "op:null"}, "exclude_layers: 'op:null' matches none"),
        ],
    )
    def test_what_matches_nothing_is_an_error(self, options, message):
        with pytest.raises(ConfigError, match=message):
            planned(small(), **options)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"exclude_layers_match": "steem"}, "exclude_layers_match: 'steem' matches none of 8 .* close ones: stem"),
            ({"exclude_operators": "Convolutio"}, "exclude_operators: 'Convolutio' matches none .* Convolution"),
        ],
    )
    def test_what_mxnet_lets_match_nothing(self, options, sentence):
        model, config = small(), QuantConfig(**options)
        assert planned(model, **options) == planned(model)
        (found,) = unmatched(model.graph, config)
        assert re.match(sentence, found)
        assert found.endswith("; nothing is excluded by it")

    def test_what_was_there_before_fusion_may_be_excluded(self):
        source = build(conv("c", "data"), 'd = Dropout(c) p="0.5"', conv("e", "d"), "return e")
        prepared = pipeline.plan(source, QuantConfig(exclude_layers="d"))
        assert prepared.plan.quantized == {"c", "e"}
        assert prepared.warnings == (
            "exclude_layers: 'd' is no operator of the fused network; inference does not need it",
        )

    def test_substrings_are_plain(self):
        model = build(conv("c0", "data"), "return c0")
        for text in ("c*", "[0]"):
            assert planned(model, exclude_layers_match=text).quantized == {"c0"}

    def test_overrides_may_name_an_input(self):
        assert "out" in planned(small(), overrides={"data": {"threshold": (-1.0, 1.0)}}).quantized

    def test_an_unknown_observer(self):
        with pytest.raises(ConfigError, match=r"calib_mode is 'median'; allowed: .*'entropy'.*'naive'.*'none'"):
            planned(small(), calib_mode="median")


def test_a_refused_fusion_explains_why_the_layer_alone_is_int8():
    model = build(conv("c", "data"), 'g = LeakyReLU(c) act_type="gelu"', conv("d", "g"), "return d")
    prepared = pipeline.plan(model, QuantConfig())
    assert prepared.plan["c"].int8
    assert not prepared.plan["g"].int8
    assert any("GELU" in e.reason for e in prepared.trace.refusals("c"))


def test_a_plan_answers_for_its_nodes():
    plan = planned(small())
    assert "out" in plan
    assert "zzz" not in plan


@pytest.mark.parametrize("inputs", [1, 2], ids=["a long way", "ways that part and meet"])
def test_ranges_of_what_was_carried_far(inputs):
    nodes = [Node("data", VARIABLE)]
    nodes += [Node(f"{i}", "Concat", {}, (Ref(f"{i - 1}" if i else "data"),) * inputs) for i in range(3000)]
    known = Thresholds({"data": Threshold(Range(-1.0, 2.0), "naive")})
    found = with_carried(Graph(tuple(nodes), (Ref("2999"),)), Plan(observe=(Ref("2999"),)), known)
    assert found["2999"].range == Range(-1.0, 2.0)
