"""Partitions in this process and on Dask's workers: the same numbers, bit for bit, whatever happens on the way."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from helpers import assert_close

from mxq import distributed, observers, pipeline
from mxq.calibration.statistics import Statistics
from mxq.config import Budget, QuantConfig
from mxq.data.feeding import feeds
from mxq.distributed import Partitions, calibrating
from mxq.distributed.jobs import Run
from mxq.distributed.tasks import Collecting, Job
from mxq.errors import of_surroundings
from mxq.host import environment, machine
from mxq.pipeline import Calibrated, Prepared
from mxq.runtime import MxnetRunner, from_symbol

SIDE, PARTS, BATCHES = 8, 6, 2


def batches_of(number: int) -> Iterator[np.ndarray]:
    """The batches of partition ``number``: (4, 3, SIDE, SIDE) each, wider from one to the next."""
    rng = np.random.default_rng(number)
    for _ in range(BATCHES):
        yield rng.standard_normal((4, 3, SIDE, SIDE)).astype(np.float32) * (1 + number)


def all_batches() -> list[np.ndarray]:
    return [batch for number in range(PARTS) for batch in batches_of(number)]


@pytest.fixture(scope="module")
def network() -> Any:
    """Two convolutions and a classifier of six classes."""
    symbol = mx.sym.var("data")
    for layer in range(2):
        symbol = mx.sym.Convolution(symbol, kernel=(3, 3), num_filter=4, name=f"conv{layer}")
        symbol = mx.sym.Activation(symbol, act_type="relu", name=f"relu{layer}")
    symbol = mx.sym.FullyConnected(symbol, num_hidden=6, name="dense")
    shapes, _, _ = symbol.infer_shape(data=(1, 3, SIDE, SIDE))
    rng = np.random.default_rng(0)
    shape_of = dict(zip(symbol.list_arguments(), shapes, strict=True))
    values = {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in shape_of.items()}
    return from_symbol(symbol, {n: mx.nd.array(v) for n, v in values.items() if n != "data"}, {})


def planned(network: Any, calib_mode: str = "entropy", **options: Any) -> Prepared:
    return pipeline.plan(network, QuantConfig(calib_mode=calib_mode, **options))


def by_one(prepared: Prepared) -> Calibrated:
    """Calibration as without partitions, in one process."""
    whole = feeds(all_batches(), prepared.fused.inputs, Budget(percent=100.0))
    return pipeline.calibrate(prepared, whole, MxnetRunner(), progress=False)


def calibrate(prepared: Prepared, data: Any, client: Any = None, **options: Any) -> Calibrated:
    return distributed.calibrate(prepared, data, MxnetRunner(), client, **options)


def numbers(load: Callable[[Any], Any] = batches_of, items: Any = range(PARTS)) -> Partitions:
    return Partitions.of(load, items, "numbers")


def content(statistics: Statistics) -> dict[str, dict[str, bytes]]:
    """The bytes of every array of every state."""
    return {n: {k: v.tobytes() for k, v in s.to_arrays().items()} for n, s in statistics.states.items()}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers. Do not kill them."""
    with distributed.local_client(2) as found:
        yield found


def test_workers_here_listen_to_this_machine_alone(client: Any) -> None:
    psutil = pytest.importorskip("psutil")
    here = psutil.Process()
    sockets = [c.laddr for p in (here, *here.children(recursive=True)) for c in p.net_connections("tcp")
               if c.status == "LISTEN"]  # fmt: skip
    assert len(sockets) >= 3
    assert {address.ip for address in sockets} <= {"127.0.0.1", "::1"}
    assert client.scheduler.address.startswith("tcp://127.0.0.1:")


# ---- in this process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("calib_mode", ["entropy", "naive"])
def test_partitions_give_the_states_of_the_whole(network: Any, calib_mode: str) -> None:
    prepared = planned(network, calib_mode)
    one, many = by_one(prepared), calibrate(prepared, numbers())
    assert content(one.statistics) == content(many.statistics)
    assert many.statistics.complete
    assert (many.statistics.examples, many.statistics.batches) == (PARTS * BATCHES * 4, PARTS * BATCHES)
    assert [s.name for s in many.statistics.stretches] == [str(n) for n in range(PARTS)]
    assert {k: v.range for k, v in one.thresholds.items()} == {k: v.range for k, v in many.thresholds.items()}


