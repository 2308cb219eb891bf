"""Valid files of every format, made by mxq and MXNet themselves: what is mutated, and what it is used with.

python -m fuzzing.seeds FOLDER        (a process of its own: the one that forks must not have run MXNet)
"""

from __future__ import annotations

import csv
import io
import json
import logging
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import networks

RECIPES = (
    """format: mxq-recipe/1
calib_mode: percentile:99.99
quantized_dtype: auto
num_calib_examples: 5%
exclude_layers: [conv0, "op:*Pooling"]
overrides:
  op:Convolution: {calib_mode: entropy, weight_calib_mode: "percentile:99.9"}
  conv*: {dtype: int8}
  data: {threshold: [-2.1, 2.6]}
""",
    """format: mxq-recipe/1
input_dtype: int8
preprocess: {mean: [124, 116, 104], std: [58, 57, 57], scale: 1}
effort: fast
equalize: true
bias_correction: none
rounding: nearest
input_shape: [3, 8, 8]
target: avx2
""",
    """format: mxq-recipe/1
exclude_layers: [x, y]
include_layers: ["stage1_*"]   # a remark
equalize: !!bool yes
""",
)
PREPROCESS = (
    {"short_side": 10, "crop": [8, 8], "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
    {"resize": [8, 8], "scale": 0.00392, "mean": [0.485, 0.456, 0.406], "std": 0.2, "color": "BGR", "rotate180": True},
    {"width": 8, "height": 8, "resize": "stretch", "layout": "NHWC", "label_offset": 1, "classes": 5},
    {"resize": 8, "color": "GRAY", "mean": 127},
)


def make(where: Path) -> None:
    """All seed files, in ``where``."""
    import mxnet as mx

    import mxq

    logging.getLogger("mxq").setLevel(logging.ERROR)
    mx.random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - of MXNet's initialisers
    data = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    for name, net in nets(mx).items():
        net.initialize(mx.init.Xavier())
        net.hybridize()
        net(mx.nd.array(data))
        net.export(str(where / name))
    for name in ("plain", "residual"):
        mxq.save(mxq.quantize_net(str(where / name), data, effort="fast"), where / f"{name}-int8")
    mxq.save(mxq.quantize_net(str(where / "plain"), data), where / "plain", packed=True)
    ranges = mxq.calibrate(str(where / "plain"), data, stats=where / "plain.stats", calib_mode="entropy")
    (where / "plain-ranges.json").write_text(json.dumps(ranges.to_json()))
    mxq.calibrate(str(where / "plain"), data, stats=where / "naive.stats")
    mxq.calibrate(str(where / "plain"), data + 1, stats=where / "other.stats", calib_mode="entropy")
    np.save(where / "data.npy", data)
    networks.make(where, mx)
    mxq.sensitivity(str(where / "plain"), data, workdir=where / "work")
    mxq.tune(str(where / "plain"), data, max_drop=0.0, time_budget=1.0, workdir=where / "work")
    params(where, mx)
    arrays(where, data)
    pictures(where)
    records(where, mx)


def nets(mx: Any) -> dict[str, Any]:
    nn = mx.gluon.nn

    class Residual(nn.HybridBlock):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(prefix="r_")
            with self.name_scope():
                self.one, self.two = nn.Conv2D(4, 3, padding=1, use_bias=False), nn.Conv2D(4, 1)
                self.norm, self.dense = nn.BatchNorm(), nn.Dense(3)

        def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803 - MXNet's name
            y = F.Activation(self.norm(self.one(x)), act_type="relu")
            z = F.concat(F.Activation(y + self.two(x), act_type="relu"), y, dim=1)
            parts = F.split(z, num_outputs=2, axis=1)
            pooled = F.Pooling(parts[0], kernel=(2, 2), stride=(2, 2), pool_type="max")
            return self.dense(F.Flatten(pooled)), F.softmax(F.mean(parts[1], axis=(2, 3)))

    plain = nn.HybridSequential(prefix="p_")
    with plain.name_scope():
        plain.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Dense(3))
    return {"plain": plain, "residual": Residual()}


