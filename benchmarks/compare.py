"""Speed and accuracy of mxq's int8 beside float32, ``mxnet.contrib.quantization``, OpenVINO and ONNX Runtime.

    python benchmarks/peers/make_env.py                     # once: the environment of OpenVINO and ONNX Runtime
    python benchmarks/compare.py [NET ...] [--batch-sizes 1 16] [--set NAME=VALUE ...] [--json FILE] [--chart FILE.png]
    python benchmarks/compare.py --from FILE --chart FILE.png

NET is a name of `zoo.NETS`, or a trained network of ``MXQ_DATA`` (`every_cpu.NETS`), of which accuracy is measured as
well, on all its evaluation inputs. ``NET:raw`` is a detector without non-maximum suppression, for all candidates alike;
``NET:less`` is one without it for OpenVINO and ONNX Runtime alone.

Every candidate is a process of its own with the same number of threads, its input in memory. The processes take turns:
one call that is not timed, then those that are, by the process' own clock; the others sleep (see `peers/client.py`).
MXNet runs the operators in the calling thread, as the others do (``MXNET_ENGINE_TYPE=NaiveEngine``; `binding.py`).
mxq is told the shape of the input (``input_shape``), as the files of OpenVINO and ONNX Runtime say it.
All quantize with the same calibration images (trained networks: 50). The peers' own quantizers get the float network as
mxq's ONNX file, which their accuracy in float (``float_onnxruntime``, ``float_openvino``) vouches for. What fails,
fails alone: the table says why, and the run goes on. MXNet's environment, which runs this, needs ``mxq[onnx]``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from compare_report import BASE, CANDIDATES, OURS, Figure, Row, Run, chart, failures, markdown, show
from peers.client import Failure, Server, read_outputs, run, short
from rich.console import Console

import mxq
from mxq.bench.timing import bench
from mxq.host import machine
from mxq.numerics import sqnr_db

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
NETS = (
    "resnet18_v1", "resnet50_v1", "resnet50_v2", "mobilenet1.0", "mobilenetv2_1.0", "squeezenet1.1", "densenet121",
    "inceptionv3", "vgg16", "se_resnext50_32x4d", "ssd_300_vgg16_atrous_voc", "yolo3_darknet53_voc",
)  # fmt: skip
MXNET = ("float32", "mxnet", "fused", "contrib", "mxq")
FILES = {
    "float_onnxruntime": "net.onnx",
    "onnxruntime": "onnxruntime.onnx",
    "onnxruntime_reduced": "onnxruntime_reduced.onnx",
    "mxq_onnxruntime": "mxq_onnx.onnx",
    "float_openvino": "net.onnx",
    "openvino": "openvino.xml",
    "openvino_mixed": "openvino_mixed.xml",
    "mxq_openvino": "mxq_onnx.onnx",
}
"""What runs outside of MXNet -> its file."""
LESS = "less"
USUAL = ("float32", "mxnet", "fused", "contrib", "mxq", "onnxruntime", "mxq_onnxruntime", "openvino", "mxq_openvino")
WARMUP = 2
Peaks = dict[str, dict[str, float]]
"""Operations per second: "int8" or "float32" -> stack of `roofline.py` -> figure."""
PATIENCE = 1800.0
"""Seconds that a step (building, quantizing) may take."""


@dataclass(frozen=True)
class Options:
    """What a run was asked for, beside the networks."""

    candidates: tuple[str, ...]
    batches: tuple[int, ...]
    repeats: int
    threads: int
    images: int
    python: Path
    asked: tuple[str, ...] = ()
    """Settings of mxq that are not the defaults, "quantize_mode=full"."""
    kept: Path | None = None
    """A folder with one for each network, whose files stay and are not made again."""

    @property
    def env(self) -> dict[str, str]:
        """Of all processes."""
        engine = {"MXNET_ENGINE_TYPE": os.environ.get("MXNET_ENGINE_TYPE", "NaiveEngine")}
        return {**os.environ, **engine, "OMP_NUM_THREADS": str(self.threads), "MXNET_SUBGRAPH_VERBOSE": "0"}


class Network:
    """The steps of one network; each runs once, and its failure is kept for all who ask again."""

    def __init__(self, name: str, folder: Path, options: Options) -> None:
        self.name, self.folder, self._options = name, folder, options
        base, _, form = name.partition(":")
        self._peers_folder = folder / LESS if form == LESS else folder
        self._forms = {folder: base, self._peers_folder: f"{base}:raw"} if form == LESS else {folder: name}
        self._done: dict[str, Failure | None] = {}

    def folder_of(self, candidate: str) -> Path:
        """Where the network that ``candidate`` runs is, with its references."""
        return self.folder if candidate in MXNET else self._peers_folder

    def build(self) -> None:
        """The float network, as files in its folder."""
        counts = list(map(str, (self._options.images, *self._options.batches)))
        for folder, name in self._forms.items():
            folder.mkdir(exist_ok=True)
            step = "-".join(("build", name, *counts))
            self._step(step, sys.executable, "mxnet_nets.py", "build", name, str(folder), *counts)

    def serve(self, candidate: str, batch: int, **variables: str) -> Server:
        """Quantizes where that is not done yet, and starts the server, with ``variables`` in its environment.

        Raises:
            Failure: one of these steps fails.
        """
        folder = str(self.folder_of(candidate))
        if candidate in MXNET:
            if candidate != "float32":
                asked = self._options.asked if candidate == OURS else ()
                self._step(candidate, sys.executable, "mxnet_nets.py", "quantize", candidate, folder, *asked)
            command = [sys.executable, str(PEERS / "mxnet_nets.py"), "serve", candidate, folder, str(batch)]
        else:
            python, script = self._peer(candidate)
            self._make(candidate, folder, python, script)
            command = [python, str(PEERS / script), "serve", FILES[candidate], folder, str(batch)]
        env = {**self._options.env, **variables}
        return Server(candidate, command, env, self.folder / f"serve-{candidate}-{batch}.log")

    def _peer(self, candidate: str) -> tuple[str, str]:
        if not self._options.python.exists():
            raise Failure("no environment; python benchmarks/peers/make_env.py builds it")
        runtime = "onnxruntime" if "onnxruntime" in candidate else "openvino"
        return str(self._options.python), f"{runtime}_int8.py"

    def _make(self, candidate: str, folder: str, python: str, script: str) -> None:
        """The file of a candidate outside of MXNet."""
        if candidate.startswith("mxq_"):
            self._step("mxq_onnx", sys.executable, "mxnet_nets.py", "quantize", "mxq_onnx", folder)
            return
        self._step("export", sys.executable, "mxnet_nets.py", "export", folder)
        if not candidate.startswith("float_"):
            self._step(candidate, python, script, "quantize", candidate, folder)

    def judge(self, candidate: str, server: Server) -> dict[str, float]:
        """Accuracy over all evaluation inputs, of a trained network; {} for others.

        Raises:
            Failure: the server dies.
        """
        folder = self.folder_of(candidate)
        if not (folder / "evaluation.npz").exists():
            return {}
        file = folder / f"{candidate}-judged.json"
        if not file.exists():
            server.evaluate(folder / "evaluation.npz", folder / f"{candidate}-evaluated.npz")
            self._step(
                f"judge-{candidate}", sys.executable, "mxnet_nets.py", "judge", self.name, str(folder), candidate
            )
        found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def size(self, candidate: str) -> int:
        """Bytes of what ``candidate`` loads."""
        folder, name = self.folder_of(candidate), FILES.get(candidate, "")
        stem = name.removesuffix(".xml")
        names = [f"{candidate}-0000.params"] if not name else [f"{stem}.bin"] if name.endswith(".xml") else [name]
        return sum((folder / one).stat().st_size for one in names)

    def _step(self, name: str, python: str, script: str, *arguments: str) -> None:
        if name not in self._done:
            finished = self.folder / f"{name}.finished"
            try:
                if not finished.exists():
                    log = self.folder / f"{name}.log"
                    run([python, str(PEERS / script), *arguments], self._options.env, log, PATIENCE)
                    finished.touch()
                self._done[name] = None
            except Failure as failure:
                self._done[name] = Failure(f"{name.partition('-')[0]}: {failure}")
        kept = self._done[name]
        if kept:
            raise kept


class Stopwatch:
    """A clock that only the servers' own times move, so that `mxq.bench.timing.bench` sees nothing else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def turn(self, server: Server, calls: int) -> None:
        """One turn of ``server``.

        Raises:
            Died: it failed.
        """
        try:
            self.now += server.time(calls)
        except Failure as failure:
            raise Died(server, failure) from failure


