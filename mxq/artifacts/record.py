"""The record beside a quantized pair: `Report` as ``prefix-mxq.json``, with checksums of the files it speaks of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mxq.errors import ConfigError, FormatError, close_to
from mxq.formats.documents import Count, converted, parse_json, read_json
from mxq.graph.annotation_text import MADE, REMADE
from mxq.graph.ir import Ref
from mxq.quant.plan import (
    Decision,
    InputRecord,
    NoiseRecord,
    Plan,
    Report,
    SaturationRecord,
    TensorRecord,
    WeightRecord,
)
from mxq.storage.checksums import Mismatch, checksum, files_in, mismatches, path_of, recorded
from mxq.storage.writing import write_json
from mxq.text import Shown
from mxq.version import __version__

__all__ = [
    "FORMAT",
    "Explanation",
    "Mismatch",
    "check",
    "checksum",
    "decisions_by_name",
    "explain",
    "explained",
    "find",
    "from_json",
    "path_of",
    "read",
    "recorded",
    "shapes_of",
    "tensor_of",
    "to_json",
    "write",
]

FORMAT = "mxq-report/1"
_INT8_PREFIXES = (REMADE, MADE)
"""What an int8 form is called begins so, in records of older releases, which do not say whose it is."""
_RENAMED = {"supposed": "assumed"}
"""Fields of a `SaturationRecord` in records of older releases -> what they are called now."""
_SAME = (
    "tensors", "thresholds", "config", "versions", "source", "summary", "weights", "saturation", "noise",
    "input", "target",
)  # fmt: skip
"""Fields of a report that are in its document as they are."""
_FIELDS = ("decisions", "observe", "tensors", "trace", "thresholds", "config", "versions", "source", "summary")


@dataclass(frozen=True, slots=True)
class Explanation(Shown):
    """All that a report knows about one node, JSON-ready with ``dataclasses.asdict``.

    Attributes:
        coded: the node's int8 tensor; None where it has none.
        calibrated: the entry in the thresholds: range, observer, observed, examples.
        weight: what became of its weight; None where nothing looked at it.
        refusals: (rule, reason) of each rule that refused the node or one of its members.
        saturation: what was done about sums that saturate on the target; None where none can.
        target: the CPU that the network was made for; empty where that is not known.
        removed: whether the node is one of the network as it was given that is not there any more.
        noise: what its rounding does to the network's outputs; None where that was not measured.
    """

    decision: Decision
    coded: TensorRecord | None
    calibrated: Mapping[str, Any] | None
    weight: WeightRecord | None
    refusals: tuple[tuple[str, str], ...]
    saturation: SaturationRecord | None = None
    target: str = ""
    removed: bool = False
    noise: NoiseRecord | None = None


def decisions_by_name(report: Report) -> dict[str, Decision]:
    """All decisions, each by the names of its node, of the original ones in it, and of its int8 tensor."""
    by_name = _by_node(report)
    made = {tensor: by_name[record.of] for tensor, record in report.tensors.items() if record.of in by_name}
    return {**by_name, **made}


def _by_node(report: Report) -> dict[str, Decision]:
    plan = report.plan
    by_name = {d.node: d for d in plan.removed} | {m: d for d in plan.decisions for m in d.members}
    return by_name | {d.node: d for d in plan.decisions}


def find(report: Report, name: str) -> Decision:
    """The decision on the node ``name``: a node of the fused graph, an original one, or an int8 tensor of the network.

    Raises:
        ConfigError: there is none; the message names close ones.
    """
    known = decisions_by_name(report)
    if name in known:
        return known[name]
    close = close_to(name, known)
    hint = f"close ones: {', '.join(close)}" if close else f"there are {len(_by_node(report))}"
    raise ConfigError(f"no operator is named {name!r}; {hint}")


def explain(report: Report, decision: Decision) -> Explanation:
    """What the report knows about the node of ``decision``."""
    tensors = report.thresholds.get("tensors")
    refusals = dict.fromkeys(
        (str(step.get("rule")), str(refused[name]))
        for step in report.trace
        for name in dict.fromkeys((decision.node, *decision.members))
        if isinstance(refused := step.get("refused"), Mapping) and name in refused
    )
    return Explanation(
        decision,
        tensor_of(report, decision.node),
        tensors.get(decision.node) if isinstance(tensors, Mapping) else None,
        next((report.weights[m] for m in (decision.node, *decision.members) if m in report.weights), None),
        tuple(refusals),
        report.saturation.get(decision.node),
        report.target,
        decision in report.plan.removed,
        report.noise.get(decision.node),
    )


def explained(report: Report, name: str) -> Explanation:
    """What the report knows about the node ``name``, by any of its names; see `find`."""
    return explain(report, find(report, name))


def tensor_of(report: Report, node: str) -> TensorRecord | None:
    """How the int8 result of the fused node ``node`` is coded; None where it has none."""
    return {record.of: record for record in report.tensors.values() if record.of}.get(node)


def to_json(report: Report, checksums: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A JSON-ready dictionary; ``checksums`` maps file name -> sha256 in hexadecimal."""
    return {
        "format": FORMAT,
        "summary": dict(report.summary),
        "versions": dict(report.versions),
        "config": dict(report.config),
        "source": dict(report.source),
        "input": None if report.input is None else asdict(report.input),
        "target": report.target,
        "files": dict(checksums or {}),
        "decisions": [{**asdict(d), "members": list(d.members)} for d in report.plan.decisions],
        "removed": [{**asdict(d), "members": list(d.members)} for d in report.plan.removed],
        "observe": [[r.name, r.output, r.version] for r in report.plan.observe],
        "tensors": {name: asdict(t) for name, t in report.tensors.items()},
        "weights": {name: asdict(w) for name, w in report.weights.items()},
        "saturation": {name: asdict(s) for name, s in report.saturation.items()},
        "noise": {name: asdict(n) for name, n in report.noise.items()},
        "thresholds": dict(report.thresholds),
        "trace": [dict(step) for step in report.trace],
    }


