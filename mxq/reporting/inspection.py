"""What a network is: what is int8 in it, or would be, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from mxq.artifacts import record
from mxq.quant.plan import Report
from mxq.reporting import tables
from mxq.storage.checksums import Mismatch, sizes_of
from mxq.text import Shown, megabytes


@dataclass(frozen=True)
class Inspection(Shown):
    """What ``mxq inspect`` shows; so does ``str``.

    Attributes:
        network: its prefix, or the name of its type.
        report: every decision.
        written: whether mxq made the network; else the report says what quantizing would do.
        bytes: of the pair's files, by name; empty of a network in memory.
        problems: files of the pair that are not what its record says.
    """

    network: str
    report: Report
    written: bool
    bytes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Mismatch, ...] = ()

    @staticmethod
    def of_record(prefix: Path) -> Inspection:
        """Of a pair that has a record.

        Raises:
            FormatError: there is none, or it is damaged.
        """
        report, problems = record.read(prefix), record.check(prefix)
        return Inspection(str(prefix), report, written=True, bytes=sizes_of(prefix), problems=problems)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: the record, and the other attributes."""
        problems = [{"file": m.file, "problem": m.problem} for m in self.problems]
        return {"written": self.written, "bytes": self.bytes, "problems": problems, **record.to_json(self.report)}


def parts(found: Inspection) -> Sequence[RenderableType]:
    """The network as a whole, then each of its operators."""
    report = found.report
    state = (
        f"quantized by mxq{_versions(report.versions)}" if found.written else "float; this is what quantizing would do"
    )
    rows = [("network", f"{found.network} ({state})" if found.network else state), ("operators", tables.tally(report))]
    rows += [("calibration", _calibration(report))] if found.written else []
    rows += [*tables.simulation_rows(report), *tables.input_rows(report)]
    if found.bytes:
        rows.append(("size", ", ".join(f"{name} {megabytes(size)}" for name, size in found.bytes.items())))
    return [tables.facts(rows), tables.decisions(report)]


def _calibration(report: Report) -> str:
    config, summary = report.config, report.summary
    words = [f"calib_mode {config.get('calib_mode')}"]
    if summary.get("calibration_examples"):
        words.append(f"{summary['calibration_examples']} examples")
    return ", ".join([*words, f"dtype {config.get('quantized_dtype')}", f"mode {config.get('quantize_mode')}"])


def _versions(versions: Mapping[str, str]) -> str:
    return f" {versions['mxq']}, MXNet {versions.get('mxnet', '?')}" if "mxq" in versions else ""
