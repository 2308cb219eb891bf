"""Statistics: a file that is whole or absent, a merge that is one pass over all the data, ranges read off at will."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq import observers
from mxq.calibration import statistics as module
from mxq.calibration.statistics import DataSegment, Statistics, merge
from mxq.errors import CalibrationError, FormatError
from mxq.observers import AutoObserver
from mxq.observers.histogram import HistogramState
from mxq.quant import ANY8, INT8, UINT8
from mxq.quant.thresholds import Range, Thresholds

NETWORK = {"graph_sha256": "0123456789abcdef0123", "inputs": ["data"], "params_sha256": "fedcba9876543210fedc"}
SPECS = ("naive", "entropy", "ema_minmax", "ema_minmax:0.5")
TENSORS = dict(zip(("data", "conv0", "split:1", "naïve/\n层"), SPECS, strict=True))
"""Tensor -> spec of the observer that collects it: one of every kind."""

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = st.lists(arrays(np.float32, st.integers(0, 12), elements=floats), max_size=4)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def fold(spec: str, data: Any) -> Any:
    observer = observers.get(spec)
    state = observer.empty()
    for x in data:
        state = observer.update(state, x)
    return state


def collected(data: Any, name: str = "train", *, complete: bool = True, first: str | None = None) -> Statistics:
    """All of `TENSORS` have seen the same data."""
    states = {tensor: fold(spec, data) for tensor, spec in TENSORS.items()}
    begun = f"sha of {name}" if first is None else first
    return Statistics(states, (DataSegment(name, begun, 8 * len(data), len(data), complete),), NETWORK)


def bits(statistics: Statistics) -> dict[str, Any]:
    """Everything, bit for bit."""
    return {
        "states": {
            name: (type(s), s.statistic, {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in s.to_arrays().items()})
            for name, s in statistics.states.items()
        },
        "stretches": statistics.stretches,
        "network": dict(statistics.network),
    }


def some(seed: int = 0, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(500) * 2.0 ** rng.integers(-9, 9)).astype(np.float32) for _ in range(count)]


# ------------------------------------------------------------------------------------------------ the file


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=batches, complete=st.booleans(), name=st.text(max_size=5))
def test_round_trip_bit_for_bit(tmp_path: Path, data: Any, complete: bool, name: str) -> None:
    written = collected(data, name, complete=complete)
    written.save(tmp_path / "a.npz")
    found = Statistics.load(tmp_path / "a.npz")
    assert bits(found) == bits(written)
    assert list(found.states) == list(written.states)
    found.save(str(tmp_path / "b.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for state in found.states.values():
        if "counts" in state.to_arrays():
            assert not state.to_arrays()["counts"].flags.writeable


def test_empty_statistics_are_statistics(tmp_path: Path) -> None:
    Statistics().save(tmp_path / "a.npz")
    assert Statistics.load(tmp_path / "a.npz") == Statistics()
    assert not Statistics().complete


def test_nothing_is_pickled(tmp_path: Path) -> None:
    """Whoever loads such a file runs no code of its author: plain arrays of numbers, and one JSON text."""
    file = tmp_path / "a.npz"
    collected(some()).save(file)
    with zipfile.ZipFile(file) as archive:
        assert all(info.filename.endswith(".npy") for info in archive.infolist())
        assert all(archive.read(info)[:6] == b"\x93NUMPY" for info in archive.infolist())
    with np.load(file, allow_pickle=False) as archive:
        held = {key: archive[key] for key in archive.files}
    about = json.loads(str(held.pop("about")))
    assert sorted(about) == ["format", "network", "stretches", "tensors"]
    assert [t["kind"] for t in about["tensors"]] == ["extent", "histogram", "moving", "moving"]
    assert {value.dtype.str for value in held.values()} == {"<i8", "<f4", "<f8"}
    assert sorted(held)[:4] == ["0.bounds", "0.count", "1.bounds", "1.counts"]


def test_a_file_is_64_kib_a_histogram_whatever_it_saw(tmp_path: Path) -> None:
    sizes = []
    for data in (some(count=1), some(count=9)):
        states = {str(i): fold("entropy", data) for i in range(10)}
        Statistics(states).save(tmp_path / "a.npz")
        sizes.append((tmp_path / "a.npz").stat().st_size)
    assert sizes[0] == sizes[1] < 10 * 66_500


def save_array(file: Path, value: np.ndarray) -> None:
    with file.open("wb") as stream:  # np.save would add its own suffix
        np.save(stream, value, allow_pickle=True)


PICKLED = np.array([{}], object)
CANNOT = " cannot be read as statistics of mxq: "
NO_STATISTICS = f"{CANNOT}it is no archive of arrays, or cut short"
FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda file: file.write_text("thresholds"), NO_STATISTICS),
    "nothing": (lambda file: file.write_bytes(b""), NO_STATISTICS),
    "an array": (lambda file: save_array(file, np.ones(3)), NO_STATISTICS),
    "a pickle": (lambda file: save_array(file, PICKLED), NO_STATISTICS),
    "a folder": (lambda file: file.mkdir(), " is a folder; allowed: a file"),
    "a pipe": (os.mkfifo, " is a pipe; allowed: a file"),
    "a pickle within": (lambda file: np.savez(file, about=PICKLED), f"{CANNOT}'about' has the header .*"),
    "other arrays": (lambda file: np.savez(file, x=np.ones(3)), ": no statistics of mxq"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_such_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.npz"
    write, message = FOREIGN[kind]
    write(file)
    with pytest.raises(FormatError, match=f"^'?{re.escape(str(file))}'?{message}$") as caught:
        Statistics.load(file)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"^no file '.*none.npz'$"):
        Statistics.load(tmp_path / "none.npz")


ABOUT = {"format": module.FORMAT, "network": {}, "tensors": [{"name": "a", "kind": "extent"}], "stretches": []}
LACKS = ": 'about' is damaged: Object missing required field "
DAMAGED = ": statistics are damaged: "
EXTENT = {"0.count": np.array(2), "0.bounds": np.float32([0, 1])}
MOVING = {"0.momentum": np.array(0.9), "0.batches": np.array(1), "0.averages": np.arange(4.0), **EXTENT}


def of_kind(kind: str) -> dict[str, Any]:
    return {**ABOUT, "tensors": [{"name": "a", "kind": kind}]}


def without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != key}


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "old format": (
        {**ABOUT, "format": "mxq-statistics/0"},
        EXTENT,
        ": statistics have format 'mxq-statistics/0'; this version reads 'mxq-statistics/1'",
    ),
    "no format": ({}, EXTENT, ": statistics have format None; this version reads 'mxq-statistics/1'"),
    "a list": ([], EXTENT, ": statistics have format []; this version reads 'mxq-statistics/1'"),
    "unknown kind": (of_kind("cdf"), EXTENT, ": a state is of kind 'cdf'; known: extent, histogram, moving"),
    "no network": (without(ABOUT, "network"), EXTENT, LACKS + "`network`"),
    "no tensors": (without(ABOUT, "tensors"), EXTENT, LACKS + "`tensors`"),
    "no stretches": (without(ABOUT, "stretches"), EXTENT, LACKS + "`stretches`"),
    "no kind": ({**ABOUT, "tensors": [{"name": "a"}]}, EXTENT, LACKS + "`kind` - at `$.tensors[0]`"),
    "no array": (ABOUT, without(EXTENT, "0.count"), DAMAGED + "0.count is missing; needed: int64[]"),
    "a name that is none": (
        {**ABOUT, "tensors": [{"name": 3, "kind": "extent"}]},
        EXTENT,
        ": 'about' is damaged: Expected `str`, got `int` - at `$.tensors[0].name`",
    ),
    "a tensor twice": ({**ABOUT, "tensors": ABOUT["tensors"] * 2}, EXTENT, DAMAGED + "they hold a tensor twice"),
    "examples in words": (
        {**ABOUT, "stretches": [{"examples": "x"}]},
        EXTENT,
        ": 'about' is damaged: Expected `int`, got `str` - at `$.stretches[0].examples`",
    ),
    "fewer than none": (
        {**ABOUT, "stretches": [{"batches": -1}]},
        EXTENT,
        ": 'about' is damaged: Expected `int` >= 0 - at `$.stretches[0].batches`",
    ),
    "a network of another type": (
        {**ABOUT, "network": 3},
        EXTENT,
        ": 'about' is damaged: Expected `object`, got `int` - at `$.network`",
    ),
    "floats for counts": (
        of_kind("histogram"),
        {**EXTENT, "0.counts": np.full(8191, math.nan)},
        DAMAGED + "0.counts is float64[8191]; needed: int64[8191]",
    ),
    "counts beyond all data": (
        of_kind("histogram"),
        {**EXTENT, "0.counts": np.full(8191, 2**62)},
        DAMAGED + "counts of shape (8191,), from 4611686018427387904 to 4611686018427387904",
    ),
    "crossed": (
        ABOUT,
        {**EXTENT, "0.bounds": np.float32([1, 0])},
        ": statistics are damaged: 2 values between 1.0 and 0.0",
    ),
    "one bound": (
        ABOUT,
        {**EXTENT, "0.bounds": np.float32([1])},
        DAMAGED + "0.bounds is float32[1]; needed: float32[2]",
    ),
    "short histogram": (
        of_kind("histogram"),
        {**EXTENT, "0.counts": np.zeros(3, np.int64)},
        DAMAGED + "0.counts is int64[3]; needed: int64[8191]",
    ),
    "averages": (
        of_kind("moving"),
        {**MOVING, "0.averages": np.array([0, 0, 0, math.nan])},
        ": statistics are damaged: moving averages [ 0.  0.  0. nan]",
    ),
    "momentum": (
        of_kind("moving"),
        {**MOVING, "0.momentum": np.array(1.5)},
        ": statistics are damaged: moving averages of 1 batches with momentum 1.5",
    ),
    "all momentum": (
        of_kind("moving"),
        {**MOVING, "0.momentum": np.array(1.0)},
        ": statistics are damaged: moving averages of 1 batches with momentum 1.0",
    ),
    "negative momentum": (
        of_kind("moving"),
        {**MOVING, "0.momentum": np.array(-0.1)},
        ": statistics are damaged: moving averages of 1 batches with momentum -0.1",
    ),
    "no momentum": (
        of_kind("moving"),
        {**MOVING, "0.momentum": np.array(math.nan)},
        ": statistics are damaged: moving averages of 1 batches with momentum nan",
    ),
    "negative batches": (
        of_kind("moving"),
        {**MOVING, "0.batches": np.array(-1)},
        ": statistics are damaged: moving averages of -1 batches with momentum 0.9",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_inside(tmp_path: Path, case: str) -> None:
    about, held, message = WRONG[case]
    file = tmp_path / "a.npz"
    np.savez(file, about=np.array(json.dumps(about)), **held)
    with pytest.raises(FormatError, match=exactly(f"{file}{message}")):
        Statistics.load(file)


def test_what_is_right_inside(tmp_path: Path) -> None:
    """The cases above are wrong for their reasons alone."""
    for about, held in ((ABOUT, EXTENT), (of_kind("moving"), MOVING)):
        np.savez(tmp_path / "a.npz", about=np.array(json.dumps(about)), **held)
        assert Statistics.load(tmp_path / "a.npz").states["a"].extent == observers.MinMax(2, 0.0, 1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_moving_averages_come_back(tmp_path: Path, momentum: float, batches: int) -> None:
    """The least that they may be, too: of no batch yet, and with no weight on the past."""
    observer = observers.get(f"ema_minmax:{momentum}")
    state = observer.empty()
    for n in range(batches):
        state = observer.update(state, np.float32([-n, 2 * n + 1]))
    about = np.array(json.dumps(of_kind("moving")))
    np.savez(tmp_path / "a.npz", about=about, **{f"0.{k}": v for k, v in state.to_arrays().items()})
    assert Statistics.load(tmp_path / "a.npz").states["a"] == state


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path: Path, place: float, byte: int, cut: bool) -> None:
    """Cut anywhere, or one byte changed: never other numbers, never another error."""
    file = tmp_path / "a.npz"
    written = Statistics({t: fold(s, some()) for t, s in TENSORS.items() if s != "entropy"}, network=NETWORK)
    written.save(file)
    whole = file.read_bytes()
    at = int(place * len(whole))
    file.write_bytes(whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        found = Statistics.load(file)
    except FormatError as error:
        message = str(error)
        assert message.startswith(str(file))
        assert "\n" not in message
    else:
        assert bits(found) == bits(written)
        assert not cut


# ------------------------------------------------------------------------------------------------ whole or not at all


def failing(error: BaseException, after: int = 0) -> Callable[..., None]:
    """A `Path.write_bytes` that writes a little and fails."""

    def write_bytes(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[:after])
        raise error

    return write_bytes


@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "anew"])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), FormatError, r"^.*a\.npz .*: No space left on device \([\d,]+ bytes"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (MemoryError("no"), MemoryError, "^no$"),
    ],
    ids=["disk full", "interrupt", "no memory"],
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: Any, message: str, old: bool
) -> None:
    file = tmp_path / "a.npz"
    if old:
        collected(some()).save(file)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", failing(error, after=1000))
    with pytest.raises(raised, match=message):
        collected(some(1)).save(file)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_file_takes_its_place_only_when_all_of_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed before it is flushed to disk, a file may be empty after the power fails."""
    order: list[str] = []
    rename, sync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), sync(number)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), rename(self, target)))
    collected(some()).save(tmp_path / "a.npz")
    assert order == ["fsync", "rename"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_folder_that_is_none(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    reason = {"none": "No such file or directory", "file": "Not a directory"}[folder]
    with pytest.raises(FormatError, match=f"{folder}/a.npz.*{reason}$"):
        collected(some()).save(tmp_path / folder / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------------------ merging


def without_rounding(statistics: Statistics) -> dict[str, Any]:
    """What merging keeps to the bit: all but the sums of moving averages."""
    states = {name: s for name, s in statistics.states.items() if s.kind != "moving"}
    return bits(Statistics(states, statistics.stretches, statistics.network))


@settings(deadline=None, max_examples=30)
@given(st.lists(batches, min_size=3, max_size=3))
def test_merging_is_one_pass_over_all(data: Any) -> None:
    a, b, c = (collected(part, name) for part, name in zip(data, "abc", strict=True))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert without_rounding(left) == without_rounding(right)
    once = collected([x for part in data for x in part])
    assert bits(left)["states"]["data"] == bits(once)["states"]["data"]
    assert bits(left)["states"]["conv0"] == bits(once)["states"]["conv0"]
    for name in ("split:1", "naïve/\n层"):
        top = max(once.states[name].extent.absmax, 1e-30)
        for merged in (left, right):
            state, expected = merged.states[name], once.states[name]
            assert (state.batches, state.extent) == (expected.batches, expected.extent)
            np.testing.assert_allclose(state.averages, expected.averages, rtol=1e-9, atol=1e-9 * top)
    assert [s.name for s in left.stretches] == ["a", "b", "c"]
    assert (left.examples, left.batches) == (once.examples, once.batches)
    assert left.complete


def test_merged_statistics_are_complete_where_all_are() -> None:
    part = collected(some(1), "b", complete=False)
    assert not collected(some(), "a").merge(part).complete
    assert not part.merge(collected(some(), "a")).complete


def test_a_fingerprint_is_not_lost_where_the_other_has_none() -> None:
    """Else (a + b) + c would pass where b + c does not."""
    anonymous, known = collected(some(), "a"), collected(some(1), "b")
    anonymous = Statistics(anonymous.states, anonymous.stretches)
    for merged in (anonymous.merge(known), known.merge(anonymous)):
        assert merged.network == NETWORK


def changed(**options: Any) -> Statistics:
    other = collected(some(1), "b")
    return Statistics(options.get("states", other.states), other.stretches, {**NETWORK, **options.get("network", {})})


def states(**changes: Any) -> dict[str, Any]:
    found = {**collected(some(1), "b").states, **changes}
    return {name: state for name, state in found.items() if state is not None}


OTHER = "; calibrate anew, or ask for an observer that these statistics serve"
UNLIKE = {
    "another graph": (
        changed(network={"graph_sha256": "ffffffffffffffffffff"}),
        "the statistics are of another network: its graph_sha256 is 0123456789ab..., this one's is ffffffffffff...",
    ),
    "other inputs": (
        changed(network={"inputs": ["image"]}),
        "the statistics are of another network: its inputs is ['data'], this one's is ['image']",
    ),
    "a part more": (
        changed(network={"extra": 1}),
        "the statistics are of another network: its extra is None, this one's is 1",
    ),
    "a tensor less": (
        changed(states=states(conv0=None)),
        "the statistics hold histogram of tensor 'conv0', wanted is nothing" + OTHER,
    ),
    "a tensor more": (
        changed(states=states(relu0=fold("naive", some()))),
        "the statistics hold nothing of tensor 'relu0', wanted is extent" + OTHER,
    ),
    "another kind": (
        changed(states=states(conv0=fold("naive", some()))),
        "the statistics hold histogram of tensor 'conv0', wanted is extent" + OTHER,
    ),
    "another momentum": (
        changed(states=states(**{"split:1": fold("ema_minmax:0.5", some())})),
        "the statistics hold moving(0.9) of tensor 'split:1', wanted is moving(0.5)" + OTHER,
    ),
    "the first of several": (
        changed(states=states(conv0=None, data=None), network={"params_sha256": "x", "inputs": []}),
        "the statistics are of another network: its inputs is ['data'], this one's is []",
    ),
    "the same data": (
        collected(some(), "train"),
        "both hold the data 'train' (first batch sha of train), which would count twice",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_does_not_merge(case: str) -> None:
    other, message = UNLIKE[case]
    mine = collected(some())
    before = bits(mine)
    with pytest.raises(CalibrationError, match=exactly(message)):
        mine.merge(other)
    assert bits(mine) == before
    files = {"a.npz": mine, "b.npz": collected(some(2), "c"), "d.npz": other}
    with pytest.raises(CalibrationError, match=exactly(f"a.npz and d.npz do not merge: {message}")):
        merge(files)


def test_merging_many() -> None:
    parts = {name: collected(some(seed), name) for seed, name in enumerate("abc")}
    assert bits(merge(parts)) == bits(parts["a"].merge(parts["b"]).merge(parts["c"]))
    assert merge({"a": parts["a"]}) is parts["a"]
    with pytest.raises(
        CalibrationError, match=r"^a and again do not merge: both hold the data 'a' \(first batch sha of a\)"
    ):
        merge({**parts, "again": parts["a"]})


def test_data_of_one_name_merges_where_it_began_otherwise() -> None:
    """Two parts that the user did not name; what was never begun is no data."""
    one, other = collected(some(), "", first="aaa"), collected(some(1), "", first="bbb")
    assert one.merge(other).batches == 6
    empty = collected([], "", first="")
    assert empty.merge(empty).batches == 0


def test_merging_survives_the_file(tmp_path: Path) -> None:
    parts = [collected(some(seed), name) for seed, name in enumerate("ab")]
    merged = parts[0].merge(parts[1])
    merged.save(tmp_path / "a.npz")
    assert bits(Statistics.load(tmp_path / "a.npz")) == bits(merged)


# ------------------------------------------------------------------------------------------------ ranges

X = np.random.default_rng(4).laplace(size=(3, 4000)).astype(np.float32)
FROM_HISTOGRAMS = (
    "auto",
    "entropy",
    "entropy:127,0",
    "mean_std",
    "mse",
    "naive",
    "norm:1",
    "percentile:99",
    "fixed:-1,2",
)


@pytest.mark.parametrize("signed", [True, False])
def test_one_saved_pass_serves_observers_that_come_later(tmp_path: Path, signed: bool) -> None:
    data = X if signed else np.abs(X)
    Statistics({"a": fold("mse", data)}, (DataSegment("d", "f", 12, 3, True),)).save(tmp_path / "a.npz")
    saved = Statistics.load(tmp_path / "a.npz")
    before = bits(saved)
    for spec in FROM_HISTOGRAMS:
        for kind in (ANY8, INT8, UINT8):
            observer = observers.get(spec)
            fresh = Statistics({"a": fold(spec, data)}, saved.stretches)
            found = saved.thresholds({"a": observer}, kind)
            assert found == fresh.thresholds({"a": observer}, kind)
            assert found["a"].range == observer.range(fold(spec, data), kind)
    assert bits(saved) == before


def test_provenance() -> None:
    saved = collected(X, "d")
    found = saved.thresholds({tensor: observers.get(spec) for tensor, spec in TENSORS.items()})
    observed = Range(float(X.min()), float(X.max()))
    assert [t.observer for t in found.values()] == ["naive", "entropy", "ema_minmax", "ema_minmax:0.5"]
    for entry in found.values():
        assert (entry.examples, entry.batches, entry.observed) == (24, 3, observed)
        assert (entry.note, entry.source, entry.candidates) == ("", "", ())
    assert Thresholds.from_json(json.dumps(found.to_json())) == found


def test_where_auto_chose_the_choice_is_named_and_all_are_kept() -> None:
    saved = collected(X)
    found = saved.thresholds({"conv0": AutoObserver()}, INT8)["conv0"]
    assert found.candidates == AutoObserver().candidates(saved.states["conv0"], INT8)
    assert found.observer == found.candidates[0].observer
    assert found.range == found.candidates[0].range
    assert saved.thresholds({"conv0": observers.get(found.observer)}, INT8)["conv0"].range == found.range
    zero = Statistics({"conv0": fold("auto", [np.zeros(5)])}).thresholds({"conv0": AutoObserver()})["conv0"]
    assert (zero.observer, zero.range, zero.note, zero.candidates) == ("auto", Range(0, 1), "all zero", ())


def test_notes() -> None:
    for data, note in (
        (np.zeros(9), "all zero"),
        (np.full(9, 2.0), "constant"),
        ([0.0, 5.0], "few distinct values, not clipped"),
    ):
        found = Statistics({"a": fold("entropy", [data])}).thresholds({"a": observers.get("entropy")})
        assert found["a"].note == note


def test_specs_by_tensor() -> None:
    saved = Statistics({name: fold("mse", np.abs(X)) for name in "abc"})
    wanted = dict.fromkeys("abc", observers.get("mse"))
    assert [t.range.min < 0 for t in saved.thresholds(wanted, {"a": INT8, "b": UINT8}).values()] == [
        True,
        False,
        False,
    ]
    assert list(saved.thresholds({"c": wanted["c"]})) == ["c"]


@pytest.mark.parametrize(
    ("tensor", "spec", "message"),
    [
        ("data", "entropy", "the statistics hold its extent, observer 'entropy' needs its histogram"),
        ("data", "percentile:99.9", "the statistics hold its extent, observer 'percentile:99.9' needs its histogram"),
        ("conv0", "ema_minmax", "the statistics hold its histogram, observer 'ema_minmax' needs its moving(0.9)"),
        (
            "split:1",
            "ema_minmax:0.8",
            "the statistics hold its moving(0.9), observer 'ema_minmax:0.8' needs its moving(0.8)",
        ),
        ("split:1", "auto", "the statistics hold its moving(0.9), observer 'auto' needs its histogram"),
    ],
)
def test_what_does_not_serve_an_observer(tensor: str, spec: str, message: str) -> None:
    with pytest.raises(
        CalibrationError, match=exactly(f"tensor {tensor!r}: {message}; calibrate anew, or ask for another observer")
    ):
        collected(X).thresholds({tensor: observers.get(spec)})


@pytest.mark.parametrize("spec", SPECS[1:] + FROM_HISTOGRAMS)
def test_refusals_name_the_tensor(spec: str) -> None:
    observer = observers.get(spec)
    with pytest.raises(CalibrationError, match=exactly("no range was calibrated for tensor 'fc9' (1 others were)")):
        Statistics({"a": fold(spec, X)}).thresholds({"fc9": observer})
    with pytest.raises(
        CalibrationError, match=r"^tensor 'a': no values were observed, so there is no range; at least one batch"
    ):
        Statistics({"a": observer.empty()}).thresholds({"a": observer})


def test_statistics_are_frozen() -> None:
    with pytest.raises(TypeError):
        collected(X).states["other"] = None  # type: ignore[index]


def test_what_to_collect_for_later() -> None:
    """With a file, histograms are collected whatever was asked, unless order matters."""
    kinds = {spec: observers.collector(observers.get(spec)).statistic for spec in (*SPECS, *FROM_HISTOGRAMS)}
    assert kinds.pop("ema_minmax") == "moving(0.9)"
    assert kinds.pop("ema_minmax:0.5") == "moving(0.5)"
    assert set(kinds.values()) == {"histogram"}


def test_a_histogram_with_values_beyond_its_bounds_is_damaged() -> None:
    state = HistogramState().update(np.linspace(0, 1.9, 20, dtype=np.float32))
    arrays = dict(state.to_arrays())
    assert HistogramState.from_arrays(arrays).extent == state.extent
    with pytest.raises(FormatError, match=r"8 values beyond 0\.0 \.\. 1\.125"):
        HistogramState.from_arrays({**arrays, "bounds": np.array([0.0, 1.125])})
