"""Writing ``.params`` files, byte for byte as `mx.nd.save` does.

MXNet 1.9.1 does not look whether the last bytes of a file reached the disk: where there is no room for them, it leaves
a file cut short and says nothing. The layout is that of ``NDArray::Save``, see `mxq.formats.params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from mxnet.util import is_np_shape

from mxq.errors import RuntimeFailure
from mxq.formats.params import V2, V3
from mxq.formats.unpack import TYPES, params
from mxq.graph.ir import Array

MOST: Final = 120
"""Bytes that an array takes beside its values and its name, at most, with 8 axes."""


def write_params(path: Path, table: Mapping[str, Array]) -> None:
    """Writes a table of arrays.

    Raises:
        RuntimeFailure: an array is of a type that MXNet has not.
        OSError: the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in table.items()}  # a scalar is (1,): MXNet has none
    for name, array in arrays.items():
        if array.dtype.name not in TYPES:
            raise RuntimeFailure(f"parameter {name!r} is {array.dtype}; allowed: {', '.join(TYPES)}")
    with path.open("wb") as stream:
        for piece in params(arrays, V3 if is_np_shape() else V2):
            stream.write(piece)


def size_of(table: Mapping[str, Array]) -> int:
    """How many bytes the file will have, about; no fewer than it does."""
    return sum(array.nbytes + len(name.encode()) + MOST for name, array in table.items())
