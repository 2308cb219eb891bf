"""Makes PREFIX-symbol.json and PREFIX-0000.params, a pair that MXNet loads, of NAME-packed.npz; it needs numpy alone.

Run as ``python NAME-unpack.py NAME-packed.npz [PREFIX]``.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

TYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")


def restored(codes: Any, steps: Any, places: Any, values: Any) -> Any:
    """Float32 weights: a code times the step of its row, but for ``values``, which stand at flat ``places``."""
    found = (codes.reshape(len(steps), -1) * steps[:, None]).astype(np.float32)
    found.reshape(-1)[places] = values
    return found.reshape(codes.shape)


def tensors(archive: Any, names: Any) -> Any:
    """Name -> array of the parameters, from an archive of numpy."""
    for number, name in enumerate(names):
        if f"{number}.codes" in archive:
            yield name, restored(*(archive[f"{number}.{part}"] for part in ("codes", "steps", "places", "values")))
        else:
            yield name, archive[str(number)]


def params(table: Any, magic: int) -> Any:
    """The bytes of a ``.params`` file, in pieces: ``NDArray::Save`` in MXNet's ``src/ndarray/ndarray.cc``."""
    yield struct.pack("<QQQ", 0x112, 0, len(table))
    for array in table.values():
        head = struct.pack(f"<IiI{array.ndim}q", magic, 0, array.ndim, *array.shape)
        yield head + struct.pack("<iii", 1, 0, TYPES.index(array.dtype.name))
        yield np.ascontiguousarray(array).data
    yield struct.pack("<Q", len(table))
    for name in table:
        yield struct.pack("<Q", len(name.encode())) + name.encode()


def main(packed: str, prefix: str = "") -> None:
    """Writes the files, if they are what they were."""
    with np.load(packed) as archive:
        about = json.loads(archive["about"].tobytes())
        found = {ending: archive[ending].tobytes() for ending in about["texts"]}
        found[about["params"]] = b"".join(params(dict(tensors(archive, about["names"])), about["magic"]))
    sums = {ending: hashlib.sha256(content).hexdigest() for ending, content in found.items()}
    if sums != about["sha256"] or any("/" in ending or "\\" in ending for ending in found):
        sys.exit(f"{packed} is damaged")
    for ending, content in found.items():
        Path((prefix or packed.removesuffix("-packed.npz")) + ending).write_bytes(content)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
