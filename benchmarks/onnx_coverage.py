"""Every network of the coverage list, and the trained ones, as ONNX, float and INT8, in each engine, beside MXNet.

    MXQ_DATA=... python benchmarks/onnx_coverage.py FILE.jsonl [NET ...] [--effort fast] [--markdown FILE]

FILE gets one line a network; those that have one are not made again. Each network is made in a process of its own.

* "float": the largest difference of an output from MXNet's, relative to the largest value of that output. Of a network
  that chooses boxes it is that of what the choice is made of.
* "boxes": those that MXNet finds, and how many of either list have no partner in the other: of the same class, with
  numbers that differ by less than `CLOSE` of the largest one. Those with the least score of a list, which is cut to a
  length, are not counted. Order says nothing: of two boxes with equal scores either may come first.
* "int8": the least SQNR of the outputs about their means, in dB; of detectors that of what the choice is made of.
* "pair": the same of the INT8 pair in MXNet.

Weights of the coverage list are random (see `zoo`), as are its four calibration examples; large networks get smaller
pictures (`SIDES`). What cannot be written says why.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import every_cpu
import numpy as np
from children import TIMEOUT, in_its_own_process
from real_nets import data_root
from rich.console import Console
from rich.progress import track
from zoo import DETECTOR, NETS, build, examples

import mxq
from mxq.engines import FILE_ENGINES
from mxq.errors import MxqError
from mxq.graph.ir import Array, Model, Node, Ref, toposort
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, load_model, to_arrays, to_symbol

CALIBRATION, EVALUATION = 4, 2
TRAINED_CALIBRATION, TRAINED_EVALUATION = 20, 40
"""Examples, for the trained networks."""
CLOSE, EXACT, BELOW_PAIR = 1e-3, 1e-4, 1.0
"""How close boxes are that are one; what a float file is held to; how many dB INT8 may be below the pair."""
MOVED = 1e-6
"""Where a float file is further away: by what share of its values an input is moved, to see what that makes."""
SIDES: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "resnet18_v1", "resnet50_v1", "resnet101_v1", "resnet50_v1b", "resnet50_v2", "resnext50_32x4d",
            "se_resnext50_32x4d", "mobilenet1.0", "mobilenet0.25", "mobilenetv2_1.0", "mobilenetv3_small",
            "mobilenetv3_large", "vgg16", "vgg16_bn", "alexnet", "resnest50", "senet_154", "hrnet_w18_small_v1_c",
            "fcn_resnet50_ade", "deeplab_resnet50_ade",
        ),
        128,
    ),
    **dict.fromkeys(("ssd_512_mobilenet1.0_voc", "ssd_512_resnet50_v1_voc", "center_net_resnet18_v1b_voc"), 256),
    **dict.fromkeys(("yolo3_darknet53_voc", "yolo3_mobilenet1.0_voc"), 192),
    **dict.fromkeys(("faster_rcnn_resnet50_v1b_voc", "mask_rcnn_resnet18_v1b_coco"), 192),
    "mtcnn/det1": 96,
}  # fmt: skip
"""Of pictures that are smaller than the network's usual ones."""
OPTIONS: Mapping[str, Mapping[str, int]] = {
    **{name: {"crop_size": 128} for name in ("fcn_resnet50_ade", "deeplab_resnet50_ade")},
    "mask_rcnn_resnet18_v1b_coco": {"rpn_test_post_nms": 50},
}
"""gluoncv's, for these."""
CHOICES = (
    "_contrib_box_nms", "_contrib_MultiBoxDetection", "topk", "argsort", "broadcast_equal", "_greater_scalar", "exp",
)  # fmt: skip
"""Operators of detectors after which the slightest noise makes other numbers; exp is of sizes of boxes."""
FACES = "ssd_face_slim320"
TRAINED = {name: made for name, made in every_cpu.NETS.items() if name not in every_cpu.PIXELS}
Feeds = Mapping[str, Array]
Results = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A float network with inputs by name, examples first, and how many of them it takes at once.

    ``raw`` ends where it chooses boxes; it is ``model`` where it does not.
    """

    model: Model
    raw: Model
    calibration: Feeds
    evaluation: Feeds
    batch: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one example."""
        return {name: value.shape[1:] for name, value in self.evaluation.items()}


