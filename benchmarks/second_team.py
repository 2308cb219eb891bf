"""What a second team of OpenMP threads costs: an int8 network of stock MXNet before and after one large copy.

    python benchmarks/second_team.py [NET] [--repeats 5]

Each figure is of a fresh process that imports MXNet alone; processes take turns. "copied" has made one ``mx.nd.array``
of 602,112 values first, in its own thread (see `mxq.host.environment.disable_parallel_copy`); "one team" has too, with
the variable set.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from rich.console import Console
from startup import BLOCK, STOCK, TIMED, seconds, write
from zoo import NETS

from mxq.host.environment import COPY_SIZE, NEVER

CHILD = (
    STOCK
    + BLOCK
    + """
x = mx.nd.array(np.load(sys.argv[2]))
if sys.argv[3] == "copied":
    mx.nd.array(np.zeros(602112, np.float32)).wait_to_read()
call = lambda: net(x)
"""
    + TIMED
)
SETTINGS: Mapping[str, tuple[str, str]] = {
    "no copy": ("", "200000"),
    "copied": ("copied", "200000"),
    "one team": ("copied", NEVER),
}
"""What a process does first, and from how many values on MXNet copies with OpenMP."""


def inference(prefix: Path, setting: str) -> float:
    """Seconds of one inference, the median of a process."""
    does, size = SETTINGS[setting]
    return seconds(prefix, CHILD, does, **{COPY_SIZE: size})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="?", default="resnet18_v1", choices=NETS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mxq-team-") as folder:
        prefix = write(NETS[args.net], Path(folder))["int8"]
        rounds = [{name: inference(prefix, name) for name in SETTINGS} for _ in range(args.repeats)]
    console = Console()
    for name in SETTINGS:
        ratio = median(r[name] / r["no copy"] for r in rounds)
        console.print(f"{name:10} {1000 * median(r[name] for r in rounds):.2f} ms, {ratio:.2f} x")


if __name__ == "__main__":
    main()
