"""Cases in forked processes with limits: what each comes to, whatever happens to its process."""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

import mxq
from fuzzing.formats import Format

OUTCOMES: Final = ("ok", "refused", "crash", "error", "hang", "memory")
"""Of a case: success, one `MxqError`; then the failures: the process ended, another exception, no end, much memory."""
OK, REFUSED, CRASH, ERROR, HANG, MEMORY = range(1, 7)
FAILURES: Final = frozenset({CRASH, ERROR, HANG, MEMORY})
MOST_BYTES: Final = 1 << 30
"""What a case may take beyond its file."""
ADDRESSES: Final = 3 << 30
"""What the address space may grow by; MXNet's own pools and stacks are in it."""
LONGEST_MESSAGE: Final = 4000
CASES_OF_A_PROCESS: Final = 3000
BROKEN: Final = 70
"""Exit code of a child where the harness itself is at fault."""
POLL: Final = 0.02
MOST_CHANGES: Final = 4
WAITING: Final = 3.0


@dataclass(frozen=True, slots=True)
class Case:
    """One input: ``changes`` are the mutations that are applied, by number; None for all."""

    format: str
    seed: int
    number: int
    changes: tuple[int, ...] | None = None
    whole: bool = False
    """Whether it is the seed document ``number`` as it is."""

    def __str__(self) -> str:
        some = "" if self.changes is None else ":" + ",".join(map(str, self.changes))
        return f"{self.format}:{self.number}{':whole' if self.whole else some}"

    @staticmethod
    def of(text: str, seed: int) -> Case:
        """What `str` wrote."""
        name, number, *some = text.split(":")
        if some == ["whole"]:
            return Case(name, seed, int(number), whole=True)
        return Case(name, seed, int(number), tuple(int(n) for n in some[0].split(",") if n) if some else None)

    def document(self, form: Format) -> Any:
        """The mutated document."""
        if self.whole:
            return form.seeds[self.number]
        rng = Random(f"{self.seed}/{self.format}/{self.number}")
        document = rng.choice(form.seeds)
        for i, own in enumerate([rng.random() for _ in range(count_of(rng))]):
            if self.changes is None or i in self.changes:
                document = form.mutate(document, Random(own))
        return document


def count_of(rng: Random) -> int:
    """How many mutations: one most often."""
    return rng.choice((1, 1, 1, 2, 2, 3, MOST_CHANGES))


def wholes(formats: dict[str, Format], only: Sequence[str] | None = None) -> list[Case]:
    """Every seed as it is. Where one is refused, its mutations show nothing."""
    chosen = [f for name, f in formats.items() if not only or name in only]
    return [Case(form.name, 0, i, whole=True) for form in chosen for i in range(len(form.seeds))]


