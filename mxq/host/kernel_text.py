"""What the Linux kernel says of a machine, read from its text: ``/proc``, ``/sys`` and cgroups.

The functions take text, so any machine can be described in a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def parse_model(cpuinfo: str) -> str:
    """The processor's name from the text of ``/proc/cpuinfo``; "" where it gives none (aarch64)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


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


def parse_number(text: str) -> int | None:
    """The whole number that ``text`` is; None where it is none."""
    return int(text) if re.fullmatch(r"\s*[+-]?\d{1,9}\s*", text) else None
