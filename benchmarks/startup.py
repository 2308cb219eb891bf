"""Start-up: loading a pair and its first inference, int8 beside float32, each in a fresh process of stock MXNet.

    python benchmarks/startup.py [NET] [--repeats 9]

Processes take turns; the times are from before the files are read to after the first result is there, imports left
out, which are the same for both. mxq is in none of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from zoo import NETS, Net, build, examples

from mxq import pipeline
from mxq.bench.timing import summarize
from mxq.config import QuantConfig
from mxq.runtime import MxnetRunner, write_pair

STOCK = """
import sys, time, warnings
if sys.version_info >= (3, 12):
    import mxq  # what MXNet misses there
import numpy as np, mxnet as mx
warnings.simplefilter("ignore")
"""
"""How a program of stock MXNet begins."""
BLOCK = """
net = mx.gluon.SymbolBlock.imports(sys.argv[1] + "-symbol.json", ["data"], sys.argv[1] + "-0000.params")
net.hybridize(static_alloc=True, static_shape=True)
"""
"""How it loads a pair as a block."""
TIMED = """
taken = []
for _ in range(200):
    start = time.perf_counter()
    call().wait_to_read()
    taken.append(time.perf_counter() - start)
print(np.median(taken[50:]))
"""
"""How it prints the median seconds of a ``call``."""
CHILD = (
    STOCK
    + """
x = mx.nd.array(np.load(sys.argv[2]))
x.wait_to_read()
start = time.perf_counter()
"""
    + BLOCK
    + """
result = net(x)
for y in result if isinstance(result, (list, tuple)) else [result]:
    y.wait_to_read()
print(time.perf_counter() - start)
"""
)


def write(net: Net, folder: Path) -> dict[str, Path]:
    """The float and the int8 pair of a network, and an example."""
    model = build(net.name)
    prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%"))
    ranges = pipeline.calibrate(prepared, examples(net, 4, seed=3), MxnetRunner(), progress=False)
    made = {"float32": model, "int8": pipeline.quantize(prepared, ranges).model}
    np.save(folder / "example.npy", examples(net, 1))
    for name, network in made.items():
        write_pair(network, folder / name)
    return {name: folder / name for name in made}


def seconds(prefix: Path, program: str = CHILD, *arguments: str, **variables: str) -> float:
    """What a program prints last, in a process of its own: of one start, unless another is given.

    Args:
        prefix: of the pair; the program's first argument, the example beside it the second.
        program: its text.
        arguments: further ones.
        variables: of its environment.
    """
    command = [sys.executable, "-c", program, str(prefix), str(prefix.parent / "example.npy"), *arguments]
    environ = {**os.environ, "MXNET_SUBGRAPH_VERBOSE": "0", **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)  # noqa: S603
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="?", default="resnet50_v1", choices=NETS)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefixes = write(NETS[args.net], Path(folder))
        for prefix in prefixes.values():
            seconds(prefix)  # the files are in the page cache from here on
        rounds = [{name: seconds(prefix) for name, prefix in prefixes.items()} for _ in range(args.repeats)]
    took = {name: [r[name] for r in rounds] for name in prefixes}
    table = Table("network", "load and first inference, ms", "x float32 (p10-p90)")
    for name in prefixes:
        found = summarize(name, took["float32"], took[name])  # the time of this one over float32's
        table.add_row(
            f"{args.net} {name}", f"{1000 * float(np.median(took[name])):.0f}",
            f"{found.speedup:.2f} ({found.low:.2f}-{found.high:.2f})",
        )  # fmt: skip
    console = Console()
    console.print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
    console.print(table)


if __name__ == "__main__":
    main()
