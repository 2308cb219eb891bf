"""Tables for the terminal: rich renderables made from reports, verifications and benchmarks. Nothing prints here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mxq.artifacts.record import Explanation, tensor_of
from mxq.bench.sweep_result import Row, Sweep
from mxq.bench.timing import Benchmark, Timing
from mxq.calibration.statistics import Statistics
from mxq.qat.result import Trained
from mxq.quant.plan import Decision, NoiseRecord, Report, SaturationRecord, TensorRecord, WeightRecord
from mxq.quant.thresholds import Thresholds
from mxq.text import megabytes
from mxq.verification import Layer, Output, Verification

SHORT_OPS = {
    "Convolution": "conv",
    "FullyConnected": "fc",
    "Activation": "act",
    "LeakyReLU": "leaky",
    "BatchNorm": "bn",
    "Pooling": "pool",
    "Concat": "concat",
    "Flatten": "flatten",
    "elemwise_add": "add",
    "elemwise_mul": "mul",
    "_sg_mkldnn_conv": "conv+",
    "_sg_mkldnn_fully_connected": "fc+",
}
WORST = 10
WORST_FIRST = "layers, the noisiest first: by what they introduce themselves (by all, where that is not known)"
_GOOD_DB, _POOR_DB = 20.0, 10.0


def short_op(op: str) -> str:
    """A chain of op types in few letters: "Convolution+elemwise_add+Activation" is "conv+add+act"."""
    return "+".join(SHORT_OPS.get(part, part.removeprefix("_contrib_")) for part in op.split("+"))


def facts(rows: Iterable[tuple[str, str]], title: str = "") -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def input_rows(report: Report) -> list[tuple[str, str]]:
    """A row that says what to feed a network that takes integers; none for one that takes floats."""
    fed = report.input
    if fed is None:
        return []
    settings = fed.preprocess or {}
    words = {name: settings[name] for name in ("color", "mean", "std", "scale") if name in settings}
    means = "; ".join(f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in words.items())
    how = f"x = (pixel * scale - mean) / std: {means}" if words else "x as the float network took it"
    if fed.holds == "pixels":
        return [("input", f"{fed.name}: {fed.dtype} pixels, 0..255 ({how} is done inside)")]
    return [("input", f"{fed.name}: {fed.dtype} codes, rint({fed.scale:.6g} * x), {how}")]


def simulation_rows(report: Report) -> list[tuple[str, str]]:
    """A row that says what a float network simulates; none for an int8 one."""
    about = report.summary.get("simulation")
    if not isinstance(about, Mapping):
        return []
    others = f", {len(about['layers'])} layers with other bits" if about["layers"] else ""
    return [("simulates", f"{about['of']}, {about['bits']}{others}; all of it is float")]


def statistics_rows(statistics: Statistics, path: Path | None) -> list[tuple[str, str]]:
    """Rows that say how much data statistics are of and, where they are kept in a file, how large that is."""
    rows = [("examples", f"{statistics.examples:,} in {statistics.batches:,} batches")]
    if path is not None and path.is_file():
        rows.append(("statistics", f"{path} ({megabytes(path.stat().st_size)}, {len(statistics.states)} tensors)"))
    return rows


def decisions(report: Report) -> RenderableType:
    """What is int8 and how it is coded (where that is known yet), then what is not and why."""
    made = [d for d in report.plan.decisions if d.int8]
    if report.tensors:
        coded = ruled("int8", ("node", "op", "as", ">range"))
        own = {id(tensor_of(report, d.node)) for d in made}
        for name, record in report.tensors.items():
            if id(record) not in own:
                what = "input" if report.input is not None and name == report.input.name else "quantize"
                coded.add_row(Text(name), Text(what, "dim"), *_coding(record))
        for decision in made:
            coded.add_row(Text(decision.node), Text(short_op(decision.op)), *_coding(tensor_of(report, decision.node)))
    else:
        coded = _reasons("int8", made)
    kept = _reasons("float", [d for d in report.plan.decisions if not d.int8])
    return _spaced(*(t for t in (coded, kept) if t.row_count))


def _reasons(title: str, made: Iterable[Decision]) -> Table:
    """Operators of one type with one reason share a line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for decision in made:
        groups.setdefault((short_op(decision.op), decision.reason), []).append(decision.node)
    table = ruled(title, ("op", ">count", "why", "nodes"))
    for (op, reason), nodes in groups.items():
        table.add_row(Text(op), str(len(nodes)), Text(reason), Text(", ".join(nodes)))
    return table