def test_an_average_follows_the_order_of_the_partitions(network: Any) -> None:
    prepared = planned(network, "ema_minmax")
    one, many = by_one(prepared), calibrate(prepared, numbers())
    for name, threshold in one.thresholds.items():
        found = many.thresholds[name].range
        assert_close([found.min, found.max], [threshold.range.min, threshold.range.max], rtol=1e-6, atol=0)


def logged(folder: Path, number: int) -> Iterator[np.ndarray]:
    """The batches of a partition; leaves a line for each time they are read."""
    with (folder / "log").open("a") as log:
        log.write(f"{number}\n")
    if number == 4 and (folder / "interrupt").exists():
        raise KeyboardInterrupt
    return batches_of(number)


def read_in(folder: Path) -> list[int]:
    """Which partitions were read, sorted."""
    return sorted(map(int, (folder / "log").read_text().split()))


class Logged:
    """`logged` in ``folder``, to be pickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> Iterator[np.ndarray]:
        return logged(self.folder, number)


def test_an_interrupted_run_goes_on(network: Any, tmp_path: Path) -> None:
    prepared, file = planned(network), tmp_path / "net.stats"
    (tmp_path / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        calibrate(prepared, numbers(Logged(tmp_path)), stats=file)
    part = Statistics.load(file)
    assert (part.complete, part.examples) == (False, 4 * BATCHES * 4)
    (tmp_path / "interrupt").unlink()
    done = calibrate(prepared, numbers(Logged(tmp_path)), stats=file)
    assert read_in(tmp_path) == [0, 1, 2, 3, 4, 4, 5]
    assert content(done.statistics) == content(by_one(prepared).statistics)
    again = calibrate(prepared, numbers(Logged(tmp_path)), stats=file)
    assert len(read_in(tmp_path)) == 7
    assert dict(again.thresholds) == dict(done.thresholds)


def test_files_of_something_else(network: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.stats"
    calibrate(planned(network), numbers(), stats=file)
    says = r"net\.stats: the statistics hold data '4', which is none of the 4 partitions of numbers; give another file"
    with pytest.raises(mxq.CalibrationError, match=says):
        calibrate(planned(network), numbers(items=range(4)), stats=file)
    with pytest.raises(mxq.CalibrationError, match=r"net\.stats: the statistics hold histogram .* wanted is moving"):
        calibrate(planned(network, "ema_minmax"), numbers(), stats=file)
    more = calibrate(planned(network), numbers(items=range(-0, PARTS + 1)), stats=file)  # more data is no other data
    assert more.statistics.examples == (PARTS + 1) * BATCHES * 4


def test_averages_need_what_came_before(network: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.stats"
    calibrate(planned(network, "ema_minmax"), numbers(items=[1, 2]), stats=file)
    with pytest.raises(mxq.CalibrationError, match="averages over batches in order, and partition '0' is missing"):
        calibrate(planned(network, "ema_minmax"), numbers(items=[0, 1, 2]), stats=file)


def broken(number: int) -> Iterator[np.ndarray]:
    """Partition 2 cannot be read."""
    if number == 2:
        raise OSError("no such disk")
    yield from batches_of(number)


def not_finite(number: int) -> list[np.ndarray]:
    return [np.full((2, 3, SIDE, SIDE), np.nan if number == 2 else 1, np.float32)]


def nothing(number: int) -> list[np.ndarray]:
    return [] if number == 2 else list(batches_of(number))


def not_a_loader(number: int) -> int:
    return number


FAILURES = [
    (broken, "partition '2': reading calibration batch 1 failed: OSError: no such disk"),
    (not_finite, r"partition '2': tensor 'data' in batch 1 of the calibration data: \d+ of \d+ values are not finite"),
    (nothing, "partition '2': calibration data is an empty list"),
    (not_a_loader, r"partition '\d': calibration data is int"),
]


@pytest.mark.parametrize(("load", "says"), FAILURES)
def test_failures_name_the_partition(network: Any, load: Callable[[int], Any], says: str) -> None:
    with pytest.raises(mxq.DataError, match=says) as caught:
        calibrate(planned(network), numbers(load))
    assert of_surroundings(pickle.loads(pickle.dumps(caught.value))) is (load is broken)


@pytest.mark.parametrize(
    ("data", "client", "options", "says"),
    [
        (np.zeros((2, 3)), None, {}, "the data is a ndarray; on workers it has to be partitions: Partitions.images"),
        (numbers(), "tcp://127.0.0.1:1", {}, "client is 'tcp://127.0.0.1:1'; allowed: a distributed.Client"),
        (numbers(), None, {"num_calib_examples": 5}, "num_calib_examples is 5 beside partitions"),
    ],
)
def test_calls_that_are_refused(network: Any, data: Any, client: Any, options: Any, says: str) -> None:
    with pytest.raises(mxq.ConfigError, match=says):
        calibrate(planned(network, **options), data, client)


def test_without_dask(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(mxq.ConfigError, match=r"Dask is needed: pip install 'mxq\[distributed\]'"):
        calibrate(planned(network), numbers(), client=object())
    assert calibrate(planned(network, "none"), numbers()).thresholds == mxq.Thresholds()


@pytest.mark.parametrize("workers", [0, True, "2"])
def test_numbers_of_workers_that_are_refused(workers: Any) -> None:
    with (
        pytest.raises(mxq.ConfigError, match=r"workers is .*; allowed: a whole number from 1"),
        distributed.local_client(workers),
    ):
        pass


# ---- on workers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
class TestOnWorkers:
    @pytest.mark.parametrize("calib_mode", ["entropy", "naive", "ema_minmax"])
    def test_the_result_is_that_of_one_process(
        self, network: Any, client: Any, tmp_path: Path, calib_mode: str
    ) -> None:
        prepared = planned(network, calib_mode)
        files = [tmp_path / name for name in ("one.stats", "two.stats")]
        one = calibrate(prepared, numbers(), stats=files[0])
        two = calibrate(prepared, numbers(), client, stats=files[1])
        assert content(one.statistics) == content(two.statistics)
        assert one.statistics.stretches == two.statistics.stretches
        assert dict(one.thresholds) == dict(two.thresholds)
        assert one.warnings == two.warnings == ()
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_workers_share_the_threads(self, network: Any, client: Any) -> None:
        prepared = planned(network)
        asked = pipeline.wanted(prepared)
        run = Run(Job(prepared.fused, Collecting(asked), batches_of), numbers(), client)
        calibrating.collect(run, MxnetRunner(), asked, network={})
        assert run.threads == dict.fromkeys(map(str, range(PARTS)), 1)  # conftest.py allows two, for two workers
        assert run.advice == ()

    @pytest.mark.parametrize(("load", "says"), FAILURES[:2])
    def test_failures_name_the_partition(self, network: Any, client: Any, load: Any, says: str) -> None:
        with pytest.raises(mxq.DataError, match=says):
            calibrate(planned(network), numbers(load), client)

    def test_what_cannot_travel(self, network: Any, client: Any) -> None:
        with pytest.raises(
            mxq.ConfigError, match=r"partition '<unlocked .*' cannot be sent to a worker: cannot pickle"
        ):
            calibrate(planned(network), numbers(items=[threading.Lock()]), client)
        lock = threading.Lock()
        with pytest.raises(mxq.ConfigError, match=r"the job .* cannot be sent to a worker: cannot pickle"):
            calibrate(planned(network), numbers(lambda n: (lock, n)), client)

    def test_an_interrupted_run_goes_on(
        self, network: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepared, file = planned(network), tmp_path / "net.stats"
        add, added = calibrating.Total.add, []

        def interrupted(total: Any, seen: Any) -> None:
            if len(added) == 3:
                raise KeyboardInterrupt
            added.append(seen.stretch.name)
            add(total, seen)

        monkeypatch.setattr(calibrating.Total, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(prepared, numbers(Logged(tmp_path)), client, stats=file)
        monkeypatch.undo()
        time.sleep(0.5)  # partitions that were under way end, unheard
        (tmp_path / "log").write_text("")
        done = calibrate(prepared, numbers(Logged(tmp_path)), client, stats=file)
        assert read_in(tmp_path) == sorted({*range(PARTS)} - {*map(int, added)})
        assert content(done.statistics) == content(by_one(prepared).statistics)


class Killing:
    """Ends its worker while partition 3 is read: the first time, or every time."""

    def __init__(self, folder: Path, *, always: bool) -> None:
        self.folder, self.always = folder, always

    def __call__(self, number: int) -> Iterator[np.ndarray]:
        marker = self.folder / "killed"
        for count, batch in enumerate(logged(self.folder, number)):
            if number == 3 and count == 1 and (self.always or not marker.exists()):
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_loses_nothing(network: Any, tmp_path: Path, workers: int) -> None:
    prepared = planned(network)
    with distributed.local_client(workers) as client:
        found = calibrate(prepared, numbers(Killing(tmp_path, always=False)), client)
    assert (tmp_path / "killed").exists()
    read = read_in(tmp_path)
    assert (read.count(3), {*read}) == (2, {*range(PARTS)})
    assert len(read) <= PARTS + 2  # one that had just ended, and had not been fetched, may be read again
    assert content(found.statistics) == content(by_one(prepared).statistics)


@pytest.mark.slow
def test_a_partition_that_kills_workers_is_named(network: Any, tmp_path: Path) -> None:
    from dask import config

    importlib.import_module("distributed")  # it brings the settings of which one is changed

    prepared, file = planned(network), tmp_path / "net.stats"
    says = r"partition '3' ended the worker that ran it, 2 time\(s\): it ran out of memory, or crashed"
    patience = config.set({"distributed.scheduler.allowed-failures": 1})
    with patience, distributed.local_client(2) as client, pytest.raises(mxq.RuntimeFailure, match=says):
        calibrate(prepared, numbers(Killing(tmp_path, always=True)), client, stats=file)
    names = {s.name for s in Statistics.load(file).stretches if s.complete}
    assert names & {"0", "1", "2"}
    assert "3" not in names


@pytest.mark.slow
def test_a_cluster_that_is_there(network: Any) -> None:
    """Started by others, with two threads: Dask's own OMP_NUM_THREADS=1 is replaced, and one network runs at a time."""
    from distributed import LocalCluster

    prepared = planned(network)
    asked = pipeline.wanted(prepared)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster,
        distributed.connect(cluster.scheduler_address) as client,
    ):
        run = Run(Job(prepared.fused, Collecting(asked), batches_of), numbers(), client)
        calibrating.collect(run, MxnetRunner(), asked, network={})
    cores = environment.recommended_threads(machine.detect())
    assert run.threads == dict.fromkeys(map(str, range(PARTS)), cores)
    assert run.advice == ()


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxq.distributed.cluster.TIMEOUT", 0.2)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with (
            pytest.raises(mxq.ConfigError, match=f"no Dask scheduler answers at '{address}'"),
            distributed.connect(address),
        ):
            pass


