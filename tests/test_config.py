"""Settings validate themselves: a wrong one is refused with field, value and what is allowed."""

from __future__ import annotations

import json

import pytest

from mxq.config import Budget, LayerConfig, QuantConfig, selector_name, selects
from mxq.errors import ConfigError
from mxq.ir import Node


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
        "threshold", [(1, 0), (float("nan"), 1), (0, float("inf")), (1,), (0, 1, 2), 5, "ab", ("x", 1)]
    )
    def test_threshold(self, threshold):
        with pytest.raises(ConfigError, match=r"overrides: threshold is .*; allowed: .min, max"):
            LayerConfig(threshold=threshold)

    def test_quantize(self):
        with pytest.raises(ConfigError, match="overrides: quantize is 'no'; allowed: True, False, None"):
            LayerConfig(quantize="no")


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

    def test_calib_mode_is_a_name(self):
        with pytest.raises(ConfigError, match="calib_mode is None"):
            QuantConfig(calib_mode=None)

    @pytest.mark.parametrize("field", ["exclude_layers", "exclude_layers_match", "exclude_operators", "include_layers"])
    def test_selectors_become_tuples(self, field):
        assert getattr(QuantConfig(**{field: None}), field) == ()
        assert getattr(QuantConfig(**{field: "conv0"}), field) == ("conv0",)
        assert getattr(QuantConfig(**{field: ["a", "b"]}), field) == ("a", "b")
        for wrong in (3, [3], ["a", None]):
            with pytest.raises(ConfigError, match=f"{field} (is|holds) .*; allowed: names, patterns or predicates"):
                QuantConfig(**{field: wrong})

    def test_overrides_are_typed(self):
        config = QuantConfig(overrides={"a*": {"dtype": "int8"}, "b": LayerConfig(quantize=False)})
        assert config.overrides == {"a*": LayerConfig(dtype="int8"), "b": LayerConfig(quantize=False)}

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"a": {"bits": 4}}, "'a' has 'bits'; allowed: quantize, calib_mode, dtype, threshold"),
            ({"a": "int8"}, "'a' has 'int8'"),
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
            "b": {"quantize": None, "calib_mode": None, "dtype": None, "threshold": [0.0, 1.0]}
        }
        assert data["calib_mode"] == "naive"


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
        ],
    )
    def test_patterns_match_whole_names(self, pattern, name, wanted):
        assert selects(pattern, Node(name, "Convolution")) is wanted

    def test_predicates(self):
        def is_conv(node: Node) -> bool:
            return node.op == "Convolution"

        assert selects(is_conv, Node("x", "Convolution"))
        assert not selects(is_conv, Node("x", "relu"))
        assert selector_name(is_conv) == "is_conv"
