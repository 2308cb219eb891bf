"""What a sweep tries, what it makes of answers, and the processes it starts (here without MXNet)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from mxq.bench import processes
from mxq.bench.processes import Job
from mxq.bench.sweep import setups, sweep
from mxq.bench.sweep_result import Reading, Row, Setup, Sweep, combine
from mxq.bench.worker import timed
from mxq.errors import RuntimeFailure, StorageError
from mxq.host.machine import Core, Machine

CPU = min(os.sched_getaffinity(0))
ALONE, PAIR = Setup(2, ((0, 1),)), Setup(1, ((0,), (1,)))


def machine(cores: int, nodes: int = 1) -> Machine:
    topology = tuple(Core((n,), n * nodes // cores) for n in range(cores))
    return Machine("", "", frozenset(), frozenset(), tuple(range(cores)), cores, topology=topology)


def reading(median: float, rate: float, memory: int = 10) -> Reading:
    return Reading(median, 2 * median, rate, 100, memory)


@pytest.mark.parametrize(
    ("cores", "nodes", "pairs"),
    [
        (1, 1, [(1, 1)]),
        (2, 1, [(1, 1), (2, 1), (1, 2)]),
        (6, 1, [(1, 1), (2, 1), (4, 1), (6, 1), (3, 2), (1, 6)]),
        (8, 2, [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 4), (1, 8)]),
        (9, 3, [(1, 1), (2, 1), (4, 1), (8, 1), (9, 1), (4, 2), (3, 3), (2, 4), (1, 9)]),
    ],
)
def test_what_is_tried(cores: int, nodes: int, pairs: list[tuple[int, int]]) -> None:
    tried = setups(machine(cores, nodes))
    assert [(s.threads, s.instances) for s in tried] == pairs
    for setup in tried:
        cpus = [cpu for held in setup.sets for cpu in held]
        assert len(set(cpus)) == len(cpus) == setup.threads * setup.instances


class TestSweep:
    def test_a_failure_is_a_row_and_the_sweep_goes_on(self) -> None:
        def run(setup: Setup) -> Generator[Reading, None, None]:
            yield reading(1.0, setup.instances)
            if setup is ALONE:
                raise RuntimeFailure("no memory\nat all")
            yield reading(2.0, 4.0)

        seen: list[int] = []
        found = sweep([ALONE, PAIR], (1, 16), run, progress=seen.append)
        assert found.complete
        assert [(r.setup, r.batch, r.problem) for r in found.rows] == [
            (ALONE, 1, ""), (ALONE, 16, "no memory at all"), (PAIR, 1, ""), (PAIR, 16, ""),
        ]  # fmt: skip
        assert seen == [1, 2, 3, 4]

    def test_no_room_is_no_setups_fault(self) -> None:
        def run(setup: Setup) -> Generator[Reading, None, None]:
            raise StorageError("a process to time cannot be started: No space left on device")
            yield

        with pytest.raises(StorageError, match="No space left"):
            sweep([Setup(1, ((0,),))], (1,), run)

    def test_interruption_keeps_what_there_is_and_ends_the_processes(self) -> None:
        ended = []

        def run(setup: Setup) -> Generator[Reading, None, None]:
            try:
                yield reading(1.0, 1.0)
                raise KeyboardInterrupt
            finally:
                ended.append(setup)

        found = sweep([ALONE, PAIR], (1, 16), run)
        assert not found.complete
        assert [(r.setup, r.batch) for r in found.rows] == [(ALONE, 1)]
        assert ended == [ALONE]

    def test_what_does_not_fit_into_memory_is_not_started(self) -> None:
        started = []

        def run(setup: Setup) -> Generator[Reading, None, None]:
            started.append(setup)
            yield reading(1.0, 1.0, memory=600_000_000)

        found = sweep([ALONE, PAIR], (1,), run, memory=1_000_000_000)
        assert started == [ALONE]
        assert found.rows[1].problem == "not started: needs about 1.2 GB, there are 1.0"

    def test_the_best(self) -> None:
        rows = (
            Row(ALONE, 1, reading(0.004, 250)),
            Row(ALONE, 16, reading(0.001, 400)),  # no latency: not the smallest batch
            Row(PAIR, 1, reading(0.002, 300)),  # nor this: two processes
            Row(PAIR, 16, reading(0.030, 900)),
            Row(PAIR, 32, problem="killed"),
        )
        found = Sweep(rows)
        assert found.latency is rows[0]
        assert found.throughput is rows[3]
        told = found.to_json(machine(2))
        assert told["best"]["throughput"] == {
            "row": 3,
            "commands": [
                f"OMP_NUM_THREADS=1 MXNET_CPU_PARALLEL_SIZE=2147483647 taskset -c {n} python serve.py &" for n in (0, 1)
            ],
        }
        assert told["rows"][4] == {
            "threads": 1, "instances": 2, "cpus": [[0], [1]], "batch_size": 32, "reading": None, "problem": "killed",
        }  # fmt: skip
        json.dumps(told, allow_nan=False)
        assert Sweep(rows[4:]).to_json(machine(2))["best"] == {"latency": None, "throughput": None}


def test_processes_are_added_up() -> None:
    answers = [
        {"seconds": [1.0, 3.0], "elapsed": 4.0, "memory": 5},
        {"seconds": [2.0, 2.0, 2.0, 2.0], "elapsed": 8.0, "memory": 7},
    ]
    found = combine(answers, 16)
    assert (found.median, found.rate, found.calls, found.memory) == (2.0, 16 * (2 / 4 + 4 / 8), 6, 7)
    assert found.p90 == pytest.approx(2.5, rel=1e-12, abs=0)


def test_a_worker_calls_until_the_time_is_over_and_three_times_at_least() -> None:
    now = [0.0]

    def call() -> None:
        now[0] += 1.0

    found = timed(call, 4.5, lambda: now[0])
    assert (found["seconds"], found["elapsed"]) == ([1.0] * 5, 5.0)
    assert len(timed(call, 0.0, lambda: now[0])["seconds"]) == 3
    assert found["memory"] > 1 << 20


def fake(monkeypatch: pytest.MonkeyPatch, body: str, **changes: float) -> Job:
    """A job whose processes run ``body`` in place of the worker, after a process has taken its CPUs."""
    boot = processes.BOOT.partition("from mxq.bench.worker")[0] + "say = lambda x: print(json.dumps(x), flush=True)\n"
    monkeypatch.setattr(processes, "BOOT", boot + body)
    return Job(Path("net"), {"data": (3, 4, 4)}, (1,), **changes)  # type: ignore[arg-type]


TIMES = "say({'seconds': [1.0], 'elapsed': 1.0, 'memory': 1})"


class TestProcesses:
    def test_they_are_pinned_and_told_what_to_do(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
        told = tmp_path / "told"
        job = fake(
            monkeypatch,
            f"open({str(told)!r}, 'a').write(json.dumps([sorted(os.sched_getaffinity(0)), spec['shapes'], "
            "os.environ['OMP_NUM_THREADS'], 'GOMP_CPU_AFFINITY' in os.environ, spec['path']]) + chr(10))\n"
            f"say('ready'); assert sys.stdin.readline() == 'go\\n'; {TIMES}",
        )
        (found,) = job.run(Setup(1, ((CPU,), (CPU,))))
        assert (found.calls, found.rate) == (2, 2.0)
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        path = [str(Path(entry).resolve()) for entry in sys.path]
        assert lines == [[[CPU], {"data": [3, 4, 4]}, "1", False, path]] * 2

    def test_all_are_ready_before_one_goes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        body = (
            "import time, pathlib; at = pathlib.Path(spec['prefix']).with_name('at')\n"
            "time.sleep(0.3 * (os.getpid() % 2)); open(at, 'a').write('r'); say('ready'); sys.stdin.readline()\n"
            f"open(at, 'a').write('g'); {TIMES}"
        )
        monkeypatch.chdir(tmp_path)
        next(fake(monkeypatch, body).run(Setup(1, ((CPU,),) * 3)))
        assert (tmp_path / "at").read_text() == "rrrggg"

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("print('x', file=sys.stderr); sys.exit('out of luck')", f"process on CPU {CPU}: out of luck"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("sys.exit(3)", "exit code 3"),
            ("os.kill(os.getpid(), 9)", r"killed by SIGKILL \(out of memory\?\)"),
            ("say('ready'); sys.exit('after that')", "after that"),
        ],
    )
    def test_one_that_ends_says_why(self, monkeypatch: pytest.MonkeyPatch, body: str, says: str) -> None:
        with pytest.raises(RuntimeFailure, match=says):
            next(fake(monkeypatch, body).run(Setup(1, ((CPU,),))))

    def test_one_that_never_answers_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        job = fake(monkeypatch, "import time; time.sleep(60)", patience=0.2, seconds=0.0)
        with pytest.raises(RuntimeFailure, match="no answer in time"):
            next(job.run(Setup(1, ((CPU,),))))

    def test_none_is_left_when_the_run_is_closed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        told = tmp_path / "pids"
        body = (
            f"open({str(told)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            f"say('ready'); sys.stdin.readline(); {TIMES}; sys.stdin.readline()"
        )
        run = fake(monkeypatch, body).run(Setup(1, ((CPU,), (CPU,))))
        next(run)
        pids = told.read_text().split()
        assert all(Path("/proc", pid).exists() for pid in pids)
        run.close()
        assert len(pids) == 2
        assert not any(Path("/proc", pid).exists() for pid in pids)
