"""The errors mxq raises.

Every message names the node, tensor, file, field or pattern at fault, the value found and what is allowed.
All derive from `MxqError`, so ``except mxq.MxqError`` catches whatever mxq refuses, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from mxq.text import printable

LONGEST_MESSAGE = 2000
"""Letters. A message quotes what it found, which may be a file's worth."""


class MxqError(Exception):
    """Base of every error that mxq raises on purpose. Its text can be shown on a terminal, whatever names are in it."""

    def __str__(self) -> str:
        text = printable(super().__str__())
        half = LONGEST_MESSAGE // 2
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} [...] {text[-half:]}"


class GraphError(MxqError):
    """A graph breaks an invariant: a name used twice, a dangling reference, a cycle."""


class FormatError(MxqError):
    """A file or text is not what it should be (symbol JSON, .params, thresholds, text form)."""


class StorageError(FormatError):
    """A file cannot be read or written, whatever is in it: no room, no permission, a broken disk, another run."""


class ConfigError(MxqError, ValueError):
    """A setting has a value that is not allowed, or a pattern that matches nothing."""


class DataError(MxqError, ValueError):
    """Calibration or evaluation data does not fit: empty, wrong shape, wrong type, NaN."""


class ReadError(DataError, StorageError):
    """Data cannot be read where it lies: a file or a disk failed."""


class CalibrationError(MxqError):
    """A range cannot be computed, or one that the graph needs is missing."""


class QuantizeError(MxqError):
    """The network cannot be quantized as asked (already quantized, unsupported request)."""


class TrainingError(MxqError):
    """Training cannot go on: the loss is no number any more."""


class RuntimeFailure(MxqError):
    """MXNet refused to load, bind or run a graph; the message carries MXNet's own first line."""


class WorkerError(RuntimeFailure):
    """Workers were lost, or their scheduler was."""


def of_surroundings(error: BaseException | None) -> bool:
    """Whether a file, a disk or a worker failed, and not what was asked for: the same may succeed next time."""
    seen = set[int]()
    while error is not None and id(error) not in seen:  # one may be its own cause
        if isinstance(error, OSError | StorageError | WorkerError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def as_storage_errors() -> Iterator[None]:
    """What is raised inside because of a file, a disk or a worker leaves as one of our errors."""
    try:
        yield
    except MxqError:
        raise
    except Exception as error:
        if of_surroundings(error):
            raise StorageError(f"{type(error).__name__}: {error}") from error
        raise


FEW = 6
"""Values that are seen at a glance: there is no hint at one of so few."""


def close_to(value: str, known: Iterable[str], most: int = 3, cutoff: float = 0.4) -> list[str]:
    """Names of ``known`` that were probably meant: those that begin with ``value``, then those that are like it."""
    names = list(dict.fromkeys(known))
    begin = sorted((name for name in names if value and name.startswith(value)), key=len)[:most]
    return list(dict.fromkeys([*begin, *get_close_matches(value, names, n=most, cutoff=cutoff)]))[:most]


def nearest(value: str, allowed: Iterable[str]) -> str:
    """A hint at what was probably meant, to end a message with; empty where nothing of ``allowed`` is like it."""
    like = close_to(value, allowed, 1, 0.6)
    return f"; did you mean {like[0]!r}?" if like else ""


def one_of(field: str, value: object, allowed: Iterable[object]) -> ConfigError:
    """The error for a value outside a closed set: names field, value and all allowed values."""
    allowed = list(allowed)
    listed = ", ".join(map(repr, allowed))
    texts = [a for a in allowed if isinstance(a, str)]
    hint = nearest(value, texts) if isinstance(value, str) and len(texts) > FEW else ""
    return ConfigError(f"{field} is {value!r}; allowed: {listed}{hint}")
