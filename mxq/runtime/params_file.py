"""Writing ``.params`` files, byte for byte as `mx.nd.save` does.

MXNet 1.9.1 does not look whether the last bytes of a file reached the disk: where there is no room for them, it leaves
a file cut short and says nothing. The layout is that of ``NDArray::Save``, see `mxq.formats.params`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from mxnet.ndarray.ndarray import _DTYPE_NP_TO_MX
from mxnet.util import is_np_shape

from mxq.errors import RuntimeFailure
from mxq.formats.params import MARK, V2, V3
from mxq.graph.ir import Array

_DENSE, _CPU = 0, 1
"""The storage type and the device."""

MOST: Final = 120
"""Bytes that an array takes beside its values and its name, at most, with 8 axes."""


def write_params(path: Path, table: Mapping[str, Array]) -> None:
    """Writes a table of arrays.

    Raises:
        RuntimeFailure: an array is of a type that MXNet has not.
        OSError: the file cannot be written.
    """
    with path.open("wb") as stream:
        for piece in _pieces(table):
            stream.write(piece)


def size_of(table: Mapping[str, Array]) -> int:
    """How many bytes the file will have, about; no fewer than it does."""
    return sum(array.nbytes + len(name.encode()) + MOST for name, array in table.items())


def _pieces(table: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    yield struct.pack("<QQQ", MARK, 0, len(table))
    for name, array in table.items():
        values = np.ascontiguousarray(array)  # a scalar gets the shape (1,): MXNet has none
        flag = _DTYPE_NP_TO_MX.get(values.dtype.type)
        if flag is None:
            raise RuntimeFailure(f"parameter {name!r} is {values.dtype}; allowed: a type that MXNet has")
        shape = struct.pack(f"<I{values.ndim}q", values.ndim, *values.shape)
        magic = V3 if is_np_shape() else V2
        yield struct.pack("<Ii", magic, _DENSE) + shape + struct.pack("<iii", _CPU, 0, flag)
        yield values.tobytes() if values.size == 0 else values.reshape(-1).view(np.uint8).data
    yield struct.pack("<Q", len(table))
    for name in table:
        yield struct.pack("<Q", len(name.encode())) + name.encode()
