"""`Session`: an open file. What is fed is checked here, so that no engine sees what does not fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from mxq.errors import DataError, FormatError, MxqError, RuntimeFailure
from mxq.formats.onnx_file import Port, Side
from mxq.graph.ir import Array

Run: TypeAlias = Callable[[Mapping[str, Array]], Sequence[Array]]
Hold: TypeAlias = Callable[[Mapping[str, Array]], Callable[[], object]]
_NOISE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Exception from \S+:\s*|Check '.*?' failed at \S+:\s*"
    r"|[\w./-]*/\w+\.(?:cc|cpp|hpp|h)\b\S* "
)
"""Where in its sources an engine found something wrong."""


@dataclass(frozen=True)
class Session:
    """A file that an engine has open.

    Attributes:
        engine: its name.
        path: of the file.
        inputs: what it is fed.
        run: has the engine run it.
        hold: from feeds to what runs it on these again and again, as it is timed; by ``run`` where None.
    """

    engine: str
    path: Path
    inputs: tuple[Port, ...]
    run: Run
    hold: Hold | None = None

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the file's order.

        Args:
            feeds: input -> array (N, ...).

        Raises:
            DataError: an input is missing, unknown, or of another type or shape.
            RuntimeFailure: the engine fails.
        """
        arrays = self.checked(feeds)
        with self._said():
            return list(self.run(arrays))

    def held(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """What runs it on ``feeds``, and returns when that is done; errors as of a call."""
        arrays = self.checked(feeds)
        with self._said():
            call = partial(self.run, arrays) if self.hold is None else self.hold(arrays)
            call()
        return call

    def _said(self) -> AbstractContextManager[None]:
        return engine_says(f"{self.engine} cannot run {self.path}", RuntimeFailure)

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """``feeds`` as arrays, in the file's order; raises DataError where they do not fit."""
        names = [port.name for port in self.inputs]
        odd = [*(n for n in names if n not in feeds), *(n for n in feeds if n not in names)]
        if odd:
            what = f"has no input {odd[0]!r}" if odd[0] in feeds else f"is not fed {odd[0]!r}"
            given = ", ".join(feeds) or "none"
            raise DataError(f"{self.path} {what}; its inputs are {', '.join(names)}, fed are {given}")
        known: dict[str, int] = {}
        arrays = {port.name: _whole(np.asarray(feeds[port.name]), port.dtype) for port in self.inputs}
        for port in self.inputs:
            found = arrays[port.name]
            if (port.dtype and found.dtype.name != port.dtype) or not _fits(port.shape, found.shape, known):
                raise DataError(_unfit(self.path, port, found))
        return arrays


def _whole(array: Array, dtype: str) -> Array:
    """Whole numbers as the type that a file takes, where that has each of them: files of MXNet's take floats."""
    if array.dtype.name == dtype or array.dtype.kind not in "iu" or not dtype:
        return array
    cast = array.astype(dtype)
    return cast if np.array_equal(cast, array) else array


def _fits(wanted: tuple[Side, ...] | None, found: tuple[int, ...], known: dict[str, int]) -> bool:
    """Whether a shape fits; sides of one name are one number, kept in ``known``."""
    if wanted is None:
        return True
    if len(wanted) != len(found):
        return False
    return all(
        side == "?" or (known.setdefault(side, size) if isinstance(side, str) else side) == size
        for side, size in zip(wanted, found, strict=True)
    )


def _unfit(path: Path, port: Port, found: Array) -> str:
    text = f"{path} takes {port}; fed is {found.dtype.name} {'x'.join(map(str, found.shape))}"
    batch = port.shape[0] if port.shape else "?"
    if isinstance(batch, int) and found.ndim and port.shape is not None and found.shape[1:] == port.shape[1:]:
        return f"{text}: feed batches of {batch}, or export the network without --batch-size"
    return text


@contextmanager
def engine_says(what: str, error: type[MxqError] = FormatError) -> Iterator[None]:
    """Whatever an engine raises is one error: "``what``: its words", on one line."""
    try:
        yield
    except MxqError:
        raise
    except Exception as failure:
        words = " ".join(_NOISE.sub("", str(failure)).split()) or type(failure).__name__
        raise error(f"{what}: {words}") from None


def called(name: str | os.PathLike[str]) -> str:
    """A name or path as a literal of Python."""
    return json.dumps(os.fspath(name))


def fed(inputs: Sequence[str], what: str = "") -> str:
    """What lines of Python feed: ``batch`` as the only input, or as a sequence of all; or ``what`` of each."""
    parts = ["batch"] if len(inputs) == 1 else [f"batch[{i}]" for i in range(len(inputs))]
    return ", ".join(f"{called(name)}: {part}{what}" for name, part in zip(inputs, parts, strict=True))