def subject(name: str) -> Subject:
    """One of `NETS` or of `TRAINED`."""
    if name in TRAINED:
        net = TRAINED[name]()
        model = load_model(data_root() / "models" / FACES / FACES) if name == FACES else net.model
        few = {n: v[:TRAINED_EVALUATION] for n, v in net.evaluation.items()}
        many = {n: v[:TRAINED_CALIBRATION] for n, v in net.calibration.items()}
        return Subject(model, before_choices(model), many, few, 1)
    side = SIDES.get(name)
    net = NETS[name] if side is None else replace(NETS[name], shape=(3, side, side))
    model = build(name, net.shape, **OPTIONS.get(name, {}))
    raw = before_choices(model) if net.kind == DETECTOR else model
    calibration = np.concatenate([examples(net, net.batch, seed) for seed in range(10, 10 + CALIBRATION)])
    data = model.inputs[0]
    return Subject(model, raw, {data: calibration}, {data: examples(net, EVALUATION * net.batch)}, net.batch)


def before_choices(model: Model) -> Model:
    """The network up to what choices are made of: all that is read by, or after, one of `CHOICES`, and made before."""
    after, fed = set[str](), {*model.inputs}
    refs = dict[Ref, None]()
    for node in model.graph.operators:
        if any(ref.name in fed for ref in node.inputs):
            fed.add(node.name)
        if node.op in CHOICES or any(ref.name in after for ref in node.inputs):
            after.add(node.name)
            refs.update(dict.fromkeys(ref for ref in node.inputs if ref.name in fed - after and _made(model, ref)))
    heads = [*refs, *(head for head in model.graph.heads if head.name not in after)]
    return model if not after else model.with_graph(toposort(model.graph.nodes, heads, model.graph.attrs))


def _made(model: Model, ref: Ref) -> bool:
    node: Node = model.graph[ref.name]
    return not node.is_variable


def measure(one: Subject, name: str, folder: Path, effort: str) -> Results:
    """Both files of a network, as they are in each engine."""
    found: Results = {"name": name, "detects": one.raw is not one.model}
    with refusals(found, "float"):
        path, found["batches"] = exported(one.raw, folder / "float.onnx", one)
        found["float"] = in_engines(path, one, one.raw, furthest)
        if any(value > EXACT for value in found["float"].values() if isinstance(value, float)):
            found["own"] = own(one)
    if one.raw is not one.model:
        with refusals(found, "boxes"):
            path, _ = exported(one.model, folder / "boxes.onnx", one)
            found["boxes"] = in_engines(path, one, one.model, without_partner)
    with refusals(found, "int8"):
        path, _ = exported(one.raw, folder / "int8.onnx", one, effort)
        found["int8"] = in_engines(path, one, one.raw, noise)
    with refusals(found, "pair"):
        asked: Results = {"num_calib_examples": "100%", "batch_size": one.batch, "effort": effort}
        pair = mxq.quantize_net(triple(one.raw), calibration_of(one), **asked)
        found["pair"] = noise(in_mxnet(one.raw, one), in_mxnet(load_model(pair), one))
    return found


def exported(model: Model, path: Path, one: Subject, effort: str = "") -> tuple[Path, str]:
    """The file of a network, for batches of any size where it takes these; and which it takes. INT8 with ``effort``."""
    options: Results = {"num_calib_examples": "100%", "effort": effort} if effort else {}
    data = calibration_of(one) if effort else None
    for size in (None, one.batch):
        try:
            mxq.export_onnx(triple(model), path, data, input_shape=one.shapes, batch_size=size, **options)
        except MxqError as error:
            if size is not None or "batch" not in f"{error}":
                raise
        else:
            return path, "any" if size is None else str(size)
    raise AssertionError