def tally(report: Report) -> str:
    """One line: how many operators are int8 and how many float, the commonest first."""
    parts = []
    for name, int8 in (("quantized" if "simulation" in report.summary else "int8", True), ("float", False)):
        ops = [short_op(d.op) for d in report.plan.decisions if d.int8 is int8]
        counts = sorted(((ops.count(op), op) for op in set(ops)), key=lambda c: (-c[0], c[1]))
        named = ", ".join(f"{n} {op}" for n, op in counts[:4]) + (", ..." if len(counts) > 4 else "")
        parts.append(f"{len(ops)} {name}" + (f" ({named})" if named else ""))
    return "; ".join(parts)


def _listed(name: str) -> str:
    """A name as it stands in a list by commas."""
    return repr(name) if any(c in " ,'\"" for c in name) else name


def explanation(about: Explanation) -> RenderableType:
    """All that is known about one node."""
    made = about.decision
    rows = [
        ("node", made.node),
        ("op", made.op),
        ("runs in", "neither int8 nor float" if about.removed else "int8" if made.int8 else "float"),
        ("because", made.reason),
    ]
    if made.members and made.members != (made.node,):
        rows.append(("made of", ", ".join(map(_listed, made.members))))
    if about.coded is not None:
        dtype, covers = _coding(about.coded)
        rows.append(("coded as", f"{dtype.plain}, {covers.plain}"))
        if about.coded.note:
            rows.append(("note", about.coded.note))
    if about.calibrated is not None:
        rows.append(("calibrated", _threshold(about.calibrated)))
        rows += [("instead of", _candidate(c)) for c in about.calibrated.get("candidates", ())[1:4]]
    if about.weight is not None:
        rows.append(("weight", _weight(about.weight)))
    if about.saturation is not None:
        rows.append((f"for {about.target}", _saturation(about.saturation)))
    if about.noise is not None:
        rows.append(("noise", _noise(about.noise)))
    parts: list[RenderableType] = [facts(rows)]
    if about.refusals:
        table = ruled("rules that refused", ("rule", "reason"))
        for rule, reason in about.refusals:
            table.add_row(Text(rule), Text(reason))
        parts.append(table)
    return _spaced(*parts)


def _weight(w: WeightRecord) -> str:
    clipped = f"{w.clipped_channels} of {w.channels} channels, {percent(w.clipped_share)} of its values clipped"
    words = [clipped if w.source == "rounding" else f"{clipped} by {w.observer} ({w.source})"]
    if w.rounding != "nearest":
        words.append(f"rounding: {w.rounding}, {percent(w.moved_share)} of its codes are not the nearest")
    if w.bias_correction != "none":
        words.append(f"bias correction: {w.bias_correction}")
    if w.note:
        words.append(f"nearest codes: {w.note}")
    return "; ".join(words)


def _noise(n: NoiseRecord) -> str:
    return (
        f"in int8 {percent(n.share)} of that of the network's outputs, for {percent(n.multiply_adds)} of the "
        f"multiply-adds and {percent(n.weights)} of the weights"
    )


def _saturation(s: SaturationRecord) -> str:
    did = {"none": "left alone", "pairs": f"{s.limited} weights made smaller",
           "range": f"its input's range widened {s.factor:.3g} times", "float": "left in float"}[s.remedy]  # fmt: skip
    guess = " (what activations are like was assumed)" if s.assumed else ""
    return f"{s.at_risk} pairs of products may saturate; {did}{guess}"


def calibration(found: Thresholds) -> RenderableType:
    """The range of every tensor, which calibrator found it and what asked for that, beside what was observed."""
    rows = [(name, t, t.source if t.source != "calib_mode" else "", t.note) for name, t in found.items()]
    titles = ("asked for by", "note")
    extra = [title for title, place in zip(titles, (2, 3), strict=True) if any(r[place] for r in rows)]
    table = ruled("", ("tensor", ">observed", ">range", ">share", "calibrator", *extra))
    for name, threshold, source, note in rows:
        seen = threshold.observed
        share = f"{100 * threshold.range.absmax / seen.absmax:.1f} %" if seen is not None and seen.absmax else "-"
        table.add_row(
            Text(name),
            "-" if seen is None else _interval(seen.min, seen.max),
            _interval(threshold.range.min, threshold.range.max),
            share,
            Text(threshold.observer),
            *(Text(cell) for title, cell in zip(titles, (source, note), strict=True) if title in extra),
        )
    return table


