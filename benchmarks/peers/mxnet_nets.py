"""The MXNet side of the comparison, each step a process of its own: build a network, quantize it, serve it.

    python mxnet_nets.py build NET FOLDER IMAGES BATCH ...
    python mxnet_nets.py quantize mxnet|fused|contrib|mxq FOLDER [NAME=VALUE ...]
    python mxnet_nets.py serve CANDIDATE FOLDER BATCH

``NET:raw`` is the detector NET without non-maximum suppression and what follows it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import protocol  # noqa: E402
import roofline  # noqa: E402
from mxnet import io, profiler  # noqa: E402
from mxnet.contrib import quantization as contrib  # noqa: E402

from mxq.graph.ir import Model, toposort  # noqa: E402
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

NMS = ("_contrib_box_nms", "_contrib_MultiBoxDetection")


def build(name: str, folder: Path, count: int, batches: Sequence[int]) -> None:
    """Writes the float network, its inputs and outputs at each batch size, calibration images and multiply-adds."""
    import zoo  # noqa: PLC0415  (it takes gluoncv, which only this step needs)

    base, _, raw = name.partition(":")
    model, net = zoo.build(base), zoo.NETS[base]
    if raw:
        model = without_nms(model)
    write_pair(model, folder / "float32")
    np.save(folder / "calibration.npy", zoo.examples(net, count, seed=3))
    for batch in batches:
        images = zoo.examples(net, batch)
        np.save(folder / f"input-{batch}.npy", images)
        outputs = MxnetRunner().compile(model)({model.inputs[0]: images})
        np.savez(folder / f"reference-{batch}.npz", **{str(i): a for i, a in enumerate(outputs)})
    macs = roofline.multiply_adds(model, {model.inputs[0]: (1, *net.shape)})
    (folder / "macs.json").write_text(json.dumps(macs))


def without_nms(model: Model) -> Model:
    """The detector up to what it gives to non-maximum suppression.

    Raises:
        ValueError: it does none.
    """
    heads = [node.inputs[0] for node in model.graph.operators if node.op in NMS]
    if not heads:
        raise ValueError("no non-maximum suppression in this network; leave :raw out")
    return model.with_graph(toposort(model.graph.nodes, heads, model.graph.attrs))


def by_mxq(model: Model, images: Any, **settings: str) -> Model:
    """Mxq's int8, with its defaults but for ``settings`` and the shape of the input, which the others' files have."""
    settings.setdefault("input_shape", "x".join(map(str, images.shape[1:])))
    symbol = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    found = mxq.quantize_model(*symbol, calib_data=images, num_calib_examples=len(images), batch_size=4, **settings)
    return from_symbol(*found)


def by_contrib(model: Model, images: Any) -> Model:
    """``mxnet.contrib.quantization``: smart, auto, naive."""
    symbol = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    name = model.inputs[0]
    data = io.NDArrayIter({name: images}, batch_size=4)
    found = contrib.quantize_model_mkldnn(
        *symbol, data_names=(name,), label_names=None, calib_mode="naive", calib_data=data,
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
    """Writes the pair of one candidate; for mxq also which share of the multiply-adds is int8."""
    found = KINDS[kind](load_model(folder / "float32"), np.load(folder / "calibration.npy"), **settings)
    write_pair(found, folder / kind)
    if kind == "mxq":
        share = roofline.int8_share(found, json.loads((folder / "macs.json").read_text()))
        (folder / "int8.json").write_text(json.dumps(share))


class Server:
    """An executor that holds its input, as `mxq.runtime.serve` makes it."""

    def __init__(self, kind: str, folder: Path, batch: str) -> None:
        model = load_model(folder / kind)
        self._served = serve(model, {model.inputs[0]: np.load(folder / f"input-{batch}.npy")})
        self.about = {**versions(), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}

    def __call__(self) -> object:
        return self._served()

    def outputs(self) -> Sequence[Any]:
        return self._served.outputs()

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
        case ["serve", kind, folder, batch]:
            protocol.serve(lambda: Server(kind, Path(folder), batch))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
