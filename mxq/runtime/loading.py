"""Gluon's own datasets and loader."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

from mxq.errors import DataError
from mxq.graph.ir import Array
from mxq.runtime.mxnet import mx

__all__ = ["data_loader"]


def data_loader(data: Any, transform: Callable[[Any], Array], batch_size: int, **options: Any) -> Any:
    """A ``gluon.data.DataLoader`` over a dataset, or a folder of one folder to a class, with its pictures transformed.

    Raises:
        DataError: the folder is not there, or has no folders of pictures.
    """
    if isinstance(data, str | Path):
        data = _folder(Path(data))
    if not hasattr(data, "transform_first"):
        raise DataError(f"data is {type(data).__name__}; allowed: a Gluon dataset, or a folder of one for each class")
    if not _counts(batch_size):
        raise DataError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more")
    return mx.gluon.data.DataLoader(data.transform_first(transform), batch_size, **options)


def _counts(value: object) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def _folder(path: Path) -> Any:
    found = mx.gluon.data.vision.ImageFolderDataset(str(path)) if path.is_dir() else ()
    if not len(found):
        raise DataError(f"{path} holds no folders of pictures; allowed: a folder with one for each class, or a dataset")
    return found