def calibration_of(one: Subject) -> Any:
    """As mxq takes it: an array where there is one input."""
    return next(iter(one.calibration.values())) if len(one.calibration) == 1 else dict(one.calibration)


def triple(model: Model) -> tuple[Any, Any, Any]:
    """As mxq's functions take it."""
    return to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)


@contextmanager
def refusals(found: Results, form: str) -> Iterator[None]:
    """What mxq cannot do is a result."""
    start = time.perf_counter()
    try:
        yield
    except MxqError as error:
        found[form] = f"{error}"
    found[f"{form}_s"] = round(time.perf_counter() - start, 1)


def in_engines(path: Path, one: Subject, model: Model, measured: Callable[..., Any]) -> Results:
    """Engine -> how far its outputs are from those of ``model``, or why it does not run the file."""
    found: Results = {}
    wanted = in_mxnet(model, one)
    for engine in FILE_ENGINES:
        try:
            engine.check()
            found[engine.name] = measured(wanted, in_batches(engine.open(path, 1), one))
        except MxqError as error:
            found[engine.name] = f"{error}"
    return found


def in_mxnet(model: Model, one: Subject) -> list[Array]:
    """Its outputs on the evaluation examples."""
    return in_batches(MxnetRunner().compile(model), one)


def in_batches(call: Callable[[Feeds], Sequence[Array]], one: Subject) -> list[Array]:
    """The outputs of ``call``, batch after batch."""
    count = len(next(iter(one.evaluation.values())))
    starts = range(0, count, one.batch)
    parts = [list(call({n: v[i : i + one.batch] for n, v in one.evaluation.items()})) for i in starts]
    return [np.concatenate([np.atleast_1d(p) for p in part]) for part in zip(*parts, strict=True)]


