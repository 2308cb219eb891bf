"""Calibration with a runner in numpy: every tensor gets what it should, and failures name tensor and batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mxq import observers
from mxq.batches import feeds
from mxq.collect import collect
from mxq.config import Budget
from mxq.errors import CalibrationError, ConfigError, DataError, GraphError
from mxq.ir import Graph, Model, Node, Ref
from mxq.thresholds import Range, Thresholds

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
    """Interprets `OPS`; records what it was asked to tap, and refuses what MXNet could not bind."""

    def __init__(self) -> None:
        self.taps: list[Sequence[Ref]] = []

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Any:
        self.taps.append(taps)
        wanted = (*model.graph.heads, *taps)
        assert len(set(wanted)) == len(wanted), "a tensor returned twice does not bind"
        assert not any(model.graph[ref.name].is_variable for ref in taps)

        def run(given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
            values: dict[tuple[str, int], np.ndarray] = {}
            for node in model.graph:
                if node.is_variable:
                    param = model.param(node.name)
                    values[node.name, 0] = given[node.name] if param is None else param
                    continue
                with np.errstate(all="ignore"):
                    results = OPS[node.op](*(values[r.name, r.output] for r in node.inputs))
                values |= {(node.name, k): result for k, result in enumerate(results)}
            return tuple(values[ref.name, ref.output] for ref in wanted)

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


def test_every_tensor_gets_its_own_values() -> None:
    runner = NumpyRunner()
    refs = [Ref("data"), Ref("scale0"), Ref("split0"), Ref("split0", 1), Ref("last")]
    found = collect(runner, model(), batches(), dict.fromkeys(refs, NAIVE)).thresholds("auto")
    low, high = float(X.min()), float(X.max())
    assert {name: threshold.range for name, threshold in found.items()} == {
        "data": Range(low, high),
        "scale0": Range(2 * low, 2 * high),
        "split0": Range(2 * low, 0),
        "split0:1": Range(0, 2 * high),
        "last": Range(0, 2 * high),
    }
    # The input comes from the feed and the head from the heads; neither is tapped again.
    assert runner.taps == [(Ref("scale0"), Ref("split0"), Ref("split0", 1))]


def test_provenance() -> None:
    x = np.zeros((50, 4), np.float32)
    table = {Ref("data"): NAIVE, Ref("scale0"): ENTROPY}
    found = collect(NumpyRunner(), model(), batches(x), table).thresholds()
    for name, observer in (("data", "naive"), ("scale0", "entropy")):
        entry = found[name]
        assert (entry.observer, entry.examples, entry.batches) == (observer, 50, 3)
        assert (entry.observed, entry.note) == (Range(0, 0), "all zero")
    assert Thresholds.from_json(found.to_json()) == found


def test_the_batch_size_does_not_matter() -> None:
    table = {Ref("scale0"): ENTROPY, Ref("last"): ENTROPY}
    runs = [collect(NumpyRunner(), model(), batches(size=size), table) for size in (1, 7, 50)]
    ranges = [{k: v.range for k, v in run.thresholds().items()} for run in runs]
    assert ranges[0] == ranges[1] == ranges[2]
    assert [run.batches for run in runs] == [50, 8, 1]


def test_reading_again_with_another_dtype() -> None:
    found = collect(NumpyRunner(), model(), batches(), {Ref("scale0"): ENTROPY, Ref("last"): ENTROPY})
    first = found.thresholds("auto")
    assert first["last"].range.min == 0
    assert found.thresholds("int8")["last"].range.min < 0
    assert found.thresholds({"last": "int8"})["last"].range.min < 0
    assert found.thresholds({"scale0": "int8"})["last"].range.min == 0
    assert found.thresholds("auto") == first
    with pytest.raises(ConfigError, match="int4"):
        found.thresholds("int4")


def test_inputs_alone_need_no_runner() -> None:
    runner = NumpyRunner()
    assert collect(runner, model(), batches(), {Ref("data"): NAIVE}).thresholds()["data"].examples == 50
    assert runner.taps == []


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
    found = collect(NumpyRunner(), model(), [{"data": X[:0]}], {Ref("scale0"): NAIVE})
    with pytest.raises(CalibrationError, match="tensor 'scale0': no values"):
        found.thresholds()


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
        found.table["other"] = found.table["scale0"]  # type: ignore[index]
