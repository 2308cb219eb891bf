"""Ranges refuse what is none, and their table survives JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxq.errors import CalibrationError, FormatError
from mxq.quant.thresholds import FIXED, Candidate, Oddity, Range, RangeKind, Threshold, Thresholds

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**63 - 1)
RANGES = st.tuples(FLOATS, FLOATS).map(lambda p: Range(min(p), max(p)))
CANDIDATES = st.lists(st.builds(Candidate, st.text(), RANGES, FINITE), max_size=3).map(tuple)
SEEN = st.builds(
    Threshold, RANGES, st.text() | st.just(FIXED), COUNTS, COUNTS, RANGES, st.text(), st.text(), CANDIDATES
)
THRESHOLDS = SEEN | SEEN.filter(lambda t: t.note).map(Threshold.unobserved) | st.builds(Threshold, RANGES, st.text())


ENTRY = {"range": {"min": 0.0, "max": 1.0}, "observer": "naive"}


class TestRange:
    @pytest.mark.parametrize("pair", [(math.nan, 1.0), (0.0, math.nan), (-math.inf, 0.0), (0.0, math.inf)])
    def test_not_finite(self, pair):
        with pytest.raises(CalibrationError, match="not finite"):
            Range(*pair)

    @pytest.mark.parametrize("bound", [3.5e38, 1e300])
    def test_beyond_float32(self, bound):
        with pytest.raises(CalibrationError, match=r"beyond float32; allowed: up to 3\.403e"):
            Range(-bound, 0.0)

    def test_upside_down(self):
        with pytest.raises(CalibrationError, match=r"\[2.0, 1.0\] has its minimum above its maximum"):
            Range(2.0, 1.0)

    def test_empty_is_allowed(self):
        assert Range(0.0, 0.0).absmax == 0

    @given(RANGES, RANGES)
    def test_union_holds_both(self, a, b):
        union = a.union(b)
        assert (union.min, union.max) == (min(a.min, b.min), max(a.max, b.max))
        assert union.absmax == max(a.absmax, b.absmax)


class TestThresholds:
    @given(st.dictionaries(st.text(), THRESHOLDS, max_size=4))
    def test_json_round_trip(self, table):
        thresholds = Thresholds(table)
        assert Thresholds.from_json(json.dumps(thresholds.to_json())) == thresholds
        assert Thresholds.from_json(thresholds.to_json()) == thresholds

    def test_files_of_older_versions_are_read(self):
        """They say neither what asked for a range nor what else there was."""
        entry = {"range": {"min": 0.0, "max": 2.0}, "observer": "naive", "examples": 4, "batches": 1, "note": ""}
        found = Thresholds.from_json({"format": "mxq-thresholds/1", "tensors": {"a": {**entry, "observed": None}}})
        assert found["a"] == Threshold(Range(0.0, 2.0), "naive", 4, 1)
        assert (found["a"].source, found["a"].candidates) == ("", ())

    def test_json_names_candidates_and_source(self):
        chosen = (Candidate("mse", Range(-1.0, 1.0), 0.25), Candidate("naive", Range(-2.0, 2.0), 0.5))
        entry = Threshold(Range(-1.0, 1.0), "mse", source="overrides 'conv*'", candidates=chosen)
        assert json.loads(json.dumps(Thresholds({"a": entry}).to_json()))["tensors"]["a"] == {
            "range": {"min": -1.0, "max": 1.0},
            "observer": "mse",
            "examples": 0,
            "batches": 0,
            "observed": None,
            "note": "",
            "source": "overrides 'conv*'",
            "candidates": [
                {"observer": "mse", "range": {"min": -1.0, "max": 1.0}, "error": 0.25},
                {"observer": "naive", "range": {"min": -2.0, "max": 2.0}, "error": 0.5},
            ],
        }

    @pytest.mark.parametrize(
        ("said", "kind"),
        [
            ({}, RangeKind.CALIBRATED),
            ({"observed": {"min": 0.0, "max": 2.0}, "note": "constant"}, RangeKind.CALIBRATED),
            ({"note": "shifted up by 1"}, RangeKind.DERIVED),
            ({"observer": "fixed", "note": "its codes are the pixels"}, RangeKind.FIXED),
            ({"observer": "fixed:0,1"}, RangeKind.FIXED),
            ({"observer": "fixed_by_a_package:0,1"}, RangeKind.CALIBRATED),
        ],
    )
    def test_files_tell_the_kind_by_the_rest(self, said, kind):
        found = Thresholds.from_json({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, **said}}})
        assert found["a"].kind is kind
        assert "kind" not in found.to_json()["tensors"]["a"]

    def test_what_is_fixed_stays_so(self):
        given = Threshold(Range(0.0, 1.0), FIXED, observed=Range(0.0, 1.0))
        assert given.is_fixed
        assert given.unobserved() == replace(given, observed=None)
        assert given.ranged(Range(0.0, 2.0), "its channels are scaled").is_fixed
        free = replace(given, observer="naive", kind=RangeKind.CALIBRATED)
        assert not free.is_fixed
        assert free.unobserved().kind is RangeKind.DERIVED
        assert replace(free, observer=FIXED).is_fixed

    @pytest.mark.parametrize(
        ("observed", "oddity"),
        [
            (None, None),
            (Range(-0.0, 0.0), Oddity.ALL_ZERO),
            (Range(2.0, 2.0), Oddity.CONSTANT),
            (Range(0.0, 2.0), None),
        ],
    )
    def test_oddities(self, observed, oddity):
        assert Threshold(Range(0.0, 1.0), "naive", observed=observed, note="all zero").oddity is oddity

    def test_a_mapping(self):
        thresholds = Thresholds({"a": Threshold(Range(-1.0, 2.0), "naive")})
        assert list(thresholds) == ["a"]
        assert len(thresholds) == 1
        assert thresholds["a"].range is thresholds.range("a")
        with pytest.raises(TypeError):
            thresholds.table["a"] = None

    def test_a_missing_tensor(self):
        with pytest.raises(CalibrationError, match=r"no range was calibrated for tensor 'b' \(1 others were\)"):
            Thresholds({"a": Threshold(Range(0.0, 1.0), "naive")}).range("b")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("{", "not JSON"),
            ("[]", "format 'list'"),
            ({"format": "mxq-thresholds/99"}, "'mxq-thresholds/99'; this version reads 'mxq-thresholds/1'"),
            ({"format": "mxq-thresholds/1"}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {"observer": "naive"}}}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {"range": {"min": 0}, "observer": "n"}}}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": 3}}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "examples": "5"}}}, "Expected `int`, got `str`"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "batches": -1}}}, "Expected `int` >= 0"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "note": None}}}, r"at `\$.tensors\[...\].note`"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "range": [0, 1]}}}, "`object`, got `array`"),
            ('{"format": "mxq-thresholds/1", "tensors": {"a": {"range": {"min": NaN}}}}', "JSON has no word"),
            (b'{"format": "\xff"}', "not UTF-8"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "candidates": 3}}}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "candidates": [{"error": 0}]}}}, "damaged"),
            ({"format": "mxq-thresholds/1", "tensors": {"a": {**ENTRY, "color": 3}}}, "damaged"),
        ],
    )
    def test_what_is_not_that_format(self, data, message):
        with pytest.raises(FormatError, match=message):
            Thresholds.from_json(data)
