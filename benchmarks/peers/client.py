"""The harness's side: child processes whose death is a result, not an accident."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REST = 0.02
"""Seconds before each turn, in which the threads of the server that ran before stop spinning and sleep."""

_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Failure|Fail|Environment))\b:? ?(.*)$")


class Failure(Exception):
    """Why a candidate has no figure, in one short line."""


def run(command: Sequence[str], env: Mapping[str, str], log: Path, timeout: float) -> None:
    """Runs a command to its end; its output goes to ``log``.

    Raises:
        Failure: it fails, is killed by a signal, or takes more than ``timeout`` seconds.
    """
    with log.open("ab") as file:
        child = _start(command, env, stdout=file, stderr=file)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"not done after {timeout:.0f} s") from None
        finally:
            _end(child)
    if code:
        raise Failure(reason(code, log))


class Server:
    """A child process that speaks `peers.protocol`, from the moment it is ready.

    Attributes:
        name: of the candidate.
        about: what the server says of itself.
        seconds: every time that it reported, in order.
        overhead: seconds that each round trip took beyond the server's work.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path, timeout: float = 900.0
    ) -> None:
        self.name, self.seconds, self.overhead = name, list[float](), list[float]()
        self._log, self._timeout, self._buffer = log, timeout, b""
        with log.open("ab") as file:
            self._child = _start(command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file)
        try:
            self.about: dict[str, Any] = self._answer()["ready"]
        except BaseException:
            self.close()
            raise

    def time(self, calls: int) -> float:
        """Lets the server run: one call that is not timed and ``calls`` that are. Seconds per call, by its clock."""
        time.sleep(REST)
        start = time.perf_counter()
        answer = self._ask(f"time {calls}")
        self.overhead.append(time.perf_counter() - start - float(answer["busy"]))
        self.seconds.append(float(answer["seconds"]))
        return self.seconds[-1]

    def outputs(self, path: Path) -> list[Any]:
        """The outputs of the network, by way of the file ``path``."""
        self._ask(f"outputs {path}")
        return read_outputs(path)

    def evaluate(self, source: Path, path: Path) -> None:
        """Writes the outputs for all examples of the file ``source`` to ``path``."""
        self._ask(f"evaluate {source} {path}")

    def profile(self, calls: int) -> dict[str, list[float]]:
        """Type of operator -> how many run in a call and their seconds, on average of ``calls``."""
        found: dict[str, list[float]] = self._ask(f"profile {calls}")["kinds"]
        return found

    def close(self) -> None:
        """Ends the process."""
        _end(self._child)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._child.stdin is not None  # noqa: S101  (a pipe was asked for)
        try:
            os.write(self._child.stdin.fileno(), f"{line}\n".encode())
        except BrokenPipeError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise Failure(short(answer["error"]))
        return answer

    def _line(self) -> bytes:
        assert self._child.stdout is not None  # noqa: S101
        pipe, until = self._child.stdout.fileno(), time.monotonic() + self._timeout
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                raise Failure(f"no answer after {self._timeout:.0f} s")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise self._died()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> Failure:
        return Failure(reason(self._child.wait(), self._log))


def read_outputs(path: Path) -> list[Any]:
    """The arrays that `peers.protocol.serve` wrote, in order."""
    with np.load(path) as file:
        return [file[str(i)] for i in range(len(file.files))]


def reason(code: int, log: Path) -> str:
    """Why a process ended with ``code``, from the end of its log."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if _ERROR.match(line)]
    return short(" ".join(lines[starts[-1] :]) if starts else (lines or [f"exit code {code}"])[-1])


def short(message: str, most: int = 110) -> str:
    """The sentence of an error that says most, cut to ``most`` characters, without file names of its author's."""
    text = " ".join(message.split())
    text = re.sub(r"Exception from \S+:|Check '.*?' failed at \S+:", "", text)  # OpenVINO's path to its reason
    for mark in ("Check failed: ", "Exception during initialization: ", "FAIL : "):
        text = text.rpartition(mark)[2] or text
    text = " ".join(re.sub(r" \(/\S+\)|\S*/\S+ ", "", text).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _start(command: Sequence[str], env: Mapping[str, str], **pipes: Any) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C is for us, who then end the children.
    return subprocess.Popen(command, env=dict(env), start_new_session=True, bufsize=0, **pipes)  # noqa: S603


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.wait()
