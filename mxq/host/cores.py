"""Which cores to run on, and how they are shared out among processes. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mxq.errors import ConfigError
from mxq.host.environment import COPY_SIZE, NEVER, check_omp_num_threads, recommended_threads
from mxq.host.kernel_text import cpu_list
from mxq.host.machine import Core, Machine, detect

PROGRAM = "python serve.py"

CpuSet = tuple[int, ...]
"""Logical CPUs, one to a thread."""


def usable_cores(machine: Machine) -> tuple[Core, ...]:
    """As many physical cores as `recommended_threads` says, node by node.

    Where the cgroup's quota leaves some unused, they are of one NUMA node if one has enough, else of the largest.
    """
    count = recommended_threads(machine)
    cores = machine.topology or tuple(Core((cpu,)) for cpu in machine.affinity[: machine.cores])
    groups = _by_node(cores)
    roomy = [group for group in groups if len(group) >= count]
    largest_first = sorted(groups, key=len, reverse=True)
    chosen = min(roomy, key=len) if roomy else [core for group in largest_first for core in group]
    return tuple(sorted(chosen[:count], key=lambda core: (core.node, core.cpus)))


def split(cores: Sequence[Core], instances: int, threads: int | None = None) -> tuple[CpuSet, ...]:
    """CPUs for each of ``instances`` processes, disjoint: one logical CPU of each of its cores.

    Every process gets as many cores, so that all are equally fast; what does not divide is left idle. Cores of one
    NUMA node stay together while whole sets fit into it.

    Args:
        cores: those to share out, such as `usable_cores`.
        instances: how many processes.
        threads: cores for each; as many as there are, by default.

    Raises:
        ConfigError: there are fewer cores than that.
    """
    if not 1 <= instances <= len(cores):
        raise ConfigError(f"instances is {instances}; allowed: 1..{len(cores)}, a core for each")
    size = len(cores) // instances if threads is None else threads
    if not 1 <= size <= len(cores) // instances:
        raise ConfigError(
            f"threads is {size} for {instances} instances; allowed: 1..{len(cores) // instances}, {len(cores)} cores"
        )
    sets: list[Sequence[Core]] = []
    rest: list[Core] = []
    for group in _by_node(cores):
        whole = len(group) // size * size
        sets += [group[i : i + size] for i in range(0, whole, size)]
        rest += group[whole:]
    sets += [rest[i : i + size] for i in range(0, len(rest) // size * size, size)]
    return tuple(tuple(core.cpus[0] for core in chosen) for chosen in sets[:instances])


def plan(instances: int = 1, threads: int | None = None, machine: Machine | None = None) -> tuple[CpuSet, ...]:
    """CPUs for each of ``instances`` processes on ``machine``, this one by default (see `split`)."""
    return split(usable_cores(machine or detect()), instances, threads)


def one_process(environ: Mapping[str, str], machine: Machine | None = None) -> tuple[CpuSet, int]:
    """The CPUs of one process that has the machine, and its threads: as ``OMP_NUM_THREADS`` says, else one a core.

    Raises:
        ConfigError: ``OMP_NUM_THREADS`` is not one number.
    """
    here = machine or detect()
    (cpus,) = plan(1, machine=here)
    asked = check_omp_num_threads(environ)
    if asked is None or asked < 1:
        return cpus, len(cpus)
    return (cpus[:asked] if asked <= len(cpus) else here.affinity), asked


def launch_lines(sets: Sequence[CpuSet], machine: Machine, program: str = PROGRAM) -> tuple[str, ...]:
    """A shell line for each of ``sets``: ``program`` on one thread per CPU, held on these.

    It has one team of threads (`mxq.host.environment.disable_parallel_copy`), and is held with ``taskset``, or where
    the machine has several NUMA nodes with ``numactl``, which also keeps memory near.
    """
    end = " &" if len(sets) > 1 else ""
    return tuple(
        f"OMP_NUM_THREADS={len(cpus)} {COPY_SIZE}={NEVER} {held_line(cpus, machine, program)}{end}" for cpus in sets
    )


def held_line(cpus: CpuSet, machine: Machine, program: str = PROGRAM) -> str:
    """A shell line that runs ``program`` on ``cpus``."""
    node_of = {cpu: core.node for core in machine.topology for cpu in core.cpus}
    if len(set(node_of.values())) < 2:
        return f"taskset -c {cpu_list(cpus)} {program}"
    nodes = {node_of[cpu] for cpu in cpus}
    memory = f"--membind={min(nodes)}" if len(nodes) == 1 else "--localalloc"
    return f"numactl --physcpubind={cpu_list(cpus)} {memory} {program}"


def _by_node(cores: Sequence[Core]) -> list[list[Core]]:
    nodes: dict[int, list[Core]] = {}
    for core in cores:
        nodes.setdefault(core.node, []).append(core)
    return [nodes[number] for number in sorted(nodes)]
