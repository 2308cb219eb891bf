"""From files to answers: loader and network together, fed floats, int8 codes and uint8 pixels.

    MXQ_DATA=... python benchmarks/loader.py [NET ...] [--images N] [--batch-size N] [--workers N] [--repeats N]

Each round runs every pipeline once, in turn: pictures in memory -> resize, crop, normalise (float) or look up (int8) or
neither (uint8) -> batch -> the same int8 network but for its door. "x" is how many times as fast as the float one, the
median of the round-by-round ratios with their 10th and 90th percentile. The loader and the network are timed alone too.
"largest diff" is that of a logit from the float-input network's, "agrees" the share of equal answers.
``--decode`` starts from JPEG files, whose decoding (Pillow) is the same for all and takes most of the time.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from real_nets import data_root, logits, run
from rich.console import Console
from rich.table import Table

import mxq
from mxq import runtime
from mxq.bench.timing import bench
from mxq.data.examples import read_picture
from mxq.data.integers import IntegerTransform
from mxq.data.preprocess import Preprocess, read_preprocess
from mxq.graph.ir import Array, Model
from mxq.quant.plan import InputRecord

import mxnet as mx  # isort: skip  (after mxq)

NETS = ("resnet18_pqf", "mobilenet_v1_0.75")
KINDS = ("float32", "int8", "uint8")


class FloatTransform:
    """A picture becomes float32 (C, H, W), as a Gluon user's own transform makes it."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, picture: Any) -> Array:
        if isinstance(picture, Path):
            return read_picture(picture, picture.name, self.preprocess)
        return self.preprocess(Image.fromarray(picture))


class Pipeline:
    """A loader and the network that its batches are for."""

    def __init__(self, model: Model, transform: Callable[[Any], Array], items: list[Any], args: Any) -> None:
        dataset = mx.gluon.data.SimpleDataset([(item,) for item in items]).transform_first(transform)
        self.loader = mx.gluon.data.DataLoader(dataset, args.batch_size, num_workers=args.workers)
        self.block = runtime.to_block(model)
        self.block.hybridize(static_alloc=True, static_shape=True)
        self.held = [_first(batch) for batch in self.loader]

    def load(self) -> None:
        """The loader alone."""
        for batch in self.loader:
            _first(batch).wait_to_read()

    def infer(self) -> None:
        """The network alone, on batches that are in memory."""
        for batch in self.held:
            self.block(batch).wait_to_read()

    def both(self) -> None:
        """The pipeline."""
        for batch in self.loader:
            self.block(_first(batch)).wait_to_read()


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) else batch


def networks(name: str, preprocess: Preprocess, files: list[Path]) -> dict[str, tuple[Model, InputRecord | None]]:
    """The network quantized for each type of input on every tenth picture."""
    model = logits(runtime.load_model(data_root() / "models" / name / name))
    symbol = (runtime.to_symbol(model.graph), runtime.to_arrays(model.args), runtime.to_arrays(model.auxs))
    data = np.stack([read_picture(f, f.name, preprocess) for f in files[::10]])
    found = {}
    for kind in KINDS:
        made = mxq.quantize_model(
            *symbol, data, num_calib_examples=len(data), input_dtype=kind, preprocess=preprocess
        )  # fmt: skip
        found[kind] = (runtime.from_symbol(*made), made.report.input)
    return found


def rows(name: str, args: Any) -> list[tuple[str, ...]]:
    """The lines of one network."""
    root = data_root()
    preprocess = read_preprocess(root / "models" / name / "preprocess.json")
    with (root / "imagenet" / "labels.csv").open() as file:
        listed = list(csv.DictReader(file))[: args.images]
    files = [root / "imagenet" / row["file"] for row in listed]
    truth = np.array([int(row["index"]) + preprocess.label_offset for row in listed])
    items: list[Any] = files if args.decode else [np.asarray(Image.open(f).convert("RGB")) for f in files]
    nets = networks(name, preprocess, files)
    ways = {k: IntegerTransform(fed) if fed else FloatTransform(preprocess) for k, (_, fed) in nets.items()}
    lines = {k: Pipeline(model, ways[k], items, args) for k, (model, _) in nets.items()}
    how = {"repeats": args.repeats, "warmup": 1, "examples": len(items)}
    timed = {part: bench({k: getattr(v, part) for k, v in lines.items()}, **how) for part in ("load", "infer", "both")}
    outputs = {k: _outputs(nets[k][0], lines[k].held) for k in KINDS}
    table = []
    for kind in KINDS:
        answers, base = outputs[kind].argmax(1), outputs["float32"].argmax(1)
        times = [timed[part][kind] for part in ("load", "infer", "both")]
        table.append(
            (
                name,
                kind,
                *(f"{t.rate:.1f}" for t in times),
                *(f"{t.speedup:.3f} ({t.low:.2f}-{t.high:.2f})" for t in times),
                f"{np.abs(outputs[kind] - outputs['float32']).max():.3g}",
                f"{100 * (answers == base).mean():.1f} %",
                f"{100 * (answers == truth).mean():.1f} %",
            )
        )
    return table


def _outputs(model: Model, batches: list[Any]) -> Array:
    return np.concatenate([run(model, b.asnumpy(), len(b))[0] for b in batches])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=NETS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--decode", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    heads = ("loader /s", "network /s", "both /s", "loader x", "network x", "both x", "largest diff", "agrees", "top-1")
    table = Table("network", "input", *heads)
    for name in args.nets:
        for row in rows(name, args):
            table.add_row(*row)
    console = Console(width=160)
    source = "JPEG files" if args.decode else "pictures in memory"
    console.print(
        f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, {args.images} images ({source}), {args.repeats} rounds"
    )
    console.print(f"batch size {args.batch_size}, {args.workers} worker processes")
    console.print(table)


if __name__ == "__main__":
    main()
