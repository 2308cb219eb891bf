"""Calibration with a runner in numpy: every tensor gets what it should, failures name tensor and batch, and a run
that was ended in any way goes on where it was."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxq import observers
from mxq.calibration.collect import Checkpoint, collect
from mxq.calibration.statistics import DataSegment, Statistics
from mxq.config import Budget
from mxq.data.feeding import feeds
from mxq.errors import CalibrationError, DataError, FormatError, GraphError, RuntimeFailure
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.quant import ANY8, INT8
from mxq.quant.thresholds import Range, Thresholds

NAIVE = observers.get("naive")
ENTROPY = observers.get("entropy")
X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)

OPS = {
    "scale": lambda x, w: (x * w,),
    "relu": lambda x: (np.maximum(x, 0),),
    "split": lambda x: (np.minimum(x, 0), np.maximum(x, 0)),
    "log": lambda x: (np.log(x),),
}


class NumpyRunner:
    """Interprets `OPS`; records what it was asked to watch and what it ran, and refuses what MXNet could not watch."""

    def __init__(self, fails_at: int = 0, error: type[BaseException] = RuntimeFailure) -> None:
        self.watched: list[Sequence[Ref]] = []
        self.runs: list[int] = []
        self.fails_at, self.error = fails_at, error

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Any:
        raise AssertionError("tensors are watched, not kept")

    def watch(self, model: Model, refs: Sequence[Ref]) -> Any:
        self.watched.append(tuple(refs))
        assert len(set(refs)) == len(refs)
        assert not any(model.graph[ref.name].is_variable for ref in refs)

        def run(given: Mapping[str, np.ndarray], visit: Callable[[Ref, np.ndarray], None]) -> None:
            self.runs.append(round(float(given["data"][:1, 0].sum())))
            values: dict[tuple[str, int], np.ndarray] = {}
            for node in model.graph:
                if node.is_variable:
                    param = model.param(node.name)
                    values[node.name, 0] = given[node.name] if param is None else param
                    continue
                with np.errstate(all="ignore"):
                    results = OPS[node.op](*(values[r.name, r.output] for r in node.inputs))
                for k, result in enumerate(results):
                    values[node.name, k] = result
                    if Ref(node.name, k) in refs:
                        shown = result.reshape(-1).copy()
                        visit(Ref(node.name, k), shown)
                        shown.fill(np.nan)  # it was valid during the call alone
                if len(self.runs) == self.fails_at:
                    raise self.error("half of the tensors have been seen")

        return run


def model(last: str = "relu") -> Model:
    """data -> scale(w) -> split -> (second output) relu or log, which is the head."""
    nodes = (
        Node("data", "null"),
        Node("w", "null"),
        Node("scale0", "scale", inputs=(Ref("data"), Ref("w"))),
        Node("split0", "split", inputs=(Ref("scale0"),)),
        Node("last", last, inputs=(Ref("split0", 1),)),
    )
    return Model(Graph(nodes, (Ref("last"),)), {"w": np.full(4, 2, np.float32)})


def batches(x: np.ndarray = X, size: int = 20) -> Any:
    return feeds(x, ["data"], Budget(percent=100.0), batch_size=size)


def ranges(found: Statistics, table: Mapping[Ref, Any], specs: Any = ANY8) -> Thresholds:
    return found.thresholds({str(ref): observer for ref, observer in table.items()}, specs)


def test_every_tensor_gets_its_own_values() -> None:
    runner = NumpyRunner()
    refs = [Ref("data"), Ref("scale0"), Ref("split0"), Ref("split0", 1), Ref("last")]
    table = dict.fromkeys(refs, NAIVE)
    found = ranges(collect(runner, model(), batches(), table), table)
    low, high = float(X.min()), float(X.max())
    assert {name: threshold.range for name, threshold in found.items()} == {
        "data": Range(low, high),
        "scale0": Range(2 * low, 2 * high),
        "split0": Range(2 * low, 0),
        "split0:1": Range(0, 2 * high),
        "last": Range(0, 2 * high),
    }
    # The input comes from the feed; it is not watched.
    assert runner.watched == [(Ref("scale0"), Ref("split0"), Ref("split0", 1), Ref("last"))]
    assert len(runner.runs) == 3


def test_provenance() -> None:
    x = np.zeros((50, 4), np.float32)
    table = {Ref("data"): NAIVE, Ref("scale0"): ENTROPY}
    found = ranges(collect(NumpyRunner(), model(), batches(x), table), table)
    for name, observer in (("data", "naive"), ("scale0", "entropy")):
        entry = found[name]
        assert (entry.observer, entry.examples, entry.batches) == (observer, 50, 3)
        assert (entry.observed, entry.note) == (Range(0, 0), "all zero")
    assert Thresholds.from_json(found.to_json()) == found


def test_the_batch_size_does_not_matter() -> None:
    table = {Ref("scale0"): ENTROPY, Ref("last"): ENTROPY}
    runs = [collect(NumpyRunner(), model(), batches(size=size), table) for size in (1, 7, 50)]
    found = [{k: v.range for k, v in ranges(run, table).items()} for run in runs]
    assert found[0] == found[1] == found[2]
    assert [run.batches for run in runs] == [50, 8, 1]


def test_reading_again_with_another_spec() -> None:
    table = {Ref("scale0"): ENTROPY, Ref("last"): ENTROPY}
    found = collect(NumpyRunner(), model(), batches(), table)
    first = ranges(found, table, ANY8)
    assert first["last"].range.min == 0
    assert ranges(found, table, INT8)["last"].range.min < 0
    assert ranges(found, table, {"last": INT8})["last"].range.min < 0
    assert ranges(found, table, {"scale0": INT8})["last"].range.min == 0
    assert ranges(found, table, ANY8) == first


def test_the_network_runs_also_where_inputs_alone_are_observed() -> None:
    """Else nothing would tell that it cannot."""
    runner, table = NumpyRunner(), {Ref("data"): NAIVE}
    assert ranges(collect(runner, model(), batches(), table), table)["data"].examples == 50
    assert (runner.watched, len(runner.runs)) == ([()], 3)
    with pytest.raises(RuntimeFailure):
        collect(NumpyRunner(fails_at=2), model(), batches(), table)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_non_finite_input_names_tensor_and_batch(value: float) -> None:
    x = X.copy()
    x[45, 1] = value
    with pytest.raises(DataError, match="tensor 'data' in batch 3 of the calibration data: 1 of 40 values"):
        collect(NumpyRunner(), model(), batches(x), {Ref("data"): NAIVE, Ref("scale0"): NAIVE})


def test_non_finite_activation_names_tensor_and_batch() -> None:
    with pytest.raises(DataError, match=r"tensor 'last' in batch 1 .* values are not finite \(0 NaN, \d+ Inf\)"):
        collect(NumpyRunner(), model("log"), batches(), {Ref("scale0"): NAIVE, Ref("last"): NAIVE})


def test_no_batches() -> None:
    with pytest.raises(DataError, match="no batch"):
        collect(NumpyRunner(), model(), [], {Ref("data"): NAIVE})


def test_a_tensor_without_values_is_named() -> None:
    observer, table = observers.get("naive"), {Ref("data"): NAIVE}
    found = collect(NumpyRunner(), model(), [{"data": X[:0]}], table)
    with pytest.raises(CalibrationError, match="tensor 'data': no values"):
        found.thresholds({"data": observer})


def test_parameters_and_unknown_nodes_are_refused() -> None:
    with pytest.raises(CalibrationError, match="'w' is a parameter"):
        collect(NumpyRunner(), model(), batches(), {Ref("w"): NAIVE})
    with pytest.raises(GraphError, match="no node 'conv7'"):
        collect(NumpyRunner(), model(), batches(), {Ref("conv7"): NAIVE})


def test_an_interrupt_propagates() -> None:
    def interrupted() -> Iterator[Any]:
        yield {"data": X}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(NumpyRunner(), model(), interrupted(), {Ref("scale0"): NAIVE})


@pytest.mark.parametrize("progress", [True, False])
def test_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], progress: bool) -> None:
    collect(NumpyRunner(), model(), batches(), {Ref("scale0"): NAIVE}, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_statistics_are_frozen() -> None:
    found = collect(NumpyRunner(), model(), batches(), {Ref("scale0"): NAIVE})
    with pytest.raises(TypeError):
        found.states["other"] = found.states["scale0"]  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ checkpoints

NETWORK = {"graph_sha256": "a" * 64, "inputs": ["data"]}
MANY = np.random.default_rng(1).standard_normal((48, 4)).astype(np.float32)
MANY[:, 0] = np.arange(48) // 2 + 1  # batches of two tell their number
LAST = 24
TABLE = {
    Ref("data"): NAIVE,
    Ref("scale0"): ENTROPY,
    Ref("split0", 1): observers.get("ema_minmax"),
    Ref("last"): observers.get("mse"),
}


def numbered(x: np.ndarray = MANY) -> Any:
    return batches(x, size=2)


class Ticking:
    """A clock on which every look takes a second, so that a checkpoint is due after every four batches."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def kept(path: Path, **options: Any) -> Checkpoint:
    return Checkpoint(path, **{"network": NETWORK, "data": "train", "clock": Ticking(), **options})


