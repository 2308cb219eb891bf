"""Which runtime is fastest: what is timed and where, what cannot be, the result by both doors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from graphs import RESIDUAL, SHAPE, build
from typer.testing import CliRunner

import mxq
from mxq.bench.runtimes import BestRuntime, RuntimeRow
from mxq.bench.timing import Timing, noise_of, rounds
from mxq.cli import app
from mxq.engines import Engine, engine_of, served
from mxq.errors import ConfigError, DataError, FormatError, RuntimeFailure, StorageError
from mxq.host.cores import held_line, one_process
from mxq.host.machine import Core, Machine
from mxq.reporting.plain import plain
from mxq.runtime import write_pair
from mxq.workflow import racing

EXAMPLE = SHAPE[1:]
MACHINE = Machine(
    "", "", frozenset(), frozenset(), (0, 1, 2, 3), 4, topology=tuple(Core((n,), n // 2) for n in range(4))
)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="onnx or onnxruntime is not installed (mxq[runtimes])",
)


def row(network: str, runtime: str, median: float | None, batch: int = 1) -> RuntimeRow:
    timing = None if median is None else Timing(network, median, median, median, 1 / median, 8 / median, 1.0, 1.0)
    lines = (f"import {runtime}", f'session = {runtime}.open("{"long/" * 30}{network}")')
    return RuntimeRow(network, runtime, "1.2", batch, timing, "" if timing else "no room", lines, f"taskset {runtime}")


FOUND = BestRuntime(
    (
        row("net-int8", "mxnet", 8.0),
        row("net.onnx", "onnxruntime", 4.0),
        row("net.onnx", "openvino", 3.0),
        row("net-int8", "mxnet", 8.0, 16),
        row("net.onnx", "onnxruntime", None, 16),
        row("net.onnx", "openvino", 5.0, 16),
    ),
    2,
    (0, 1),
    {"other": 'Other is not installed: pip install "other"'},
)


class TestResult:
    def test_the_best_of_each_batch_size(self) -> None:
        assert FOUND.best == {1: FOUND.rows[2], 16: FOUND.rows[5]}
        assert FOUND.ahead(FOUND.rows[2]) == 4 / 3
        assert FOUND.ahead(FOUND.rows[5]) == 8 / 5
        assert FOUND.ahead(FOUND.rows[1]) is None
        assert BestRuntime(FOUND.rows[:1], 1, (0,)).ahead(FOUND.rows[0]) is None
        assert BestRuntime(FOUND.rows[4:5], 1, (0,)).best == {}

    def test_as_json(self) -> None:
        told = json.loads(json.dumps(FOUND.to_json(), allow_nan=False))
        assert told["best"] == {"1": 2, "16": 5}
        assert told["rows"][4]["problem"] == "no room"
        assert told["rows"][2]["timing"]["median_ms"] == 3000
        assert told["cpus"] == [0, 1]

    def test_as_text(self) -> None:
        """Networks by letters, the best named, the lines that start it in one piece."""
        text = plain(FOUND).splitlines()
        assert "batch 1, 16: net.onnx in openvino 1.2, 1.33 to 1.60x as fast as the next" in text
        assert [line for line in text if line.split()[:3] == ["B", "openvino", "1"] and line.endswith("best")]
        assert [line for line in text if line.split() == ["B", "onnxruntime", "16", *"----", "no", "room"]]
        assert [line for line in text if line.split() == ["A", "net-int8"]]
        assert "  taskset openvino" in text
        assert all(f"    {line}" in text for line in FOUND.rows[2].lines)
        assert 'not tried  Other is not installed: pip install "other"' in text


class TestPlaces:
    @pytest.mark.parametrize(
        ("asked", "cpus", "threads"),
        [("", (0, 1, 2, 3), 4), ("2", (0, 1), 2), ("0", (0, 1, 2, 3), 4), ("6", (0, 1, 2, 3), 6)],
    )
    def test_of_one_process(self, asked: str, cpus: tuple[int, ...], threads: int) -> None:
        assert one_process({"OMP_NUM_THREADS": asked}, MACHINE) == (cpus, threads)

    def test_how_it_is_started(self) -> None:
        assert held_line((0, 1), MACHINE) == "numactl --physcpubind=0-1 --membind=0 python serve.py"
        place = racing.Place(Machine("", "", frozenset(), frozenset(), (0, 1), 2), (0, 1), 2)
        assert place.command(engine_of("onnxruntime")) == "taskset -c 0-1 python serve.py"
        assert place.command(racing.MXNET).startswith("OMP_NUM_THREADS=2 MXNET_CPU_PARALLEL_SIZE=")


def test_rounds_go_round_and_compare_within() -> None:
    seen: list[str] = []

    def reading(name: str, seconds: float) -> Any:
        def read() -> float:
            seen.append(name)
            return seconds

        return read

    found = rounds({"a": reading("a", 2.0), "b": reading("b", 0.5)}, repeats=2, warmup=1, examples=4)
    assert seen == ["a", "b"] * 3
    assert (found.base, found["b"].speedup, found["b"].rate) == ("a", 4.0, 8.0)
    with pytest.raises(ConfigError, match="repeats is 0; allowed: a whole number, 1 or more"):
        rounds({"a": reading("a", 1.0)}, repeats=0)


def test_noise_is_of_the_type_that_is_fed() -> None:
    rng = np.random.default_rng(0)
    assert noise_of("x", (2, 3), "float32", rng).dtype == np.float32
    codes = noise_of("x", (50,), "int64", rng)
    assert (codes.dtype, codes.min() >= 0, codes.max() <= 127, codes.max() > 9) == (np.int64, True, True, True)
    with pytest.raises(ConfigError, match=r"of 'x' are .* values; allowed"):
        noise_of("x", (1 << 20, 1 << 20), "float32", rng)


class FakeServed:
    """Stands in for a session in another process; tells what it was opened with and fed."""

    opened: ClassVar[list[tuple[str, Path, tuple[int, ...], int]]] = []
    fed: ClassVar[list[tuple[str, dict[str, tuple[int, ...]]]]] = []

    def __init__(self, engine: Engine, path: Path, cpus: tuple[int, ...], threads: int) -> None:
        self.engine, self.path = engine, path
        if path.name == "broken":
            raise RuntimeFailure("ended\nby a signal")
        if path.name == "disk":
            raise StorageError("No space left")
        FakeServed.opened.append((engine.name, path, cpus, threads))

    def hold(self, feeds: Mapping[str, Any]) -> None:
        shapes = {name: value.shape for name, value in feeds.items()}
        if "one" in self.path.name and any(shape[0] != 1 for shape in shapes.values()):
            raise DataError("feed batches of 1")
        FakeServed.fed.append((self.engine.name, shapes))

    def seconds(self, calls: int = 1) -> float:
        return 1.0

    def close(self) -> None:
        FakeServed.opened.append(("closed", self.path, (), 0))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeServed]:
    monkeypatch.setattr(racing, "Served", FakeServed)
    FakeServed.opened, FakeServed.fed = [], []
    return FakeServed


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_pair(build(*RESIDUAL), tmp_path / "net")
    return tmp_path / "net"


class TestPairs:
    def test_all_have_the_same_place_and_end(self, fake: type[FakeServed], pair: Path) -> None:
        model = build(*RESIDUAL)
        nets = [pair, model, model]
        found = racing.best_runtime(nets, batch_sizes=(1, 3), shapes={"": EXAMPLE}, repeats=2, warmup=0)
        assert [(one.network, one.batch) for one in found.rows] == [
            (name, batch) for batch in (1, 3) for name in (str(pair), "the Model", "the Model #2")
        ]
        (first, second, _), ended = fake.opened[:3], fake.opened[3:]
        assert first[1] == pair
        assert first[2:] == second[2:] == (found.cpus, found.threads)
        assert [one[0] for one in ended] == ["closed"] * 3
        assert not second[1].parent.exists()
        assert fake.fed == [("mxnet", {"data": (size, *EXAMPLE)}) for size in (1, 1, 1, 3, 3, 3)]

    def test_one_that_fails_is_a_row(
        self, fake: type[FakeServed], pair: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_pair(build(*RESIDUAL), pair.with_name("broken"))
        write_pair(build(*RESIDUAL), pair.with_name("one"))
        nets = [pair, pair.with_name("broken"), pair.with_name("one")]
        found = racing.best_runtime(nets, batch_sizes=(1, 2), shapes={"data": EXAMPLE}, repeats=1, warmup=0)
        assert [one.problem for one in found.rows] == [
            "", "ended by a signal", "", "", "ended by a signal", "feed batches of 1",
        ]  # fmt: skip
        assert "ended by a signal" in caplog.text
        with pytest.raises(RuntimeFailure, match="nothing could be timed: ended by a signal"):
            racing.best_runtime(nets[1:2], shapes={"data": EXAMPLE})

    def test_no_room_is_no_networks_fault(self, fake: type[FakeServed], pair: Path) -> None:
        write_pair(build(*RESIDUAL), pair.with_name("disk"))
        with pytest.raises(StorageError, match="No space left"):
            racing.best_runtime([pair.with_name("disk")], shapes={"data": EXAMPLE})

    def test_refusals(self, fake: type[FakeServed], pair: Path) -> None:
        for args, more, says in (
            ((), {}, "there is no network to time"),
            ((pair,), {}, "the shape of input 'data' of .* is not known"),
            ((pair,), {"batch_size": 0}, "batch_size is 0; allowed"),
            ((pair,), {"batch_size": ()}, r"batch_size is \(\); allowed"),
            ((pair,), {"batch_size": None}, "batch_size is None; allowed"),
            ((pair,), {"batch_size": 2.5}, "batch_size is 2.5; allowed"),
            ((pair,), {"repeats": "x"}, "repeats is 'x'; allowed: a whole number, 1 or more"),
            ((pair,), {"warmup": -1}, "warmup is -1; allowed: a whole number, 0 or more"),
            ((pair,), {"input_shape": {"other": EXAMPLE}}, "the shape of input 'data' of .* is not known"),
            (
                (pair,),
                {"input_shape": {"other": (3,), "data": EXAMPLE}},
                "'other', which is no input; the inputs are data",
            ),
            ((pair,), {"runtimes": "tvm"}, "runtime is 'tvm'"),
            ((pair,), {"runtimes": 3}, "runtimes is 3; allowed: names"),
        ):
            with pytest.raises(ConfigError, match=says):
                mxq.best_runtime(*args, **more)
        two = build("y = elemwise_add(data, other)", "return y", data=(1, 3), other=(1, 3))
        with pytest.raises(ConfigError, match=r"input_shape is \(3,\), but .* are data, other; allowed: one of each"):
            mxq.best_runtime(two, input_shape=(3,))
        with pytest.raises(FormatError, match="no file"):
            mxq.best_runtime(pair.with_name("gone"), input_shape=EXAMPLE)


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "120"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout if code == 0 else result.output


@needs_onnx
class TestFiles:
    @pytest.fixture
    def path(self, pair: Path) -> Path:
        mxq.export_onnx(pair, pair.with_name("net.onnx"), input_shape=EXAMPLE)
        return pair.with_name("net.onnx")

    def test_by_both_doors(self, fake: type[FakeServed], pair: Path, path: Path) -> None:
        """A file says the shape, for the pair too."""
        found = mxq.best_runtime(pair, path, runtimes="onnxruntime", repeats=1, warmup=0)
        assert [(one.network, one.runtime) for one in found.rows] == [
            (str(pair), "mxnet"), (str(path), "onnxruntime"),
        ]  # fmt: skip
        assert "import onnxruntime" in found.rows[1].lines
        asked = ("bench", pair, path, "--runtimes", "--runtime", "onnxruntime", "--repeats", 1, "--warmup", 0)
        assert json.loads(command(*asked, "--json")) == json.loads(json.dumps(found.to_json()))
        assert "as fast as the next" in command(*asked)

    def test_beside_pairs(self, fake: type[FakeServed], pair: Path, path: Path) -> None:
        asked = ("bench", pair, path, "--runtime", "onnxruntime", "--repeats", 1, "--warmup", 0, "--batch-size", 2)
        told = json.loads(command(*asked, "--json"))
        assert [one["name"] for one in told["timings"]] == ["fp32", "fp32 fused", f"{path} onnxruntime"]
        assert told["base"] == "fp32"
        assert [shapes["data"] for _, shapes in fake.fed] == [(2, *EXAMPLE)] * 3
        assert "each in a process of its own" in command(*asked)

    def test_in_earnest(self, pair: Path, path: Path) -> None:
        found = mxq.best_runtime(path, runtimes="onnxruntime", batch_size=2, repeats=2, warmup=0)
        (only,) = found.rows
        assert only.timing is not None
        assert only.timing.median > 0
        assert found.best == {2: only}

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("{file}", "{file}"), "is an ONNX file; allowed: a float network before it, or --runtimes"),
            (("{pair}", "{pair}", "{pair}"), "2 pairs are given beside"),
            (("{pair}", "{file}", "--sweep"), "--sweep is given with"),
            (("{pair}", "--runtime", "onnxruntime"), "--runtime is onnxruntime without an ONNX file"),
            (("{pair}", "{file}", "--shape", "three"), "--shape is 'three'; allowed"),
            (("{pair}", "{file}", "--batch-size", "1", "--batch-size", "2"), "--batch-size is given 2 times"),
        ],
    )
    def test_refusals(self, pair: Path, path: Path, args: tuple[str, ...], says: str) -> None:
        text = command("bench", *(arg.format(pair=pair, file=path) for arg in args), code=2)
        assert says in " ".join(text.split())


def test_served_is_what_is_raced() -> None:
    assert racing.Served is served.Served
