"""What a Gluon block costs beside a bound executor, and MXNet's threads: int8 networks of stock MXNet at batch 1.

    python benchmarks/binding.py [NET ...] [--repeats 7]

Each figure is of a fresh process that imports MXNet alone; processes take turns. A hybridized block with static memory
is given an array that exists already; the executor's input lies in its own. The operators are the same. With
``MXNET_ENGINE_TYPE=NaiveEngine`` the calling thread runs them, else one of MXNet's does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from startup import BLOCK, STOCK, TIMED, seconds, write
from zoo import NETS

from mxq.bench.timing import summarize
from mxq.host.environment import COPY_SIZE, NEVER

FED_BLOCK = (
    BLOCK
    + """
x = mx.nd.array(np.load(sys.argv[2]))
call = lambda: net(x)
"""
)
EXECUTOR = """
example = np.load(sys.argv[2])
symbol, args, states = mx.model.load_checkpoint(sys.argv[1], 0)
net = symbol.simple_bind(mx.cpu(), grad_req="null", data=example.shape)
net.copy_params_from(args, states)
net.arg_dict["data"][:] = example
call = lambda: net.forward(is_train=False)[0]
"""
AS_WRITTEN = {"MXNET_SUBGRAPH_BACKEND": "default", COPY_SIZE: NEVER}
WAYS = {
    "block": (FED_BLOCK, AS_WRITTEN),
    "executor": (EXECUTOR, AS_WRITTEN),
    "calling thread": (EXECUTOR, {**AS_WRITTEN, "MXNET_ENGINE_TYPE": "NaiveEngine"}),
}
"""Program, which makes a ``call``, and environment of each."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=["resnet18_v1", "resnet50_v1", "densenet121"])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    console = Console()
    for name in args.nets:
        with tempfile.TemporaryDirectory(prefix="mxq-binding-") as folder:
            prefix = write(NETS[name], Path(folder))["int8"]
            rounds = [
                {way: seconds(prefix, STOCK + held + TIMED, **env) for way, (held, env) in WAYS.items()}
                for _ in range(args.repeats)
            ]
        block, *others = ((way, [r[way] for r in rounds]) for way in WAYS)
        words = [f"block {1000 * median(block[1]):.2f} ms"]
        for way, took in others:
            found = summarize(name, took, block[1])
            ratio = f"{found.speedup:.3f} ({found.low:.3f}-{found.high:.3f}) times as fast"
            words.append(f"{way} {1000 * median(took):.2f} ms, {ratio}")
        console.print(f"{name:14} {'; '.join(words)}", soft_wrap=True)


if __name__ == "__main__":
    main()
