"""One HTML page about a quantized network, which needs nothing but itself: no server, no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from mxq.artifacts import record
from mxq.artifacts.record import Explanation
from mxq.bench.timing import INT8, Benchmark
from mxq.drawing import Kind, Scene, layout_of, svg_of
from mxq.drawing.libraries import template
from mxq.graph.ir import Model
from mxq.quant.plan import Report
from mxq.reporting.additions import Additions
from mxq.reporting.charts import NAMES, charts
from mxq.reporting.distributions import Distribution
from mxq.reporting.tables import percent, short_op, tally
from mxq.text import megabytes
from mxq.verification import Layer, Verification

Rows: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """A float network and what was made of it, and what was measured of both.

    Attributes:
        float, int8: the networks.
        scenes: their pictures.
        report: what was decided for the second; None where mxq did not make it.
        verification: the two on the same data, layers too.
        benchmarks: batch size -> how long they take.
        bytes: of their files, by name: of float, then of int8; empty of networks in memory.
        name: what the page is called.
        made: machine and versions, as rows.
        tensors: of the float network, by name: their values, and where ranges end.
        weights: of the int8 layers, by name: their codes.
        added: what else is shown.
    """

    float: Model
    int8: Model
    scenes: tuple[Scene, Scene]
    report: Report | None
    verification: Verification
    benchmarks: Mapping[int, Benchmark] = field(default_factory=dict)
    bytes: tuple[int, ...] = ()
    name: str = ""
    made: Sequence[tuple[str, str]] = ()
    tensors: Mapping[str, Distribution] = field(default_factory=dict)
    weights: Mapping[str, Distribution] = field(default_factory=dict)
    added: Additions = field(default_factory=Additions)

    def to_json(self) -> dict[str, Any]:
        """All of it but the networks, JSON-ready."""
        return {
            "name": self.name,
            "made": dict(self.made),
            "bytes": self.bytes,
            "verification": self.verification.to_json(),
            "benchmarks": {str(batch): found.to_json() for batch, found in self.benchmarks.items()},
            "tensors": {name: each.to_json() for name, each in self.tensors.items()},
            "weights": {name: each.to_json() for name, each in self.weights.items()},
            **self.added.documents,
            "record": None if self.report is None else record.to_json(self.report),
        }


def page(found: Findings) -> str:
    """The page.

    Raises:
        ConfigError: a library that draws is missing.
    """
    layouts = [layout_of(scene) for scene in found.scenes]
    html: str = _template().render(
        found=found,
        tiles=list(_tiles(found)),
        facts=_facts(found),
        layers=found.verification.worst_first,
        speed=_speed(found),
        svg=svg_of(layouts),
        charts=charts(found.verification, found.benchmarks, found.added),
        details=_script({f"{i}/{name}": known for i, name, known in _details(found)}),
        data=_script(found.to_json()),
        names=NAMES,
        worst=max((bar(layer) for layer in found.verification.layers), default=0.0) or 1.0,
    )
    return html


def _script(data: Any) -> str:
    """``data`` as JSON that may stand in a script element."""
    return json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")


def _tiles(found: Findings) -> Iterator[tuple[str, str, str]]:
    """A number, what it is, and a word on it."""
    verified = found.verification
    if verified.accuracy is not None:
        a = verified.accuracy
        yield percent(a.int8_top1), "top-1 in INT8", f"float {percent(a.float_top1)}"
    if verified.agreement is not None:
        yield percent(verified.agreement), "same best class", f"of {verified.examples:,} examples"
    if verified.sqnr is not None:
        yield f"{verified.sqnr:.1f} dB", "SQNR of the output", "signal-to-quantization-noise ratio"
    for batch, timed in found.benchmarks.items():
        yield f"{timed[INT8].speedup:.2f}x", f"as fast at batch {batch}", "as float32"
    if found.report is not None:
        int8 = sum(d.int8 for d in found.report.plan.decisions)
        yield f"{int8} of {len(found.report.plan.decisions)}", "operators in INT8", ""


def _facts(found: Findings) -> Rows:
    rows: Rows = []
    if found.report is not None:
        report = found.report
        rows.append(("operators", tally(report)))
        if report.target:
            rows.append(("made for", report.target))
        rows.append(("calibrator", str(report.config.get("calib_mode"))))
        rows.append(("effort", str(report.config.get("effort"))))
        rows.append(("calibration examples", str(report.summary.get("calibration_examples", "?"))))
        rows += [("warning", str(each)) for each in _listed(report.summary.get("warnings"))]
    if found.bytes:
        rows.append(("size of float32 and INT8", " and ".join(map(megabytes, found.bytes))))
    return [*rows, *found.made]


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _speed(found: Findings) -> list[list[str]]:
    """Batch size, then milliseconds and the ratio of each."""
    return [
        [str(batch), *(f"{1e3 * t.median:.2f} ms ({t.speedup:.2f}x)" for t in timed.timings)]
        for batch, timed in found.benchmarks.items()
    ]


def bar(layer: Layer) -> float:
    """What a layer adds to the noise, in shares of the energy of its tensor."""
    return min(10 ** (-layer.blame / 10), 1e6)


def _details(found: Findings) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Of each box, by the number of its picture and its name, what is known: rows, and what there are bars of."""
    layers = {layer.name: layer for layer in found.verification.layers}
    decisions = {} if found.report is None else record.decisions_by_name(found.report)
    for i, (scene, model) in enumerate(zip(found.scenes, (found.float, found.int8), strict=True)):
        for box in scene.boxes:
            decision = decisions.get(box.name)
            names = (box.name, *(() if decision is None else (decision.node, *decision.members)))
            bars = {"tensor": _first(found.tensors, names), "weights": _first(found.weights, names)}
            if box.kind is Kind.GIVEN or (box.kind is Kind.FED and not bars["tensor"]):
                continue
            rows: Rows = [("operator", box.title), ("type", model.graph[box.name].op)]
            if found.report is not None and decision is not None:
                rows += _explained(record.explain(found.report, decision))
            layer = layers.get(box.name) or layers.get(decision.node if decision else "")
            yield i, box.name, {"rows": [*rows, *([] if layer is None else _noise(layer))], **bars}


