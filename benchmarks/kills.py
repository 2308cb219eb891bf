"""Kills commands at random moments, runs them again, and compares with a run that nobody disturbed; prints a table.

    python benchmarks/kills.py --kills 200 --seed 1
    python benchmarks/kills.py --kills 20 --command save --seed 7

The commands are those of ``mxq``, in forked processes that have imported MXNet already, and a loop that saves over a
pair. Half of the kills come just before one of the command's operations on files (opening, renaming, removing, syncing
one), half after a random time; most are SIGKILL, some SIGTERM or Ctrl-C. In further runs, files may have so many bytes
and no more, as on a disk that is full. After each:

- whoever reads the pair gets the old network, the new one, or an error; never a mixture of the two;
- the same command, run again, ends with the same result, to the byte, times excepted;
- nothing is left in the folder, nor in that for temporary files, but what an undisturbed run leaves.

Exit code 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mxq import runtime, tuning, workflow  # noqa: F401  (imported once, for all processes)
from mxq.artifacts import pair, record
from mxq.calibration import collect
from mxq.cli.app import FAILED, REFUSED
from mxq.cli.app import main as mxq_command

ENDS = ("-symbol.json", "-0000.params", "-mxq.json")
EVENTS = frozenset(("open", "os.rename", "os.remove", "os.link", "os.mkdir"))
EXAMPLES, BATCH = 48, 4
SOFT = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Signals that a command sees, and the exit code by which it says so. A search says what it found by then instead."""
PATIENCE = 300.0
HAD_ENDED = "had ended"
"""Of runs that were quicker than their kill; another, earlier one is tried."""
SAID = 1500
"""Bytes that a file may always have: what a command says on stderr goes to one."""


@dataclass(frozen=True)
class End:
    """How a run is to end: by ``signal``, at a file operation or after seconds; or with files of ``most`` bytes."""

    signal: int = 0
    event: int = 0
    seconds: float = 0.0
    most: int = 0


@dataclass(frozen=True)
class Ended:
    """What became of a run: its exit code, negative for a signal; what it wrote; its file operations and seconds."""

    code: int
    out: str
    err: str
    events: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Command:
    """What is killed: ``arguments`` for ``mxq``, None for the loop; ``prefix`` of the pair that it writes, if any."""

    name: str
    arguments: tuple[str, ...] | None
    prefix: str = ""
    share: float = 1.0


INPUT = ("net", "--data", "data.npy", "--batch-size", str(BATCH), "--num-calib-examples", "100%")
COMMANDS = (
    Command("quantize", ("quantize", *INPUT, "--out", "work/q", "--json"), "work/q"),
    Command("calibrate", ("calibrate", *INPUT, "--stats", "work/s.stats", "--calib-mode", "entropy", "--json")),
    Command("tune", ("tune", *INPUT, "--workdir", "work/w", "--max-drop", "0", "--json"), "work/w/best"),
    Command("sensitivity", ("sensitivity", *INPUT, "--workdir", "work/w", "--json")),
    Command("save", None, "work/q"),
)


