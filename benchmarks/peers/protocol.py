"""The server's side of the comparison: a process that runs one network when it is told to, and says how long it took.

It answers each line on stdin with one line of JSON on stdout, after a first one when the network is loaded:

    -              {"ready": {what is loaded, with which settings}}
    time CALLS     {"seconds": mean of CALLS calls, "busy": seconds of these and of one before that does not count}
    outputs FILE   {"saved": FILE}: the outputs of one call, as .npz with keys "0", "1", ...
    profile CALLS  {"kinds": {type of operator: [operators, seconds] of a call, by the library's own profiler}}

or with ``{"error": reason}`` and its end. The call that does not count wakes the threads and fills the caches, which
other servers used since. Whatever libraries print goes to stderr. Needs numpy alone, so it runs in every environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Kinds = dict[str, tuple[float, float]]
"""Type of operator -> how many run in a call, and the seconds that all of them take."""
PROFILED = "MXQ_PROFILED"
"""Variable of the environment with which a network is loaded so that it can be profiled, which may cost time."""


class Loaded(Protocol):
    """A network with its input, ready to run; ``about`` says with which versions and settings."""

    about: dict[str, Any]

    def __call__(self) -> object:
        """Runs once, and returns when the outputs are there."""

    def outputs(self) -> Sequence[Any]:
        """The outputs of the last call, as arrays."""

    def profile(self, calls: int) -> Kinds:
        """Where the time of a call goes, on average of ``calls``."""


def main(quantize: Callable[[Path, str], None], server: Callable[[Path, str], Loaded]) -> None:
    """The command line of a peer: ``quantize FOLDER BATCH`` or ``serve FOLDER BATCH``."""
    what, where, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if what == "quantize":
        quantize(where, count)
    else:
        serve(lambda: server(where, count))


def serve(load: Callable[[], Loaded]) -> None:
    """Loads the network and answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        network = load()
        network()
        answer(ready=network.about)
        for line in sys.stdin:
            answer(**_obey(network, line.split()))
    except Exception as error:  # whatever it is, the other side has to hear of it
        answer(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def _obey(network: Loaded, words: Sequence[str]) -> dict[str, Any]:
    begin = time.perf_counter()
    network()
    match words:
        case ["time", calls]:
            start = time.perf_counter()
            for _ in range(int(calls)):
                network()
            end = time.perf_counter()
            return {"seconds": (end - start) / int(calls), "busy": end - begin}
        case ["outputs", path]:
            np.savez(path, **{str(i): np.asarray(a) for i, a in enumerate(network.outputs())})
            return {"saved": path}
        case ["profile", calls]:
            return {"kinds": network.profile(int(calls))}
        case _:
            raise ValueError(f"{' '.join(words)!r}; allowed: time CALLS, outputs FILE, profile CALLS")
