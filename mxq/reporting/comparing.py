"""Tables of ``mxq compare``: what differs between two INT8 networks. Nothing prints here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mxq.quant.plan import TensorRecord, WeightRecord
from mxq.reporting.tables import decibels, facts, percent, ruled
from mxq.verification import TITLES, Comparison, Differences, Verification


def parts(compared: Comparison) -> Iterator[RenderableType]:
    """What the two are and how much differs, then a table for each kind of difference that there is."""
    found = compared.differences
    rows = [(name, side.name) for name, side in zip("AB", compared.sides, strict=True)]
    rows += [("int8 operators", f"{found.int8[0]}, {found.int8[1]}")]
    counts = {"operators": found.decisions, "tensors": found.tensors, "weights": found.weights}
    rows += [(f"{k} that differ", f"{len(v)}; both have {found.compared[k]}") for k, v in counts.items()]
    yield facts([*rows, *(("note", note) for note in found.notes)])
    tables = (_decisions(found), _tensors(found), _weights(found), _settings(found), _runs(compared.runs))
    yield from (table for table in tables if table.row_count)


def _decisions(found: Differences) -> Table:
    table = ruled("operators", ("node", "A", "B", "because"))
    for d in found.decisions:
        why = dict.fromkeys(f"{name}: {text}" for name, text in (("A", d.reason_a), ("B", d.reason_b)) if text)
        table.add_row(*_texts(d.node, d.a or "-", d.b or "-", "; ".join(why)))
    return table


def _tensors(found: Differences) -> Table:
    """The ranges furthest apart first; tensors that one network alone has are last."""
    table = ruled("int8 tensors", ("tensor", "A", "B", ">B / A"))
    ratios = {t.tensor: abs(math.log(t.ratio)) if t.ratio else -1.0 for t in found.tensors}
    for t in sorted(found.tensors, key=lambda t: -ratios[t.tensor]):
        table.add_row(*_texts(t.tensor, _coding(t.a), _coding(t.b), "-" if t.ratio is None else f"{t.ratio:.3f}"))
    return table


def _weights(found: Differences) -> Table:
    table = ruled("weights, B against A", ("layer", ">weight", ">bias", "A", "B"))
    for w in found.weights:
        table.add_row(
            Text(w.layer), decibels(w.sqnr), decibels(w.bias_sqnr), *_texts(_weight_words(w.a), _weight_words(w.b))
        )
    return table


def _settings(found: Differences) -> Table:
    table = ruled("settings", ("", "A", "B"))
    for s in found.settings:
        table.add_row(*_texts(s.name, *(v if isinstance(v, str) else json.dumps(v) for v in (s.a, s.b))))
    return table


def _runs(runs: Mapping[str, Verification]) -> Table:
    table = ruled("on the data", ("", ">same answers", ">SQNR", ">top-1"))
    for name, run in runs.items():
        same = run.agreement if run.boxes is None else run.boxes.agreement
        accuracy = "-" if run.accuracy is None else percent(run.accuracy.int8_top1)
        table.add_row(TITLES[name], "-" if same is None else percent(same), decibels(run.sqnr), accuracy)
    return table


def _coding(record: TensorRecord | None) -> str:
    if record is None:
        return "-"
    span = "" if record.min is None or record.max is None else f" {record.min:.4g} .. {record.max:.4g}"
    return f"{record.dtype}{span}"


def _weight_words(record: WeightRecord | None) -> str:
    return "-" if record is None else f"{record.observer}, {record.clipped_channels} of {record.channels} clipped"


def _texts(*cells: str) -> tuple[Text, ...]:
    """Cells that are shown as they are, brackets too."""
    return tuple(map(Text, cells))
