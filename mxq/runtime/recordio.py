"""RecordIO files, as ``im2rec`` makes them: records of a label and an encoded picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mxq.errors import DataError
from mxq.ir import Array
from mxq.runtime.mxnet import mx, mxnet_says

__all__ = ["records"]


def records(path: Path, first: int = 0, count: int | None = None) -> Iterator[tuple[Array, bytes]]:
    """The records of a ``.rec`` file, in its order.

    Args:
        path: the file.
        first: how many records to leave out; its ``.idx`` beside it tells where the next one is.
        count: how many to read; all where None.

    Yields:
        The label, () or (k,) float32, and the content.

    Raises:
        DataError: no such file, damaged, or shorter than that.
    """
    index = path.with_suffix(".idx")
    for needed in (path, index) if first or count is not None else (path,):
        if not needed.is_file():
            raise DataError(f"no file {str(needed)!r}")
    read = 0
    with mxnet_says(f"MXNet cannot read {str(path)!r}", DataError), closing(_open(path, index, first)) as file:
        while count is None or read < count:
            record = file.read()
            if record is None:
                break
            try:
                header, content = mx.recordio.unpack(record)
            except Exception as error:
                raise DataError(f"record {first + read} of {str(path)!r} is damaged: {error}") from error
            read += 1
            yield np.asarray(header.label, np.float32), content
    if count is not None and read < count:
        raise DataError(f"{str(path)!r} ends after record {first + read}; its index promises {first + count}")


def _open(path: Path, index: Path, first: int) -> Any:
    """The file, about to read record number ``first``."""
    if not first:
        return mx.recordio.MXRecordIO(str(path), "r")
    file = mx.recordio.MXIndexedRecordIO(str(index), str(path), "r")
    if first >= len(file.keys):
        raise DataError(f"{str(index)!r} lists {len(file.keys)} records; asked for is number {first}")
    file.seek(sorted(file.keys, key=file.idx.get)[first])  # in the file's order, which is that of reading on
    return file
