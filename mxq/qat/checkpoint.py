"""Checkpoints: all that the rest of a training depends on, in one file that appears whole or not at all.

It is a ``.params`` file: parameters of the block, momenta, those of the best epoch, and the rest as JSON in bytes.
Beside it lies the journal, one JSON document a line, which grows with each epoch; the checkpoint says how long it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mxq.calibration.collect import checksum
from mxq.errors import ConfigError, FormatError, MxqError, StorageError
from mxq.formats.documents import parse_json
from mxq.formats.params import read_params
from mxq.graph.ir import Array
from mxq.qat.journal import JOURNAL, added, cut, sayable
from mxq.runtime.params_file import size_of, write_params
from mxq.storage import locks
from mxq.storage.writing import regular, replacing

FORMAT: Final = "mxq-training/1"
FILE: Final = "checkpoint.params"
_ABOUT: Final = "about"
_DIGEST: Final = "sha256"
"""Of all other arrays of the file."""
WEIGHTS: Final = "weights"
"""What tells of the weights that a training begins with."""
_LATER: Final = ("data", "eval_data", WEIGHTS)
"""What checkpoints of before do not tell."""
_TABLES: Final = ("values", "momenta", "best")
_LEFT: Final = ("values", "best")
"""Tables whose values a block has after a training, or a part of one."""


@dataclass(frozen=True)
class State:
    """A training after so many epochs.

    Attributes:
        epoch: how many have been finished.
        values: of the block's parameters.
        momenta: see `mxq.runtime.training.Trainee`.
        best: the parameters of the best epoch.
        best_epoch: its number; 0 is before training.
        history: of each epoch, from 0, what was measured; JSON-ready.
        journal: bytes of the journal.
        start: `fingerprint` of what it began with; empty: that of the block.
    """

    epoch: int
    values: Mapping[str, Array]
    momenta: Mapping[str, Array] = field(default_factory=dict)
    best: Mapping[str, Array] = field(default_factory=dict)
    best_epoch: int = 0
    history: tuple[Mapping[str, Any], ...] = ()
    journal: int = 0
    start: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a training.

    Attributes:
        folder: it; None keeps nothing.
        about: JSON-ready; what the training is, which may not differ when it goes on.
            A block with the weights of the checkpoint is the same as one with those of before: training left it so.
    """

    folder: Path | None
    about: Mapping[str, Any]

    @property
    def file(self) -> Path | None:
        """The checkpoint."""
        return None if self.folder is None else self.folder / FILE

    def read(self) -> State | None:
        """The state that was written last; None where there is none. What the journal has beyond it goes.

        Raises:
            ConfigError: the folder holds another training; the message names the first difference.
            FormatError: the checkpoint is damaged.
            StorageError: the folder cannot be made or used.
        """
        if self.file is None or self.folder is None:
            return None
        _make(self.folder)
        if not regular(self.file).exists():
            cut(self.folder / JOURNAL, 0)
            return None
        state = self._parsed(read_params(self.file))
        cut(self.folder / JOURNAL, state.journal)
        return state

    def _parsed(self, table: Mapping[str, Array]) -> State:
        name = str(self.file)
        _check_digest(name, table)
        try:
            text = np.asarray(table[_ABOUT], np.uint8).tobytes().decode()
            said = parse_json(text, name)
            if said["format"] != FORMAT:
                raise FormatError(f"{name} has format {said['format']!r}; this version reads {FORMAT!r}")
            before, parts = said["training"], {part: _part(table, part) for part in _TABLES}
            known = {key: value for key, value in self.about.items() if key in before or key not in _LATER}
            if WEIGHTS in before and known.get(WEIGHTS) in [fingerprint(parts[which]) for which in _LEFT]:
                known[WEIGHTS] = before[WEIGHTS]
            _check(name, before, json.loads(json.dumps(known)))
            self._check_tables(parts)
            history = tuple(map(_measured, said["history"]))
            epoch, best = (_count(said[which], len(history) - 1) for which in ("epoch", "best_epoch"))
            start, journal = before.get(WEIGHTS, {}), _count(said["journal"])
            state = State(epoch, **parts, best_epoch=best, history=history, journal=journal, start=start)
        except MxqError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{name} is no checkpoint of a training, or damaged; delete it to begin anew") from error
        return state

    def _check_tables(self, parts: Mapping[str, Mapping[str, Array]]) -> None:
        """Refuses, by a ValueError, what is not of the block's parameters, or not finite."""
        shapes = self.about["parameters"]
        for part, table in parts.items():
            found = {name: list(value.shape) for name, value in table.items()}
            if found != (shapes if part != "momenta" else {name: shapes[name] for name in found}):
                raise ValueError(f"{part} do not fit")
            if not all(np.isfinite(value).all() for value in table.values()):
                raise ValueError(f"{part} are not finite")

    def write(self, state: State, lines: Iterable[Mapping[str, Any]] = ()) -> State:
        """Adds ``lines`` to the journal and writes the checkpoint; killed in between, `read` gives the one before.

        Returns:
            ``state`` with the length of the journal.

        Raises:
            StorageError: a file cannot be written; then the checkpoint before is still there.
        """
        if self.folder is None or self.file is None:
            return state
        end = added(self.folder / JOURNAL, state.journal, lines)
        state = replace(state, journal=end)
        table = {f"{part}:{name}": value for part in _TABLES for name, value in getattr(state, part).items()}
        about = {**self.about, **({WEIGHTS: state.start} if state.start else {})}
        said = {"format": FORMAT, "training": about, "epoch": state.epoch, "best_epoch": state.best_epoch,
                "journal": end, "history": sayable(state.history)}  # fmt: skip
        table[_ABOUT] = np.frombuffer(json.dumps(said, allow_nan=False).encode(), np.uint8)
        table[_DIGEST] = np.frombuffer(checksum(table).encode(), np.uint8)
        with replacing(self.file, size=size_of(table)) as (draft,):
            write_params(draft, table)
        return state


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """While inside, no other run trains in ``folder``.

    Raises:
        StorageError: another run does, or the folder cannot be made.
    """
    if folder is None:
        yield
        return
    _make(folder)
    with locks.alone(folder, "wait for its end, or give another workdir"):
        yield


