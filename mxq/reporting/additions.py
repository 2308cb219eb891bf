"""What else a page about a network may show: sensitivity, a search's trials, a training, times in several runtimes.

Each is what the command of that name prints with ``--json``, or the folder of a training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mxq.errors import FormatError
from mxq.formats.documents import converted, read_json
from mxq.qat.journal import read_journal
from mxq.reporting.training import is_training
from mxq.text import Shown


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of a sensitivity analysis: the measured number by name, None where there is none."""

    layer: str
    only_int8: dict[str, float | str | None] | None = None
    only_float: dict[str, float | str | None] | None = None


@dataclass(frozen=True, slots=True)
class Sensitive:
    """A sensitivity analysis; see `mxq.tuning.Sensitivity`."""

    measure: str
    by: str
    layers: list[LayerRow]
    float: dict[str, Any]
    int8: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial of a search; see `mxq.tuning.Trial`."""

    stage: str
    score: float | None = None
    modelled_speedup: float | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """A search; see `mxq.tuning.Tuned`."""

    verdict: str
    by: str
    float_score: float
    max_drop: float
    best: Tried
    trials: list[Tried]


@dataclass(frozen=True, slots=True)
class Taken:
    """How long a runtime took; see `mxq.bench.timing.Timing`."""

    median_ms: float
    examples_per_second: float


@dataclass(frozen=True, slots=True)
class RuntimeTime:
    """A network in a runtime at one batch size."""

    network: str
    runtime: str
    batch_size: int
    timing: Taken | None = None


@dataclass(frozen=True, slots=True)
class Race:
    """Networks in several runtimes; see `mxq.bench.runtimes.BestRuntime`."""

    rows: list[RuntimeTime]


@dataclass(frozen=True, slots=True)
class Learned:
    """A training: the lines of its journal, and of the float network's."""

    lines: tuple[Mapping[str, Any], ...]
    baseline: tuple[Mapping[str, Any], ...] = ()


KINDS: Final[Mapping[str, type[Any]]] = {"sensitivity": Sensitive, "tuning": Search, "runtimes": Race}
"""What can be added -> what is read of it."""
TELLS: Final[Mapping[str, frozenset[str]]] = {
    "sensitivity": frozenset({"measure", "layers"}),
    "tuning": frozenset({"trials", "float_score"}),
    "runtimes": frozenset({"rows", "cpus"}),
}
"""By which names of a document its kind is known."""


@dataclass(frozen=True)
class Additions:
    """All that is added to a page; None of what is not.

    Attributes:
        documents: kind -> the document as it was given.
    """

    sensitivity: Sensitive | None = None
    tuning: Search | None = None
    runtimes: Race | None = None
    training: Learned | None = None
    documents: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(given: Iterable[Any]) -> Additions:
        """What was given: results, or files and folders; of two of a kind the later.

        Raises:
            FormatError: a file cannot be read, or is of no such kind.
        """
        found = Additions()
        for one in given:
            folder = _folder(one)
            found = found._and_document(one) if folder is None else found._and_training(folder)
        return found

    def _and_training(self, folder: Path) -> Additions:
        lines = tuple(read_journal(folder))
        beside = tuple(read_journal(folder / "float")) if is_training(folder / "float") else ()
        documents = {**self.documents, "training": {"lines": lines, "float": beside}}
        return replace(self, training=Learned(lines, beside), documents=documents)

    def _and_document(self, given: Any) -> Additions:
        kind, name, data = _document(given)
        read = {kind: converted(data, KINDS[kind], name, partly=True)}
        return replace(self, documents={**self.documents, kind: data}, **read)


def _folder(given: Any) -> Path | None:
    """The folder of a training, where that was given."""
    folder = getattr(given, "workdir", None) or given
    return Path(folder) if isinstance(folder, str | Path) and is_training(Path(folder)) else None


def _document(given: Any) -> tuple[str, str, Mapping[str, Any]]:
    """The kind of a document, what it is called, and what it says."""
    name = str(given) if isinstance(given, str | Path) else f"the {type(given).__name__}"
    data: Any = given.to_json() if isinstance(given, Shown) and hasattr(given, "to_json") else None
    if isinstance(given, str | Path):
        data = read_json(given)
    known = data if isinstance(data, Mapping) else {}
    for kind, names in TELLS.items():
        if names <= known.keys():
            return kind, name, known
    raise FormatError(
        f"{name} cannot be added to a page; allowed: what mxq sensitivity, mxq tune or mxq bench --runtimes gives "
        "(with --json), or the workdir of mxq train"
    )