def spread(formats: dict[str, Format], inputs: int, seed: int, only: Sequence[str] | None = None) -> list[Case]:
    """Cases of the formats, each as often as its share says, evenly mixed; the first so many of any longer run."""
    wheel = [f.name for name, f in formats.items() if not only or name in only for _ in range(f.share)]
    Random(0).shuffle(wheel)
    numbers = dict.fromkeys(wheel, -1)
    cases = []
    for i in range(inputs):
        name = wheel[i % len(wheel)]
        numbers[name] += 1
        cases.append(Case(name, seed, numbers[name]))
    return cases


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that came to something else than success or one `MxqError`."""

    case: Case
    outcome: int
    says: str = ""
    where: str = ""
    seconds: float = 0.0

    @property
    def kind(self) -> tuple[str, int, str]:
        """What failures of one cause have in common."""
        return self.case.format, self.outcome, self.where

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"{self.case} {OUTCOMES[self.outcome - 1]}: {self.says}{place}"


def outcome_of(form: Format, case: Case, folder: Path) -> tuple[int, str, str]:
    """Runs a case in this process: its outcome, what was said and where it arose."""
    try:
        form.write(case.document(form), folder)
    except Exception as error:
        return ERROR, f"the harness itself: {type(error).__name__} {str(error)[:300]!r}", ""
    before, size = _peak(), sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    try:
        form.use(folder)
    except mxq.MxqError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            return ERROR, f"a message of {len(str(error))} letters", _place(error)
        found = (REFUSED, str(error), "")
    except MemoryError as error:
        return MEMORY, str(error)[:200], _place(error)
    except SystemExit as end:  # of the command line
        found = (OK, "", "") if end.code in (0, None) else (REFUSED, f"exit code {end.code}", "")
    except BaseException as error:
        return ERROR, f"{type(error).__name__} {str(error)[:300]!r}", _place(error)
    else:
        found = (OK, "", "")
    if _peak() - before > MOST_BYTES + size:
        return MEMORY, f"{(_peak() - before) / 1e9:.1f} GB beyond what it began with", ""
    return found


def _peak() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The innermost line of mxq that the error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/mxq/" in f.filename]
    return f"{frames[-1].filename.rpartition('/mxq/')[2]}:{frames[-1].lineno}" if frames else ""


class Shared:
    """What a child tells its parent as it goes: the case it is at, since when, and the outcome of each."""

    def __init__(self, cases: int) -> None:
        self._memory = mmap.mmap(-1, 24 + cases)
        self.at = np.frombuffer(self._memory, np.int64, 1)
        self.since = np.frombuffer(self._memory, np.float64, 2, 8)  # by the clock, and in the child's own seconds
        self.outcomes = np.frombuffer(self._memory, np.uint8, cases, 24)

    def begin(self, case: int) -> None:
        self.since[:] = time.monotonic(), time.process_time()
        self.at[0] = case


class Job:
    """A share of the cases, one child process after the other."""

    def __init__(self, cases: Sequence[Case], formats: dict[str, Format], scratch: Path, limit: float) -> None:
        self.cases, self.formats, self.limit = cases, formats, limit
        self.shared, self.failures = Shared(len(cases)), list[Failure]()
        self._folder, self._log = scratch / "case", scratch / "failures"
        self._next, self._pid, self._read = 0, 0, 0
        scratch.mkdir()
        self._log.touch()

    @property
    def done(self) -> bool:
        return self._next >= len(self.cases) and not self._pid

    def step(self) -> None:
        """Looks after the child: starts one, ends one that hangs, notes what one that ended came to."""
        if not self._pid:
            self._start()
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid and self._hangs():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._ended(HANG, f"no end after {self.limit:g} s of its own, or {WAITING:g} times that")
        elif pid and os.waitstatus_to_exitcode(status) != 0:
            code = os.waitstatus_to_exitcode(status)
            if code == BROKEN:
                raise RuntimeError((self._log.parent / "broken").read_text())
            self._ended(CRASH, f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
        elif pid:
            self._pid, self._next = 0, int(self.shared.at[0])
        self._read_log()

    def _hangs(self) -> bool:
        """Whether the case has used up its time, or waited long: where others compute, waiting alone says little."""
        waited = time.monotonic() - self.shared.since[0]
        if waited <= self.limit:
            return False
        ticks = sum(map(int, Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        own = ticks / os.sysconf("SC_CLK_TCK") - self.shared.since[1]
        return own > self.limit or waited > WAITING * self.limit

    def _ended(self, outcome: int, says: str) -> None:
        at = int(self.shared.at[0])
        self.shared.outcomes[at] = outcome
        self.failures.append(Failure(self.cases[at], outcome, says))
        self._pid, self._next = 0, at + 1

    def _read_log(self) -> None:
        with self._log.open(encoding="utf-8") as log:
            log.seek(self._read)
            for line in iter(log.readline, ""):
                entry = json.loads(line)
                self.failures.append(Failure(self.cases[entry.pop("at")], **entry))
            self._read = log.tell()

    def _start(self) -> None:
        self.shared.begin(self._next)
        self.shared.since[1] = 0.0
        self._pid = os.fork()
        if not self._pid:
            try:
                self._run()
            except BaseException:
                (self._log.parent / "broken").write_text(traceback.format_exc())
                os._exit(BROKEN)

    def _run(self) -> None:
        """The child: case after case, until all are done or it has done its share."""
        quiet()
        limit_memory()
        last = min(self._next + CASES_OF_A_PROCESS, len(self.cases))
        with self._log.open("a", encoding="utf-8") as log:
            for i in range(self._next, last):
                self.shared.begin(i)
                case = self.cases[i]
                clean(self._folder)
                outcome, says, where = outcome_of(self.formats[case.format], case, self._folder)
                self.shared.outcomes[i] = outcome
                if outcome in FAILURES:
                    seconds = time.monotonic() - float(self.shared.since[0])
                    log.write(
                        json.dumps({"at": i, "outcome": outcome, "says": says, "where": where, "seconds": seconds})
                        + "\n"
                    )
                    log.flush()
                if outcome == MEMORY:  # the peak of the next one could not be told
                    last = i + 1
                    break
        self.shared.at[0] = last
        os._exit(0)


def quiet() -> None:
    """Nothing of this process and its libraries reaches the terminal, and a crash leaves no core."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))


def clean(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


def run(
    cases: Sequence[Case],
    formats: dict[str, Format],
    jobs: int = 1,
    limit: float = 20.0,
    tell: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Failure]]:
    """Runs cases, ``jobs`` at a time.

    Args:
        cases: what to run.
        formats: by name.
        jobs: processes.
        limit: seconds for one case.
        tell: called now and then with the number that is done.

    Returns:
        The outcome of each case, and the failures in the order of the cases.
    """
    with tempfile.TemporaryDirectory(prefix="mxq-fuzz-", dir=memory_folder()) as scratch:
        shares = [Job(cases[i::jobs], formats, Path(scratch) / str(i), limit) for i in range(jobs)]
        while not all(job.done for job in shares):
            for job in shares:
                if not job.done:
                    job.step()
            time.sleep(POLL)
            tell(sum(int(np.count_nonzero(job.shared.outcomes)) for job in shares))
        outcomes = np.zeros(len(cases), np.uint8)
        for i, job in enumerate(shares):
            outcomes[i::jobs] = job.shared.outcomes
        order = {case: i for i, case in enumerate(cases)}
        return outcomes, sorted((f for job in shares for f in job.failures), key=lambda f: order[f.case])


def memory_folder() -> str | None:
    """Where files cost no disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def smallest(failure: Failure, formats: dict[str, Format], limit: float) -> Failure:
    """The failure with as few mutations as show it; as it is where it does not come again when run alone."""
    kept = tuple(range(MOST_CHANGES)) if failure.case.changes is None else failure.case.changes
    best = failure
    for out in range(MOST_CHANGES):
        fewer = tuple(i for i in kept if i != out)
        _, found = run([replace(failure.case, changes=fewer)], formats, limit=limit)
        if found and found[0].kind == failure.kind:
            kept, best = fewer, found[0]
    return best
