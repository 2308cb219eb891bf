from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from mxq.errors import ConfigError
from mxq.host import environment, kernel_text, machine
from mxq.host.interrupts import held
from mxq.host.machine import Core, Machine

C5_FLAGS = "fpu sse4_1 avx avx2 fma avx512f avx512dq avx512cd avx512bw avx512vl"  # Skylake; Cascade Lake adds VNNI
VNNI_FLAGS = f"{C5_FLAGS} avx512_vnni"

C5 = "\n\n".join(  # 2 cores of 2 hyper-threads each; the siblings of a core are n and n + 2
    f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz\n"
    f"physical id\t: 0\nsiblings\t: 4\ncore id\t\t: {cpu % 2}\ncpu cores\t: 2\nflags\t\t: {VNNI_FLAGS}\n"
    for cpu in range(4)
)
C5_SIBLINGS = {0: "0,2\n", 1: "1,3\n", 2: "0,2\n", 3: "1,3\n"}

AMD = "\n\n".join(  # a virtual machine without hyper-threads
    f"processor\t: {cpu}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7R13 Processor\n"
    f"physical id\t: 0\ncore id\t\t: {cpu}\nflags\t\t: fpu sse4_1 avx avx2 fma\n"
    for cpu in range(2)
)

ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


def described(cpus: int = 4, cores: int = 2, flags: str = VNNI_FLAGS, quota: float | None = None) -> Machine:
    known = frozenset(flags.split()) & machine.FLAGS
    return Machine("test", "x86_64", known, known, tuple(range(cpus)), cores, quota)


@pytest.mark.parametrize(
    ("cpuinfo", "model", "target", "saturates"),
    [
        (C5, "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz", "avx512_vnni", False),
        (C5.replace(" avx512_vnni", ""), "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz", "avx512", True),
        (AMD, "AMD EPYC 7R13 Processor", "avx2", True),
        (AMD.replace(" fma", " fma avx_vnni"), "AMD EPYC 7R13 Processor", "avx2", False),
        (AMD.replace(" avx2", ""), "AMD EPYC 7R13 Processor", "unsupported", True),
        (ARM, "", "unsupported", True),
        ("", "", "unsupported", True),
    ],
)
def test_what_the_cpu_is(cpuinfo: str, model: str, target: str, saturates: bool) -> None:
    flags = machine.parse_flags(cpuinfo)
    assert kernel_text.parse_model(cpuinfo) == model
    assert machine.target_of(flags) == target
    assert machine.saturates(flags) is saturates


@pytest.mark.parametrize(
    ("max_isa", "target", "saturates"),
    [
        ("", "avx512_vnni", False),
        ("ALL", "avx512_vnni", False),
        ("AVX512_CORE_VNNI", "avx512_vnni", False),
        ("AVX512_CORE", "avx512", True),
        ("AVX512_MIC", "avx2", True),
        ("AVX2", "avx2", True),
        ("AVX2_VNNI", "avx2", False),
        ("AVX", "unsupported", True),
        ("avx2", "avx512_vnni", False),  # oneDNN minds the case
    ],
)
def test_dnnl_max_cpu_isa(max_isa: str, target: str, saturates: bool) -> None:
    usable = machine.usable_flags(machine.parse_flags(f"flags : {VNNI_FLAGS} avx_vnni"), max_isa)
    assert machine.target_of(usable) == target
    assert machine.saturates(usable) is saturates


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0,2\n", (0, 2)), ("0-2,5,8-9", (0, 1, 2, 5, 8, 9)), ("", ()), ("\n", ())]
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert kernel_text.parse_cpu_list(text) == cpus
    assert kernel_text.parse_cpu_list(kernel_text.cpu_list(cpus)) == cpus


def test_cpu_lists_are_written_as_the_kernel_does() -> None:
    assert kernel_text.cpu_list((5, 2, 0, 1, 9, 8, 8)) == "0-2,5,8-9"


@pytest.mark.parametrize(
    ("affinity", "siblings", "cpuinfo", "cores"),
    [
        ((0, 1, 2, 3), C5_SIBLINGS, C5, [(0, 2), (1, 3)]),
        ((0, 2), C5_SIBLINGS, C5, [(0, 2)]),  # both hyper-threads of one core
        ((1, 2), C5_SIBLINGS, C5, [(1,), (2,)]),  # one of each: what the affinity leaves out is not listed
        ((0, 1, 2, 3), C5_SIBLINGS, "", [(0, 2), (1, 3)]),
        ((0, 1, 2, 3), {}, C5, [(0, 2), (1, 3)]),  # no /sys: core ids of /proc/cpuinfo
        ((0, 1), {}, AMD, [(0,), (1,)]),
        ((0, 1, 2), {}, ARM, [(0,), (1,), (2,)]),  # nothing known: a CPU is a core
        ((), {}, "", []),
    ],
)
def test_cores(affinity: tuple[int, ...], siblings: dict[int, str], cpuinfo: str, cores: list[tuple[int, ...]]) -> None:
    assert [core.cpus for core in machine.find_cores(affinity, siblings, cpuinfo)] == cores