# ---- threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "default", "threads"),
    [
        (None, None, "3"),
        (None, "1", "3"),
        ("1", "1", "3"),  # what Dask's nanny sets is nobody's wish
        ("1", None, "1"),
        ("2", "1", "2"),
    ],
)
def test_a_worker_takes_its_share(
    monkeypatch: pytest.MonkeyPatch, given: str | None, default: str | None, threads: str
) -> None:
    from mxq.distributed.worker import settle_threads

    monkeypatch.delitem(sys.modules, "mxnet")
    environ = {} if given is None else {"OMP_NUM_THREADS": given}
    assert settle_threads(3, "host", environ, default) == ""
    assert environ == {"OMP_NUM_THREADS": threads}


def test_a_worker_that_cannot_is_told_of() -> None:
    from mxq.distributed.worker import settle_threads

    environ = {"OMP_NUM_THREADS": "8"}
    says = (
        "a worker on host imported MXNet before mxq could limit its threads: it runs on 8, its share of the cores is 3"
    )
    assert settle_threads(3, "host", environ, None).startswith(says)
    assert settle_threads(8, "host", environ, None) == ""
    assert environ == {"OMP_NUM_THREADS": "8"}


@pytest.mark.parametrize(("workers", "given", "share"), [(2, "8", 4), (3, "2", 1), (1, "5", 5)])
def test_local_workers_share_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, workers: int, given: str, share: int
) -> None:
    from mxq.distributed import cluster

    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert cluster.share(workers) == share


SCRIPT = """
import os
THREADS = os.environ.get("OMP_NUM_THREADS")  # as it would be for an import of MXNet here
if __name__ == "__main__":
    from mxq.distributed import local_client
    with local_client(2) as client:
        print(sorted(client.run(lambda: __import__("sys").modules["__mp_main__"].THREADS).values()), THREADS)
    print(os.environ.get("OMP_NUM_THREADS"))
"""


@pytest.mark.slow
def test_scripts_that_import_mxnet_share_threads_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": str(Path(mxq.__file__).parents[1]), "OMP_NUM_THREADS": "6"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["['3', '3'] 6", "6"]


def test_observers_that_are_known_pickle() -> None:
    import pickle

    for name in observers.names():
        if name != "fixed":
            observer = observers.get(name)
            assert pickle.loads(pickle.dumps(observer)) == observer