class Died(Exception):
    """A server failed in its turn."""

    def __init__(self, server: Server, failure: Failure) -> None:
        super().__init__(str(failure))
        self.server = server


def measure(servers: list[Server], row: Row, repeats: int) -> None:
    """Times the servers in turns and writes what they took into ``row``; starts again without one that dies.

    A KeyboardInterrupt leaves the rounds that all have completed.
    """
    alive = list(servers)
    calls = max(1, 4 // row.batch)
    while alive:
        for server in alive:
            server.seconds.clear()
        watch = Stopwatch()
        try:
            turns = {s.name: lambda s=s, w=watch: w.turn(s, calls) for s in alive}
            bench(turns, repeats=repeats, warmup=WARMUP, examples=row.batch, clock=watch)
        except Died as died:
            row.figures[died.server.name].failure = str(died)
            alive.remove(died.server)
            continue
        finally:
            rounds = min((len(s.seconds) for s in alive), default=0)
            for server in alive:
                row.figures[server.name].seconds = server.seconds[WARMUP:rounds]
        return


def compare(net: Network, row: Row, options: Options) -> None:
    """Fills ``row``."""
    try:
        net.build()
        macs = json.loads((net.folder / "macs.json").read_text(encoding="utf-8"))
        row.macs = row.batch * sum(macs.values())
    except Failure as failure:
        row.figures = {name: Figure(failure=str(failure)) for name in options.candidates}
        return
    with ExitStack() as stack:
        servers: list[Server] = []
        for name in options.candidates:
            figure = row.figures[name] = Figure()
            try:
                server = stack.enter_context(closing(net.serve(name, row.batch)))
                servers.append(server)
                figure.about = server.about
                figure.sqnr_db = agreement(net.folder_of(name), row.batch, server)
                figure.size = net.size(name)
                if row.batch == max(options.batches):  # quickest
                    figure.judged = net.judge(name, server)
            except Failure as failure:
                figure.failure = str(failure)
        share = net.folder / "int8.json"
        row.int8_share = json.loads(share.read_text(encoding="utf-8")) if share.exists() else None
        measure([s for s in servers if not row.figures[s.name].failure], row, options.repeats)
        for server in servers:
            if server.overhead:
                row.figures[server.name].about["round_trip_overhead_us"] = round(1e6 * median(server.overhead))


def agreement(folder: Path, batch: int, server: Server) -> list[float | None]:
    """SQNR in dB of each output against float32 MXNet's on the same input; None for another shape."""
    wanted = read_outputs(folder / f"reference-{batch}.npz")
    found = server.outputs(folder / f"{server.name}-{batch}-outputs.npz")
    pairs = zip(wanted, found, strict=False)
    return [sqnr_db(a, b) if a.shape == b.shape else None for a, b in pairs]


def peaks(options: Options, console: Console) -> Peaks:
    """The machine's peaks, by `roofline.py` in a process of its own; none where that fails."""
    with tempfile.TemporaryDirectory(prefix="mxq-roofline-") as folder:
        path = Path(folder) / "peaks.json"
        command = [sys.executable, str(HERE / "roofline.py"), "--json", str(path)]
        try:
            run(command, options.env, Path(folder) / "log", PATIENCE)
        except Failure as failure:
            console.print(f"roofline.py fails: {failure}", markup=False)
            return {}
        found: Peaks = json.loads(path.read_text(encoding="utf-8"))
    return found


def best(first: Peaks, second: Peaks) -> Peaks:
    """The larger figure of each stack."""
    return {
        kind: {
            stack: max(found.get(kind, {}).get(stack, 0.0) for found in (first, second))
            for stack in {**first.get(kind, {}), **second.get(kind, {})}
        }
        for kind in {**first, **second}
    }


def compare_all(names: Sequence[str], options: Options, result: Run) -> Iterator[Row]:
    """Adds one row after the other to ``result``, and yields each when it is done."""
    with tempfile.TemporaryDirectory(prefix="mxq-compare-") as scratch:
        for name in names:
            with folder_for(name, scratch, options) as folder:
                net = Network(name, folder, options)
                for batch in options.batches:
                    row = Row(name, batch)
                    result.rows.append(row)
                    try:
                        compare(net, row, options)
                    except Exception as error:  # a full disk, say; the next network may be smaller
                        failed = Figure(failure=short(f"{type(error).__name__}: {error}"))
                        row.figures |= {n: failed for n in options.candidates if not row.timing(n, n)}
                    yield row


@contextmanager
def folder_for(name: str, scratch: str, options: Options) -> Iterator[Path]:
    """The folder of a network's files: one that stays, where that was asked for, or one that is removed in the end."""
    if options.kept:
        folder = options.kept / name.replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(dir=scratch) as removed:
            yield Path(removed)


def summary(row: Row) -> str:
    """One line that says how it went."""
    words = []
    for name in row.figures:
        timing = row.timing(name, name)
        words.append(f"{name} {1e3 * timing.median:.2f} ms" if timing else f"{name} fails")
    return "\n  ".join([f"{row.net} batch {row.batch}: {', '.join(words)}", *failures([row])])


def settings(options: Options) -> dict[str, object]:
    """How the figures were taken, for the reader."""
    found = machine.detect()
    return {
        "cpu": found.model,
        "target": found.target,
        "threads": options.threads,
        "repeats": options.repeats,
        "calibration images": options.images,
        "mxq": " ".join(("input_shape", *options.asked)),
        "MXNET_ENGINE_TYPE": options.env["MXNET_ENGINE_TYPE"],
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(NETS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--peers", nargs="+", choices=list(CANDIDATES), default=list(USUAL), help="candidates beside mxq"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of mxq: stem=int8")
    parser.add_argument("--env", type=Path, default=PEERS / ".venv", help="environment that peers/make_env.py built")
    parser.add_argument("--threads", type=int, help="of every candidate (default: OMP_NUM_THREADS, or one per core)")
    parser.add_argument("--calibration", type=int, default=16, help="images; rounded up to the largest batch")
    parser.add_argument("--keep", type=Path, help="folder for the networks' files; those that are there are used again")
    parser.add_argument("--no-roofline", action="store_true", help="leave the machine's peaks out")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--from", type=Path, dest="source", help="show the result in this file, measure nothing")
    parser.add_argument("--markdown", type=Path, help="write the tables of accuracy and speed here, for the docs")
    parser.add_argument("--chart", type=Path, help="draw the result here (.png)")
    return parser.parse_args(arguments)


def measured(args: argparse.Namespace, console: Console) -> Run:
    """A new run, written to ``args.json`` after every row. Ctrl-C or ``kill`` ends it and leaves what there is."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = Options(
        candidates=tuple(n for n in CANDIDATES if n in {*args.peers, OURS, BASE}),
        batches=tuple(args.batch_sizes),
        repeats=args.repeats,
        threads=args.threads or mxq.use_physical_cores(),
        images=max(args.calibration, *args.batch_sizes),
        python=args.env / "bin" / "python",
        asked=tuple(args.set),
        kept=args.keep and args.keep.resolve(),
    )
    result = Run(settings(options))
    try:
        # Before and after, because a peak shows only where nothing else runs.
        result.peaks = {} if args.no_roofline else peaks(options, console)
        for row in compare_all(args.nets, options, result):
            console.print(summary(row), markup=False, highlight=False)
            if args.json:
                result.save(args.json)
        result.peaks = {} if args.no_roofline else best(result.peaks, peaks(options, console))
    except KeyboardInterrupt:
        console.print("stopped; this is what there is so far")
    if args.json:
        result.save(args.json)
    return result


def main() -> None:
    """Measure or read, print, write."""
    args = parse()
    console = Console(width=None if sys.stdout.isatty() else 160)
    result = Run.load(args.source) if args.source else measured(args, console)
    show(result, console)
    if args.markdown:
        args.markdown.write_text(markdown(result), encoding="utf-8")
    if args.chart:
        chart(result, args.chart)


if __name__ == "__main__":
    main()