def from_json(data: Any) -> Report:
    """Reads what `to_json` wrote: a dictionary, or its text.

    Raises:
        FormatError: not that format; the message says what was found.
    """
    data = _document(data)
    missing = [name for name in _FIELDS if name not in data]
    if missing:
        raise FormatError(f"mxq report lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, data))}")
    try:
        found = converted(_renamed(data), _Document, "mxq report")
    except FormatError as error:
        raise _of_later(data, error) or error from None
    plan = Plan(tuple(found.decisions), tuple(Ref(*ref) for ref in found.observe), tuple(found.removed))
    report = Report(plan, trace=tuple(found.trace), **{name: getattr(found, name) for name in _SAME})
    known = any(record.of for record in report.tensors.values())
    return report if known else replace(report, tensors=_of_nodes(report))


def _of_later(data: dict[str, Any], error: FormatError) -> FormatError | None:
    """What to say of a record that a later version of mxq wrote; None of others."""
    versions = data["versions"]
    made = versions.get("mxq") if isinstance(versions, dict) else None
    if not isinstance(made, str) or _numbers(made) <= _numbers(__version__):
        return None
    return FormatError(
        f"the record was written by mxq {made}, and this is {__version__}, which does not know all of it ({error}); "
        f"allowed: mxq {made} or later"
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d{1,9}", version)[:3]]


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """An older record with its fields as they are called now."""
    layers = data.get("saturation")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        return data  # damaged, as `converted` will say
    now = {name: {_RENAMED.get(field, field): v for field, v in layer.items()} for name, layer in layers.items()}
    return {**data, "saturation": now}


def _of_nodes(report: Report) -> dict[str, TensorRecord]:
    """The tensors of an older record: their names tell whose int8 forms they are, a note that ranges came later."""
    forms = {prefix + d.node: d.node for prefix in _INT8_PREFIXES for d in report.plan.decisions}
    return {
        name: replace(record, of=forms.get(name, ""), at_run_time=record.min is None and bool(record.note))
        for name, record in report.tensors.items()
    }


@dataclass(frozen=True, slots=True)
class _Document:
    """A report as JSON."""

    format: str
    decisions: list[Decision]
    observe: list[tuple[str, int, int]]
    tensors: dict[str, TensorRecord]
    trace: list[dict[str, Any]]
    thresholds: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    source: dict[str, Any]
    summary: dict[str, Any]
    removed: list[Decision] = field(default_factory=list)
    weights: dict[str, WeightRecord] = field(default_factory=dict)
    saturation: dict[str, SaturationRecord] = field(default_factory=dict)
    noise: dict[str, NoiseRecord] = field(default_factory=dict)
    input: InputRecord | None = None
    target: str = ""
    files: dict[str, str] = field(default_factory=dict)


def write(prefix: str | os.PathLike[str], report: Report, files: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """Writes the record of the pair ``prefix``, with the checksums of ``files`` (which lie beside it).

    The file appears whole or not at all.

    Raises:
        FormatError: the report holds something that JSON has no word for, such as NaN.
    """
    checksums = {Path(f).name: checksum(f) for f in files}
    return write_json(path_of(prefix), to_json(report, checksums))


def read(prefix: str | os.PathLike[str]) -> Report:
    """The report beside the pair ``prefix``.

    Raises:
        FormatError: there is none, or it is not a report.
    """
    return from_json(_load(path_of(prefix)))


def shapes_of(report: Report) -> dict[str, tuple[int, ...]]:
    """The shape of one example of each input, as calibration saw them; empty where the report does not say."""
    said = report.summary.get("input_shapes", {})
    return converted(said, dict[str, tuple[Count, ...]], "the input_shapes of an mxq report")


def check(prefix: str | os.PathLike[str]) -> tuple[Mismatch, ...]:
    """Compares the files of the pair ``prefix`` with the checksums in its record; empty where all match.

    Raises:
        FormatError: there is no record, or it is not a report.
    """
    path = path_of(prefix)
    return mismatches(prefix, files_in(_load(path), path))


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FormatError(f"{path} does not exist: the pair was not written by mxq, or its record was left behind")
    try:
        return _document(read_json(path))
    except FormatError as error:
        raise FormatError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _document(data: Any) -> dict[str, Any]:
    if isinstance(data, str | bytes):
        data = parse_json(data, "mxq report")
    if not isinstance(data, dict):
        raise FormatError(f"mxq report is a {type(data).__name__}; it should be a table with format {FORMAT!r}")
    if data.get("format") != FORMAT:
        raise FormatError(f"mxq report has format {data.get('format')!r}; this version reads {FORMAT!r}")
    return data
