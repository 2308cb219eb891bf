"""How many threads MXNet should use on a machine, and what variables of the environment have it do. Imports no MXNet.

MXNet takes half the processors because it supposes that two hyper-threads share each core (``src/engine/openmp.cc``
of 1.9.1). Where that is not so, it leaves half of the machine idle. `recommended_threads` counts real cores;
`mxq.threads` acts on that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Final

from mxq.errors import ConfigError
from mxq.host.kernel_text import parse_number
from mxq.host.machine import VNNI, Machine, target_mismatch, target_of


def threads_mxnet_would_pick(machine: Machine, environ: Mapping[str, str]) -> int:
    """How many threads MXNet's operators run on, by the rules of ``OpenMP::OpenMP`` in ``src/engine/openmp.cc``.

    ``OMP_NUM_THREADS``, else ``MXNET_OMP_MAX_THREADS``, else half of the CPUs in the affinity. The cgroup's quota
    plays no part in it. MXNet aborts the process on an ``OMP_NUM_THREADS`` that is not one number
    (see `check_omp_num_threads`).
    """
    asked = check_omp_num_threads(environ)
    if asked is not None:
        return asked if asked > 0 else machine.cpus  # libgomp calls 0 and less invalid and ignores it
    most = parse_number(environ.get("MXNET_OMP_MAX_THREADS", ""))
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
    number = parse_number(text)
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
