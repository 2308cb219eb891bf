"""The server's side of the comparison: a process that runs one network when it is told to, and says how long it took.

It answers each line on stdin with one line of JSON on stdout, after a first one when the network is loaded:

    -              {"ready": {what is loaded, with which settings}}
    time CALLS     {"seconds": mean of CALLS calls, "busy": seconds of these and of one before that does not count}
    outputs FILE   {"saved": FILE}: the outputs of one call, as .npz with keys "0", "1", ...
    evaluate I O   {"saved": O}: those for all examples of the .npz file I, input name -> (N, ...)
    profile CALLS  {"kinds": {type of operator: [operators, seconds] of a call, by the library's own profiler}}

or with ``{"error": reason}`` and its end. The call that does not count wakes the threads and fills the caches, which
other servers used since. Whatever libraries print goes to stderr. Needs numpy alone, so it runs in every environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Feeds = Mapping[str, Any]
"""Input -> its values, examples first."""
Kinds = dict[str, tuple[float, float]]
"""Type of operator -> how many run in a call, and the seconds that all of them take."""
PROFILED = "MXQ_PROFILED"
"""Variable of the environment with which a network is loaded so that it can be profiled, which may cost time."""


class Loaded(Protocol):
    """A network with its input of ``batch`` examples, ready to run; ``about``: with which versions and settings."""

    about: dict[str, Any]
    batch: int

    def __call__(self) -> object:
        """Runs once, and returns when the outputs are there."""

    def outputs(self) -> Sequence[Any]:
        """The outputs of the last call, as arrays."""

    def infer(self, feeds: Feeds) -> Sequence[Any]:
        """The outputs for another batch of the same size."""

    def profile(self, calls: int) -> Kinds:
        """Where the time of a call goes, on average of ``calls``."""


def main(quantize: Callable[[str, Path], None], server: Callable[[Path, Feeds], Loaded]) -> None:
    """The command line of a peer: ``quantize KIND FOLDER`` or ``serve FILE FOLDER BATCH``."""
    match sys.argv[1:]:
        case ["quantize", kind, folder]:
            quantize(kind, Path(folder))
        case ["serve", file, folder, batch]:
            serve(lambda: server(Path(folder) / file, read(Path(folder) / f"input-{batch}.npz")))
        case _:
            sys.exit("quantize KIND FOLDER, or serve FILE FOLDER BATCH")


def read(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def batches(feeds: Feeds, size: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Batches of ``size`` examples, and how many of each count: the last one is filled up with its own last example."""
    count = len(next(iter(feeds.values())))
    for start in range(0, count, size):
        valid = min(size, count - start)
        rows = [start + min(i, valid - 1) for i in range(size)]
        yield {name: np.ascontiguousarray(values[rows]) for name, values in feeds.items()}, valid


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
        case ["evaluate", source, path]:
            _evaluate(network, read(Path(source)), Path(path))
            return {"saved": path}
        case ["profile", calls]:
            return {"kinds": network.profile(int(calls))}
        case _:
            raise ValueError(
                f"{' '.join(words)!r}; allowed: time CALLS, outputs FILE, evaluate FILE FILE, profile CALLS"
            )


def _evaluate(network: Loaded, feeds: Feeds, path: Path) -> None:
    size = network.batch
    parts = [[np.array(a[:valid]) for a in network.infer(one)] for one, valid in batches(feeds, size)]
    np.savez(path, **{str(i): np.concatenate(part) for i, part in enumerate(zip(*parts, strict=True))})
