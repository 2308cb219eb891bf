"""Networks in the runtimes that there are, timed against each other: each in a process of its own, on the same CPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from mxq import runtime
from mxq.bench.runtimes import BestRuntime, RuntimeRow
from mxq.bench.timing import Benchmark, Timing, check_rounds, noise_of, random_feeds, rounds
from mxq.config import Shape
from mxq.engines import MXNET, Engine, Served, chosen, missing
from mxq.errors import ConfigError, MxqError, RuntimeFailure, StorageError
from mxq.formats.onnx_file import OnnxFile, is_onnx, read
from mxq.graph.ir import Array
from mxq.host.cores import CpuSet, held_line, launch_lines, one_process
from mxq.host.machine import Machine, detect
from mxq.logs import LOG
from mxq.workflow.comparing import Progress, called, silent
from mxq.workflow.opening import shapes_said

_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """Where all are timed, in turn: on ``threads`` threads on ``cpus``."""

    machine: Machine
    cpus: CpuSet
    threads: int

    @staticmethod
    def here() -> Place:
        """The cores of this machine that one process should have, see `mxq.host.cores.one_process`."""
        machine = detect()
        return Place(machine, *one_process(os.environ, machine))

    def command(self, engine: Engine) -> str:
        """The shell line that starts a program there."""
        return held_line(self.cpus, self.machine) if engine.files else launch_lines((self.cpus,), self.machine)[0]


@dataclass(frozen=True)
class Network:
    """A network in an engine.

    Attributes:
        name: what the user calls the network.
        path: the file, or the prefix of a pair.
        engine: what runs it.
        inputs: names of what it is fed.
        feeds: from a batch size to what it is timed on.
    """

    name: str
    path: Path
    engine: Engine
    inputs: tuple[str, ...]
    feeds: Callable[[int], Mapping[str, Array]]

    def opened(self, place: Place, stack: ExitStack) -> Served:
        """In a process of its own, until ``stack`` ends."""
        return stack.enter_context(closing(Served(self.engine, self.path, place.cpus, place.threads)))

    def row(self, batch: int, found: Timing | str, place: Place) -> RuntimeRow:
        """What came of it: a timing, or a problem."""
        row = RuntimeRow(self.name, self.engine.name, self.engine.version(), batch)
        if isinstance(found, str):
            return replace(row, problem=found)
        lines = self.engine.start(self.path, place.threads, self.inputs)
        return replace(row, timing=found, lines=lines, command=place.command(self.engine))


def best_runtime(
    nets: Sequence[runtime.Net],
    *,
    batch_sizes: Sequence[int] = (1,),
    shapes: Mapping[str, Shape] | None = None,
    runtimes: Sequence[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> BestRuntime:
    """Times forms of one network: pairs in MXNet, ONNX files in each runtime that is installed.

    Args:
        nets: pairs in any form of `mxq.runtime.load_model`, and paths of ONNX files.
        batch_sizes: examples to a batch, one after the other.
        shapes: input -> shape of one example; "" for the only one. By default as a file says, or preprocess.json.
        runtimes: those for files; all that are installed where None.
        repeats, warmup: rounds, in each of which every one runs once.
        logger: receives a warning where others keep the machine busy, and what could not be timed.
        progress: shows how far it is.

    Raises:
        ConfigError: nothing to time, a shape is not known, a runtime that is asked for is missing or too old.
        FormatError: a file is damaged.
        RuntimeFailure: none of them ran.
    """
    check_rounds(repeats, warmup)
    place, rows = Place.here(), list[RuntimeRow]()
    _warn_if_busy(place.machine, logger)
    with ExitStack() as stack:
        networks = _networks(_named(nets), shapes or {}, runtimes, stack)
        served = [_attempted(partial(one.opened, place, stack)) for one in networks]
        for batch in batch_sizes:
            with progress(f"timing, batch {batch}", warmup + repeats) as step:
                found = _timed(networks, served, batch, repeats, warmup, step)
            rows += [one.row(batch, each, place) for one, each in zip(networks, found, strict=True)]
    for row in rows:
        if row.problem:
            logger.warning("%s in %s, batch %d: %s", row.network, row.runtime, row.batch, row.problem)
    if all(row.timing is None for row in rows):
        raise RuntimeFailure(f"nothing could be timed: {rows[0].problem}")
    absent = missing() if not runtimes and any(map(is_onnx, nets)) else {}
    return BestRuntime(tuple(rows), place.threads, place.cpus, absent)


def bench_files(
    nets: Mapping[str, runtime.Net],
    *,
    batch_size: int,
    shapes: Mapping[str, Shape],
    runtimes: Sequence[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    progress: Progress = silent,
) -> tuple[Benchmark, Place]:
    """Times networks and files as `best_runtime` does, by the names that they have; the first is the base.

    Raises:
        MxqError: as there, and what is wrong with the first that does not run.
    """
    check_rounds(repeats, warmup)
    place = Place.here()
    with ExitStack() as stack:
        networks = _networks(nets, shapes, runtimes, stack)
        served = {f"{one.name} {one.engine.name}" if one.engine.files else one.name: one.opened(place, stack)
                  for one in networks}  # fmt: skip
        for one, session in zip(networks, served.values(), strict=True):
            session.hold(one.feeds(batch_size))
        readings = {name: session.seconds for name, session in served.items()}
        with progress("timing", warmup + repeats) as step:
            found = rounds(readings, repeats=repeats, warmup=warmup, examples=batch_size, progress=step)
    return found, place


def _timed(
    networks: Sequence[Network],
    served: Sequence[Served | str],
    batch: int,
    repeats: int,
    warmup: int,
    step: Callable[[int], None],
) -> list[Timing | str]:
    """Of each network a timing, or why there is none."""
    found: list[Timing | str] = []
    readings: dict[str, Callable[[], float]] = {}
    for i, (one, session) in enumerate(zip(networks, served, strict=True)):
        ready = session if isinstance(session, str) else _held(one, session, batch)
        found.append(ready or "")
        if not ready and isinstance(session, Served):
            readings[str(i)] = session.seconds
    if readings:
        for timing in rounds(readings, repeats=repeats, warmup=warmup, examples=batch, progress=step).timings:
            one = networks[int(timing.name)]
            found[int(timing.name)] = replace(timing, name=f"{one.name} in {one.engine.name}")
    return found


def _held(network: Network, session: Served, batch: int) -> str:
    """Runs it once on a batch; why that cannot be, or ""."""
    found = _attempted(lambda: session.hold(network.feeds(batch)))
    return found if isinstance(found, str) else ""


def _attempted(work: Callable[[], _T]) -> _T | str:
    """What ``work`` gives, or its error in one line; one of a disk is no fault of a network."""
    try:
        return work()
    except StorageError:
        raise
    except MxqError as error:
        return " ".join(str(error).split())


def _warn_if_busy(machine: Machine, logger: logging.Logger) -> None:
    load = os.getloadavg()[0]
    if load > machine.cores / 2:
        logger.warning("others keep this machine busy (load %.1f, %d cores); do it again when it is quiet", load,
                       machine.cores)  # fmt: skip


# ---- what is timed -------------------------------------------------------------------------------------------


def _named(nets: Sequence[runtime.Net]) -> dict[str, runtime.Net]:
    """Each by what the user calls it, with a number where another is called so, too."""
    found: dict[str, runtime.Net] = {}
    for net in nets:
        name = called(net)
        same = sum(1 for other in found if other == name or other.startswith(f"{name} #"))
        found[f"{name} #{same + 1}" if same else name] = net
    return found


def _networks(
    nets: Mapping[str, runtime.Net], shapes: Mapping[str, Shape], runtimes: Sequence[str] | None, stack: ExitStack
) -> list[Network]:
    """Each network in each engine that runs it; files of those in memory stay until ``stack`` ends.

    Raises:
        ConfigError: there is none, or a shape is not known.
    """
    if not nets:
        raise ConfigError("there is no network to time; allowed: pairs and ONNX files, one or more")
    files = {name: read(net) for name, net in nets.items() if is_onnx(net)}
    engines = chosen(runtimes) if files or runtimes else ()
    records = [file.record for file in files.values() if file.record is not None and not file.record.preprocess]
    known = {name: shape for record in records for name, shape in record.inputs.items()}  # not those of pixels
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="mxq-")))
    found: list[Network] = []
    for i, (name, net) in enumerate(nets.items()):
        if name in files:
            found += [_of_file(name, files[name], engine, shapes) for engine in engines]
        else:
            found.append(_of_pair(name, net, known, shapes, folder / f"net{i}"))
    inputs = list(dict.fromkeys(name for one in found for name in one.inputs))
    unknown = [name for name in shapes if name and name not in inputs]
    if unknown:
        raise ConfigError(f"input_shape is of {unknown[0]!r}, which is no input; the inputs are {', '.join(inputs)}")
    return found


def _of_file(name: str, file: OnnxFile, engine: Engine, given: Mapping[str, Shape]) -> Network:
    known = {} if file.record is None else dict(file.record.inputs)
    for port in file.inputs:
        sides = (port.shape or ("?",))[1:]
        if port.name not in known and all(isinstance(side, int) for side in sides) and port.shape:
            known[port.name] = tuple(int(side) for side in sides)
    inputs = tuple(port.name for port in file.inputs)
    shapes = _shapes(name, inputs, known, given)

    def feeds(batch: int) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        return {p.name: noise_of(p.name, (batch, *shapes[p.name]), p.dtype or "float32", rng) for p in file.inputs}

    return Network(name, file.path, engine, inputs, feeds)


def _of_pair(
    name: str, net: runtime.Net, known: Mapping[str, Shape], given: Mapping[str, Shape], written: Path
) -> Network:
    model = runtime.load_model(net)
    if not isinstance(net, str | Path):
        runtime.write_pair(model, written)
    path = Path(net) if isinstance(net, str | Path) else written
    shapes = _shapes(name, model.inputs, {**shapes_said(net, model), **known}, given)
    return Network(name, path, MXNET, model.inputs, lambda batch: random_feeds(model, shapes, batch))


def _shapes(
    name: str, inputs: Sequence[str], known: Mapping[str, Shape], given: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Input -> shape of one example: as given, else as known."""
    if "" in given and len(inputs) > 1:
        raise ConfigError(
            f"input_shape is {given['']}, but the inputs of {name} are {', '.join(inputs)}; allowed: one of each, "
            "by name"
        )
    named = {one or "".join(inputs): tuple(shape) for one, shape in given.items()}
    found = {**known, **named}
    unknown = [one for one in inputs if one not in found]
    if unknown:
        raise ConfigError(f"the shape of input {unknown[0]!r} of {name} is not known; give it, such as 3x224x224")
    return found
