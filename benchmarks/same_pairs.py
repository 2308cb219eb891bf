"""Whether networks are written as they were: sha256 of symbol and parameters of many, kept in a file and compared.

    MXQ_DATA=... python benchmarks/same_pairs.py before.json            # writes what is not in the file yet
    MXQ_DATA=... python benchmarks/same_pairs.py before.json --compare  # makes them again; exit code 1 if one differs
    python benchmarks/same_pairs.py before.json --nets resnet50_v1 --targets avx512_vnni

The networks are those of `every_cpu`, with their data, and those of `zoo`, with random weights and the method "fast":
the whole table of kernels is in them. Each is made for each target; which CPU this is does not matter, but for threads,
of which there is one. Every network is made in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # sums of floats depend on it

import every_cpu
import numpy as np
import zoo
from rich.console import Console
from rich.progress import track

import mxq
from mxq.runtime import to_arrays, to_symbol

TARGETS = ("avx512_vnni", "avx2")
EXAMPLES = 16
TIMEOUT = 900


def made(name: str, target: str) -> Any:
    """The int8 block of a network."""
    if name in every_cpu.NETS:
        net = every_cpu.NETS[name]()
        model, data, options = net.model, {n: v[:EXAMPLES] for n, v in net.calibration.items()}, {}
    else:
        model, options = zoo.build(name), {"effort": "fast"}
        given = [zoo.examples(zoo.NETS[name], 1, seed) for seed in range(2)]
        data = {model.inputs[0]: np.concatenate(given)}
    triple = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    size = 1 if name in zoo.NETS else 8
    return mxq.quantize_net(triple, data, num_calib_examples="100%", batch_size=size, target=target, **options)


def sums(name: str, target: str) -> dict[str, str]:
    """sha256 of the pair's two files."""
    logging.disable(logging.INFO)
    block = made(name, target)
    with tempfile.TemporaryDirectory() as folder:
        symbol, params = mxq.save(block, Path(folder) / "net")[:2]
        graph = without_addresses(json.loads(symbol.read_text()))
        texts = {"symbol": json.dumps(graph, sort_keys=True).encode(), "params": params.read_bytes()}
        return {kind: hashlib.sha256(text).hexdigest() for kind, text in texts.items()}


def without_addresses(graph: dict[str, Any]) -> dict[str, Any]:
    """A symbol's document without ``__init__``, in which gluoncv writes addresses of objects; subgraphs too."""
    for node in graph["nodes"]:
        node.get("attrs", {}).pop("__init__", None)
        for sub in node.get("subgraphs", ()):
            without_addresses(sub)
    return graph


def apart(name: str, target: str) -> dict[str, str]:
    """`sums` from a process of its own; {"fails": why} where there are none."""
    command = [sys.executable, __file__, "--one", name, target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {"fails": f"more than {TIMEOUT} s"}
    if done.returncode:
        return {"fails": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is not as it was, a line each."""
    return [
        f"{key}: {kind} {before[key].get(kind, 'none')[:16]} -> {after[key].get(kind, 'none')[:16]}"
        for key in after
        for kind in sorted({*before[key], *after[key]})
        if before[key].get(kind) != after[key].get(kind)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes, writes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--nets", nargs="+", default=[*every_cpu.NETS, *zoo.NETS])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        sys.stdout.write(json.dumps(sums(*given.one)) + "\n")
        return 0
    known: dict[str, dict[str, str]] = json.loads(given.file.read_text()) if given.file.exists() else {}
    keys = [f"{net} {target}" for net in given.nets for target in given.targets]
    console, found = Console(highlight=False), dict[str, dict[str, str]]()
    for key in track([k for k in keys if (k in known) == given.compare], console=console):
        found[key] = apart(*key.split())
        if not given.compare:
            given.file.write_text(json.dumps({**known, **found}, indent=1) + "\n")
    if not given.compare:
        return 0
    lines = differences(known, found)
    for line in lines:
        console.print(line, markup=False)
    console.print(f"{len(found)} networks made, {len({line.split(':')[0] for line in lines})} differ")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
