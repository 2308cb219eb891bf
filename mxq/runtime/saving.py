"""Networks out: a `Model` becomes a pair of files, or a Gluon block."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mxq.graph.ir import Array, Model
from mxq.quant.plan import Report
from mxq.runtime.mxnet import mx, mxnet_says, of_mode, to_arrays, to_numpy, to_symbol, variable
from mxq.runtime.networks import from_prefix
from mxq.runtime.params_file import size_of, write_params
from mxq.storage.writing import replacing

BLOCK_ATTRIBUTE = "mxq_report"
"""Attribute of a block that mxq returns: its report."""


def pair_at(prefix: Path, epoch: int = 0) -> tuple[Path, Path]:
    """``prefix-symbol.json`` and ``prefix-NNNN.params``."""
    return prefix.parent / f"{prefix.name}-symbol.json", prefix.parent / f"{prefix.name}-{epoch:04d}.params"


def write_pair(model: Model, prefix: Path) -> tuple[Path, Path]:
    """Writes ``prefix-symbol.json`` and ``prefix-0000.params``, in that order of the result.

    Raises:
        RuntimeFailure: MXNet refuses the graph.
        StorageError: a file cannot be written.
    """
    return Files.of(model).save(prefix)


@dataclass(frozen=True)
class Files:
    """What stands in a pair: the symbol's JSON, and the parameters by their name with "arg:" or "aux:" before it."""

    symbol: str
    params: Mapping[str, Array]

    @classmethod
    def of(cls, model: Model) -> Files:
        """The pair of ``model``.

        Raises:
            RuntimeFailure: MXNet refuses the graph.
        """
        return cls.made(to_symbol(model.graph).tojson(), model.args, model.auxs)

    @classmethod
    def made(cls, symbol: str, args: Mapping[str, Array], auxs: Mapping[str, Array]) -> Files:
        """In alphabetical order: the same network gives the same file, however it came here."""
        params = {f"arg:{k}": v for k, v in args.items()} | {f"aux:{k}": v for k, v in auxs.items()}
        return cls(symbol, dict(sorted(params.items())))

    def save(self, prefix: Path, epoch: int = 0) -> tuple[Path, Path]:
        """Writes ``prefix-symbol.json`` and ``prefix-NNNN.params``; both, or none.

        Raises:
            RuntimeFailure: a parameter is of a type that MXNet has not.
            StorageError: a file cannot be written.
        """
        symbol, params = pair_at(prefix, epoch)
        with replacing(symbol, params, size=self.size) as drafts:
            self.write(*drafts)
        return symbol, params

    def write(self, symbol: Path, params: Path) -> None:
        """Writes both, in place.

        Raises:
            RuntimeFailure: a parameter is of a type that MXNet has not.
            OSError: a file cannot be written.
        """
        symbol.write_text(self.symbol, encoding="utf-8")
        write_params(params, self.params)

    @property
    def size(self) -> int:
        """Bytes of both, about; no fewer than they have."""
        return len(self.symbol.encode()) + size_of(self.params)


def read_block(prefix: Path, epoch: int | None = None) -> LoadedBlock:
    """The pair as a SymbolBlock.

    Raises:
        FormatError: see `load_model`.
    """
    return to_block(from_prefix(prefix, epoch))


class LoadedBlock(mx.gluon.SymbolBlock):  # type: ignore[misc]  # MXNet is untyped
    """A SymbolBlock whose ``export`` writes all, or nothing and an error.

    Stock ``SymbolBlock.export`` writes a file without parameters before the block has run, and one cut short where the
    disk is full, and says nothing of either.

    Attributes:
        mxq_report: every decision; None where the pair that it was read from has no record.
    """

    mxq_report: Report | None

    def export(self, path: str | os.PathLike[str], epoch: int = 0, remove_amp_cast: bool = True) -> None:
        """As `HybridBlock.export`: writes ``path-symbol.json`` and ``path-NNNN.params``.

        Raises:
            StorageError: a file cannot be written.
        """
        if not self._cached_op_args:
            self._build_cache()
        sym, states = self._cached_graph[1], set(self._cached_graph[1].list_auxiliary_states())
        params = {p.name: to_numpy(p._reduce()) for is_input, p in self._cached_op_args if not is_input}  # noqa: SLF001
        auxs = {name: value for name, value in params.items() if name in states}
        args = {name: value for name, value in params.items() if name not in states}
        Files.made(sym.tojson(remove_amp_cast=remove_amp_cast), args, auxs).save(Path(path), epoch)


class QuantizedBlock(LoadedBlock):
    """What mxq made of a network: a hybridizable block, float32 in and out unless it was made to take integers.

    Attributes:
        mxq_report: every decision; ``print`` shows it as ``mxq inspect`` does.
    """

    mxq_report: Report


def to_block(model: Model) -> QuantizedBlock:
    """A hybridizable block of ``model``, whose parameters get the types that a file of them has."""
    with mxnet_says("MXNet cannot load what was made"), warnings.catch_warnings():
        # An int8 graph does not fix its input's type, which is float32 unless the caller feeds integers.
        warnings.filterwarnings("ignore", "Cannot decide type")
        inputs = [variable(name or f"unread{i}") for i, name in enumerate(model.arguments)]
        block = QuantizedBlock(of_mode(to_symbol(model.graph)), inputs)
        arrays = {name: of_mode(array) for name, array in to_arrays({**model.args, **model.auxs}).items()}
        block.collect_params().load_dict(arrays, ctx=mx.cpu(), cast_dtype=True, dtype_source="saved")
    return block


def reported_block(model: Model, report: Report) -> QuantizedBlock:
    """As `to_block`, with its report."""
    block = to_block(model)
    block.mxq_report = report
    return block
