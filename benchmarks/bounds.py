"""Where the time of int8 networks goes, by kind of operator: mxq's in MXNet beside OpenVINO's.

    python benchmarks/peers/make_env.py                     # once
    python benchmarks/bounds.py [NET ...] [--batch-sizes 1 16] [--markdown FILE]

NET is a name of `zoo.NETS`, or NET:raw. Networks are made and served as by `compare.py`. "all" is the time of a call,
without any profiler; processes take turns. The other columns are what the profiler of each library says, in processes
of their own, whose sum can be more than "all" by what profiling costs: some microseconds an operator.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

from compare import NETS, PEERS, Network, Options
from peers.client import Failure
from peers.protocol import PROFILED
from rich.console import Console
from rich.table import Table

import mxq

TOOLS = ("mxq", "openvino")
LAYERS, POINTWISE, CONCAT, POOLING, CONVERSION, OTHER = (
    "convolutions, fully connected", "BatchNorm, activation, sum, product", "Concat", "pooling",
    "quantize, dequantize, reorder", "other",
)  # fmt: skip
KINDS: Mapping[str, tuple[str, ...]] = {
    CONVERSION: ("_contrib_quantize_v2", "dequantize", "requantize", "Reorder", "Convert"),
    LAYERS: ("conv", "fully_connected", "FullyConnected", "Convolution", "MatMul"),
    CONCAT: ("concat", "Concat"),
    POOLING: ("ooling", "Pool", "ReduceMean"),
    POINTWISE: (
        "batch_norm", "BatchNorm", "quantized_act", "Activation", "elemwise", "broadcast", "Subgraph", "Eltwise",
        "FakeQuantize", "Power",
    ),
}  # fmt: skip
"""Kind -> what the types of its operators have in their names; the first that fits. "_sg_mkldnn_conv" is a layer."""
COLUMNS = (LAYERS, POINTWISE, CONCAT, POOLING, CONVERSION, OTHER)
UNDER_PROFILER = {
    PROFILED: "1",
    "MXNET_EXEC_BULK_EXEC_INFERENCE": "0",
    "MXNET_ENGINE_TYPE": "ThreadedEnginePerDevice",  # NaiveEngine counts every operator twice
}
EXAMPLES = 64
"""Examples in a turn."""
Shares = dict[str, tuple[float, float]]
"""Kind -> how many operators run in a call, and their milliseconds."""


def kind_of(op: str) -> str:
    """The kind that a type of operator belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in op for part in parts)), OTHER)


def profiled(net: Network, tool: str, batch: int, calls: int) -> Shares:
    """What the profiler of ``tool`` says.

    Raises:
        Failure: the network cannot be made or served.
    """
    found: Shares = {}
    with closing(net.serve(tool, batch, **UNDER_PROFILER)) as server:
        for op, (count, seconds) in server.profile(calls).items():
            counted, taken = found.get(kind_of(op), (0.0, 0.0))
            found[kind_of(op)] = (counted + count, taken + 1e3 * seconds)
    return found


def timed(net: Network, batch: int, repeats: int, calls: int) -> dict[str, float]:
    """Tool -> milliseconds of a call, median of its turns.

    Raises:
        Failure: a network cannot be made or served.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(net.serve(tool, batch))) for tool in TOOLS]
        for _ in range(repeats):
            for server in servers:
                server.time(calls)
        return {server.name: 1e3 * median(server.seconds) for server in servers}


def lines(name: str, options: Options) -> Iterator[tuple[str, ...]]:
    """The lines of one network: for each batch size one of each tool.

    Raises:
        Failure: a network cannot be made or served.
    """
    with tempfile.TemporaryDirectory(prefix="mxq-bounds-") as folder:
        net = Network(name, Path(folder), options)
        net.build()
        for batch in options.batches:
            calls = max(1, EXAMPLES // batch)
            whole = timed(net, batch, options.repeats, calls)
            for tool in TOOLS:
                found = profiled(net, tool, batch, options.repeats * calls)
                shares = (found.get(kind) for kind in COLUMNS)
                cells = (f"{share[1]:.2f} ({round(share[0])})" if share else "" for share in shares)
                yield (name, str(batch), tool, f"{whole[tool]:.2f}", *cells)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table, its first row the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)) + "\n"


def main() -> None:
    """Measure and print, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(NETS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--env", type=Path, default=PEERS / ".venv", help="environment that peers/make_env.py built")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    console = Console(width=160)
    options = Options(
        candidates=TOOLS,
        batches=tuple(args.batch_sizes),
        repeats=args.repeats,
        threads=mxq.use_physical_cores(),
        images=max(16, *args.batch_sizes),
        python=args.env / "bin" / "python",
    )
    rows: list[Sequence[str]] = [("network", "batch", "", "all ms", *(f"{kind} ms (operators)" for kind in COLUMNS))]
    for name in args.nets:
        try:
            for line in lines(name, options):
                console.print(" | ".join(line), markup=False, highlight=False)
                rows.append(line)
                if args.markdown:
                    args.markdown.write_text(markdown(rows), encoding="utf-8")
        except Failure as failure:
            console.print(f"{name}: {failure}", markup=False, highlight=False)
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