def test_cores_come_node_by_node(tmp_path: Path) -> None:
    about = "sys/devices/system"
    siblings = {f"{about}/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}
    write(tmp_path, siblings)
    write(tmp_path, {f"{about}/cpu/cpu{n}/topology/physical_package_id": f"{n % 2}\n" for n in range(8)})
    by_socket = (Core((0, 4), 0), Core((2, 6), 0), Core((1, 5), 1), Core((3, 7), 1))
    assert machine.detect(tmp_path, {}, range(8)).topology == by_socket
    write(tmp_path, {f"{about}/node/node0/cpulist": "0-1,4-5\n", f"{about}/node/node1/cpulist": "2-3,6-7\n"})
    found = machine.detect(tmp_path, {}, range(1, 8))
    assert found.topology == (Core((1, 5), 0), Core((4,), 0), Core((2, 6), 1), Core((3, 7), 1))
    assert (found.cores, found.cpus) == (4, 7)


@pytest.mark.parametrize(
    ("text", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("200000", 2.0)]
)
def test_quota_of_cgroup_v2(text: str, quota: float | None) -> None:
    assert kernel_text.parse_cpu_max(text) == quota


@pytest.mark.parametrize(
    ("limit", "period", "quota"),
    [("150000", "100000", 1.5), ("-1", "100000", None), ("", "", None), ("50000", "", 0.5)],
)
def test_quota_of_cgroup_v1(limit: str, period: str, quota: float | None) -> None:
    assert kernel_text.parse_cfs(limit, period) == quota


@pytest.mark.parametrize(
    ("text", "limit"), [("1073741824\n", 1 << 30), ("max", None), ("9223372036854771712", None), ("", None)]
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert kernel_text.parse_limit(text) == limit


def test_installed_memory() -> None:
    assert kernel_text.parse_memory("MemTotal:       24683904 kB\nMemFree: 1 kB\n") == 24683904 * 1024
    assert kernel_text.parse_memory("") is None


def test_cgroup_directories_of_v1_v2_and_their_parents() -> None:
    v2 = kernel_text.cgroup_directories("0::/pod/box\n", Path("/g"))
    assert [str(p) for p in v2] == ["/g/pod/box", "/g/pod", "/g"]
    v1 = kernel_text.cgroup_directories("4:cpu,cpuacct:/box\n", Path("/g"))
    assert {"/g/cpu,cpuacct/box", "/g/cpu/box", "/g/cpu", "/g/cpuacct"} <= {str(p) for p in v1}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, None, 4096 * 1024),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000",  # the parent's limit binds
                "sys/fs/cgroup/pod/box/cpu.max": "400000 100000",
                "sys/fs/cgroup/pod/box/memory.max": "1048576",
            },
            1.5,
            1048576,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",  # a container sees its own group as the root
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2097152",
            },
            0.5,
            2097152,
        ),
        ({}, None, 4096 * 1024),
    ],
)
def test_detect(tmp_path: Path, files: dict[str, str], quota: float | None, memory: int) -> None:
    write(tmp_path, {"proc/cpuinfo": C5, "proc/meminfo": "MemTotal: 4096 kB\n", **files})
    found = machine.detect(tmp_path, {"DNNL_MAX_CPU_ISA": "AVX512_CORE"})
    assert found.model.startswith("Intel")
    assert found.quota == quota
    assert found.memory == memory
    assert (found.target, found.saturates) == ("avx512", True)
    assert "avx512_vnni" in found.flags


def test_detect_says_what_this_process_may_use() -> None:
    found = machine.detect()
    assert found.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert 1 <= found.cores <= found.cpus
    assert sorted(cpu for core in found.topology for cpu in core.cpus) == list(found.affinity)
    assert found.threads_per_core == found.cpus / found.cores
    assert 1 <= environment.recommended_threads(found) <= found.cores
    assert found.target in machine.TARGETS


