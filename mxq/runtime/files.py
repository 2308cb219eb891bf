"""Networks out: a `Model` becomes a pair of files, or a Gluon block."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from mxq.ir import Model
from mxq.runtime.mxnet import mx, mxnet_says, to_arrays, to_symbol
from mxq.runtime.networks import from_prefix

BLOCK_ATTRIBUTE = "mxq_report"
"""Attribute of a block that mxq returns: its report."""


def write_pair(model: Model, prefix: Path) -> tuple[Path, Path]:
    """Writes ``prefix-symbol.json`` and ``prefix-0000.params``, in that order of the result.

    Raises:
        RuntimeFailure: MXNet refuses the graph, or cannot write (`mxq.api.save` looks after directories).
    """
    symbol, params = (prefix.parent / f"{prefix.name}{end}" for end in ("-symbol.json", "-0000.params"))
    table = {f"arg:{k}": v for k, v in to_arrays(model.args).items()}
    table |= {f"aux:{k}": v for k, v in to_arrays(model.auxs).items()}
    sym = to_symbol(model.graph)
    with mxnet_says(f"MXNet cannot write {str(prefix)!r}"):
        sym.save(str(symbol))
        mx.nd.save(str(params), table)
    return symbol, params


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
    """A hybridizable block of ``model``, with the parameters read from a file as users of the written pair do."""
    with tempfile.TemporaryDirectory(prefix="mxq-") as folder:
        _, params = write_pair(model, Path(folder) / "net")
        with mxnet_says("MXNet cannot load what was written"), warnings.catch_warnings():
            # An int8 graph does not fix its input's type, which is float32 unless the caller feeds integers.
            warnings.filterwarnings("ignore", "Cannot decide type")
            block = QuantizedBlock(to_symbol(model.graph), [mx.sym.var(name) for name in model.inputs])
            block.collect_params().load(str(params), ctx=mx.cpu(), cast_dtype=True, dtype_source="saved")
    return block