def params(where: Path, mx: Any) -> None:
    """Parameters of every type and storage, and those of MXNet's first releases."""
    kinds = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
    table = {f"arg:{kind}": mx.nd.ones((2, 3), dtype=kind) for kind in kinds}
    table["aux:one"] = mx.nd.ones((1,))
    table["arg:rows"] = mx.nd.sparse.row_sparse_array((np.ones((2, 3), np.float32), [1, 3]), shape=(5, 3))
    table["arg:columns"] = mx.nd.sparse.csr_matrix(np.eye(3, dtype=np.float32))
    mx.nd.waitall()  # MXNet writes an array that it has not made yet as none
    mx.nd.save(str(where / "kinds.params"), table)
    mx.nd.save(str(where / "unnamed.params"), [mx.nd.ones((2, 3))])
    with mx.util.np_shape(True):
        zero = {
            "arg:scalar": mx.np.array(2.5).as_nd_ndarray(),
            "arg:empty": mx.nd.zeros((0, 3)),
            "arg:b": mx.nd.ones(2),
        }
        mx.nd.waitall()
        mx.nd.save(str(where / "numpy.params"), zero)
    (where / "oldest.params").write_bytes(oldest({"arg:a": np.ones((2, 3), np.float32)}, first=2))
    (where / "old.params").write_bytes(oldest({"arg:a": np.ones((2, 3), np.float32)}, first=0xF993FAC8))


def oldest(table: dict[str, Any], first: int) -> bytes:
    """As MXNet wrote before 0.9.5: ``first`` is the number of axes (sides are uint32), or the mark of 64-bit sides."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(table))]
    for array in table.values():
        if first == array.ndim:
            parts.append(struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape))
        else:
            parts.append(struct.pack(f"<II{array.ndim}q", first, array.ndim, *array.shape))
        parts.append(struct.pack("<iii", 1, 0, 0) + array.tobytes())
    parts.append(struct.pack("<Q", len(table)))
    parts += [struct.pack("<Q", len(name.encode())) + name.encode() for name in table]
    return b"".join(parts)


def arrays(where: Path, data: Any) -> None:
    labels = np.arange(len(data)) % 3
    np.savez(where / "data.npz", data=data, label=labels)
    np.savez_compressed(
        where / "packed.npz", data=data, label=labels.astype(np.int32), names=np.array(list("abcdefgh"))
    )
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez_compressed(where / "pixels.npz", data=pixels, labels=np.arange(4))
    np.save(where / "pixels.npy", pixels)
    np.save(where / "order.npy", np.asfortranarray(data.astype(np.float64)))


def pictures(where: Path) -> None:
    folder = where / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(2)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # orientation
    rgb.save(folder / "rgb.png")
    rgb.save(folder / "rgb.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    for mode in ("L", "LA", "RGBA", "P", "1"):
        rgb.convert("RGBA").convert("RGB" if mode in "P1" else mode).convert(mode).save(folder / f"{mode}.png")
    Image.fromarray(rng.integers(0, 65536, (9, 12)).astype(np.uint16)).save(folder / "sixteen.png")
    rgb.save(folder / "animated.png", save_all=True, append_images=[rgb.rotate(180)])
    for form in ("GIF", "BMP", "TIFF", "WEBP", "PPM"):
        stream = io.BytesIO()
        rgb.save(stream, form)
        (folder / f"{form.lower()}.png").write_bytes(stream.getvalue())
    names = ["rgb.png", "rgb.jpg", "L.png"]
    with (where / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "label"), *((name, i) for i, name in enumerate(names))])


def records(where: Path, mx: Any) -> None:
    encoded = (where / "pictures" / "rgb.png").read_bytes()
    for name, labels in (("shard", range(4)), ("vectors", [[1.0, i] for i in range(4)])):
        rec = mx.recordio.MXIndexedRecordIO(str(where / f"{name}.idx"), str(where / f"{name}.rec"), "w")
        for i, label in enumerate(labels):
            rec.write_idx(i, mx.recordio.pack(mx.recordio.IRHeader(0, label, i, 0), encoded))
        rec.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
