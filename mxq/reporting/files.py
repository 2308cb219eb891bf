"""What an ONNX file is: kind, target, settings, inputs and outputs, operators; by mxq or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mxq.config import QuantConfig
from mxq.errors import ConfigError
from mxq.formats.onnx_file import OnnxFile, read
from mxq.formats.onnx_record import FileRecord
from mxq.reporting import tables
from mxq.storage.checksums import Mismatch
from mxq.text import Shown, megabytes
from mxq.verification import FileVerification, Verification


@dataclass(frozen=True)
class FileInspection(Shown):
    """What ``mxq inspect`` shows of an ONNX file; so does ``str``.

    Attributes:
        file: what is in it.
        problems: that it is not what mxq wrote.
    """

    file: OnnxFile
    problems: tuple[Mismatch, ...] = ()

    @staticmethod
    def of(path: Path, config: QuantConfig | None = None, epoch: int | None = None) -> FileInspection:
        """Of the file at ``path``.

        Raises:
            ConfigError: onnx is not installed, or settings are given, for which there is no use.
            FormatError: see `mxq.formats.onnx_file.read`.
        """
        if epoch is not None or config not in (None, QuantConfig()):
            raise ConfigError(f"settings are given for {path}, which is made; allowed: for a float network")
        file = read(path)
        return FileInspection(file, (Mismatch(path.name, "changed"),) if file.intact is False else ())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        file = self.file
        found = asdict(file) | {"path": str(file.path), "kind": file.kind, "operators": dict(file.operators)}
        return {**found, "problems": [{"file": m.file, "problem": m.problem} for m in self.problems]}


def parts(found: FileInspection) -> Sequence[RenderableType]:
    """The file as a whole, then how many operators of each kind it has."""
    file, record = found.file, found.file.record
    rows = [("file", f"{file.path} ({file.kind}{_origin(file)})")]
    rows += [] if record is None else _recorded(record)
    rows += [("opset", f"{_sets(file)}, IR {file.ir_version}")]
    rows += [("input", str(port)) for port in file.inputs]
    rows += [("output", str(port)) for port in file.outputs]
    rows += [("layers", f"{file.layers_int8} on codes, {file.layers_float} in float")]
    rows += [("size", ", ".join(f"{name} {megabytes(size)}" for name, size in file.bytes.items()))]
    return [tables.facts(rows), _operators(file.operators)]


def compared(found: FileVerification) -> Sequence[RenderableType]:
    """What it was compared with, then a line for each runtime."""
    runs = found.runs.values()
    rows = [("file", found.file), ("against", found.reference)]
    rows += [("examples", f"{run.examples:,}") for run in [*runs][:1]]
    rows += [("float top-1", tables.percent(run.accuracy.float_top1)) for run in [*runs][:1] if run.accuracy]
    boxes, scores = any(run.boxes for run in runs), any(run.agreement is not None for run in runs)
    labelled = any(run.accuracy for run in runs)
    titles = [*([">same best class"] if scores else []), *([">boxes that match"] if boxes else []), ">SQNR"]
    table = tables.ruled("", ("runtime", *titles, *([">top-1"] if labelled else []), ">max error"))
    for name, run in found.runs.items():
        cells: list[Text] = [Text(_share(run.agreement))] if scores else []
        cells += [Text(_share(None if run.boxes is None else run.boxes.agreement))] if boxes else []
        cells += [tables.decibels(run.sqnr)]
        cells += [Text("-" if run.accuracy is None else tables.percent(run.accuracy.int8_top1))] if labelled else []
        table.add_row(Text(f"{name} {found.versions.get(name, '')}".strip()), *cells, Text(_largest(run)))
    return [tables.facts(rows), table]


def _share(value: float | None) -> str:
    return "-" if value is None else tables.percent(value)


def _largest(run: Verification) -> str:
    """The largest difference of one value in any output."""
    found = [output.max_abs_error for output in run.outputs if output.max_abs_error is not None]
    return f"{max(found):.3g}" if found else "-"


def _origin(file: OnnxFile) -> str:
    if file.record is not None:
        return f", by mxq {file.record.version}"
    return f", by {file.producer}" if file.producer else ", by an unknown program"


def _sets(file: OnnxFile) -> str:
    return ", ".join([str(file.opset), *(f"{domain} {version}" for domain, version in file.domains.items())])


def _recorded(record: FileRecord) -> list[tuple[str, str]]:
    """What mxq wrote of it, but for what the network itself shows."""
    rows = [("for", ", ".join(part for part in (record.target, f"{record.runtime} kernels") if part))]
    rows = rows if record.kind == "int8" else []
    usual = QuantConfig().to_json()
    chosen = {name: value for name, value in record.config.items() if value != usual.get(name)}
    said = ", ".join(
        f"{name} {value}" for name, value in chosen.items() if name not in ("backend", "hardware", "simulate", "target")
    )
    rows += [("settings", said or "the default ones")] if record.config else []
    prepared = ", ".join(f"{name} {value}" for name, value in record.preprocess.items())
    rows += [("takes", f"pixels, which it prepares: {prepared}")] if prepared else []
    source = record.source.get("params_sha256")
    return [*rows, *([("made of", f"parameters with the sha256 {source[:16]}...")] if isinstance(source, str) else [])]


def _operators(counts: Mapping[str, int]) -> RenderableType:
    """The commonest first."""
    table = tables.ruled("operators", ("kind", ">count"))
    for kind, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row(Text(kind), str(count))
    return table
