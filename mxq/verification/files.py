"""A network file against the float network, in each runtime that ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mxq.text import Shown
from mxq.verification.agreement import Verification


@dataclass(frozen=True)
class FileVerification(Shown):
    """What ``mxq verify`` shows of an ONNX file; so does ``str``.

    Attributes:
        file: its path.
        reference: what it was compared with: a network, and what ran that.
        runs: runtime -> what came of the file there.
        versions: runtime -> its version.
    """

    file: str
    reference: str
    runs: Mapping[str, Verification]
    versions: Mapping[str, str] = field(default_factory=dict)

    def failures(self, min_agreement: float | None = None, min_sqnr: float | None = None) -> tuple[str, ...]:
        """Which of the bars were missed, as of `Verification.failures`, in which runtime."""
        missed = {name: run.failures(min_agreement, min_sqnr) for name, run in self.runs.items()}
        return tuple(f"{name}: {text}" for name, texts in missed.items() for text in texts)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; infinities are text, as in `Verification.to_json`."""
        runs = {name: {"version": self.versions.get(name), **run.to_json()} for name, run in self.runs.items()}
        return {"file": self.file, "reference": self.reference, "runtimes": runs}
