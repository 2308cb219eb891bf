"""Settings of single layers: which nodes a pattern reaches, which pattern wins, and where each setting came from."""

from __future__ import annotations

import pytest
from graphs import RELU, bn, build, conv, fc

from mxq import pipeline
from mxq.config import LayerConfig, QuantConfig
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Graph, Model, Node
from mxq.passes.overrides import Chosen, LayerChoices, views


def fused() -> Graph:
    """Nodes "add_relu" (conv0, bn0, add0, add_relu) and "out", with the inputs and parameters."""
    model = build(
        conv("conv0", "data", bias=False),
        bn("bn0", "conv0"),
        "add0 = elemwise_add(bn0, data)",
        "add_relu = Activation(add0) " + RELU,
        fc("out", "add_relu"),
        "return out",
    )
    return fuse(model)


def fuse(model: Model) -> Graph:
    return pipeline.plan(model, QuantConfig()).fused.graph


def chosen(**overrides: object) -> LayerChoices:
    return LayerChoices.of(fused(), QuantConfig(overrides={k.replace("__", ":"): v for k, v in overrides.items()}))


class TestViews:
    def test_the_members_of_a_fused_node(self):
        assert [n.name for n in fused().operators] == ["add_relu", "out"]
        found = {v.name: v for v in views(fused()["add_relu"])}
        assert {n: v.op for n, v in found.items()} == {
            "conv0": "Convolution",
            "bn0": "Convolution",  # folded into it
            "add0": "elemwise_add",
            "add_relu": "Activation",
        }
        assert found["conv0"].attrs["kernel"] == "(3, 3)"
        assert found["add_relu"].attrs["act_type"] == "relu"
        assert [r.name for r in found["conv0"].inputs][:2] == ["data", "conv0_weight"]
        assert found["add0"].inputs[1].name == "data"  # a node of the graph, not a slot of the subgraph

    def test_a_node_that_is_not_fused(self):
        node = Node("a", "sin")
        assert list(views(node)) == [node]

    def test_a_node_of_another_name_than_its_origin(self):
        node = Node("b", "sin", note=Annotation(origins=("a",)))
        assert [(v.name, v.op) for v in views(node)] == [("a", "sin"), ("b", "sin")]


class TestReach:
    @pytest.mark.parametrize(
        ("pattern", "reached"),
        [
            ("add_relu", {"add_relu"}),
            ("conv0", {"add_relu"}),
            ("bn0", {"add_relu"}),
            ("data", {"data"}),
            ("o*", {"out", "out_weight", "out_bias"}),
            ("op:Convolution", {"add_relu"}),
            ("op:elemwise_*", {"add_relu"}),
            ("op:Activation", {"add_relu"}),
            ("op:FullyConnected", {"out"}),
            ("op:[CF]*", {"add_relu", "out"}),
            ("op:_sg*", set()),
            ("op:conv0", set()),
            ("Convolution", set()),
        ],
    )
    def test_the_nodes(self, pattern, reached):
        config = QuantConfig(overrides={pattern: {"dtype": "int8"}})
        graph = fused()
        choices = LayerChoices.of(graph, config)
        assert {n.name for n in graph if choices.dtype(n.name)} == reached

    def test_what_an_op_pattern_says_is_of_the_output_of_its_chain(self):
        found = chosen(op__Convolution={"calib_mode": "entropy", "weight_calib_mode": "mse"})
        assert (found.calib_mode("add_relu"), found.weight_calib_mode("add_relu")) == ("entropy", "mse")
        assert (found.calib_mode("conv0"), found.calib_mode("out"), found.calib_mode("data")) == ("", "", "")


class TestUnusedRanges:
    def test_what_has_no_range_of_its_own(self):
        wide = {"threshold": (-3.0, 3.0)}
        found = chosen(out=wide, **{"add*": wide, "op:Convolution": wide, "data": {"dtype": "int8"}})
        said = "overrides 'out': threshold has no effect: 'out' is not written in a calibrated range"
        assert found.unused_ranges(["data", "add_relu"]) == (said,)
        assert found.unused_ranges(["out", "add_relu"]) == ()  # of "add*" a later pattern took all
        assert len(found.unused_ranges([])) == 2

    @pytest.mark.parametrize(
        ("calib_mode", "name", "warns"), [("naive", "p", True), ("naive", "c", False), ("none", "c", True)]
    )
    def test_a_warning_says_so(self, calib_mode, name, warns):
        model = build(conv("c", "data"), 'p = Pooling(c) kernel="(2, 2)" pool_type="max"', fc("f", "p"), "return f")
        given = QuantConfig(calib_mode=calib_mode, overrides={name: {"threshold": (-1, 1)}})
        said = f"overrides '{name}': threshold has no effect: '{name}' is not written in a calibrated range"
        assert (said in pipeline.plan(model, given).warnings) == warns


class TestValues:
    def test_nothing_is_set(self):
        for choices in (LayerChoices(), chosen()):
            assert choices.calib_mode("out") == choices.weight_calib_mode("out") == choices.dtype("out") == ""
            assert choices.threshold("out") is None
            assert choices.source("out", "dtype") == choices.source("nowhere", "dtype") == ""

    def test_later_patterns_win_field_by_field(self):
        found = chosen(**{"*": {"dtype": "int8", "calib_mode": "mse"}, "out": {"dtype": "uint8"}})
        assert found.table["out"] == {
            "dtype": Chosen("uint8", "overrides 'out'"),
            "calib_mode": Chosen("mse", "overrides '*'"),
        }
        assert found.dtype("data") == "int8"
        assert chosen(**{"out": {"dtype": "uint8"}, "*": {"dtype": "int8"}}).dtype("out") == "int8"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("calib_mode", "entropy:bins=10"),
            ("weight_calib_mode", "percentile:99.9"),
            ("dtype", "uint8"),
            ("threshold", (-1.0, 2.0)),
        ],
    )
    def test_each_field_knows_its_source(self, field, value):
        found = chosen(add_relu=LayerConfig(quantize=True), **{"op:F*": {field: value}})
        assert getattr(found, field)("out") == value
        assert found.source("out", field) == "overrides 'op:F*'"
        assert found.source("add_relu", field) == ""
        assert found.source("add_relu", "quantize") == "overrides 'add_relu'"
        others = {"quantize", "calib_mode", "weight_calib_mode", "dtype", "threshold"} - {field}
        assert {found.source("out", other) for other in others} == {""}

    def test_false_is_a_setting(self):
        assert chosen(out={"quantize": False}).table["out"] == {"quantize": Chosen(False, "overrides 'out'")}

    def test_a_list_is_a_threshold_too(self):
        assert chosen(out={"threshold": [-1, 2]}).threshold("out") == (-1.0, 2.0)

    def test_a_later_way_to_find_the_range_replaces_an_earlier_one(self):
        wide, entropy = {"threshold": (-3.0, 3.0)}, {"calib_mode": "entropy"}
        found = chosen(**{"*": wide, "out": entropy})
        assert (found.threshold("out"), found.calib_mode("out")) == (None, "entropy")
        assert (found.threshold("data"), found.calib_mode("data")) == ((-3.0, 3.0), "")
        found = chosen(**{"*": entropy, "out": wide})
        assert (found.threshold("out"), found.calib_mode("out")) == ((-3.0, 3.0), "")
        assert found.source("out", "calib_mode") == ""
        found = chosen(**{"*": wide, "out": {"weight_calib_mode": "mse", "dtype": "int8"}})
        assert found.threshold("out") == (-3.0, 3.0)