def _first(known: Mapping[str, Distribution], names: Sequence[str]) -> str:
    """The first of ``names`` that is known; "" where none is."""
    return next((name for name in names if name in known), "")


def _explained(known: Explanation) -> Rows:
    rows = [("decision", "INT8" if known.decision.int8 else "float32"), ("why", known.decision.reason)]
    if len(known.decision.members) > 1:
        rows.append(("made of", ", ".join(known.decision.members)))
    if known.coded is not None:
        ends = "" if known.coded.min is None else f", {known.coded.min:.5g} to {known.coded.max:.5g}"
        rows.append(("codes of its result", f"{known.coded.dtype}{ends}"))
    if known.calibrated is not None:
        rows.append(("calibrator", str(known.calibrated.get("observer", "?"))))
    if known.weight is not None:
        weight = asdict(known.weight)
        rows.append(("weights", f"{weight['channels']} channels, rounding {weight['rounding']}"))
    rows += [(f"not {rule}", why) for rule, why in known.refusals]
    return rows


def _noise(layer: Layer) -> Rows:
    rows = [("SQNR", f"{layer.sqnr:.1f} dB")]
    if layer.introduced is not None:
        rows.append(("of the noise it adds", f"{layer.introduced:.1f} dB"))
    if layer.inherited is not None:
        rows.append(("of the noise it inherits", f"{layer.inherited:.1f} dB"))
    if layer.clipped is not None:
        rows.append(("clipped", percent(layer.clipped)))
    return rows


@cache
def _template() -> Any:
    return template(Path(__file__).parent / "templates" / "report.html", bar=bar, short_op=short_op)
