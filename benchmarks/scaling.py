"""How calibration on workers scales: one worker against two, what a result weighs, and what the client can take.

    MXQ_DATA=... python benchmarks/scaling.py [NET] [--examples 200] [--per-partition 20] [--repeats 3]

Printed are: examples per second with one thread in one worker, two in one, one in each of two (medians of interleaved
repeats, pictures decoded on the way), and the CPU time of an example, which tells the same where others use the
machine; bytes and merge time of one partition's statistics; how many such results per second the client receives and
merges when the workers have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import as_completed
from rich.console import Console
from rich.table import Table

import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()

from mxq import distributed, pipeline  # noqa: E402
from mxq.config import QuantConfig  # noqa: E402
from mxq.data.preprocess import read_preprocess  # noqa: E402
from mxq.distributed import Partitions  # noqa: E402
from mxq.distributed.jobs import Run  # noqa: E402
from mxq.distributed.tasks import Collecting, Job, Seen, merged  # noqa: E402
from mxq.runtime import MxnetRunner, load_model  # noqa: E402

if TYPE_CHECKING:
    from distributed import Client

SETUPS = ((1, 1), (1, 2), (2, 1))
"""(workers, threads of each)"""


def same(seen: Seen) -> Seen:
    """A partition that takes no time."""
    return seen


@dataclass(frozen=True)
class Pass:
    """One calibration: examples per second; CPU seconds per example, in the workers and in the client."""

    speed: float
    workers: float
    client: float


def one_pass(prepared: pipeline.Prepared, data: Partitions, client: Client) -> Pass:
    """Calibrates, the time to send the network included."""
    started, before = time.perf_counter(), cpu_seconds(client)
    found = distributed.calibrate(prepared, data, MxnetRunner(), client)
    took, after, count = time.perf_counter() - started, cpu_seconds(client), found.statistics.examples
    return Pass(count / took, (after[0] - before[0]) / count, (after[1] - before[1]) / count)


def cpu_seconds(client: Client) -> tuple[float, float]:
    """Of all workers together, and of this process (client and scheduler)."""
    return sum(client.run(time.process_time).values()), time.process_time()


def results_per_second(prepared: pipeline.Prepared, seen: Seen, client: Client, count: int) -> float:
    """Results that come to the client, 16 under way, and are merged there."""
    observers, total = pipeline.wanted(prepared), seen.states
    held = client.scatter(seen, broadcast=True)
    numbers, completed = iter(range(count)), as_completed(with_results=True, loop=client.loop)
    completed.update([client.submit(same, held, key=f"same-{n}") for n in islice(numbers, 16)])
    started = time.perf_counter()
    for future, part in completed:
        total = merged(observers, total, part.states)
        del future
        completed.update([client.submit(same, held, key=f"same-{n}") for n in islice(numbers, 1)])
    return count / (time.perf_counter() - started)


def merge_seconds(prepared: pipeline.Prepared, seen: Seen) -> float:
    """Median time of one merge."""
    observers, times, total = pipeline.wanted(prepared), [], seen.states
    for _ in range(50):
        started = time.perf_counter()
        total = merged(observers, total, seen.states)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="?", default="resnet18_pqf")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--per-partition", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    root = Path(os.environ["MXQ_DATA"])
    pair = root / "models" / args.net / args.net
    prepared = pipeline.plan(load_model(pair), QuantConfig(calib_mode="entropy"))
    settings = read_preprocess(pair.with_name("preprocess.json"))
    inputs, folder = prepared.fused.inputs, root / "imagenet"
    data = Partitions.images(folder, inputs, settings, 10, args.per_partition, examples=args.examples)
    console, passes = Console(width=120), {setup: [] for setup in SETUPS}
    with ExitStack() as stack:
        clients = {}
        for workers, threads in SETUPS:
            os.environ["OMP_NUM_THREADS"] = str(workers * threads)
            clients[workers, threads] = stack.enter_context(distributed.local_client(workers))
        for repeat in range(args.repeats + 1):
            for setup, client in clients.items():
                found = one_pass(prepared, data, client)
                passes[setup] += [found] if repeat else []  # the first imports MXNet
        asked = pipeline.wanted(prepared)
        first = Partitions(data.name, data.items[:1], data.load)
        run = Run(Job(prepared.fused, Collecting(asked), data.load), first)
        ((_, seen),) = run.results(first.keys, MxnetRunner(), ordered=False)
        received = results_per_second(prepared, seen, clients[2, 1], 200)
    columns = (
        "workers",
        "threads each",
        "examples/s",
        "range",
        "x the first",
        "CPU ms per example",
        "and in the client",
    )
    table = Table(*columns, title=f"{args.net}, {len(data)} partitions of {args.per_partition}")
    base = statistics.median(p.speed for p in passes[SETUPS[0]])
    for (workers, threads), found in passes.items():
        speed, inside, outside = (
            statistics.median(getattr(p, n) for p in found) for n in ("speed", "workers", "client")
        )
        spread = f"{min(p.speed for p in found):.1f}-{max(p.speed for p in found):.1f}"
        cost = f"{1000 * inside:.1f}", f"{1000 * outside:.1f}"
        table.add_row(str(workers), str(threads), f"{speed:.1f}", spread, f"{speed / base:.2f}", *cost)
    console.print(f"load of the machine, 1 minute: {os.getloadavg()[0]:.1f}")
    console.print(table)
    size, seconds = len(pickle.dumps(seen)), merge_seconds(prepared, seen)
    console.print(f"a result: {len(seen.states)} tensors, {size / 2**20:.2f} MiB; merged in {1000 * seconds:.2f} ms")
    console.print(f"the client takes {received:.0f} results/s, {received * size / 2**20:.0f} MiB/s")


if __name__ == "__main__":
    main()
