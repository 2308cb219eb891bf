"""The MXNet side of the comparison, each step a process of its own: build a network, quantize it, serve it.

    python mxnet_nets.py build NET FOLDER IMAGES BATCH ...
    python mxnet_nets.py export FOLDER
    python mxnet_nets.py quantize mxnet|fused|contrib|mxq|mxq_onnx FOLDER [NAME=VALUE ...]
    python mxnet_nets.py serve CANDIDATE FOLDER BATCH
    python mxnet_nets.py judge NET FOLDER CANDIDATE

``NET:raw`` is the detector NET without non-maximum suppression and what follows it. `export` writes the float network
as ONNX for the peers. What `build` gives a trained network beside its inputs
(``evaluation.npz``) is what `judge` judges outputs by.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import protocol  # noqa: E402
import roofline  # noqa: E402
import trained  # noqa: E402
from mxnet import io, profiler  # noqa: E402
from mxnet.contrib import quantization as contrib  # noqa: E402

from mxq.graph.ir import Model  # noqa: E402
from mxq.pipeline import fuse_float  # noqa: E402
from mxq.runtime import (  # noqa: E402
    MxnetRunner,
    from_symbol,
    load_model,
    serve,
    to_arrays,
    to_symbol,
    versions,
    write_pair,
)

Feeds = Mapping[str, Any]
ONNX = "mxq_onnx"
SIZE = 10
"""Examples of a batch whose outputs are references."""


def build(name: str, folder: Path, count: int, batches: Sequence[int]) -> None:
    """Writes the float network, its inputs and outputs at each batch size, calibration images and multiply-adds."""
    model, calibration, evaluation = _trained(name) if name in trained.NETS else _of_zoo(name, count, max(batches))
    write_pair(model, folder / "float32")
    np.savez(folder / "calibration.npz", **calibration)
    run = MxnetRunner().compile(model)
    for batch in batches:
        feeds = {n: np.ascontiguousarray(v[:batch]) for n, v in evaluation.items()}
        np.savez(folder / f"input-{batch}.npz", **feeds)
        _save_outputs(folder / f"reference-{batch}.npz", run(feeds))
    if name in trained.NETS:
        np.savez(folder / "evaluation.npz", **evaluation)
        parts = [[a[:valid] for a in run(one)] for one, valid in protocol.batches(evaluation, SIZE)]
        _save_outputs(folder / "reference.npz", map(np.concatenate, zip(*parts, strict=True)))
    macs = roofline.multiply_adds(model, {n: (1, *v.shape[1:]) for n, v in calibration.items()})
    (folder / "macs.json").write_text(json.dumps(macs))


def _save_outputs(path: Path, outputs: Iterable[Any]) -> None:
    np.savez(path, **{str(i): a for i, a in enumerate(outputs)})


def _trained(name: str) -> tuple[Model, Feeds, Feeds]:
    found = trained.load(name)
    return found.model, found.calibration, found.evaluation


def _of_zoo(name: str, count: int, batch: int) -> tuple[Model, Feeds, Feeds]:
    import zoo  # noqa: PLC0415  (it takes gluoncv, which only this step needs)

    base, _, raw = name.partition(":")
    model, net = zoo.build(base), zoo.NETS[base]
    if raw:
        model = zoo.without_nms(model)
    (data,) = model.inputs
    return model, {data: zoo.examples(net, count, seed=3)}, {data: zoo.examples(net, batch)}


def export(folder: Path) -> None:
    """Writes ``net.onnx``, the float network for the peers; the harness compares what peers make of it with MXNet."""
    feeds = protocol.read(folder / "calibration.npz")
    shapes = {name: values.shape[1:] for name, values in feeds.items()}
    mxq.export_onnx(str(folder / "float32"), folder / "net.onnx", input_shape=shapes)


def by_mxq(model: Model, feeds: Feeds, **settings: str) -> Model:
    """Mxq's int8, with its defaults but for ``settings`` and the shape of the input, which the others' files have."""
    if len(feeds) == 1:
        settings.setdefault("input_shape", "x".join(map(str, next(iter(feeds.values())).shape[1:])))
    return from_symbol(*mxq.quantize_model(*_symbol(model), calib_data=dict(feeds), **_calibration(feeds), **settings))


def _symbol(model: Model) -> tuple[Any, Any, Any]:
    return to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)


def _calibration(feeds: Feeds) -> dict[str, int]:
    return {"num_calib_examples": len(next(iter(feeds.values()))), "batch_size": 4}


def by_contrib(model: Model, feeds: Feeds) -> Model:
    """``mxnet.contrib.quantization``: smart, auto, naive."""
    data = io.NDArrayIter(dict(feeds), batch_size=4)
    found = contrib.quantize_model_mkldnn(
        *_symbol(model), data_names=tuple(feeds), label_names=None, calib_mode="naive", calib_data=data,
        quantized_dtype="auto", quantize_mode="smart",
    )  # fmt: skip
    return from_symbol(*found)


def by_mxnet(model: Model) -> Model:
    """Float as MXNet itself fuses it: its oneDNN backend, BatchNorm in the convolutions, no other pass of mxq's."""
    fused = to_symbol(model.graph).get_backend_symbol("MKLDNN")
    return from_symbol(fused, to_arrays(model.args), to_arrays(model.auxs))


