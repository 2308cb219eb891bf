"""What the CPU is: its cores, as far as this process may use them, and which int8 kernels of oneDNN run on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mxq.host.kernel_text import (
    MEMORY_FILES,
    cgroup_directories,
    parse_cfs,
    parse_core_ids,
    parse_cpu_list,
    parse_cpu_max,
    parse_limit,
    parse_memory,
    parse_model,
    parse_number,
)

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
    sockets = {cpu: parse_number(_read(about / f"cpu{cpu}/topology/physical_package_id")) for cpu in cpus}
    return {cpu: socket for cpu, socket in sockets.items() if socket is not None}


def _quota(directory: Path) -> float | None:
    v2 = parse_cpu_max(_read(directory / "cpu.max"))
    if v2 is not None:
        return v2
    return parse_cfs(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))