def bits(statistics: Statistics) -> dict[str, Any]:
    arrays = {name: {k: v.tobytes() for k, v in s.to_arrays().items()} for name, s in statistics.states.items()}
    return {"states": arrays, "stretches": statistics.stretches, "network": dict(statistics.network)}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    """What all runs below must end with."""
    found = bits(collect(NumpyRunner(), model(), numbered(), TABLE, progress=False))
    (stretch,) = found["stretches"]
    assert (stretch.name, stretch.batches, stretch.examples, stretch.complete) == ("", LAST, 48, True)
    return {**found, "stretches": (DataSegment("train", stretch.first, 48, LAST, complete=True),), "network": NETWORK}


def test_a_checkpoint_changes_no_bit_and_ends_complete(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    file, runner = tmp_path / "s.npz", NumpyRunner()
    found = collect(runner, model(), numbered(), TABLE, progress=False, checkpoint=kept(file))
    assert bits(found) == bits(Statistics.load(file)) == uninterrupted
    assert runner.runs == list(range(1, LAST + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def only(first: np.ndarray) -> Iterator[Any]:
    yield {"data": first}
    raise AssertionError("a second batch was read")


def test_a_complete_file_is_the_answer(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """The network is not run again, and of the data no more is read than tells it from other data."""
    file, runner = tmp_path / "s.npz", NumpyRunner()
    collect(NumpyRunner(), model(), numbered(), TABLE, progress=False, checkpoint=kept(file))
    before = file.read_bytes()
    for given in (only(MANY[:2]), numbered(), []):
        again = collect(runner, model(), given, TABLE, progress=False, checkpoint=kept(file))
        assert bits(again) == uninterrupted
    with pytest.raises(
        CalibrationError, match=r"^the first batch of 'train' has changed since the statistics were begun"
    ):
        collect(runner, model(), only(MANY[2:4]), TABLE, progress=False, checkpoint=kept(file))
    assert (runner.watched, runner.runs) == ([], [])
    assert file.read_bytes() == before


def stopped(error: BaseException, after: int) -> Iterator[Any]:
    yield from list(numbered())[:after]
    raise error


@pytest.mark.parametrize(
    "again",
    [numbered, lambda: list(numbered()), lambda: iter(list(numbered()))],
    ids=["feeds", "list", "generator"],
)
@pytest.mark.parametrize("after", [1, 2, 7, LAST - 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), KeyError("no such file"), SystemExit(2)], ids=repr)
def test_ended_by_its_data_a_run_goes_on_after_the_last_batch(
    tmp_path: Path, uninterrupted: dict[str, Any], error: BaseException, after: int, again: Callable[[], Any]
) -> None:
    file, first, second = tmp_path / "s.npz", NumpyRunner(), NumpyRunner()
    with pytest.raises(type(error)):
        collect(first, model(), stopped(error, after), TABLE, progress=False, checkpoint=kept(file))
    meanwhile = Statistics.load(file)
    assert (meanwhile.batches, meanwhile.examples, meanwhile.complete) == (after, 2 * after, False)
    found = collect(second, model(), again(), TABLE, progress=False, checkpoint=kept(file))
    assert bits(found) == bits(Statistics.load(file)) == uninterrupted
    assert first.runs == list(range(1, after + 1))
    assert second.runs == list(range(after + 1, LAST + 1))


@pytest.mark.parametrize("error", [RuntimeFailure, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [1, 2, 6])
def test_a_batch_that_was_seen_by_half_does_not_count(
    tmp_path: Path, uninterrupted: dict[str, Any], error: type[BaseException], at: int
) -> None:
    """The runner shows some tensors of a batch, then fails; the next run shows all of them once."""
    file, first, second = tmp_path / "s.npz", NumpyRunner(fails_at=at, error=error), NumpyRunner()
    with pytest.raises(error, match="half of the tensors"):
        collect(first, model(), numbered(), TABLE, progress=False, checkpoint=kept(file))
    if at == 1:
        assert not file.exists()
    else:
        states = Statistics.load(file).states
        assert {s.extent.count for s in states.values()} == {8 * (at - 1)}
    assert bits(collect(second, model(), numbered(), TABLE, progress=False, checkpoint=kept(file))) == uninterrupted
    assert second.runs == list(range(at, LAST + 1))


def test_a_batch_with_nan_leaves_the_checkpoint_valid(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    file, broken = tmp_path / "s.npz", MANY.copy()
    broken[10, 2] = math.nan  # batch 6
    message = "^tensor 'data' in batch 6 of the calibration data: 1 of 8 values are not finite \\(1 NaN, 0 Inf\\)$"
    for _ in range(2):  # the same data fails in the same way, with the right number
        with pytest.raises(DataError, match=message):
            collect(NumpyRunner(), model(), numbered(broken), TABLE, progress=False, checkpoint=kept(file))
        assert Statistics.load(file).batches == 5
    runner = NumpyRunner()
    assert bits(collect(runner, model(), numbered(), TABLE, progress=False, checkpoint=kept(file))) == uninterrupted
    assert runner.runs == list(range(6, LAST + 1))


def test_interrupted_at_any_line_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    """Whatever is going on when the interrupt comes: no batch is lost, none counts twice."""
    few, table = MANY[:8], {ref: TABLE[ref] for ref in (Ref("data"), Ref("split0", 1))}
    monkeypatch.setattr("mxq.calibration.collect.EVERY_BATCHES", 1)
    monkeypatch.setattr("mxq.storage.writing.os.fsync", lambda _: None)
    whole = bits(collect(NumpyRunner(), model(), numbered(few), table, progress=False, checkpoint=kept(tmp_path / "w")))
    assert whole["stretches"][0].batches == 4
    source, tracer = sys.modules[collect.__module__].__file__, sys.gettrace()
    line, interrupted = 0, True
    while interrupted:
        line, seen, file = line + 1, 0, tmp_path / f"{line}.npz"

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code.co_filename != source:
                return None
            if event == "line":
                seen += 1
                if seen == line:  # noqa: B023  (called within this round only)
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            collect(NumpyRunner(), model(), numbered(few), table, progress=False, checkpoint=kept(file))
            interrupted = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracer)
        found = collect(NumpyRunner(), model(), numbered(few), table, progress=False, checkpoint=kept(file))
        assert bits(found) == whole, f"interrupted at line {line} of those that ran"
    assert line > 100


def begun(file: Path, after: int = 5) -> bytes:
    with pytest.raises(KeyboardInterrupt):
        collect(
            NumpyRunner(), model(), stopped(KeyboardInterrupt(), after), TABLE, progress=False, checkpoint=kept(file)
        )
    return file.read_bytes()


def other_first() -> np.ndarray:
    x = MANY.copy()
    x[0, 1] += 1
    return x


def unlike(have: str, tensor: str, wanted: str) -> str:
    remedy = "calibrate anew, or ask for an observer that these statistics serve"
    return f"FILE: the statistics hold {have} of tensor {tensor!r}, wanted is {wanted}; {remedy}"


OTHER_NETWORK = (
    "FILE: the statistics are of another network: its graph_sha256 is aaaaaaaaaaaa..., this one's is bbbbbbbbbbbb..."
)
OTHER_NAME = "FILE holds statistics of 'train', this run is on 'val'; give another file, then merge"
OTHER_FIRST = (
    "the first batch of 'train' has changed since the statistics were begun (sha256 HEX, now HEX): "
    "other data, order, batch size or preparation"
)
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "another network": ({"network": {**NETWORK, "graph_sha256": "b" * 64}}, OTHER_NETWORK),
    "another name of the data": ({"data": "val"}, OTHER_NAME),
    "another observer": ({"table": {**TABLE, Ref("data"): ENTROPY}}, unlike("extent", "data", "histogram")),
    "another momentum": (
        {"table": {**TABLE, Ref("split0", 1): observers.get("ema_minmax:0.5")}},
        unlike("moving(0.9)", "split0:1", "moving(0.5)"),
    ),
    "a tensor less": (
        {"table": {ref: o for ref, o in TABLE.items() if ref.name != "last"}},
        unlike("histogram", "last", "nothing"),
    ),
    "a tensor more": ({"table": {**TABLE, Ref("split0"): NAIVE}}, unlike("nothing", "split0", "extent")),
    "another first batch": ({"x": other_first()}, OTHER_FIRST),
    "another order": ({"x": MANY[::-1]}, OTHER_FIRST),
    "another type": ({"x": MANY.astype(np.int32)}, OTHER_FIRST),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_a_checkpoint_does_not_go_with(tmp_path: Path, uninterrupted: dict[str, Any], case: str) -> None:
    options, message = OTHER[case]
    file, runner, options = tmp_path / "s.npz", NumpyRunner(), dict(options)
    begun(file)
    before = bits(Statistics.load(file))
    x, table = options.pop("x", MANY), options.pop("table", TABLE)
    pattern = re.escape(message).replace("FILE", re.escape(str(file))).replace("HEX", "[0-9a-f]{12}")
    with pytest.raises(CalibrationError, match=f"^{pattern}$"):
        collect(runner, model(), numbered(x), table, progress=False, checkpoint=kept(file, **options))
    assert runner.runs == []
    assert bits(Statistics.load(file)) == before
    assert bits(collect(runner, model(), numbered(), TABLE, progress=False, checkpoint=kept(file))) == uninterrupted


def test_an_observer_of_the_same_statistic_may_change(tmp_path: Path) -> None:
    begun(tmp_path / "s.npz")
    table = {**TABLE, Ref("scale0"): observers.get("percentile:99.9"), Ref("last"): ENTROPY}
    found = collect(NumpyRunner(), model(), numbered(), table, progress=False, checkpoint=kept(tmp_path / "s.npz"))
    whole = collect(NumpyRunner(), model(), numbered(), table, progress=False)
    assert {k: v.range for k, v in ranges(found, table).items()} == {
        k: v.range for k, v in ranges(whole, table).items()
    }


def test_merged_statistics_are_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    parts = [
        collect(NumpyRunner(), model(), numbered(x), TABLE, progress=False, checkpoint=kept(tmp_path / name, data=name))
        for name, x in (("train", MANY[:24]), ("val", MANY[24:]))
    ]
    parts[0].merge(Statistics(parts[1].states, (DataSegment("val", "x", 1, 1, complete=False),), NETWORK)).save(file)
    with pytest.raises(
        CalibrationError, match=r"s\.npz holds statistics of 'train', 'val', this run is on 'train'; give another"
    ):
        collect(NumpyRunner(), model(), numbered(), TABLE, progress=False, checkpoint=kept(file))


def test_a_file_that_cannot_be_kept_is_found_out_before_the_network_runs(tmp_path: Path) -> None:
    runner = NumpyRunner()
    for name, reason in (("none/s.npz", "No such file or directory"), ("file/s.npz", "Not a directory")):
        (tmp_path / "file").write_text("")
        with pytest.raises(FormatError, match=f"{name}.*{reason}$"):
            collect(runner, model(), numbered(), TABLE, progress=False, checkpoint=kept(tmp_path / name))
    (tmp_path / "damaged").write_text("junk")
    with pytest.raises(FormatError, match=r"damaged cannot be read as statistics of mxq: .*, or cut short$"):
        collect(runner, model(), numbered(), TABLE, progress=False, checkpoint=kept(tmp_path / "damaged"))
    assert (tmp_path / "damaged").read_text() == "junk"
    assert (runner.watched, runner.runs) == ([], [])


def test_data_without_a_batch_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^calibration data holds no batch; at least one is needed$"):
        collect(NumpyRunner(), model(), [], TABLE, progress=False, checkpoint=kept(tmp_path / "s.npz"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "saves"), [(1.0, [4, 8, 12, 16, 20, 24, 24]), (0.3, [16, 24]), (0.0, [24])])
def test_saves_are_some_batches_and_some_time_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saves: list[int]
) -> None:
    """On a clock that moves with every look, of which there is one every fourth batch and one after each save."""
    seen: list[int] = []
    save = Statistics.save

    def spied(self: Statistics, path: Path) -> None:
        seen.append(self.batches)
        save(self, path)

    monkeypatch.setattr(Statistics, "save", spied)
    checkpoint = kept(tmp_path / "s.npz", clock=Ticking(seconds))
    collect(NumpyRunner(), model(), numbered(), TABLE, progress=False, checkpoint=checkpoint)
    assert seen == [0, *saves]  # the first finds out whether it can


# ------------------------------------------------------------------------------------------------ killed for real

SCRIPT = """
import os, signal, sys, time
sys.path[:0] = sys.argv[1:3]
import mxq.storage.writing
from mxq.calibration.collect import collect
from test_calibration_collect import TABLE, NumpyRunner, kept, model, numbered
from pathlib import Path

file, log, die_at_sync, most = Path(sys.argv[3]), open(sys.argv[4], "a", buffering=1), *map(int, sys.argv[5:7])
syncs, sync = 0, os.fsync

def fsync(number):
    global syncs
    syncs += 1
    if syncs == die_at_sync:
        os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing renamed
    sync(number)

mxq.storage.writing.os.fsync = fsync

class Slow:
    def __iter__(self):
        for feed in numbered():
            time.sleep(0.02)
            yield feed

class Logged(NumpyRunner):
    def watch(self, model, refs):
        run = super().watch(model, refs)
        def logged(given, visit):
            run(given, visit)
            log.write(f"{self.runs[-1]}\\n")
            if len(self.runs) == most:
                time.sleep(600)  # whoever is to kill this process may be slow
        return logged

log.write("started\\n")
collect(Logged(), model(), Slow(), TABLE, progress=False, checkpoint=kept(file))
log.write("done\\n")
"""


def start(folder: Path, die_at_sync: int = 0, most: int = 0) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    places = [here, here.parent, folder / "s.npz", folder / "log", die_at_sync, most]
    (folder / "log").write_text("")
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, places)], cwd=folder)


