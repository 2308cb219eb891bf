"""How pictures become a network's inputs, and who says so: the caller, a file beside the network, or its record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mxq.artifacts import record
from mxq.data.preprocess import Preprocess, read_preprocess
from mxq.quant.plan import Report

PREPROCESS_FILE: Final = "preprocess.json"
NORMALIZATION: Final = ("mean", "std", "scale")


@dataclass(frozen=True)
class Preparation:
    """Settings, and where they come from.

    Attributes:
        settings: how a picture is read.
        origin: how pictures are prepared, in words: "by FILE"; empty where nothing says it.
        normalized: whether any of it is about the values: a whole file or record, or a mean, std or scale.
    """

    settings: Preprocess = field(default_factory=Preprocess)
    origin: str = ""
    normalized: bool = False

    @staticmethod
    def given(value: Preprocess | Mapping[str, Any], origin: str = "by preprocess") -> Preparation:
        """What a caller gives: settings or their fields.

        Raises:
            FormatError: an unknown field.
            ConfigError: a field has a value that is not allowed.
        """
        settings = value if isinstance(value, Preprocess) else Preprocess.from_json(value)
        return Preparation(settings, origin, normalized=True)

    def changed(self, options: Mapping[str, Any], origin: str) -> Preparation:
        """With ``options`` on top; resize excludes short_side and crop."""
        if not options:
            return self
        base = self.settings.to_json() if self.origin else {}
        if "resize" in options:
            base = {k: v for k, v in base.items() if k not in ("short_side", "crop")}
        elif "crop" in options or "short_side" in options:
            base.pop("resize", None)
        said = self.normalized or any(name in options for name in NORMALIZATION)
        return Preparation(
            Preprocess.from_json({**base, **options}, "settings"),
            " and ".join(filter(None, (self.origin, origin))),
            normalized=said,
        )


def beside(prefix: str | os.PathLike[str]) -> Preparation:
    """What is known of the network ``prefix``: from preprocess.json in its folder, else from its record.

    Raises:
        FormatError: the file or the record is damaged.
        ConfigError: a field has a value that is not allowed.
    """
    file = Path(prefix).parent / PREPROCESS_FILE
    if file.is_file():
        return Preparation(read_preprocess(file), f"by {file}", normalized=True)
    if record.recorded(prefix) and (found := recorded(record.read(prefix))):
        return Preparation.given(found, f"as the record of {prefix} says")
    return Preparation()


def recorded(report: Report) -> Mapping[str, Any] | None:
    """The settings by which the pictures were read that a network was made on; None where there were none."""
    found = report.input.preprocess if report.input is not None else report.config.get("preprocess")
    return found if isinstance(found, Mapping) else None
