"""``mxq doctor``: the machine, and what to set on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, say, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Json, prefix_of

if TYPE_CHECKING:
    from mxq.host.machine import Machine


TARGET_WORDS = {"avx512_vnni": "AVX-512 with VNNI", "avx512": "AVX-512 without VNNI", "avx2": "AVX2"}


@command
def doctor(
    prefix: Annotated[
        Path | None,
        typer.Argument(metavar="PREFIX", help="A quantized network, to check its files too.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe the machine, the threads MXNet uses, and what to set before measuring or serving."""
    from mxq.artifacts import record
    from mxq.host import environment
    from mxq.host import machine as machines
    from mxq.report import tables

    machine, environ = machines.detect(), dict(os.environ)
    report = None if prefix is None else record.read(prefix_of(prefix))
    hints = environment.advice(machine, environ, None if report is None else report.target)
    picked = environment.threads_mxnet_would_pick(machine, environ)
    best = environment.recommended_threads(machine)
    start_mxnet(quiet=True)
    from mxq import runtime

    versions, onednn = runtime.versions(), runtime.features()["MKLDNN"]
    if not onednn:
        hints.append(
            "this MXNet was built without oneDNN (MKLDNN), which has the int8 kernels: pip install mxnet==1.9.1"
        )
    broken = () if prefix is None else record.check(prefix_of(prefix))
    if report is not None:
        hints += map(str, broken)
        hints += [
            f"{prefix} was made with {k} {v}, here is {versions[k]}"
            for k, v in report.versions.items()
            if versions.get(k, v) != v
        ]
    if as_json:
        facts = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(machine).items()}
        facts |= {"cpus": machine.cpus, "target": machine.target, "saturates": machine.saturates}
        threads: dict[str, object] = {"mxnet": picked, "recommended": best}
        threads["variables"] = {name: environ.get(name) for name in ("OMP_NUM_THREADS", environment.COPY_SIZE)}
        print_json({"machine": facts, "versions": versions, "onednn": onednn, "threads": threads, "advice": hints})
    else:
        listed = "\n".join(f"- {hint}" for hint in hints) or "Nothing needs to be set."
        show(tables.facts(_found(machine, environ, picked, best, versions, onednn)), listed)
    for mismatch in broken:
        say(f"mxq: check failed: {mismatch}")
    if broken:
        raise typer.Exit(FAILED)


def _found(
    machine: Machine, environ: Mapping[str, str], picked: int, best: int, versions: Mapping[str, str], onednn: bool
) -> list[tuple[str, str]]:
    """What there is, in rows of a table."""
    from mxq.host import environment

    asked = environ.get("OMP_NUM_THREADS", "")
    return [
        ("CPU", machine.model),
        ("int8 kernels", _kernels(machine)),
        ("cores", _cores(machine)),
        ("OMP_NUM_THREADS", f"{asked or 'not set'}: MXNet runs on {picked}; {best} would be best"),
        (environment.COPY_SIZE, _copies(environ[environment.COPY_SIZE])),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("oneDNN", "inside MXNet" if onednn else "missing"),
    ]


def _copies(size: str) -> str:
    from mxq.host import environment

    if size == environment.NEVER:
        return f"{size}: no second team of threads; set it too where MXNet serves without mxq"
    return f"{size}: copies of as many values start a second team of threads; {environment.NEVER} would be best"


def _kernels(machine: Machine) -> str:
    exact = "sums of two products may saturate" if machine.saturates else "exact"
    return f"{TARGET_WORDS[machine.target]}, {exact}" if machine.target != "unsupported" else "none worth using"


def _cores(machine: Machine) -> str:
    threads = f", {machine.threads_per_core:g} hardware threads each" if machine.cpus != machine.cores else ""
    quota = "" if machine.quota is None else f"; {machine.quota:g} CPUs' time granted"
    nodes = len({core.node for core in machine.topology})
    return f"{machine.cores}{threads}{f' on {nodes} NUMA nodes' if nodes > 1 else ''}{quota}"