KINDS: Mapping[str, Callable[..., Model]] = {
    "mxnet": lambda model, _: by_mxnet(model),
    "fused": lambda model, _: fuse_float(model),
    "contrib": by_contrib,
    "mxq": by_mxq,
}


def quantize(kind: str, folder: Path, **settings: str) -> None:
    """Writes the pair of one candidate, or mxq's ONNX file; for mxq also which share of the multiply-adds is int8."""
    model, feeds = load_model(folder / "float32"), protocol.read(folder / "calibration.npz")
    if kind == ONNX:
        mxq.export_onnx(_symbol(model), folder / f"{ONNX}.onnx", dict(feeds), num_calib_examples="100%", **settings)
        return
    found = KINDS[kind](model, feeds, **settings)
    write_pair(found, folder / kind)
    if kind == "mxq":
        share = roofline.int8_share(found, json.loads((folder / "macs.json").read_text()))
        (folder / "int8.json").write_text(json.dumps(share))


def judge(name: str, folder: Path, candidate: str) -> None:
    """Writes score, agreement and SQNR of the outputs that ``candidate`` gave for all evaluation inputs."""
    wanted, found = (
        list(protocol.read(folder / f"{which}.npz").values()) for which in ("reference", f"{candidate}-evaluated")
    )
    (folder / f"{candidate}-judged.json").write_text(json.dumps(trained.judged(name, wanted, found)))


class Server:
    """An executor that holds its input, as `mxq.runtime.serve` makes it."""

    def __init__(self, kind: str, folder: Path, batch: str) -> None:
        self._model, feeds = load_model(folder / kind), protocol.read(folder / f"input-{batch}.npz")
        self.batch = int(batch)
        self._served = serve(self._model, feeds)
        self._run: Callable[[Feeds], Sequence[Any]] | None = None
        self.about = {**versions(), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}

    def __call__(self) -> object:
        return self._served()

    def outputs(self) -> Sequence[Any]:
        return self._served.outputs()

    def infer(self, feeds: Feeds) -> Sequence[Any]:
        self._run = self._run or MxnetRunner().compile(self._model)
        return list(self._run(feeds))

    def profile(self, calls: int) -> protocol.Kinds:
        """Needs a threaded engine and ``MXNET_EXEC_BULK_EXEC_INFERENCE=0``, without which many operators run as one."""
        profiler.set_config(profile_symbolic=True, profile_imperative=True, aggregate_stats=True, filename=os.devnull)
        profiler.set_state("run")
        for _ in range(calls):
            self()
        profiler.set_state("stop")
        table = json.loads(profiler.dumps(format="json"))["Time"]["operator"]
        own = ("WaitForVar", "DeleteVariable")  # the engine's
        return {op: (v["Count"] / calls, v["Total"] / calls / 1e3) for op, v in table.items() if op not in own}


def main() -> None:
    """One step."""
    match sys.argv[1:]:
        case ["build", name, folder, count, *batches]:
            build(name, Path(folder), int(count), [int(b) for b in batches])
        case ["quantize", kind, folder, *settings]:
            quantize(kind, Path(folder), **dict(setting.split("=", 1) for setting in settings))
        case ["export", folder]:
            export(Path(folder))
        case ["judge", name, folder, candidate]:
            judge(name, Path(folder), candidate)
        case ["serve", kind, folder, batch]:
            protocol.serve(lambda: Server(kind, Path(folder), batch))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
