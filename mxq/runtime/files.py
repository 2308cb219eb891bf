"""Networks out: a `Model` becomes a pair of files, or a Gluon block."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mxq.files import replacing
from mxq.ir import Array, Model
from mxq.runtime.mxnet import mx, mxnet_says, of_mode, to_arrays, to_symbol, variable
from mxq.runtime.networks import from_prefix
from mxq.runtime.params import size_of, write_params

BLOCK_ATTRIBUTE = "mxq_report"
"""Attribute of a block that mxq returns: its report."""


def write_pair(model: Model, prefix: Path) -> tuple[Path, Path]:
    """Writes ``prefix-symbol.json`` and ``prefix-0000.params``, in that order of the result.

    Raises:
        RuntimeFailure: MXNet refuses the graph.
        StorageError: a file cannot be written.
    """
    symbol, params = (prefix.parent / f"{prefix.name}{end}" for end in ("-symbol.json", "-0000.params"))
    files = Files(model)
    with replacing(symbol, params, size=files.size) as drafts:
        files.write(*drafts)
    return symbol, params


@dataclass(frozen=True)
class Files:
    """What stands in the two files of ``model``."""

    model: Model

    def write(self, symbol: Path, params: Path) -> None:
        """Writes both, in place.

        Raises:
            RuntimeFailure: MXNet refuses the graph.
            OSError: a file cannot be written.
        """
        symbol.write_bytes(self._symbol)
        write_params(params, self._table)

    @property
    def size(self) -> int:
        """Bytes of both, about; no fewer than they have."""
        return len(self._symbol) + size_of(self._table)

    @cached_property
    def _symbol(self) -> bytes:
        text: str = to_symbol(self.model.graph).tojson()
        return text.encode()

    @property
    def _table(self) -> dict[str, Array]:
        """In alphabetical order: the same network gives the same file, however it came here."""
        arrays = {f"arg:{k}": v for k, v in self.model.args.items()}
        return dict(sorted((arrays | {f"aux:{k}": v for k, v in self.model.auxs.items()}).items()))


def read_block(prefix: Path, epoch: int | None = None) -> Any:
    """The pair as a SymbolBlock.

    Raises:
        FormatError: see `load_model`.
    """
    return to_block(from_prefix(prefix, epoch))


class QuantizedBlock(mx.gluon.SymbolBlock):  # type: ignore[misc]  # MXNet is untyped
    """A SymbolBlock whose ``export`` writes the parameters also before it has run once.

    Stock ``SymbolBlock.export`` then writes a parameter file without parameters, and says nothing.
    """

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = True) -> Any:
        """As `HybridBlock.export`: writes ``path-symbol.json`` and ``path-NNNN.params``."""
        if not self._cached_op_args:
            self._build_cache()
        return super().export(path, epoch, remove_amp_cast)


def to_block(model: Model) -> Any:
    """A hybridizable block of ``model``, whose parameters get the types that a file of them has."""
    with mxnet_says("MXNet cannot load what was made"), warnings.catch_warnings():
        # An int8 graph does not fix its input's type, which is float32 unless the caller feeds integers.
        warnings.filterwarnings("ignore", "Cannot decide type")
        inputs = [variable(name or f"unread{i}") for i, name in enumerate(model.arguments)]
        block = QuantizedBlock(of_mode(to_symbol(model.graph)), inputs)
        arrays = {name: of_mode(array) for name, array in to_arrays({**model.args, **model.auxs}).items()}
        block.collect_params().load_dict(arrays, ctx=mx.cpu(), cast_dtype=True, dtype_source="saved")
    return block