def verification(found: Verification) -> RenderableType:
    """Agreement and accuracy, then the outputs, then the layers where they were asked for."""
    rows = [("examples", f"{found.examples:,}")]
    if found.agreement is not None:
        rows.append(("same best class", percent(found.agreement)))
    if found.accuracy is not None:
        a = found.accuracy
        rows.append(("top-1 float, int8", _against(a.float_top1, a.int8_top1)))
        if a.float_top5 is not None and a.int8_top5 is not None:
            rows.append(("top-5 float, int8", _against(a.float_top5, a.int8_top5)))
    if found.boxes is not None:
        b = found.boxes
        rows.append(("boxes float, int8", f"{b.float_boxes:,}, {b.int8_boxes:,}"))
        rows.append(
            ("boxes that match", "-" if b.agreement is None else f"{percent(b.agreement)} ({b.matched:,} pairs)")
        )
    outputs = ruled("outputs", ("output", ">SQNR", ">centred", ">cosine", ">max error"))
    for output in found.outputs:
        if output.kind != "boxes":
            outputs.add_row(*_output_cells(output))
    parts: list[RenderableType] = [facts(rows), *([outputs] if outputs.row_count else [])]
    if found.layers:
        parts.append(layers("layers, in order", found.layers))
        parts.append(layers(f"the {min(WORST, len(found.layers))} noisiest", found.worst_first[:WORST]))
    return _spaced(*parts)


def benchmark(found: Benchmark, title: str = "") -> Table:
    """Milliseconds of this machine, examples a second, and the ratio that travels."""
    table = ruled(title, ("", ">median ms", ">min", ">p90", ">examples/s", f">vs {found.base}", ">p10..p90"))
    for t in found.timings:
        ratio = Text("1", "dim") if t.name == found.base else Text(f"{t.speedup:.2f}x", "bold")
        spread = Text("") if t.name == found.base else Text(f"{t.low:.2f}..{t.high:.2f}", "dim")
        table.add_row(
            t.name,
            _ms(t.median),
            _ms(t.minimum),
            _ms(t.p90),
            _rate(t.rate),
            ratio,
            spread,
        )
    return table


def times(found: Timing) -> tuple[str, str, str]:
    """Median and 90th percentile in milliseconds, and examples a second."""
    return _ms(found.median), _ms(found.p90), _rate(found.rate)


def sweep(found: Sweep) -> Table:
    """A line for each setup and batch size; the best are named."""
    table = ruled("", (">threads", ">processes", ">batch", ">median ms", ">p90", ">examples/s", ""))
    for row in found.rows:
        r = row.reading
        cells = ("-",) * 3 if r is None else (_ms(r.median), _ms(r.p90), _rate(r.rate))
        table.add_row(str(row.setup.threads), str(row.setup.instances), str(row.batch), *cells, _praise(found, row))
    return table


def _praise(found: Sweep, row: Row) -> Text:
    best = {"latency": found.latency, "throughput": found.throughput}
    named = " and ".join(name for name, other in best.items() if row is other)
    return Text(row.problem, "red") if row.problem else Text(f"best {named}" if named else "", "bold green")


def percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def decibels(value: float | None) -> Text:
    """An SQNR, coloured: below 10 dB the noise is close to the signal, above 20 dB it rarely changes an answer."""
    if value is None:
        return Text("-", "dim")
    if math.isinf(value):
        return Text("exact", "green") if value > 0 else Text("broken", "bold red")
    return Text(f"{value:.1f} dB", "red" if value < _POOR_DB else "yellow" if value < _GOOD_DB else "green")


def _spaced(*parts: RenderableType) -> RenderableType:
    """The parts with a blank line before each but the first."""
    return Group(*parts[:1], *(Padding(part, (1, 0, 0, 0)) for part in parts[1:]))