@pytest.mark.parametrize(
    ("cpus", "environ", "threads"),
    [
        (4, {}, 2),
        (2, {}, 1),
        (1, {}, 1),
        (5, {}, 2),
        (4, {"OMP_NUM_THREADS": "3"}, 3),
        (4, {"OMP_NUM_THREADS": " 8 "}, 8),
        (4, {"OMP_NUM_THREADS": ""}, 2),
        (4, {"OMP_NUM_THREADS": "0"}, 4),
        (4, {"MXNET_OMP_MAX_THREADS": "3"}, 3),
        (4, {"MXNET_OMP_MAX_THREADS": "64"}, 4),
        (4, {"MXNET_OMP_MAX_THREADS": "3", "OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads_mxnet_would_pick(cpus: int, environ: dict[str, str], threads: int) -> None:
    assert environment.threads_mxnet_would_pick(described(cpus), environ) == threads


@pytest.mark.parametrize("value", ["4,2", "two", "2.0", "0x2"])
def test_values_that_abort_mxnet_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="allowed: one whole number"):
        environment.threads_mxnet_would_pick(described(), {"OMP_NUM_THREADS": value})


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(4, None, 4), (4, 8.0, 4), (4, 2.5, 2), (4, 0.5, 1), (1, None, 1)]
)
def test_recommended_threads(cores: int, quota: float | None, threads: int) -> None:
    assert environment.recommended_threads(described(2 * cores, cores, quota=quota)) == threads


def test_apply_threads_leaves_the_users_choice() -> None:
    environ: dict[str, str] = {}
    assert environment.apply_threads(environ, 2)
    assert environ == {"OMP_NUM_THREADS": "2"}
    assert not environment.apply_threads(environ, 4)
    assert environ == {"OMP_NUM_THREADS": "2"}


def test_copies_start_no_second_team_unless_the_user_says_so() -> None:
    environ: dict[str, str] = {}
    environment.disable_parallel_copy(environ)
    assert environ == {"MXNET_CPU_PARALLEL_SIZE": "2147483647"}
    chosen = {"MXNET_CPU_PARALLEL_SIZE": "5000"}
    environment.disable_parallel_copy(chosen)
    assert chosen == {"MXNET_CPU_PARALLEL_SIZE": "5000"}


def test_no_advice_where_all_is_well() -> None:
    assert environment.advice(described(4, 2), {}) == []  # hyper-threads: halving is right
    assert environment.advice(described(2, 2), {"OMP_NUM_THREADS": "2"}) == []


@pytest.mark.parametrize(
    ("found", "environ", "says"),
    [
        (described(2, 2), {}, "set OMP_NUM_THREADS=2 before MXNet is imported: MXNet on its own takes 1, this process"),
        (described(8, 8, quota=2.0), {}, "set OMP_NUM_THREADS=2 before MXNet is imported: MXNet on its own takes 4"),
        (described(8, 8, quota=2.0), {}, "this process has the time of 2 CPUs"),
        (described(4, 2), {"OMP_NUM_THREADS": "4"}, "OMP_NUM_THREADS asks for 4, this process has 2 cores"),
        (described(4, 2), {"OMP_NUM_THREADS": "2,2"}, "MXNet aborts on anything else"),
        (described(flags=C5_FLAGS), {}, "quantize for target avx512: without VNNI"),
        (described(flags="sse4_1"), {}, "no AVX2"),
        (
            replace(described(), usable=frozenset({"avx2"})),
            {"DNNL_MAX_CPU_ISA": "AVX2"},
            "unset DNNL_MAX_CPU_ISA=AVX2: it holds oneDNN at avx2, this CPU can do avx512_vnni",
        ),
    ],
)
def test_advice(found: Machine, environ: dict[str, str], says: str) -> None:
    sentences = environment.advice(found, environ)
    assert len(sentences) == 1
    assert says in sentences[0]


def test_native_is_this_machine() -> None:
    with_vnni, without = described(), described(flags=C5_FLAGS)
    assert [machine.resolve_target("native", m) for m in (with_vnni, without)] == ["avx512_vnni", "avx512"]
    assert machine.resolve_target("native", described(flags="avx2 avx_vnni")) == "avx512_vnni"
    assert machine.resolve_target("native", described(flags="sse4_2")) == "avx2"
    assert machine.resolve_target("avx2", with_vnni) == "avx2"


def test_only_a_network_for_vnni_is_wrong_elsewhere() -> None:
    with_vnni, without = described(), described(flags=C5_FLAGS)
    assert "quantize it with target='avx512'" in machine.target_mismatch("avx512_vnni", without)
    fits = [("avx512_vnni", with_vnni), ("avx2", with_vnni), ("avx2", without), ("", without)]
    assert [machine.target_mismatch(*pair) for pair in fits] == ["", "", "", ""]


@pytest.mark.parametrize("flags", ["avx512f avx512bw avx512vl avx512dq avx512_vnni avx2", C5_FLAGS, "avx2", "sse4_1"])
@pytest.mark.parametrize("made", ["avx512_vnni", "avx512", "avx2", ""])
def test_advice_on_a_network(made: str, flags: str) -> None:
    """A network that is right here and as accurate as it can be gets none."""
    here = described(flags=flags)
    about = [s for s in environment.advice(here, {}, made) if "quantize" in s]
    if made == "":
        assert about == [s for s in environment.advice(here, {}) if "quantize" in s]
    elif made == "avx512_vnni" and here.saturates:
        assert len(about) == 1
        assert f"quantize it with target={machine.resolve_target('native', here)!r}" in about[0]
    elif made != "avx512_vnni" and not here.saturates:
        assert len(about) == 1
        assert f"quantized for {made}; it is right here too" in about[0]
    else:
        assert about == []


class TestInterrupts:
    """`mxq.host.interrupts.held`."""

    def test_a_signal_waits_for_the_end(self) -> None:
        done: list[str] = []

        def work() -> None:
            with held():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("all")

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == ["all"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_another_handler_is_left_alone(self) -> None:
        heard: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
        try:
            with held():
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
        assert heard == [signal.SIGINT]

    def test_what_was_raised_meanwhile_is_its_cause(self) -> None:
        def work() -> None:
            with held():
                os.kill(os.getpid(), signal.SIGINT)
                raise ValueError

        with pytest.raises(KeyboardInterrupt) as found:
            work()
        assert isinstance(found.value.__context__, ValueError)