def furthest(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest difference of an output, relative to its largest value."""
    pairs = zip(wanted, found, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def own(one: Subject) -> float:
    """How far MXNet's outputs are from those of inputs that are `MOVED` away, as of `furthest`."""
    rng = np.random.default_rng(0)
    moved = {n: (v * (1 + MOVED * rng.standard_normal(v.shape))).astype(v.dtype) for n, v in one.evaluation.items()}
    return furthest(in_mxnet(one.raw, one), in_mxnet(one.raw, replace(one, evaluation=moved)))


def noise(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The least SQNR of the outputs, about their means; of one that is a constant only whether it still is."""
    return min(sqnr_db(a - a.mean(), b - a.mean()) for a, b in zip(wanted, found, strict=True) if np.ptp(a) > 0)


def without_partner(wanted: Sequence[Array], found: Sequence[Array]) -> list[int]:
    """How many boxes there are in MXNet, and those of both without a partner, over all pictures."""
    scales = [max(float(np.abs(a).max()), 1e-30) for a in wanted]
    counts = np.zeros(2, int)
    for i in range(len(wanted[0])):
        counts += _unmatched(*(_rows([a[i] for a in outputs], scales) for outputs in (wanted, found)))
    return [int(count) for count in counts]


def _rows(parts: Sequence[Array], scales: Sequence[float]) -> Array:
    """(boxes, numbers): class, then all else as shares of the largest; best score first, without what is padding.

    ``parts`` are those of one picture: rows of class, score and corners, or each of these apart (and masks).
    """
    count = parts[0].shape[0]
    rows = np.concatenate([p.reshape(count, -1) / s for p, s in zip(parts, scales, strict=True)], axis=1)
    classes = parts[0].reshape(count, -1)[:, 0]
    kept = rows[classes >= 0]
    return kept[np.argsort(-kept[:, 1], kind="stable")]


def _unmatched(wanted: Array, found: Array) -> tuple[int, int]:
    """Boxes wanted, and those of either without a partner, above the least score of both."""
    free, alone = np.ones(len(found), bool), np.zeros(len(wanted), bool)
    for i, row in enumerate(wanted):
        near = np.flatnonzero(free & (np.abs(found - row).max(axis=1, initial=0) < CLOSE))
        alone[i] = not len(near)
        free[near[:1]] = False
    least = max((rows[-1, 1] for rows in (wanted, found) if len(rows)), default=0) + CLOSE
    counts = [int((rows[left, 1] > least).sum()) for rows, left in ((wanted, alone), (found, free))]
    return len(wanted), sum(counts)


ENGINES = tuple(engine.name for engine in FILE_ENGINES)
KINDS = ("float", "boxes", "int8")
COLUMNS = ("network", "batches", *(f"{kind} {engine}" for kind in KINDS for engine in ENGINES), "pair")


def row(found: Results) -> tuple[str, ...]:
    """One line of the table."""
    if "error" in found:
        return (found["name"], found["error"], *["-"] * (len(COLUMNS) - 2))
    forms = [found.get(kind, "-") for kind in KINDS]
    pairs = zip(KINDS, forms, strict=True)
    cells = [cell(kind, form if isinstance(form, str) else form[engine]) for kind, form in pairs for engine in ENGINES]
    return (found["name"], found.get("batches", "-"), *cells, cell("pair", found.get("pair", "-")))


def cell(kind: str, value: float | str | Sequence[int]) -> str:
    """A figure, or that there is none."""
    if isinstance(value, str):
        return "refused" if len(value) > 1 else value
    if isinstance(value, Sequence):
        return f"{value[0]}, {value[1]} alone"
    return f"{value:.0e}" if kind == "float" else f"{value:.1f}"


def faults(found: Results) -> list[str]:
    """What is below the bars, or refused, in words."""
    if "error" in found:
        return [f"{found['name']}: {found['error']}"]
    said: list[str] = []
    for kind in (*KINDS, "pair"):
        form = found.get(kind)
        for engine, value in form.items() if isinstance(form, dict) else [("", form)]:
            if fault := _fault(kind, value, found):
                said.append(f"{found['name']}, {kind} {engine}: {fault}")
    return said


def _fault(kind: str, value: Any, found: Results) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if kind == "float":
        itself = f", whose own are {found['own']:.1e} away where inputs are {MOVED:.0e} away" if "own" in found else ""
        return "" if value < EXACT else f"{value:.1e} from MXNet's{itself}"
    if kind == "boxes":
        return f"{value[1]} boxes without a partner, of {value[0]}" if value[1] else ""
    pair = found.get("pair")
    low = kind == "int8" and isinstance(pair, float) and not value >= pair - BELOW_PAIR
    return f"{value:.1f} dB, the pair {pair:.1f}" if low or math.isnan(value) else ""


def markdown(results: Sequence[Results]) -> str:
    """The table, and under it all that is not as it should be."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, results)]
    lines = [line for found in results for line in faults(found)]
    return "\n".join([*(f"| {' | '.join(one)} |" for one in rows), "", *(f"- {line}" for line in lines), ""])


def lines_of(path: Path) -> dict[str, Results]:
    """Name -> what was found, of the networks that have a line."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("nets", nargs="*", default=[*NETS, *TRAINED])
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--effort", choices=("fast", "default", "best"), default="default")
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("--child", choices=[*NETS, *TRAINED], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory(prefix="mxq-onnx-") as folder:
            sys.stdout.write(
                "\n" + json.dumps(measure(subject(args.child), args.child, Path(folder), args.effort)) + "\n"
            )
        return
    if args.file is None:
        parser.error("give the file of results")
    known, console = lines_of(args.file), Console(width=150)
    for name in track([name for name in args.nets if name not in known], "networks", console=Console(stderr=True)):
        found = in_its_own_process(__file__, name, "--effort", args.effort, timeout=args.timeout)
        with args.file.open("a") as file:
            file.write(json.dumps(found) + "\n")
        console.print(" | ".join(row(found)), *faults(found), sep="\n", markup=False, highlight=False)
    if args.markdown:
        results = lines_of(args.file)
        args.markdown.write_text(markdown([results[name] for name in [*NETS, *TRAINED] if name in results]))


if __name__ == "__main__":
    main()