def ruled(title: str, columns: Sequence[str]) -> Table:
    """A table of that title with a rule under its head; a leading ">" aligns a column right."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, "bold") if title else None,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
    )
    for i, name in enumerate(columns):
        right = name.startswith(">")
        table.add_column(
            name.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
            min_width=0 if i else 8,
        )
    return table


def layers(title: str, found: Iterable[Layer]) -> Table:
    """A line for each layer, as they come: all its noise, what of it is its own, and what becomes of its codes."""
    made = ruled(title, ("layer", "op", "as", ">SQNR", ">introduced", ">inherited", ">cosine", ">clipped", ">levels"))
    made.padding = (0, 0, 0, 0)  # so that nine columns fit into 80 characters
    made.columns[2].no_wrap = True
    for layer in found:
        made.add_row(
            Text(layer.name),
            Text(short_op(layer.op)),
            layer.dtype,
            decibels(layer.sqnr),
            decibels(layer.introduced),
            decibels(layer.inherited),
            f"{layer.cosine:.4f}",
            "-" if layer.clipped is None else percent(layer.clipped),
            "-" if layer.levels is None else str(layer.levels),
        )
    return made


def _output_cells(output: Output) -> tuple[Text, ...]:
    cosine = "-" if output.cosine is None else f"{output.cosine:.5f}"
    error = "-" if output.max_abs_error is None else f"{output.max_abs_error:.3g}"
    return Text(output.name), decibels(output.sqnr), decibels(output.centred_sqnr), Text(cosine), Text(error)


def _against(float_share: float, int8_share: float) -> str:
    return f"{percent(float_share)}, {percent(int8_share)} ({(int8_share - float_share) * 100:+.2f})"


def _coding(record: TensorRecord | None) -> tuple[Text, Text]:
    """Type and range of an int8 tensor."""
    if record is None:
        return Text("float32"), Text("-", "dim")
    if record.min is None or record.max is None:
        return Text(record.dtype), Text("at run time" if record.at_run_time else "of its input", "dim")
    return Text(record.dtype), Text(_interval(record.min, record.max))


def _interval(low: float, high: float) -> str:
    return f"{low:.4g} .. {high:.4g}"


def _threshold(entry: Mapping[str, Any]) -> str:
    """A line about a calibrated range, from `Thresholds.to_json`."""
    found, observed = entry["range"], entry.get("observed")
    text = f"{_interval(found['min'], found['max'])} by {entry['observer']} over {entry['examples']} examples"
    if observed and observed != found:
        text += f" (seen {_interval(observed['min'], observed['max'])})"
    text += f", asked for by {entry['source']}" if entry.get("source") else ""
    return f"{text}; {entry['note']}" if entry.get("note") else text


def _candidate(entry: Mapping[str, Any]) -> str:
    """A line about what another calibrator would have chosen."""
    found = entry["range"]
    return f"{_interval(found['min'], found['max'])} by {entry['observer']}, expected error {entry['error']:.4g}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{2 if seconds < 0.1 else 1}f}"


def trained(found: Trained) -> RenderableType:
    """A line for each network that was measured: float before and after fine-tuning, and the one that was trained."""
    quantized, baseline = getattr(found.block, "qat", None) is not None, found.baseline
    names = ("post-training quantization", "trained with quantization") if quantized else ("before training", "trained")
    rows = [(names[0], 0, found.before), (names[1], found.best_epoch, found.after)]
    if not found.after:
        return Text(
            f"{len(found.history) - 1} epochs, the last is kept; without data to measure on there are no numbers"
        )
    if baseline is not None:
        float_ = ("float", 0, baseline.before), ("float, fine-tuned", baseline.best_epoch, baseline.after)
        rows = [float_[0], rows[0], float_[1], rows[1]]
    numbers = list(dict.fromkeys(name for _, _, measured in rows for name in measured))
    table = ruled("", ("network", ">best epoch", *(f">{name}" for name in numbers)))
    for name, epoch, measured in rows:
        table.add_row(name, str(epoch), *(_number(n, measured[n]) if n in measured else "" for n in numbers))
    return table


def _number(name: str, value: float) -> str:
    return percent(value) if name in ("top1", "top5") else f"{value:.4g}"
