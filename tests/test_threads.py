"""Which cores are picked for whom, and that MXNet's operators really run on as many threads as were set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import fresh_python

from mxq import threads
from mxq.errors import ConfigError
from mxq.host.machine import Core, Machine

ROOT = Path(__file__).parents[1]
SERVER = tuple(Core((n, n + 8), node) for node in (0, 1) for n in range(4 * node, 4 * node + 4))
"""Two nodes of four cores of two hyper-threads each; the siblings of a core are n and n + 8."""


def described(topology: tuple[Core, ...], quota: float | None = None) -> Machine:
    cpus = tuple(sorted(cpu for core in topology for cpu in core.cpus))
    return Machine("test", "x86_64", frozenset(), frozenset(), cpus, len(topology), quota, topology=topology)


class TestPlan:
    def test_one_cpu_of_each_core(self) -> None:
        assert threads.plan(machine=described(SERVER)) == (tuple(range(8)),)
        cut = tuple(Core((n + 8,) if n else (0, 8)) for n in range(4))  # the affinity leaves some siblings alone
        assert threads.plan(machine=described(cut)) == ((0, 9, 10, 11),)

    def test_sets_do_not_overlap_and_stay_on_a_node(self) -> None:
        machine = described(SERVER)
        assert threads.plan(2, machine=machine) == ((0, 1, 2, 3), (4, 5, 6, 7))
        assert threads.plan(4, machine=machine) == ((0, 1), (2, 3), (4, 5), (6, 7))
        assert threads.plan(8, machine=machine) == tuple((n,) for n in range(8))
        assert threads.plan(2, 3, machine) == ((0, 1, 2), (4, 5, 6))  # not (3, 4, 5), which is of both
        assert threads.plan(1, 6, machine) == ((0, 1, 2, 3, 4, 5),)

    def test_what_fits_no_node_is_put_together_of_both(self) -> None:
        three = tuple(Core((n,), n // 3) for n in range(6))
        assert threads.split(three, 3) == ((0, 1), (3, 4), (2, 5))

    @pytest.mark.parametrize(
        ("quota", "cpus"), [(8.0, 8), (4.5, (0, 1, 2, 3)), (2.0, (0, 1)), (0.5, (0,)), (6.0, (0, 1, 2, 3, 4, 5))]
    )
    def test_the_quota_leaves_one_node_where_that_is_enough(self, quota: float, cpus: tuple[int, ...] | int) -> None:
        wanted = tuple(range(cpus)) if isinstance(cpus, int) else cpus
        assert threads.plan(machine=described(SERVER, quota)) == (wanted,)

    def test_the_smallest_node_that_is_enough_is_taken(self) -> None:
        uneven = (*(Core((n,), 0) for n in range(6)), *(Core((n,), 1) for n in range(6, 9)))
        assert threads.plan(machine=described(uneven, 3.0)) == ((6, 7, 8),)
        assert threads.plan(machine=described(uneven, 4.0)) == ((0, 1, 2, 3),)
        assert threads.plan(machine=described(uneven, 7.0)) == ((0, 1, 2, 3, 4, 5, 6),)

    def test_a_machine_of_unknown_topology(self) -> None:
        assert threads.plan(machine=Machine("", "", frozenset(), frozenset(), (2, 3, 4, 5), 2)) == ((2, 3),)

    def test_mistakes_are_named(self) -> None:
        with pytest.raises(ConfigError, match=r"instances is 9; allowed: 1\.\.8, a core for each"):
            threads.plan(9, machine=described(SERVER))
        with pytest.raises(ConfigError, match=r"instances is 0; allowed: 1\.\.8"):
            threads.plan(0, machine=described(SERVER))
        with pytest.raises(ConfigError, match=r"threads is 3 for 4 instances; allowed: 1\.\.2, 8 cores"):
            threads.plan(4, 3, described(SERVER))


class TestLaunchLines:
    ONE = "MXNET_CPU_PARALLEL_SIZE=2147483647"

    def test_one_node(self) -> None:
        machine = described(SERVER[:4])
        assert threads.launch_lines(threads.plan(machine=machine), machine, "python my.py") == (
            f"OMP_NUM_THREADS=4 {self.ONE} taskset -c 0-3 python my.py",
        )

    def test_several_nodes(self) -> None:
        machine = described(SERVER)
        assert threads.launch_lines(threads.plan(2, machine=machine), machine) == (
            f"OMP_NUM_THREADS=4 {self.ONE} numactl --physcpubind=0-3 --membind=0 python serve.py &",
            f"OMP_NUM_THREADS=4 {self.ONE} numactl --physcpubind=4-7 --membind=1 python serve.py &",
        )
        (whole,) = threads.launch_lines(threads.plan(machine=machine), machine)
        assert whole == f"OMP_NUM_THREADS=8 {self.ONE} numactl --physcpubind=0-7 --localalloc python serve.py"


BUSY = """
import os, time
import mxq, mxnet as mx

