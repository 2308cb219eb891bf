"""A block in training as a file: settings, quantizers, the float network's graph, and all parameters.

It is a ``.params`` file, which appears whole or not at all; beside the parameters it holds one JSON document, as bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mxq import runtime
from mxq.errors import FormatError
from mxq.formats.documents import parse_json
from mxq.formats.params import read_params
from mxq.formats.reading import path_given
from mxq.graph.ir import Array, Model
from mxq.graph.serde import read_symbol, write_symbol
from mxq.qat.biases import RoundedBias
from mxq.qat.config import QatConfig
from mxq.qat.converting import trained
from mxq.qat.network import QatNetwork, softmax_head, with_head
from mxq.qat.preparing import block_of
from mxq.qat.quantizer import Quantizer
from mxq.quant.thresholds import Thresholds
from mxq.runtime.params_file import size_of, write_params
from mxq.storage.writing import replacing

FORMAT: Final = "mxq-qat/1"
_ABOUT: Final = "mxq-qat"
_ARG, _AUX, _OWN = "arg:", "aux:", "qat:"


def save(block: runtime.TrainableBlock, path: str | os.PathLike[str]) -> Path:
    """Writes what `mxq.qat.prepare` gave, with the values that it has now, to one file; `load` reads it.

    ``block.save_parameters`` and ``load_parameters`` of gluon work as well, on a block that was prepared alike.

    Args:
        block: from `mxq.qat.prepare` or `load`.
        path: the file, such as "net-qat.params".

    Raises:
        QuantizeError: it is no such block.
        StorageError: the file cannot be written.
    """
    network, target = trained(block), path_given("path", path)
    about = {
        "format": FORMAT,
        "config": network.config.to_json(),
        "quantizers": [q.to_json() for q in network.quantizers],
        "biases": [bias.to_json() for bias in network.biases],
        "calibrated": network.calibrated.to_json(),
        "examples": {name: list(shape) for name, shape in network.examples.items()},
        "symbol": json.loads(write_symbol(with_head(network.source, network.head).graph)),
    }
    table = {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8), **_values(network)}
    with replacing(target, size=size_of(table)) as (draft,):
        write_params(draft, table)
    return target


def _values(network: QatNetwork) -> dict[str, Array]:
    tables = {_ARG: network.source.args, _AUX: network.source.auxs, _OWN: network.parameters}
    return {f"{kind}{name}": value for kind, table in tables.items() for name, value in table.items()}


def load(path: str | os.PathLike[str]) -> runtime.TrainableBlock:
    """Reads what `save` wrote, as a block that trains on.

    Raises:
        FormatError: the file is missing, damaged, or another.
    """
    where = path_given("path", path)
    table = read_params(where)
    if _ABOUT not in table:
        raise FormatError(f"{str(where)!r} holds no block in training; allowed: what mxq.qat.save wrote")
    about = parse_json(table[_ABOUT].tobytes(), str(where))
    if not isinstance(about, Mapping) or about.get("format") != FORMAT:
        raise FormatError(f"{str(where)!r} has another format; this version reads {FORMAT!r}")
    return block_of(_network(about, table, str(where)))


def _network(about: Mapping[str, Any], table: Mapping[str, Array], name: str) -> QatNetwork:
    args, auxs, own = (_of_kind(table, kind) for kind in (_ARG, _AUX, _OWN))
    try:
        source, head = softmax_head(Model(read_symbol(about["symbol"], name), args, auxs))
        quantizers = tuple(map(Quantizer.from_json, about["quantizers"]))
        calibrated = Thresholds.from_json(about["calibrated"])
        biases = tuple(map(RoundedBias.from_json, about["biases"]))
        examples = {name: tuple(map(int, shape)) for name, shape in about.get("examples", {}).items()}
        config = QatConfig.from_json(about["config"])
        return QatNetwork(source, config, quantizers, own, biases, head, calibrated, examples)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{name!r} lacks {error}; allowed: what mxq.qat.save wrote") from None


def _of_kind(table: Mapping[str, Array], kind: str) -> dict[str, Array]:
    return {name.removeprefix(kind): value for name, value in table.items() if name.startswith(kind)}