@dataclass
class Tally:
    """What was seen of one command."""

    runs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Field:
    """A folder with a network and data, in which one command is run again and again."""

    def __init__(self, command: Command, place: Path) -> None:
        self.command, self.place, self.work, self.temporary = command, place, place / "work", place / "tmp"
        self.temporary.mkdir()
        shutil.copytree(place.parent / "made", place, dirs_exist_ok=True)
        os.chdir(place)
        self.anew()
        self.whole = self.run(End())
        if self.whole.code not in (0, FAILED):
            raise SystemExit(f"{command.name} fails without a kill: {self.whole.err}")
        self.result, self.names = self.found(self.whole), self.left()
        self.known = {_network(place / "old"): "old"}
        if command.prefix:
            self.known[_network(command.prefix)] = "new"

    def anew(self) -> None:
        """As before the first run: over a pair of an older network."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if self.command.prefix == "work/q":
            for end in ENDS:
                shutil.copy(self.place / f"old{end}", f"work/q{end}")

    def run(self, end: End) -> Ended:
        """Runs the command in a process of its own, which ends as ``end`` says."""
        answer, out, err = self.place / "events", self.place / "out", self.place / "err"
        for path in (answer, out, err):
            path.write_text("")
        started = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, SOFT)  # until the child can see them
        pid = os.fork()
        if pid == 0:
            try:
                _child(self, end, answer, out, err)
            finally:  # a signal that came while it ended
                os._exit(FAILED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SOFT)
        if end.signal and not end.event:
            time.sleep(end.seconds)
            os.kill(pid, end.signal)
        code = _waited(pid)
        seconds = time.monotonic() - started
        return Ended(code, out.read_text(), err.read_text(), int(answer.read_text() or 0), seconds)

    def found(self, ended: Ended) -> object:
        """The result of a whole run: what it printed, times excepted, and the files that it wrote."""
        files = {p.name: _sha256(p) for p in self.work.rglob("*") if p.suffix in (".params", ".stats", ".npz", ".json")}
        return _timeless(json.loads(ended.out) if ended.out else None), files

    def left(self) -> list[str]:
        found = [*self.work.rglob("*"), *self.temporary.rglob("*")]
        return sorted(str(p.relative_to(self.place)) for p in found)

    def state(self) -> str:
        """What a reader gets of the pair: "old", "new", "another" (of a search), "refused", or "TORN"."""
        if not self.command.prefix:
            return "-"
        answer = self.place / "state"
        _in_child(lambda: answer.write_text(_read(self.command.prefix, self.known)))
        return answer.read_text()

    def kill(self, end: End, tally: Tally) -> str:
        """One kill, and what must hold afterwards; returns how the run ended."""
        self.anew()
        ended = self.run(end)
        tally.runs += 1
        how = _ending(end, ended)
        tally.ends[how] += 1
        state = self.state()
        tally.read[state] += 1
        drafts = [name for name in self.left() if ".mxq-" in name or name.startswith("tmp")]
        again = self.whole if self.command.arguments is None else self.run(End())
        if self.command.arguments is None:
            _in_child(lambda: pair.write(*_pair("new"), Path("work/q")))
        checks = {
            f"refused by {ended.err.strip()[-200:]}": not end.most or _one_line(ended),
            f"ended by {ended.code}": end.signal not in SOFT or ended.code in (0, 1, SOFT[end.signal], -signal.SIGTERM),
            f"left at once: {drafts}": not drafts or end.signal == signal.SIGKILL,
            "torn": state != "TORN",
            f"again: exit code {again.code}, {again.err.strip()[-200:]}": again.code == self.whole.code,
            "another result": again.code != self.whole.code or self.found(again) == self.result,
            f"left: {sorted(set(self.left()) ^ set(self.names))}": self.left() == self.names,
        }
        tally.failures += [f"{end}: {what}" for what, holds in checks.items() if not holds]
        return how


def _child(field: Field, end: End, answer: Path, out: Path, err: Path) -> None:
    """Runs the command in this process, a fork, and ends it."""
    events, sync = 0, os.fsync

    def count() -> None:
        nonlocal events
        events += 1
        if events == end.event:
            os.kill(os.getpid(), end.signal)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and any(str(field.work) in str(Path(a).absolute()) for a in arguments if isinstance(a, str)):
            count()

    code: Any = 1
    told = os.open(answer, os.O_WRONLY)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SOFT)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        collect.EVERY_SECONDS = 0.0  # type: ignore[misc]  # a checkpoint whenever one is allowed: the network is tiny
        tempfile.tempdir = str(field.temporary)
        if end.most:
            resource.setrlimit(resource.RLIMIT_FSIZE, (end.most, end.most))
        os.fsync = lambda number: (count(), sync(number))  # type: ignore[assignment, return-value]
        sys.addaudithook(hook)
        sys.argv = ["mxq", *(field.command.arguments or ())]
        _loop() if field.command.arguments is None else mxq_command()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except KeyboardInterrupt:
        code = SOFT[signal.SIGINT]
    except BaseException as error:
        os.write(2, repr(error).encode())
    finally:
        os.write(told, str(events).encode())
        os._exit(code if isinstance(code, int) else 1)


def _loop() -> None:
    """Saves two networks over each other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(SOFT[signal.SIGTERM]))
    networks = [_pair(name) for name in ("new", "old")]
    try:
        for i in range(40):
            pair.write(*networks[i % 2], Path("work/q"))
        pair.write(*networks[0], Path("work/q"))
    except KeyboardInterrupt:
        sys.exit(SOFT[signal.SIGINT])
    except mxq.MxqError as error:
        sys.stderr.write(f"mxq: error: {error}\n")
        sys.exit(REFUSED)


def _pair(name: str) -> tuple[Any, Any]:
    return runtime.load_model(name), record.read(name)


def _read(prefix: str, known: dict[str, str]) -> str:
    """What `mxq.load` and `runtime.load_model`, which every command uses, give; they must agree."""
    try:
        runtime.load_model(prefix)
        mxq.load(prefix)
    except mxq.MxqError:
        return "refused"
    files = json.loads(Path(f"{prefix}{ENDS[2]}").read_text())["files"]
    if _network(prefix) != "".join(files.values()):
        return "TORN"
    return known.get(_network(prefix), "another" if prefix == "work/w/best" else "TORN")