def fingerprint(values: Mapping[str, Array]) -> dict[str, str]:
    """What tells a block from another, JSON-ready: its weights. Ranges may be calibrated anew."""
    return {"sha256": checksum({name: value for name, value in values.items() if value.ndim > 1})}


def _check_digest(name: str, table: Mapping[str, Array]) -> None:
    """Refuses a file in which a byte has changed; those of before have no digest."""
    rest = {key: value for key, value in table.items() if key != _DIGEST}
    if _DIGEST in table and table[_DIGEST].tobytes() != checksum(rest).encode():
        raise FormatError(f"{name} is damaged: its sha256 is another than when it was written; delete it to begin anew")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"workdir {str(folder)!r} cannot be made: {why}") from error


def _count(value: Any, most: float = math.inf) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no count")
    return value


def _measured(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An epoch's numbers as they were before `mxq.qat.journal.sayable`."""
    tables = {
        name: {k: math.nan if v is None else v for k, v in entry[name].items()}
        for name in ("eval", *entry.keys() & {"train"})
    }
    return {**entry, **tables}


def _part(table: Mapping[str, Array], part: str) -> dict[str, Array]:
    prefix = f"{part}:"
    return {name.removeprefix(prefix): value for name, value in table.items() if name.startswith(prefix)}


def _check(name: str, found: Any, wanted: Any, where: str = "") -> None:
    """Refuses a training of something else, and says what differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys((*wanted, *found)):
            _check(name, found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    elif found != wanted:
        raise ConfigError(
            f"{name} is of another training: its {where} is {found!r:.60}, here {wanted!r:.60}; allowed: the same "
            "block, data and settings, or another workdir"
        )
