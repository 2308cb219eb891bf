"""What an ONNX file of mxq says of itself: a `FileRecord`, as texts among the file's metadata.

Each field is one entry, ``mxq.`` and its name; what is no text is JSON. Other entries are left to whom they belong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias

from mxq.formats.documents import converted, parse_json
from mxq.version import __version__

PREFIX: Final = "mxq."
KIND: Final = "mxq.kind"
"""The entry that every file of mxq has."""
Kind: TypeAlias = Literal["float", "int8"]


@dataclass(frozen=True)
class FileRecord:
    """What mxq knew when it wrote an ONNX file.

    Attributes:
        kind: what layers compute in.
        runtime: whose kernels decided which tensors are codes, of an int8 file; "portable": those that all have.
        target: the CPU that an int8 file is for, as `mxq.host.machine.TARGETS`; "" of a float one, which suits all.
        config: the settings of an int8 file, as in the record of a pair.
        inputs: input -> shape of one example.
        source: what identifies the float network that it was made of (`mxq.pipeline.fingerprint`), in hexadecimal.
        sha256: of operators and constants (`mxq.formats.onnx_file.Digest`), in hexadecimal.
        version: of mxq.
        preprocess: how the file prepares the pixels that it takes, the fields of `mxq.images.Preprocess`; empty where
            it takes what is prepared.
    """

    kind: Kind = "float"
    runtime: str = ""
    target: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    version: str = __version__
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def to_properties(self) -> dict[str, str]:
        """Entries of metadata; what is empty has none."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {f"{PREFIX}{name}": _text(value) for name, value in found.items() if value}

    @staticmethod
    def from_properties(properties: Mapping[str, str], name: str) -> FileRecord | None:
        """Of a file's metadata; None where mxq has written none.

        Args:
            properties: entries of metadata.
            name: what messages call the file.

        Raises:
            FormatError: an entry is damaged.
        """
        if KIND not in properties:
            return None
        found = {}
        for f in fields(FileRecord):
            key = f"{PREFIX}{f.name}"
            if key in properties:
                text = properties[key]
                found[f.name] = text if f.type in ("str", "Kind") else parse_json(text, f"{key} of {name}")
        return converted(found, FileRecord, f"the metadata of {name}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)
