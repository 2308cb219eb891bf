"""Each trained network made for each kind of CPU and run with that CPU's kernels: SQNR and agreement with float32.

    MXQ_DATA=... OMP_NUM_THREADS=1 python benchmarks/every_cpu.py [NET ...] [--targets avx512_vnni avx512 avx2]

Each target runs in a process in which oneDNN is held at that instruction set (`ISA`); the CPU must have it. SQNR is of
the output that is furthest from float32, of logits about their mean; agreement is of the best class. Calibration and
evaluation inputs are different ones. mtcnn's networks get crops of photographs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from real_nets import CIFAR, IMAGENET, YOLO, data_root, load
from rich.console import Console
from rich.table import Table

import mxq
from mxq.backends.mxnet.exact import exact
from mxq.graph.ir import Array, Model
from mxq.numerics import centred_sqnr_db, sqnr_db
from mxq.runtime import MxnetRunner, load_model, to_arrays, to_symbol

ISA: Mapping[str, str] = {"avx512_vnni": "ALL", "avx512": "AVX512_CORE", "avx2": "AVX2"}
CALIBRATION, EVALUATION = 50, 100
PIXELS = {"det1": (3, 48, 64), "det2": (3, 24, 24), "det3": (3, 48, 48), "det4": (15, 24, 24)}
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Net:
    """A float network with calibration and evaluation inputs, by name, examples first."""

    model: Model
    calibration: Feeds
    evaluation: Feeds


def classifier(name: str) -> Net:
    """A classifier or the YOLO detector of `real_nets`; what calibrates does not evaluate."""
    task = load(name, CALIBRATION, EVALUATION if name in IMAGENET else 50)
    data, images = task.model.inputs[0], task.evaluation
    if name in IMAGENET:
        images = load(name, 1, 5 * EVALUATION).evaluation
        used = {i.tobytes() for i in task.calibration}
        images = np.stack([i for i in images[1::4] if i.tobytes() not in used][:EVALUATION])
    if name == YOLO:
        images = images[CALIBRATION:]
    return Net(task.model, {data: task.calibration}, {data: images})


def recorded(name: str) -> Net:
    """A network that comes with inputs."""
    folder = data_root() / "models" / name
    about = json.loads((folder / "about.json").read_text())
    model = load_model(folder / name)
    with np.load(folder / "inputs.npz") as file:
        given = {n: file[n].astype(np.float32) for n in model.inputs}
    if name == "ppocrv4_det":
        mean, std = (np.float32(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        given = {n: (v / 255 - mean) / std for n, v in given.items()}
    elif "mean" in about:
        given = {n: (v - np.float32(about["mean"][0])) / np.float32(about["std"][0]) for n, v in given.items()}
    count = 20 if name == "ppocrv4_det" else CALIBRATION
    end = count + EVALUATION
    return Net(model, {n: v[:count] for n, v in given.items()}, {n: v[count:end] for n, v in given.items()})


def photographs(width: int, height: int) -> Array:
    """(128, 3, height, width), 0..255."""
    files = sorted((data_root() / "voc_style" / "JPEGImages").iterdir())
    return np.stack([
        np.asarray(Image.open(f).convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32)
        .transpose(2, 0, 1) for f in files
    ])  # fmt: skip


def faces() -> Net:
    """Scores and boxes of the face detector, before suppression."""
    images = (photographs(320, 240) - 127) / 128
    model = load_model(data_root() / "models" / "ssd_face_slim320" / "ssd_face_slim320_raw")
    return Net(model, {"data": images[:32]}, {"data": images[32:]})


def crops(name: str) -> Net:
    """One of mtcnn's networks, on crops."""
    channels, height, width = PIXELS[name]
    images, rng = (photographs(320, 320) - 127.5) * 0.0078125, np.random.default_rng(0)
    made = []
    for i in range(CALIBRATION + 2 * EVALUATION):
        parts = []
        for _ in range(channels // 3):
            y, x = rng.integers(0, 320 - height), rng.integers(0, 320 - width)
            parts.append(images[i % len(images), :, y : y + height, x : x + width])
        made.append(np.concatenate(parts))
    model, data = load_model(data_root() / "models" / "mtcnn" / name), np.stack(made)
    feeds = {n: data if n == "data" else np.zeros(len(data), np.float32) for n in model.inputs}
    return Net(model, {n: v[:CALIBRATION] for n, v in feeds.items()}, {n: v[CALIBRATION:] for n, v in feeds.items()})


NETS: Mapping[str, Callable[[], Net]] = {
    **{name: (lambda name=name: classifier(name)) for name in (*IMAGENET, *CIFAR, YOLO)},
    **{name: (lambda name=name: recorded(name)) for name in ("crnn_english_g2", "minilm_l6_small", "ppocrv4_det")},
    "ssd_face_slim320": faces,
    **{name: (lambda name=name: crops(name)) for name in PIXELS},
}


def run(model: Model, feeds: Feeds, batch: int = 10) -> list[Array]:
    """Outputs over all examples; the last ones that fill no batch are left out."""
    call, size = MxnetRunner().compile(model), len(next(iter(feeds.values())))
    parts = [list(call({n: v[i : i + batch] for n, v in feeds.items()})) for i in range(0, size - size % batch, batch)]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def fidelity(wanted: Sequence[Array], found: Sequence[Array]) -> tuple[float, float]:
    """SQNR in dB of the worst output, and the share of equal best classes in percent (NaN without classes)."""
    worst = min(
        (centred_sqnr_db if w.ndim == 2 and w.shape[1] > 4 else sqnr_db)(w, f)
        for w, f in zip(wanted, found, strict=True)
    )
    same = [100 * float(np.mean(w.argmax(-1) == f.argmax(-1))) for w, f in zip(wanted, found, strict=True)]
    return worst, same[0] if wanted[0].ndim == 2 or wanted[0].shape[-1] == 97 else float("nan")


def measure(name: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One network in this process."""
    net, start = NETS[name](), time.perf_counter()
    model = net.model
    result = mxq.quantize_net(
        (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)),
        dict(net.calibration), num_calib_examples=len(next(iter(net.calibration.values()))), batch_size=10,
        target=target, **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    int8, wanted = load_model(result), run(model, net.evaluation)
    sqnr, agreement = fidelity(wanted, run(int8, net.evaluation))
    plain = fidelity(wanted, run(exact(int8), net.evaluation))[0]
    kinds: dict[str, int] = {}
    for record in result.mxq_report.saturation.values():
        kinds[record.remedy] = kinds.get(record.remedy, 0) + 1
    return {"net": name, "target": target, "sqnr": sqnr, "agreement": agreement, "exact": plain, "seconds": seconds,
            "remedies": kinds, "float": result.mxq_report.summary["float"]}  # fmt: skip


def held(names: Sequence[str], target: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The networks in a process held at the target's instruction set, a line as soon as it is there."""
    command = [sys.executable, __file__, *names, "--here", target, "--options", json.dumps(options)]
    found, environ = [], {**os.environ, "DNNL_MAX_CPU_ISA": ISA[target]}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        for line in process.stdout or ():
            if line.startswith("{"):
                found.append(json.loads(line))
                Console(width=160).print(line.strip(), markup=False, highlight=False)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(NETS))
    parser.add_argument("--targets", nargs="+", default=list(ISA), choices=list(ISA))
    parser.add_argument("--options", type=json.loads, default={}, help="of quantize_net, JSON")
    parser.add_argument("--here", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    if args.here:
        for name in args.nets:
            try:
                found = measure(name, args.here, args.options)
            except Exception as error:  # that is a result
                found = {"net": name, "target": args.here, "fails": str(error).splitlines()[0][:100]}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        return
    rows = {(r["net"], r["target"]): r for t in args.targets for r in held(args.nets, t, args.options)}
    table = Table("network", *args.targets)
    for name in args.nets:
        cells = []
        for target in args.targets:
            row = rows.get((name, target), {"fails": "ended"})
            cells.append(row.get("fails") or f"{row['sqnr']:.2f} dB / {row['agreement']:.1f} %")
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