def lines_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def wait_for(process: subprocess.Popen[bytes], folder: Path, lines: int) -> None:
    until = time.monotonic() + 120
    while len(lines_of(folder)) < lines:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until, "it does not get on"
        time.sleep(0.002)


def held(folder: Path) -> int:
    """Batches in the checkpoint, which is readable or absent at any moment."""
    return Statistics.load(folder / "s.npz").batches if (folder / "s.npz").exists() else 0


@pytest.mark.slow
def test_killed_at_several_moments_a_run_ends_with_the_same_bits(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """SIGKILL, which no handler sees: before a checkpoint, after some batches, and again; then while one is written."""
    kept_before = 0
    for runs, moment in ((2, 0.0), (6, 0.013), (3, 0.027), (5, 0.001)):
        process = start(tmp_path, most=runs + 3)
        wait_for(process, tmp_path, 1 + runs)
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        ran = [int(line) for line in lines_of(tmp_path)[1:] if line.isdigit()]
        assert ran == list(range(kept_before + 1, kept_before + 1 + len(ran)))  # goes on after what the file held
        now = held(tmp_path)
        assert kept_before <= now <= kept_before + len(ran) + 1
        assert len(ran) - (now - kept_before) < 5  # at most the batches between two checkpoints are lost
        kept_before = now
    assert 0 < kept_before < LAST
    process = start(tmp_path, die_at_sync=1)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert held(tmp_path) == kept_before
    process = start(tmp_path)
    assert process.wait(timeout=120) == 0
    assert lines_of(tmp_path) == ["started", *map(str, range(kept_before + 1, LAST + 1)), "done"]
    assert bits(Statistics.load(tmp_path / "s.npz")) == uninterrupted