def spent():
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as stream:
            found[task] = int(stream.read().split()[0])
    return found

def busy(side):
    # How many threads a convolution that has not run before keeps busy.
    x, w = mx.nd.ones((4, 64, side, side)), mx.nd.ones((64, 64, 3, 3))
    run = lambda: mx.nd.Convolution(x, w, no_bias=True, kernel=(3, 3), num_filter=64, pad=(1, 1)).wait_to_read()
    run()
    before = spent()
    for _ in range(5):
        run()
    took = {task: t - before.get(task, 0) for task, t in spent().items()}
    return sum(t > max(took.values()) / 5 for t in took.values())
"""


COUNT = """
import os
import mxq, numpy as np, mxnet as mx

def tasks():
    return len(os.listdir("/proc/self/task"))

mx.nd.ones((1000, 1000)).wait_to_read()  # the engine's worker has its team
before = tasks()
mx.nd.array(np.ones((1000, 1000), np.float32)).wait_to_read()
"""


several = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")


class TestUse:
    @several
    @pytest.mark.parametrize("engine", ["", pytest.param("NaiveEngine", marks=pytest.mark.slow)])
    def test_after_the_import_operators_run_on_as_many_threads(self, engine: str) -> None:
        code = BUSY + (
            "print(busy(64), mxq.threads.use(2), busy(65), os.environ['OMP_NUM_THREADS'])\n"
            "if os.fork() == 0: os._exit(0)\n"
            "print(busy(66), mxq.threads.use(1), busy(67))\n"
        )
        done = fresh_python(code, OMP_NUM_THREADS="1", **({"MXNET_ENGINE_TYPE": engine} if engine else {}))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["1", "2", "2", "2", "2", "1", "1"]

    @several
    @pytest.mark.slow
    def test_every_worker_of_the_engine_is_reached(self) -> None:
        code = BUSY + "print(mxq.threads.use(1), busy(64), mxq.threads.use(2), busy(65) > 1)"
        done = fresh_python(code, MXNET_CPU_WORKER_NTHREADS="2", OMP_NUM_THREADS="2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == "1"
        assert done.stdout.split()[2:] == ["2", "True"]

    @several
    def test_copies_start_no_second_team(self) -> None:
        done = fresh_python(COUNT + "print(tasks() - before)", OMP_NUM_THREADS="2")
        assert done.stdout.split() == ["0"], done.stderr

    @several
    def test_a_second_team_is_ended(self) -> None:
        code = COUNT + "print(tasks() - before); mxq.threads.use(2); print(tasks() - before)"
        done = fresh_python(code, OMP_NUM_THREADS="2", MXNET_CPU_PARALLEL_SIZE="200000")
        assert done.stdout.split() == ["1", "0"], done.stderr

    def test_before_the_import(self) -> None:
        cpu = min(os.sched_getaffinity(0))
        code = (
            "import mxq, os, sys; print(mxq.threads.use(1), os.environ['OMP_NUM_THREADS'], 'mxnet' in sys.modules);"
            f"mxq.threads.use(cores=[{cpu}]);"
            "print({c for t in os.listdir('/proc/self/task') for c in os.sched_getaffinity(int(t))})"
        )
        done = fresh_python(code, OMP_NUM_THREADS="2")
        assert done.stdout.split() == ["1", "1", "False", f"{{{cpu}}}"]

    def test_without_arguments_the_users_choice_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "import mxq; print(mxq.threads.use())"
        assert fresh_python(code, OMP_NUM_THREADS="3").stdout.split() == ["3"]
        assert fresh_python(code).stdout.split() == [str(len(threads.plan()[0]))]

    def test_engines_that_cannot_be_reached_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import mxnet  # noqa: F401

        monkeypatch.setenv("MXNET_ENGINE_TYPE", "ThreadedEngine")
        with pytest.raises(ConfigError, match="MXNET_ENGINE_TYPE is 'ThreadedEngine'; allowed: 'ThreadedEnginePerD"):
            threads.use()

    def test_mistakes_are_named(self) -> None:
        most = len(os.sched_getaffinity(0))
        for count in (0, most + 1):
            with pytest.raises(ConfigError, match=rf"count is {count}; allowed: 1\.\.{most}, the CPUs there are"):
                threads.use(count)
        with pytest.raises(ConfigError, match="cores has CPU 4096; allowed: CPUs of this process, "):
            threads.use(cores=[4096])
        with pytest.raises(ConfigError, match="cores is empty; allowed"):
            threads.use(cores=[])
        cpu = min(os.sched_getaffinity(0))
        with pytest.raises(ConfigError, match=r"count is 2; allowed: 1\.\.1, the CPUs of cores"):
            threads.use(2, cores=[cpu])
