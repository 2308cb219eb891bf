"""What the CPU is and how many threads MXNet should use on it; `mxq.threads` acts on that. Imports no MXNet.

MXNet takes half the processors because it supposes that two hyper-threads share each core (``src/engine/openmp.cc``
of 1.9.1). Where that is not so, it leaves half of the machine idle. `recommended_threads` counts real cores.
The functions that parse take text, so any machine can be described in a test.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mxq.errors import ConfigError

TARGETS = ("avx512_vnni", "avx512", "avx2", "unsupported")
"""What oneDNN's int8 kernels are written for, best first; "unsupported": older than AVX2, or not x86-64."""

VNNI = TARGETS[0]
"""The target whose sums of products are exact."""

NATIVE = "native"
"""In place of a target: that of this machine."""

AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})

FLAGS = AVX512 | {"avx2", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16"}
"""The flags of ``/proc/cpuinfo`` that decide which kernels run."""

ISA_KEEPS: Mapping[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx2", "avx_vnni"}),
    "AVX512_MIC": frozenset({"avx2", "avx512f"}),
    "AVX512_MIC_4OPS": frozenset({"avx2", "avx512f"}),
    "AVX512_CORE": AVX512 | {"avx2"},
}
"""Values of ``DNNL_MAX_CPU_ISA`` -> the flags that oneDNN 2.4 still uses; values not listed keep VNNI."""


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core, as far as this process may use it.

    Attributes:
        cpus: its hyper-threads within the affinity, by the kernel's numbers; never empty.
        node: the NUMA node that it and its memory belong to, or its socket where the kernel tells no nodes.
    """

    cpus: tuple[int, ...]
    node: int = 0


@dataclass(frozen=True)
class Machine:
    """Facts about the CPU, as far as this process may use it.

    Attributes:
        model: the processor's name.
        architecture: "x86_64", "aarch64", ...
        flags: those of `FLAGS` that it has.
        usable: those of ``flags`` that ``DNNL_MAX_CPU_ISA`` lets oneDNN use.
        affinity: the logical CPUs this process may run on.
        cores: how many physical cores these are.
        quota: CPUs' worth of time that the cgroup grants; None: unlimited.
        memory: bytes this process may use; None: unknown.
        topology: these cores, node by node; empty: unknown.
    """

    model: str
    architecture: str
    flags: frozenset[str]
    usable: frozenset[str]
    affinity: tuple[int, ...]
    cores: int
    quota: float | None = None
    memory: int | None = None
    topology: tuple[Core, ...] = ()

    @property
    def target(self) -> str:
        """One of `TARGETS`."""
        return target_of(self.usable)

    @property
    def saturates(self) -> bool:
        """Whether u8 x s8 products are added in pairs in 16 bits, where large ones saturate (see `saturates`)."""
        return saturates(self.usable)

    @property
    def cpus(self) -> int:
        """Logical CPUs within the affinity."""
        return len(self.affinity)

    @property
    def threads_per_core(self) -> float:
        """Hyper-threads per core; a fraction where the affinity cuts through cores."""
        return self.cpus / self.cores


def detect(
    root: Path = Path("/"), environ: Mapping[str, str] = os.environ, affinity: Iterable[int] | None = None
) -> Machine:
    """Describes this machine, from ``/proc`` and ``/sys`` under ``root``; ``affinity`` by default: this process's."""
    cpuinfo = _read(root / "proc/cpuinfo")
    cpus = _affinity() if affinity is None else tuple(sorted(affinity))
    about = root / "sys/devices/system/cpu"
    siblings = {cpu: _read(about / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    topology = find_cores(cpus, siblings, cpuinfo, _nodes(root, cpus))
    flags = parse_flags(cpuinfo)
    groups = cgroup_directories(_read(root / "proc/self/cgroup"), root / "sys/fs/cgroup")
    limits = [m for m in (parse_limit(_read(d / name)) for d in groups for name in MEMORY_FILES) if m is not None]
    installed = parse_memory(_read(root / "proc/meminfo"))
    return Machine(
        model=parse_model(cpuinfo) or platform.processor() or "unknown",
        architecture=platform.machine(),
        flags=flags,
        usable=usable_flags(flags, environ.get("DNNL_MAX_CPU_ISA", "")),
        affinity=cpus,
        cores=max(len(topology), 1),
        quota=min((q for q in map(_quota, groups) if q is not None), default=None),
        memory=min([*limits, *([installed] if installed else [])], default=None),
        topology=topology,
    )


def parse_model(cpuinfo: str) -> str:
    """The processor's name from the text of ``/proc/cpuinfo``; "" where it gives none (aarch64)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def parse_flags(cpuinfo: str) -> frozenset[str]:
    """Those of `FLAGS` that the first processor of ``/proc/cpuinfo`` has."""
    found = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split() if found else ()) & FLAGS


def usable_flags(flags: frozenset[str], max_isa: str) -> frozenset[str]:
    """The ``flags`` that ``DNNL_MAX_CPU_ISA=max_isa`` leaves; any other spelling is no limit to oneDNN."""
    return flags & ISA_KEEPS.get(max_isa, flags)


def target_of(flags: frozenset[str]) -> str:
    """Which of `TARGETS` oneDNN's int8 kernels run for on a CPU with ``flags``."""
    if "avx2" not in flags:
        return "unsupported"
    if not flags >= AVX512:
        return "avx2"
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512"


def resolve_target(asked: str, machine: Machine) -> str:
    """The target that "native" stands for on ``machine``; any other is itself.

    AVX2 with VNNI sums as AVX-512 with it does, and counts as that. A CPU without int8 kernels worth using counts as
    "avx2", which asks for the most care.
    """
    if asked != NATIVE:
        return asked
    if not machine.saturates:
        return VNNI
    return machine.target if machine.target in TARGETS[:3] else "avx2"


def target_mismatch(target: str, machine: Machine) -> str:
    """Why a network made for ``target`` may be wrong on ``machine``, one sentence; "" where it is not.

    A network made for a CPU without VNNI is right everywhere.

    Args:
        target: one of `TARGETS`, as a record says; "" where it does not.
        machine: where the network is to run.
    """
    if target != VNNI or not machine.saturates:
        return ""
    return (
        f"it was quantized for {VNNI}, but this CPU ({machine.target}) adds products in pairs in 16 bits, and "
        f"large ones saturate: quantize it with target={resolve_target(NATIVE, machine)!r}"
    )


def saturates(flags: frozenset[str]) -> bool:
    """Whether oneDNN's int8 kernels add u8 x s8 products in pairs in 16 bits (``vpmaddubsw``), which saturate.

    The VNNI instructions, AVX-512 or AVX2 ones, add in 32 bits. MXNet 1.9.1 sums 64 products 255 x 127 to 2072640,
    the right value, with either, and to 1048544 without.
    """
    return not (target_of(flags) == "avx512_vnni" or flags >= {"avx2", "avx_vnni"})


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a kernel list: "0-2,5" is (0, 1, 2, 5)."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def cpu_list(cpus: Iterable[int]) -> str:
    """The kernel's list of ``cpus``, as ``taskset -c`` takes it: (0, 1, 2, 5) is "0-2,5"."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def find_cores(
    affinity: Iterable[int], siblings: Mapping[int, str], cpuinfo: str = "", nodes: Mapping[int, int] | None = None
) -> tuple[Core, ...]:
    """The physical cores that the CPUs of ``affinity`` are of, node by node.

    Args:
        affinity: logical CPUs.
        siblings: CPU -> its ``thread_siblings_list``, "" where the kernel tells nothing.
        cpuinfo: text of ``/proc/cpuinfo``, asked for CPUs that ``siblings`` says nothing about. A CPU that
            neither knows counts as a core.
        nodes: CPU -> its NUMA node; 0 where not listed.
    """
    pairs, threads = parse_core_ids(cpuinfo), dict[object, list[int]]()
    for cpu in affinity:
        listed = parse_cpu_list(siblings.get(cpu, ""))
        threads.setdefault(listed or pairs.get(cpu, cpu), []).append(cpu)
    cores = [Core(tuple(sorted(cpus)), (nodes or {}).get(cpus[0], 0)) for cpus in threads.values()]
    return tuple(sorted(cores, key=lambda core: (core.node, core.cpus)))


def parse_core_ids(cpuinfo: str) -> dict[int, str]:
    """CPU -> "socket/core", for the CPUs of ``/proc/cpuinfo`` that tell both."""
    found: dict[int, str] = {}
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^(processor|physical id|core id)\s*:\s*(\d+)\s*$", block, re.MULTILINE))
        if len(fields) == 3:
            found[int(fields["processor"])] = f"{fields['physical id']}/{fields['core id']}"
    return found


def parse_cpu_max(text: str) -> float | None:
    """CPUs granted by cgroup v2's ``cpu.max``: "150000 100000" is 1.5, "max 100000" is None."""
    words = text.split()
    if not words or words[0] == "max":
        return None
    return int(words[0]) / int(words[1] if len(words) > 1 else 100_000)


def parse_cfs(quota: str, period: str) -> float | None:
    """CPUs granted by cgroup v1's ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``; a quota of -1 is none."""
    if not quota.strip() or int(quota) <= 0:
        return None
    return int(quota) / int(period.strip() or 100_000)


MEMORY_FILES = ("memory.max", "memory.limit_in_bytes")
NO_LIMIT = 1 << 60  # cgroup v1 writes the largest page-aligned 63-bit number for "no limit"


def parse_limit(text: str) -> int | None:
    """Bytes from a cgroup's ``memory.max`` (v2) or ``memory.limit_in_bytes`` (v1); None: no limit."""
    text = text.strip()
    if not text or text == "max" or int(text) >= NO_LIMIT:
        return None
    return int(text)


def parse_memory(meminfo: str) -> int | None:
    """Installed bytes from ``/proc/meminfo``."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def cgroup_directories(listing: str, mount: Path) -> tuple[Path, ...]:
    """The directories whose limits bind this process, for v1 and v2; limits of a parent bind its children.

    Args:
        listing: text of ``/proc/self/cgroup``: "0::/a/b" (v2) or "4:cpu,cpuacct:/a/b" (v1) per line.
        mount: where cgroups are mounted.
    """
    found: list[Path] = []
    for line in listing.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = ("",) if not controllers else (controllers, *controllers.split(","))
        parts = [p for p in path.split("/") if p not in ("", "..")]
        for name in names:
            found += [mount.joinpath(name, *parts[:depth]) for depth in range(len(parts), -1, -1)]
    return tuple(dict.fromkeys(found))


def threads_mxnet_would_pick(machine: Machine, environ: Mapping[str, str]) -> int:
    """How many threads MXNet's operators run on, by the rules of ``OpenMP::OpenMP`` in ``src/engine/openmp.cc``.

    ``OMP_NUM_THREADS``, else ``MXNET_OMP_MAX_THREADS``, else half of the CPUs in the affinity. The cgroup's quota
    plays no part in it. MXNet aborts the process on an ``OMP_NUM_THREADS`` that is not one number
    (see `check_omp_num_threads`).
    """
    asked = check_omp_num_threads(environ)
    if asked is not None:
        return asked if asked > 0 else machine.cpus  # libgomp calls 0 and less invalid and ignores it
    most = _number(environ.get("MXNET_OMP_MAX_THREADS", ""))
    if most is not None:
        return min(most, machine.cpus) if most > 0 else machine.cpus
    return max(machine.cpus // 2, 1)


def recommended_threads(machine: Machine) -> int:
    """One thread per physical core within the affinity and, rounded down, the cgroup's quota; at least one.

    Hyper-threads of a core share its multipliers, so int8 and float32 kernels gain nothing from a second one.
    Above the quota, threads are stopped in turn while the others wait for them.
    """
    cores = machine.cores if machine.quota is None else min(machine.cores, math.floor(machine.quota))
    return max(cores, 1)


def check_omp_num_threads(environ: Mapping[str, str]) -> int | None:
    """``OMP_NUM_THREADS`` as a number; None where it is not set or empty.

    Raises:
        ConfigError: anything else, such as "4,2", which OpenMP allows: ``import mxnet`` would end the process
            ("terminate called after throwing an instance of 'dmlc::ParamError'").
    """
    text = environ.get("OMP_NUM_THREADS", "")
    number = _number(text)
    if number is None and text.strip():
        raise ConfigError(f"OMP_NUM_THREADS is {text!r}; allowed: one whole number (MXNet aborts on anything else)")
    return number


def apply_threads(environ: MutableMapping[str, str], count: int) -> bool:
    """Sets ``OMP_NUM_THREADS`` unless the user has; it counts only before MXNet is imported, which reads it once.

    Returns:
        Whether it set it.
    """
    return _set_unless_set(environ, "OMP_NUM_THREADS", str(count))


COPY_SIZE: Final = "MXNET_CPU_PARALLEL_SIZE"
"""The variable that says from how many values on MXNet copies an array with OpenMP (``common/utils.h``; 200,000)."""
NEVER: Final = str(2**31 - 1)
"""The largest value that it can have: no copy is made with OpenMP."""


def disable_parallel_copy(environ: MutableMapping[str, str]) -> None:
    """Has MXNet copy arrays without OpenMP, unless the user has said otherwise; it reads that with its first copy.

    Operators run on OpenMP threads that the engine's worker started; ``mx.nd.array`` copies in the thread that calls
    it, which starts a second team. From then on there are more threads than CPUs wherever one team has a thread for
    each, and libgomp's no longer wait for work awake but sleep (``gomp_throttled_spin_count_var``, ``env.c`` of GCC's
    libgomp): each operator has to wake them. ResNet-18 in int8 takes 1.5 times as long then on two CPUs at batch 1.
    """
    _set_unless_set(environ, COPY_SIZE, NEVER)


def _set_unless_set(environ: MutableMapping[str, str], name: str, value: str) -> bool:
    """Sets a variable that is missing or blank, and says whether it was."""
    if environ.get(name, "").strip():
        return False
    environ[name] = value
    return True


def advice(machine: Machine, environ: Mapping[str, str], made: str | None = None) -> list[str]:
    """What is worth changing before measuring or serving, one sentence each; empty where all is well.

    Args:
        machine: this one.
        environ: the variables of this process.
        made: the target of the network that is asked about, "" where its record does not say; None: no network.
    """
    about_network = [] if made is None else _network_advice(machine, made)
    return [*_thread_advice(machine, environ), *_target_advice(machine, environ, made), *about_network]


def _thread_advice(machine: Machine, environ: Mapping[str, str]) -> list[str]:
    best = recommended_threads(machine)
    try:
        picked = threads_mxnet_would_pick(machine, environ)
    except ConfigError as error:
        return [f"set OMP_NUM_THREADS={best}: {error}"]
    if picked == best:
        return []
    names = [n for n in ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS") if environ.get(n, "").strip()]
    source = f"{names[0]} asks for" if names else "MXNet on its own takes"
    found = f"{machine.cores} core{'' if machine.cores == 1 else 's'}"
    if machine.quota is not None and machine.quota < machine.cores:
        found = f"the time of {machine.quota:g} CPUs"
    return [f"set OMP_NUM_THREADS={best} before MXNet is imported: {source} {picked}, this process has {found}"]


def _network_advice(machine: Machine, made: str) -> list[str]:
    """Whether a network made for ``made`` should be made again for this CPU. All without VNNI add alike."""
    if unfit := target_mismatch(made, machine):
        return [f"the network: {unfit}"]
    if made in ("", VNNI) or machine.saturates:
        return []
    why = "it is right here too, but the guard against saturation costs accuracy, and this CPU has VNNI"
    return [f"the network was quantized for {made}; {why}: for such CPUs alone quantize it with target={VNNI!r}"]


def _target_advice(machine: Machine, environ: Mapping[str, str], made: str | None) -> list[str]:
    limit = environ.get("DNNL_MAX_CPU_ISA", "")
    if machine.usable != machine.flags:
        best = target_of(machine.flags)
        return [f"unset DNNL_MAX_CPU_ISA={limit}: it holds oneDNN at {machine.target}, this CPU can do {best}"]
    if machine.target == "unsupported":
        return [f"expect no gain from int8: this CPU ({machine.architecture}) has no AVX2"]
    if machine.saturates and not made:
        why = "without VNNI oneDNN adds products in pairs in 16 bits, and large ones saturate"
        return [f"quantize for target {machine.target}: {why}"]
    return []


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?\d{1,9}\s*", text) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _affinity() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _nodes(root: Path, cpus: Iterable[int]) -> dict[int, int]:
    """CPU -> its NUMA node, or its socket where the kernel tells no nodes."""
    nodes: dict[int, int] = {}
    for listing in (root / "sys/devices/system/node").glob("node*/cpulist"):
        number = int(listing.parent.name.removeprefix("node"))
        nodes |= dict.fromkeys(parse_cpu_list(_read(listing)), number)
    if nodes:
        return nodes
    about = root / "sys/devices/system/cpu"
    sockets = {cpu: _number(_read(about / f"cpu{cpu}/topology/physical_package_id")) for cpu in cpus}
    return {cpu: socket for cpu, socket in sockets.items() if socket is not None}


def _quota(directory: Path) -> float | None:
    v2 = parse_cpu_max(_read(directory / "cpu.max"))
    if v2 is not None:
        return v2
    return parse_cfs(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))
