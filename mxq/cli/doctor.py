"""``mxq doctor``: the machine, and what to set on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, say, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Json, prefix_of

if TYPE_CHECKING:
    from mxq.host.machine import Machine
    from mxq.storage.checksums import Mismatch


TARGET_WORDS = {"avx512_vnni": "AVX-512 with VNNI", "avx512": "AVX-512 without VNNI", "avx2": "AVX2"}


@command
def doctor(
    prefix: Annotated[
        Path | None,
        typer.Argument(
            metavar="PREFIX", help="A quantized network or an ONNX file, to check that too.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe the machine, the threads MXNet uses, and what to set before measuring or serving."""
    from mxq.host import environment
    from mxq.host import machine as machines
    from mxq.reporting import tables

    machine, environ = machines.detect(), dict(os.environ)
    subject = _Subject() if prefix is None else _subject(prefix)
    hints = environment.advice(subject.machine(machine), environ, subject.made)
    picked = environment.threads_mxnet_would_pick(machine, environ)
    best = environment.recommended_threads(machine)
    start_mxnet(quiet=True)
    from mxq import runtime

    versions, onednn = runtime.versions(), runtime.features()["MKLDNN"]
    if not onednn:
        hints.append(
            "this MXNet was built without oneDNN (MKLDNN), which has the int8 kernels: pip install mxnet==1.9.1"
        )
    runtimes, absent = _runtimes()
    hints += map(str, subject.broken)
    hints += [
        f"{prefix} was made with {k} {v}, here is {versions[k]}"
        for k, v in subject.versions.items()
        if versions.get(k, v) != v
    ]
    hints += absent if subject.is_file else []
    if as_json:
        facts = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(machine).items()}
        facts |= {"cpus": machine.cpus, "target": machine.target, "saturates": machine.saturates}
        threads: dict[str, object] = {"mxnet": picked, "recommended": best}
        threads["variables"] = {name: environ.get(name) for name in ("OMP_NUM_THREADS", environment.COPY_SIZE)}
        found = {"machine": facts, "versions": versions, "runtimes": runtimes, "onednn": onednn}
        print_json({**found, "threads": threads, "advice": hints})
    else:
        listed = "\n".join(f"- {hint}" for hint in hints) or "Nothing needs to be set."
        rows = _found(machine, environ, picked, best, versions, onednn)
        rows.append(("for ONNX files", ", ".join(f"{name} {version}" for name, version in runtimes.items()) or "none"))
        rows += [(str(prefix), subject.words)] if subject.words else []
        show(tables.facts(rows), listed)
    for mismatch in subject.broken:
        say(f"mxq: check failed: {mismatch}")
    if subject.broken:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Subject:
    """What is asked about: the machine alone, a pair, or an ONNX file.

    Attributes:
        made: the target that it was quantized for, "" where nothing says that; None: no network.
        versions: that it was made with.
        broken: its files that are not as they were written.
        is_file: whether it is an ONNX file.
        words: what it is.
    """

    made: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    broken: tuple[Mismatch, ...] = ()
    is_file: bool = False
    words: str = ""

    def machine(self, found: Machine) -> Machine:
        """``found`` as what runs the network sees it: ``DNNL_MAX_CPU_ISA`` is for MXNet alone."""
        return replace(found, usable=found.flags) if self.is_file else found


def _subject(network: Path) -> _Subject:
    from mxq.artifacts import record
    from mxq.formats.onnx_file import is_onnx

    if not is_onnx(network):
        report = record.read(prefix_of(network))
        return _Subject(report.target, report.versions, record.check(prefix_of(network)))
    from mxq.reporting.files import FileInspection

    found = FileInspection.of(network)
    about = found.file.record
    made = None if found.file.kind == "float" else "" if about is None else about.target
    words = f"{found.file.kind}{f', for {made}' if made else ''}"
    return _Subject(made, broken=found.problems, is_file=True, words=words)


def _runtimes() -> tuple[dict[str, str], list[str]]:
    """Versions of the engines that run ONNX files, and why others cannot."""
    from mxq.engines import FILE_ENGINES, missing

    absent = missing()
    return {one.name: one.version() for one in FILE_ENGINES if one.name not in absent}, [*absent.values()]


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