def _network(prefix: str | Path) -> str:
    return "".join(_sha256(Path(f"{prefix}{end}")) for end in ENDS[:2])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    """JSON without times."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _ending(end: End, ended: Ended) -> str:
    if end.most:
        return "disk full" if ended.code == REFUSED else "room enough"
    if ended.code == -signal.SIGKILL:
        return "at a file operation" if end.event else "after a time"
    soft = (*SOFT.values(), -signal.SIGTERM)  # the latter before the command has begun
    return "by SIGTERM, Ctrl-C" if ended.code in soft else HAD_ENDED


def _one_line(ended: Ended) -> bool:
    """Where it failed, the error is one line and says what the matter was; it may come after other messages."""
    errors = [line for line in ended.err.splitlines() if "error" in line.lower() or "Traceback" in line]
    return ended.code in (0, 1) or (ended.code == REFUSED and len(errors) == 1 and "too large" in errors[0])


def _waited(pid: int) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise SystemExit(f"a run did not end within {PATIENCE:g} s")


def _in_child(function: Callable[[], object]) -> None:
    """Runs what uses MXNet; this process, which forks, must not."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if _waited(pid) != 0:
        raise SystemExit(f"{function} failed")


def make(folder: Path) -> None:
    """The float network "net", its data, and two int8 networks of it."""
    rng = np.random.default_rng(0)
    x = mx.sym.var("data")
    for i in range(3):
        x = mx.sym.Convolution(x, kernel=(3, 3), pad=(1, 1), num_filter=8, name=f"conv{i}")
        x = mx.sym.Activation(x, act_type="relu", name=f"relu{i}")
    x = mx.sym.Flatten(mx.sym.Pooling(x, global_pool=True, pool_type="avg", kernel=(1, 1), name="pool"), name="flat")
    net = mx.sym.FullyConnected(x, num_hidden=10, name="fc")
    shapes, _, _ = net.infer_shape(data=(1, 3, 12, 12))
    table = dict(zip(net.list_arguments(), shapes, strict=True))
    arrays = {k: mx.nd.array(rng.normal(0, 0.3, s)) for k, s in table.items() if k != "data"}
    net.save(str(folder / "net-symbol.json"))
    mx.nd.save(str(folder / "net-0000.params"), {f"arg:{k}": v for k, v in arrays.items()})
    data = rng.normal(size=(EXAMPLES, 3, 12, 12)).astype(np.float32)
    np.save(folder / "data.npy", data)
    for name, options in (("old", {"exclude_layers": "conv1"}), ("new", {})):
        mxq.save(mxq.quantize_net(str(folder / "net"), data, effort="fast", **options), folder / name)


def ends_of(field: Field, count: int, rng: random.Random) -> list[End]:
    """How ``count`` runs end, and a tenth more on a disk that is full."""
    found = []
    for i in range(count):
        chosen = rng.choice([*SOFT]) if i % 10 == 9 else signal.SIGKILL
        if i % 2:
            found.append(End(chosen, seconds=rng.uniform(0, field.whole.seconds)))
        else:
            found.append(End(chosen, event=rng.randint(1, max(1, field.whole.events))))
    sizes = [p.stat().st_size for p in field.work.rglob("*") if p.is_file()]
    return found + [End(most=rng.randint(SAID, max(sizes))) for _ in range(-(-count // 10))]


def killed(commands: Sequence[Command], kills: int, seed: int) -> dict[str, Tally]:
    """Tallies by command."""
    tallies, home = {}, Path.cwd()
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="mxq-kills-")))
    try:  # a TemporaryDirectory would go at the end of the first child
        (root / "made").mkdir()
        _in_child(lambda: make(root / "made"))
        for number, command in enumerate(commands):
            place = root / command.name
            place.mkdir()
            field, tally = Field(command, place), Tally()
            share = kills // len(commands) + (number < kills % len(commands))
            for end in track(ends_of(field, share, random.Random(f"{seed} {command.name}")), command.name):  # noqa: S311
                while field.kill(end, tally) == HAD_ENDED and end.signal:
                    end = replace(end, seconds=end.seconds / 2, event=end.event // 2)  # noqa: PLW2901
            tallies[command.name] = tally
    finally:
        os.chdir(home)
        shutil.rmtree(root)
    return tallies


def table(tallies: dict[str, Tally]) -> Table:
    ends = ["at a file operation", "after a time", "by SIGTERM, Ctrl-C", HAD_ENDED, "disk full", "room enough"]
    states = ["old", "new", "another", "refused", "TORN"]
    found = Table("command", "runs", *ends, *(f"pair {s}" for s in states), "failures")
    for name, tally in tallies.items():
        counts = [tally.ends[e] for e in ends] + [tally.read[s] for s in states]
        found.add_row(name, str(tally.runs), *map(str, counts), str(len(tally.failures)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all commands together, full disks not counted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--command", action="append", choices=[c.name for c in COMMANDS], help="may be repeated")
    options = parser.parse_args()
    chosen = [c for c in COMMANDS if not options.command or c.name in options.command]
    started = time.monotonic()
    tallies = killed(chosen, options.kills, options.seed)
    console = Console(width=160, markup=False, highlight=False)
    console.print(table(tallies))
    failures = [f"{name}: {failure}" for name, tally in tallies.items() for failure in tally.failures]
    console.print(f"{time.monotonic() - started:.0f} s, {len(failures)} failures", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
