"""Time and memory of one training step: float, fake-quantized by compiled kernels, and by plain operators.

    OMP_NUM_THREADS=1 python benchmarks/qat_step.py [NET ...] [--algorithm lsq] [--bits 4] [--repeats 7] [--out FILE]

NET is resnet20 (CIFAR, batch 64) or mobilenetv2 (96 px, batch 16), both as gluoncv and MXNet define them, untrained. A
step is forward, backward and ``Trainer.step`` of SGD with momentum, hybridized. Steps of the three take turns, so that
what else the machine does meets all alike. Times are CPU seconds of all threads, ratios to the float step of the same
turn, medians of all turns. Memory is the peak while a process of its own takes steps, less what it held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxq.runtime  # before mxnet

import mxnet as mx  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

from mxq.logs import LOG
from mxq.qat import QatConfig, prepare

BATCHES = {"resnet20": (64, 3, 32, 32), "mobilenetv2": (16, 3, 96, 96)}
FORMS = ("float", "compiled", "operators")
WARM = 2


def network(name: str) -> Any:
    """Untrained, of 10 classes."""
    mx.random.seed(1)
    if name == "resnet20":
        from gluoncv.model_zoo import get_model  # noqa: PLC0415  (slow to import)

        net = get_model("cifar_resnet20_v1", pretrained=False)
    else:
        net = mx.gluon.model_zoo.vision.mobilenet_v2_1_0(classes=10)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros(BATCHES[name]))
    return net


def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = BATCHES[name]
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, 10, shape[0]).astype(np.float32)


def block(name: str, form: str, config: QatConfig) -> Any:
    """What trains in one of the forms."""
    data, _ = batch(name)
    made = prepare(network(name), data, replace(config, form="compiled" if form == "float" else form))
    if form == "float":
        made = mxq.runtime.trainable_block(made.qat.source, (), ())
    made.hybridize(static_alloc=True, static_shape=True)
    return made


def stepper(name: str, form: str, config: QatConfig) -> Callable[[], None]:
    """One step, when it is called."""
    net = block(name, form, config)
    data, label = map(mx.nd.array, batch(name))
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-3, "momentum": 0.9})

    def step() -> None:
        with mx.autograd.record():
            value = loss(net(data), label)
        value.backward()
        trainer.step(len(label))
        mx.nd.waitall()

    return step


def seconds(step: Callable[[], None]) -> float:
    """CPU seconds of one call, of all threads."""
    start = time.process_time()
    step()
    return time.process_time() - start


def timed(name: str, config: QatConfig, repeats: int) -> dict[str, np.ndarray]:
    """Form -> seconds of each turn, (repeats,)."""
    steps = {form: stepper(name, form, config) for form in FORMS}
    turns = [{form: seconds(step) for form, step in steps.items()} for _ in range(WARM + repeats)]
    return {form: np.array([turn[form] for turn in turns[WARM:]]) for form in FORMS}


def memory(name: str, form: str, config: QatConfig) -> float:
    """Peak MB while steps are taken, less what there was before; to be asked of a process of its own."""
    step, before = stepper(name, form, config), status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for _ in range(WARM + 1):
        step()
    return (status("VmHWM") - before) / 1024


def status(what: str) -> int:
    """A number of kB in /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def of_own_process(name: str, form: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, name, "--memory-of", form]
    command += ["--bits", str(options.bits), "--algorithm", options.algorithm]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])  # noqa: S603


def measured(name: str, config: QatConfig, options: argparse.Namespace) -> list[dict[str, Any]]:
    times = timed(name, config, options.repeats)
    peaks = {form: of_own_process(name, form, options) for form in FORMS}
    count = len(prepare(network(name), batch(name)[0], config).qat.quantizers)
    return [
        {
            "net": name,
            "form": form,
            "quantizers": 0 if form == "float" else count,
            "seconds": float(np.median(times[form])),
            "ratio": float(np.median(times[form] / times["float"])),
            "peak_mb": peaks[form],
        }
        for form in FORMS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nets", nargs="*", default=list(BATCHES), metavar="NET")
    parser.add_argument("--algorithm", default="lsq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    LOG.setLevel("ERROR")
    config = QatConfig(bits_w=options.bits, bits_a=options.bits, algorithm=options.algorithm)
    if options.memory_of:
        sys.stdout.write(f"{memory(options.nets[0], options.memory_of, config)}\n")
        return
    rows = []
    for name in options.nets:
        rows += (found := measured(name, config, options))
        table = Table("net", "form", "quantizers", "CPU s a step", "x float", "peak MB")
        for row in found:
            numbers = (f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", f"{row['peak_mb']:.0f}")
            table.add_row(row["net"], row["form"], str(row["quantizers"]), *numbers)
        Console(width=100).print(table)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
