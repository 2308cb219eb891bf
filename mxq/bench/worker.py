"""The process that a sweep times in: `mxq.bench.processes` starts it, already pinned, with its threads set."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LEAST_CALLS = 3


def main(spec: Mapping[str, Any]) -> None:
    """Answers on stdout, a line of JSON each: "ready", and after a line "go" on stdin the times, for every batch size.

    What MXNet itself prints to stdout goes to stderr.

    Args:
        spec: "prefix", "epoch", "shapes", "batches", "seconds" and "warmup", as in `mxq.bench.processes.Job`.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def tell(answer: Any) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        from mxq.errors import MxqError  # noqa: PLC0415  (after stdout is safe)

        try:
            _serve(spec, tell)
        except MxqError as error:
            sys.exit(" ".join(str(error).split()))


def _serve(spec: Mapping[str, Any], tell: Callable[[Any], None]) -> None:
    from mxq import runtime  # noqa: PLC0415
    from mxq.bench.timing import random_feeds  # noqa: PLC0415

    model = runtime.load_model(Path(spec["prefix"]), spec["epoch"])
    for batch in spec["batches"]:
        call = runtime.serve(model, random_feeds(model, spec["shapes"], batch))
        started = time.perf_counter()
        for _ in range(max(1, spec["warmup"])):
            call()
            if time.perf_counter() - started > spec["seconds"]:
                break
        tell("ready")
        if sys.stdin.readline().strip() != "go":
            return
        tell(timed(call, spec["seconds"]))


def timed(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Calls until ``seconds`` have passed, `LEAST_CALLS` times at least: see `mxq.bench.sweep_result.combine`."""
    took: list[float] = []
    start = before = clock()
    while before - start < seconds or len(took) < LEAST_CALLS:
        call()
        now = clock()
        took.append(now - before)
        before = now
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": took, "elapsed": before - start, "memory": memory}
