"""Settings validate themselves: a wrong one is refused with field, value and what is allowed."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest

from mxq import recipe
from mxq.cli.options import config_of
from mxq.config import Budget, LayerConfig, QuantConfig, by_op, selector_name, selects
from mxq.errors import ConfigError
from mxq.graph.ir import Node

LISTS = ("exclude_layers", "exclude_layers_match", "exclude_operators", "exclude_passes", "include_layers")


class TestBudget:
    @pytest.mark.parametrize(
        ("value", "available", "wanted"),
        [
            (500, 1000, 500),
            (500, 100, 100),
            (500, None, 500),
            ("500", 1000, 500),
            (" 12 ", 100, 12),
            ("5%", 1000, 50),
            ("5%", 10, 1),
            ("100%", 77, 77),
            ("0.1%", 10, 1),
            ("5%", None, None),
            (None, 10_000, 500),
            (None, 100, 32),
            (None, 20, 20),
            (None, 10**6, 1024),
            (None, None, 1024),
        ],
    )
    def test_how_many_examples(self, value, available, wanted):
        assert Budget.parse(value).examples(available) == wanted

    @pytest.mark.parametrize(
        "value", [0, -3, 1.5, "0%", "101%", "-5%", "many", "", "%", "nan", "inf", "1e999", "nan%", "inf%", True, [5]]
    )
    def test_what_is_refused(self, value):
        with pytest.raises(ConfigError, match=r"num_calib_examples is .*; allowed: a positive count"):
            QuantConfig(num_calib_examples=value)


class TestLayerConfig:
    def test_dtype(self):
        with pytest.raises(ConfigError, match="overrides: dtype is 'int4'; allowed: 'auto', 'int8', 'uint8'"):
            LayerConfig(dtype="int4")

    @pytest.mark.parametrize(
        "threshold",
        [
            (1, 0), (float("nan"), 1), (0, float("inf")), (1,), (0, 1, 2), (), 5, "ab", "12", ("x", 1), ("1", "2"),
            (False, True), (0, 10**400), {0: 1, 1: 2}, {0, 1}, [[0], [1]],
        ],
    )  # fmt: skip
    def test_threshold(self, threshold):
        with pytest.raises(ConfigError, match=r"overrides: threshold is .*; allowed: .min, max"):
            LayerConfig(threshold=threshold)

    @pytest.mark.parametrize("threshold", [(-1, 2), [-1, 2.0], (np.float32(-1), np.int64(2))])
    def test_a_threshold_becomes_a_pair_of_plain_floats(self, threshold):
        found = LayerConfig(threshold=threshold).threshold
        assert found == (-1.0, 2.0)
        assert isinstance(found, tuple)
        assert {type(v) for v in found} == {float}

    @pytest.mark.parametrize("value", ["no", 0, 1, 1.0, []])
    def test_quantize(self, value):
        with pytest.raises(ConfigError, match=r"overrides: quantize is .*; allowed: True, False, None"):
            LayerConfig(quantize=value)

    @pytest.mark.parametrize("field", ["calib_mode", "weight_calib_mode"])
    def test_a_calibrator_is_text(self, field):
        assert getattr(LayerConfig(**{field: "percentile:99.99"}), field) == "percentile:99.99"
        assert getattr(LayerConfig(), field) is None
        for wrong in (3, "", " ", ["naive"]):
            with pytest.raises(ConfigError, match=rf"overrides: {field} is .*; allowed: the name of an observer"):
                LayerConfig(**{field: wrong})


class TestQuantConfig:
    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("quantized_dtype", "int16", "'auto', 'int8', 'uint8'"),
            ("quantize_mode", "half", "'smart', 'full'"),
            ("quantize_granularity", "row-wise", "'channel-wise'"),
        ],
    )
    def test_closed_sets(self, field, value, allowed):
        with pytest.raises(ConfigError, match=f"{field} is '{value}'; allowed: {allowed}"):
            QuantConfig(**{field: value})

    def test_it_is_a_value_error_too(self):
        with pytest.raises(ValueError, match="quantize_mode"):
            QuantConfig(quantize_mode="x")

    @pytest.mark.parametrize("value", [None, 3, "", "\t ", ["naive"], {"naive": 1}])
    def test_a_calibrator_is_text(self, value):
        with pytest.raises(ConfigError, match=r"^calib_mode is .*; allowed: the name of an observer, or 'none'"):
            QuantConfig(calib_mode=value)
        with pytest.raises(ConfigError, match=r"^weight_calib_mode is .*; allowed: the name of an observer, where"):
            QuantConfig(weight_calib_mode=value)

    @pytest.mark.parametrize("spec", ["none", "percentile:99.99", "ema_minmax:momentum=0.9,bins=10", "fixed:0,6"])
    def test_calibrators_are_known_elsewhere(self, spec):
        config = QuantConfig(calib_mode=spec, weight_calib_mode=spec)
        assert (config.calib_mode, config.weight_calib_mode) == (spec, spec)

    @pytest.mark.parametrize(("given", "kept"), [(np.int64(7), 7), (7.0, 7), ("7", 7), ("5%", "5%"), (None, None)])
    def test_a_count_is_a_plain_int(self, given, kept):
        found = QuantConfig(num_calib_examples=given).num_calib_examples
        assert found == kept
        assert type(found) is type(kept)

    @pytest.mark.parametrize(
        "field", ["exclude_layers", "exclude_layers_match", "exclude_operators", "exclude_passes", "include_layers"]
    )
    def test_selectors_become_tuples(self, field):
        allowed = "names, patterns or predicates" if field.endswith("layers") else "plain text, one or a list"
        assert getattr(QuantConfig(**{field: None}), field) == ()
        assert getattr(QuantConfig(**{field: "conv0"}), field) == ("conv0",)
        assert getattr(QuantConfig(**{field: ["a", "b"]}), field) == ("a", "b")
        for wrong in (3, [3], ["a", None], {"a": 1}):
            with pytest.raises(ConfigError, match=f"{field} (is|holds) .*; allowed: {allowed}"):
                QuantConfig(**{field: wrong})

    @pytest.mark.parametrize("field", ["exclude_layers_match", "exclude_operators", "exclude_passes"])
    def test_a_predicate_where_text_is_wanted(self, field):
        for wrong in (callable, [callable]):
            with pytest.raises(ConfigError, match=f"{field} (is|holds) .*; allowed: plain text"):
                QuantConfig(**{field: wrong})

    def test_overrides_are_typed(self):
        config = QuantConfig(overrides={"a*": {"dtype": "int8"}, "b": LayerConfig(quantize=False)})
        assert config.overrides == {"a*": LayerConfig(dtype="int8"), "b": LayerConfig(quantize=False)}

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                {"a": {"widths": 4}},
                "overrides: 'a' has 'widths'; allowed: quantize, calib_mode, weight_calib_mode, dtype, threshold, bits",
            ),
            ({"a": {"bits": 9}}, "of 'a' in overrides: bits is 9; allowed: 2 to 8, of weights and activations alike"),
            ({"a": "int8"}, "overrides: 'a' is 'int8'; allowed: a mapping of quantize, calib_mode, "),
            ({"a": None}, "overrides: 'a' is None; allowed: a mapping of quantize"),
            ({"a": {}, "b": {"dtype": 8}}, "of 'b' in overrides: dtype is 8; allowed: 'auto', 'int8', 'uint8'"),
            ({1: {}}, "overrides: pattern is 1; allowed: text, a name or pattern, or 'op:' and a type"),
            ({callable: {}}, "overrides: pattern is <built-in function callable>; allowed: text"),
            ([("a", {})], "allowed: a mapping"),
            (None, "allowed: a mapping"),
        ],
    )
    def test_overrides_that_are_none(self, overrides, message):
        with pytest.raises(ConfigError, match=message):
            QuantConfig(overrides=overrides)

    def test_json(self):
        def stem(node: Node) -> bool:
            return True

        config = QuantConfig(exclude_layers=("a", stem), overrides={"b": {"threshold": (0.0, 1.0)}})
        data = json.loads(json.dumps(config.to_json()))
        assert data["exclude_layers"] == ["a", "<predicate stem>"]
        assert data["overrides"] == {
            "b": {
                "quantize": None,
                "calib_mode": None,
                "weight_calib_mode": None,
                "dtype": None,
                "threshold": [0.0, 1.0],
                "bits": None,
            }
        }
        assert data["calib_mode"] == data["weight_calib_mode"] == "naive"


def stem(node: Node) -> bool:
    return True


@pytest.mark.parametrize("shape", ["99999999999999999999", (1,) * 40, (2**16, 2**15)])
def test_a_shape_that_no_array_has(shape: Any) -> None:
    with pytest.raises(ConfigError, match=r"input_shape is .*; allowed: fewer than 32 axes, and up to 2147483647"):
        QuantConfig(input_shape=shape)
    assert QuantConfig(input_shape=(2**15, 2**15)).shapes == {"": (2**15, 2**15)}


class TestFromJson:
    def test_the_way_there_and_back(self):
        config = QuantConfig(
            calib_mode="percentile:99.99",
            weight_calib_mode="mse",
            quantized_dtype="int8",
            quantize_mode="full",
            exclude_layers=("a", "op:*Pooling"),
            exclude_layers_match="b",
            exclude_operators="Flatten",
            exclude_passes="split_groups",
            include_layers="c*",
            overrides={"z": {"threshold": (-1, 2)}, "a": {"quantize": False, "weight_calib_mode": "naive"}},
            num_calib_examples="5%",
            input_dtype="uint8",
            preprocess={"mean": (1.0, 2.0, 3.0), "color": "BGR"},
        )
        found = QuantConfig.from_json(json.loads(json.dumps(config.to_json())))
        assert found == config
        assert list(found.overrides) == ["z", "a"]  # in order: a later one wins

    def test_what_is_missing_has_its_default(self):
        assert QuantConfig.from_json({}) == QuantConfig()
        assert QuantConfig.from_json({"quantize_mode": "full"}) == QuantConfig(quantize_mode="full")
        assert QuantConfig.from_json({"num_calib_examples": None, "exclude_layers": None}) == QuantConfig()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], r"^settings are \[\]; allowed: a mapping"),
            ("naive", "^settings are 'naive'; allowed: a mapping"),
            (None, "^settings are None; allowed: a mapping"),
            ({"calib_mod": "naive"}, "^unknown field 'calib_mod'; allowed: calib_mode, weight_calib_mode, quantized_"),
            ({3: 1}, "^unknown field 3; allowed: calib_mode"),
            ({"calib_mode": 3}, "^calib_mode is 3; allowed"),
            ({"calib_mode": None}, "^calib_mode is None; allowed"),
            ({"weight_calib_mode": ["naive"]}, r"^weight_calib_mode is \['naive'\]; allowed"),
            ({"quantized_dtype": ["int8"]}, r"^quantized_dtype is \['int8'\]; allowed: 'auto', 'int8', 'uint8'"),
            ({"quantize_mode": None}, "^quantize_mode is None; allowed: 'smart', 'full'"),
            ({"exclude_layers": {"a": None}}, "^exclude_layers is .*; allowed: names, patterns"),
            ({"exclude_layers": [["a"]]}, r"^exclude_layers holds \['a'\]; allowed: names, patterns"),
            ({"exclude_operators": 1}, "^exclude_operators is 1; allowed"),
            ({"exclude_operators": np.ones((2, 3, 4))}, "^exclude_operators holds a ndarray; allowed: plain text"),
            ({"num_calib_examples": [5]}, r"^num_calib_examples is \[5\]; allowed"),
            ({"num_calib_examples": True}, "^num_calib_examples is True; allowed"),
            ({"overrides": ["a"]}, r"^overrides is \['a'\]; allowed: a mapping"),
            ({"overrides": {"a": {"threshold": [1]}}}, r"^of 'a' in overrides: threshold is \[1\]; allowed: .min, max"),
            ({"overrides": {"a": {"quantize": "yes"}}}, "^of 'a' in overrides: quantize is 'yes'; allowed: True"),
        ],
    )
    def test_what_is_refused(self, data, message):
        with pytest.raises(ConfigError, match=message):
            QuantConfig.from_json(data)

    @pytest.mark.parametrize("field", ["exclude_layers", "include_layers"])
    def test_a_predicate_does_not_come_back_as_a_pattern(self, field):
        data = QuantConfig(**{field: ("a", stem)}).to_json()
        with pytest.raises(ConfigError, match=f"{field} holds '<predicate stem>'; a predicate is code and cannot be"):
            QuantConfig.from_json(data)
        with pytest.raises(ConfigError, match=f"{field} holds 'stem'; a predicate is code and cannot be"):
            QuantConfig.from_json({field: [stem]})


class TestSelectors:
    @pytest.mark.parametrize(
        ("pattern", "name", "wanted"),
        [
            ("conv0", "conv0", True),
            ("conv0", "conv01", False),
            ("conv*", "conv01", True),
            ("*0*", "conv01", True),
            ("Conv*", "conv0", False),
            ("conv?", "conv0", True),
            ("conv[0-2]", "conv3", False),
            ("a.b", "axb", False),
            ("op:conv0", "conv0", False),
            ("block[0]", "block[0]", True),  # a name that looks like a pattern is itself too
            ("block[0]", "block0", True),
            ("conv0\n", "conv0", False),
            ("conv0", "conv0\n", False),
        ],
    )
    def test_patterns_match_whole_names(self, pattern, name, wanted):
        assert selects(pattern, Node(name, "Convolution")) is wanted

    @pytest.mark.parametrize(
        ("pattern", "op", "wanted"),
        [
            ("op:Convolution", "Convolution", True),
            ("op:Conv", "Convolution", False),
            ("op:convolution", "Convolution", False),
            ("op:*Pooling", "Pooling", True),
            ("op:elemwise_*", "elemwise_add", True),
            ("op:*", "relu", True),
            ("op:", "relu", False),
            ("Convolution", "Convolution", False),
            ("*", "Convolution", True),
        ],
    )
    def test_op_patterns_match_whole_types(self, pattern, op, wanted):
        assert selects(pattern, Node("x", op)) is wanted
        assert by_op(pattern) is pattern.startswith("op:")

    def test_predicates(self):
        def is_conv(node: Node) -> bool:
            return node.op == "Convolution"

        assert selects(is_conv, Node("x", "Convolution"))
        assert not selects(is_conv, Node("x", "relu"))
        assert selector_name(is_conv) == "is_conv"
        assert not by_op(is_conv)

    def test_a_predicate_that_fails(self):
        def of_no_use(node: Node) -> bool:
            return node.attrs["kernel"] == "(1, 1)"

        with pytest.raises(ConfigError, match=r"predicate 'of_no_use' failed on node 'x' \(relu\): KeyError: 'kernel'"):
            selects(of_no_use, Node("x", "relu"))


class TestThreeDoors:
    """Python, a recipe and the command line make one object of the same settings, and refuse the same values."""

    SAME: ClassVar[dict[str, tuple[dict[str, Any], str, dict[str, Any]]]] = {
        "one layer": ({"exclude_layers": "conv*"}, "exclude_layers: conv*", {"exclude": ["conv*"]}),
        "layers": ({"exclude_layers": ["a", "b"]}, "exclude_layers: [a, b]", {"exclude": ["a", "b"]}),
        "included": ({"include_layers": ("a",)}, "include_layers: [a]", {"include": ["a"]}),
        "types": ({"exclude_operators": ["Flatten"]}, "exclude_operators: Flatten", {"exclude_op": ["Flatten"]}),
        "passes": ({"exclude_passes": "a"}, "exclude_passes: [a]", {"exclude_pass": ["a"]}),
        "count": ({"num_calib_examples": 32}, "num_calib_examples: 32", {"num_calib_examples": "32"}),
        "numpy": ({"num_calib_examples": np.int64(32)}, 'num_calib_examples: "32"', {"num_calib_examples": "32"}),
        "share": ({"num_calib_examples": "5%"}, "num_calib_examples: 5%", {"num_calib_examples": "5%"}),
        "shape": ({"input_shape": (3, 8, 8)}, "input_shape: [3, 8, 8]", {"input_shape": "3x8x8"}),
        "equalize": ({"equalize": False}, "equalize: false", {"equalize": False}),
        "mode": ({"quantize_mode": "full"}, "quantize_mode: full", {"quantize_mode": "full"}),
        "calibrator": ({"calib_mode": "norm:2"}, "calib_mode: norm:2", {"calib_mode": "norm:2"}),
    }

    @pytest.mark.parametrize("name", SAME)
    def test_same(self, name: str) -> None:
        python, yaml, given = self.SAME[name]
        found = [QuantConfig(**python), recipe.loads(f"format: {recipe.FORMAT}\n{yaml}"), config_of(**given)]
        assert found[0] != QuantConfig()
        assert found[1:] == found[:1] * 2
        assert [json.dumps(f.to_json()) for f in found[1:]] == [json.dumps(found[0].to_json())] * 2

    @pytest.mark.parametrize(
        "field", ["exclude_layers", "exclude_layers_match", "exclude_operators", "exclude_passes", "include_layers"]
    )
    @pytest.mark.parametrize("value", [5, True, 1.5, [1], [["a"]], {"a": 1}, [None]], ids=str)
    def test_no_names(self, field: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"{field} (is|holds) .*allowed: "):
            QuantConfig(**{field: value})
        with pytest.raises(ConfigError, match=f"^recipe: {field} (is|holds) .*allowed: "):
            recipe.loads(f"format: {recipe.FORMAT}\n{field}: {json.dumps(value)}")

    @pytest.mark.parametrize("field", ["effort", "target", "stem", "rounding", "quantized_dtype", "quantize_mode"])
    @pytest.mark.parametrize("value", [5, True, ["fast"], {"a": 1}, "", "Fast"], ids=str)
    def test_no_choice(self, field: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"{field} is .*allowed: "):
            QuantConfig(**{field: value})
        with pytest.raises(ConfigError, match=f"^recipe: {field} is .*allowed: "):
            recipe.loads(f"format: {recipe.FORMAT}\n{field}: {json.dumps(value)}")
        if isinstance(value, str):
            given = {"dtype" if field == "quantized_dtype" else field: value}
            mode = given.pop("quantize_mode", None)
            with pytest.raises(ConfigError, match=f"{field} is .*allowed: "):
                config_of(quantize_mode=mode, **given)

    def test_arrays_are_no_choice(self) -> None:
        with pytest.raises(ConfigError, match=r"effort is .*allowed: 'fast'"):
            QuantConfig(effort=np.array(["fast", "best"]))  # type: ignore[arg-type]
