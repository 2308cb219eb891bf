"""Detection: anchors, boxes, and which of them stay.

Boxes go one by one, the best first, and each drops those that overlap it too much. Where classes do not matter that is
ONNX's ``NonMaxSuppression``. Where they do, MXNet takes any number as a class, so the boxes are gone through in a
``Scan``, with the comparisons that MXNet makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Body, Context, Operator, Unfit, Why, whole
from mxq.backends.onnx.row import Row, Rows
from mxq.graph.ir import Array
from mxq.graph.tensors import size_of

LOWEST: Final = float(np.finfo(np.float32).min)

# ---- anchors and boxes ---------------------------------------------------------------------------------------


def _floats(c: Context, attr: str, default: Sequence[float]) -> list[float]:
    text = c.node.attrs.get(attr, "")
    return [float(part) for part in text.strip("()[] ").split(",") if part.strip()] or list(default)


def anchors(c: Context) -> str:
    """``multibox_prior.cc``: of each pixel a box for every size at the first ratio, and for every other ratio."""
    height, width = c.fixed(0, 2), c.fixed(0, 3)
    sizes, ratios = _floats(c, "sizes", [1.0]), _floats(c, "ratios", [1.0])
    steps, offsets = _floats(c, "steps", [-1.0, -1.0]), _floats(c, "offsets", [0.5, 0.5])
    pairs = [(size, ratios[0]) for size in sizes] + [(sizes[0], ratio) for ratio in ratios[1:]]
    half = np.array([(s * height / width * r**0.5 / 2, s / r**0.5 / 2) for s, r in pairs])
    places = [
        (np.arange(n) + offset) * (step if step > 0 else 1 / n)
        for n, step, offset in zip((height, width), steps, offsets, strict=True)
    ]
    y, x = (grid[..., None] for grid in np.meshgrid(*places, indexing="ij"))
    found = np.stack([x - half[:, 0], y - half[:, 1], x + half[:, 0], y + half[:, 1]], axis=-1)
    found = np.clip(found, 0, 1) if c.node.flag("clip") else found
    return c.constant(found.reshape(1, -1, 4))


def _column(c: Context, x: str, index: int) -> str:
    """One column (..., 1) of the last axis."""
    return c.emit("Gather", x, c.integers(index), axis=-1)


def _columns(c: Context, x: str, start: int = 0) -> list[str]:
    return [_column(c, x, start + i) for i in range(4)]


def _half(c: Context, x: str) -> str:
    return c.emit("Mul", x, c.constant(0.5))


def _centres(c: Context, boxes: Sequence[str]) -> list[str]:
    """Corners as centre and size."""
    left, top, right, bottom = boxes
    middle = (_half(c, c.emit("Add", a, b)) for a, b in ((left, right), (top, bottom)))
    return [*middle, c.emit("Sub", right, left), c.emit("Sub", bottom, top)]


def _corners(c: Context, boxes: Sequence[str]) -> list[str]:
    """Centre and size as corners."""
    x, y, width, height = boxes
    halves = _half(c, width), _half(c, height)
    pairs = [(x, halves[0]), (y, halves[1])]
    return [c.emit(kind, middle, half) for kind in ("Sub", "Add") for middle, half in pairs]


def _decoded(c: Context, moves: str, priors: Sequence[str], factors: Sequence[float], largest: float = -1.0) -> str:
    """Boxes (..., 4) that lie ``moves`` (..., 4) from ``priors``, which are centres and sizes."""
    dx, dy, dw, dh = (
        c.emit("Mul", move, c.constant(factor)) for move, factor in zip(_columns(c, moves), factors, strict=True)
    )
    x, y, width, height = priors
    centre = (c.emit("Add", c.emit("Mul", d, side), at) for d, side, at in ((dx, width, x), (dy, height, y)))
    if largest > 0:
        dw, dh = (c.emit("Min", d, c.constant(largest)) for d in (dw, dh))
    size = (c.emit("Mul", c.emit("Exp", d), side) for d, side in ((dw, width), (dh, height)))
    return c.emit("Concat", *_corners(c, [*centre, *size]), axis=-1)


def box_decode(c: Context) -> str:
    """``bounding_box-inl.h``."""
    priors = _columns(c, c.read(1))
    if c.node.attrs.get("format", "center") == "corner":
        priors = _centres(c, priors)
    factors = [c.node.number(f"std{i}", 1.0) for i in range(4)]
    return _decoded(c, c.read(), priors, factors, c.node.number("clip", -1.0))


# ---- overlap -------------------------------------------------------------------------------------------------


def _turned(c: Context, column: str) -> str:
    """A column (N, k, 1) as a row (N, 1, k)."""
    return c.emit("Transpose", column, perm=[0, 2, 1])


def _overlaps(c: Context, boxes: Sequence[str]) -> tuple[str, str]:
    """Of all pairs of boxes (N, k, 1) each: what they share, and what they cover together, (N, k, k)."""
    left, top, right, bottom = boxes
    sides = []
    for low, high in ((left, right), (top, bottom)):
        start, end = c.emit("Max", low, _turned(c, low)), c.emit("Min", high, _turned(c, high))
        sides.append(c.emit("Max", c.emit("Sub", end, start), c.constant(0)))
    width, height = c.emit("Sub", right, left), c.emit("Sub", bottom, top)
    area = c.emit("Mul", *(c.emit("Max", side, c.constant(0)) for side in (width, height)))
    shared = c.emit("Mul", *sides)
    return shared, c.emit("Sub", c.emit("Add", area, _turned(c, area)), shared)


def _kept(c: Context, alive: str, drops: str, count: int) -> str:
    """Which of ``count`` boxes stay, (N, k) as 0 and 1, the best first.

    Args:
        alive: (N, k); those that are there.
        drops: (N, k, k); whether the first of two, if it stays, drops the second.
    """
    names = [
        c.builder.unused(f"{c.node.name}_{part}") for part in ("alive", "row", "place", "own", "hit", "left", "out")
    ]
    known, row, place, own, hit, left, out = names
    steps = (
        Operator(own, "Mul", (known, place), (own,)),
        Operator(f"{own}_max", "ReduceMax", (own,), (f"{own}_max",), {"axes": [1], "keepdims": 1}),
        Operator(hit, "Mul", (f"{own}_max", row), (hit,)),
        Operator(left, "Mul", (hit, known), (left,)),
        Operator(out, "Sub", (known, left), (out,)),
    )
    eye = c.constant(np.eye(count))
    inputs = [alive, c.emit("Cast", drops, to=1), eye]
    body = Body((known, row, place), (out,), steps)
    (found,) = c.builder.emit(c.node.name, "Scan", inputs, {"num_scan_inputs": 2, "scan_input_axes": [1, 0]}, 1, body)
    return found


def _later(count: int) -> Array:
    return np.triu(np.ones((count, count), np.bool_), 1)


def _dropped(c: Context, over: str, ids: str, count: int) -> str:
    """Pairs of which the first drops the second: they overlap too much, are of one class, and in that order."""
    same = c.emit("And", over, c.emit("Equal", ids, _turned(c, ids))) if ids else over
    return c.emit("And", same, c.constant(_later(count), np.bool_))


def _best(c: Context, scores: str, rows: str, count: int) -> tuple[str, str]:
    """The ``count`` highest ``scores`` (N, M), of equal ones the first, and their ``rows`` (N, M, W)."""
    values, places = c.emit_many("TopK", scores, c.integers(count), outputs=2, axis=1)
    return values, _picked(c, rows, places)


def _picked(c: Context, rows: str, places: str) -> str:
    return c.emit("GatherND", rows, c.emit("Unsqueeze", places, c.integers(-1)), batch_dims=1)


def _filled(c: Context, rows: str, count: int, total: int) -> str:
    """``rows`` (N, count, W) with rows of -1 after them."""
    if count == total:
        return rows
    return c.emit("Pad", rows, c.integers(0, 0, 0, 0, total - count, 0), c.constant(-1))


# ---- which boxes stay ----------------------------------------------------------------------------------------


def box_nms(c: Context) -> str:
    """``bounding_box-inl.h``: what stays comes first, and -1 after it."""
    *lead, total_, width_ = c.shape()
    total, width = whole(total_, "the number of boxes"), whole(width_, "the width of a row")
    batch = size_of(lead)
    if batch is None:
        raise Unfit(Why.BATCH, "two axes of its input follow the batch")
    rows = c.reshape(c.read(), (batch, total, width), c.shape())
    topk, least = c.node.integer("topk", -1), c.node.number("valid_thresh", 0.0)
    count = total if topk < 0 else min(topk, total)
    if count < 1:
        return c.raw()
    scores = c.emit("Squeeze", _column(c, rows, c.node.integer("score_index", 1)), c.integers(-1))
    valid = c.emit("Greater", scores, c.constant(least))
    values, rows = _best(c, c.emit("Where", valid, scores, c.constant(LOWEST)), rows, count)
    alive = c.emit("Cast", c.emit("Greater", values, c.constant(least)), to=1)
    kept = _kept_boxes(c, rows, alive, values, count)
    places = c.emit("Mul", kept, c.constant(np.arange(count, 0, -1)))  # those that stay first, in their order
    _, order = c.emit_many("TopK", places, c.integers(count), outputs=2, axis=1)
    stays = c.emit("Unsqueeze", c.emit("GatherElements", kept, order, axis=1), c.integers(-1))
    rows = c.emit("Where", c.emit("Cast", stays, to=9), _picked(c, rows, order), c.constant(-1))
    return c.reshape(_filled(c, _in_format(c, rows, width), count, total), c.made.shape, (batch, total, width))


def _kept_boxes(c: Context, rows: str, alive: str, values: str, count: int) -> str:
    """(N, count), 1 for each of the sorted ``rows`` that stays."""
    start, index = c.node.integer("coord_start", 2), c.node.integer("id_index", -1)
    boxes, limit = _columns(c, rows, start), c.node.number("overlap_thresh", 0.5)
    if c.node.attrs.get("in_format", "corner") == "center":
        boxes = _corners(c, boxes)
    if index < 0 or c.node.flag("force_suppress"):
        return _kept_of_any_class(c, boxes, values, limit, count)
    shared, union = _overlaps(c, boxes)
    ids = c.emit("Cast", _column(c, rows, index), to=6)
    over = c.emit("Greater", c.emit("Div", shared, union), c.constant(limit))
    return _kept(c, alive, _dropped(c, over, ids, count), count)


def _kept_of_any_class(c: Context, boxes: Sequence[str], values: str, limit: float, count: int) -> str:
    table, least = c.emit("Concat", *boxes, axis=-1), c.constant(c.node.number("valid_thresh", 0.0))
    scores = c.emit("Unsqueeze", values, c.integers(1))
    chosen = c.emit("NonMaxSuppression", table, scores, c.constant(count, np.int64), c.constant(limit), least)
    places = c.emit("Gather", chosen, c.integers(0, 2), axis=1)
    ones = c.emit("Expand", c.constant(1), c.emit("Slice", c.emit("Shape", places), c.integers(0), c.integers(1)))
    return c.emit("ScatterND", c.emit("Mul", values, c.constant(0)), places, ones)


def _in_format(c: Context, rows: str, width: int) -> str:
    """Boxes as ``out_format`` says; those that begin below 0, as empty rows do, stay as they are."""
    read, made = (c.node.attrs.get(attr, "corner") for attr in ("in_format", "out_format"))
    if read == made:
        return rows
    start = c.node.integer("coord_start", 2)
    boxes = _columns(c, rows, start)
    changed = _corners(c, boxes) if made == "corner" else _centres(c, boxes)
    fits = c.emit("GreaterOrEqual", boxes[0], c.constant(0))
    changed = [c.emit("Where", fits, new, old) for new, old in zip(changed, boxes, strict=True)]
    columns = [_column(c, rows, i) for i in range(width)]
    columns[start : start + 4] = changed
    return c.emit("Concat", *columns, axis=-1)


def multibox_detection(c: Context) -> str:
    """``multibox_detection.cc``; the class of a box that was dropped is -1, the box stays in its row."""
    total = c.fixed(0, 2)
    limit, topk = c.node.number("nms_threshold", 0.5), c.node.integer("nms_topk", -1)
    if not 0 < limit <= 1:
        raise Unfit(Why.ATTRIBUTE, f"nms_threshold is {limit}; allowed: above 0, up to 1")
    if c.node.integer("background_id", 0) != 0:
        raise Unfit(Why.ATTRIBUTE, f"background_id is {c.node.attrs['background_id']}; allowed: 0")
    count = min(topk, total) if topk > 0 else total
    classes = c.sliced(c.read(), 1, 1)
    scores = c.emit("ReduceMax", classes, axes=[1], keepdims=0)
    ids = c.emit("Cast", c.emit("ArgMax", classes, axis=1, keepdims=0), to=1)
    rows = c.emit("Concat", *(c.emit("Unsqueeze", x, c.integers(-1)) for x in (ids, scores)), _boxes(c), axis=-1)
    valid = c.emit("GreaterOrEqual", scores, c.constant(c.node.number("threshold", 0.01)))
    found = rows
    values, rows = _best(c, c.emit("Where", valid, scores, c.constant(LOWEST)), rows, count)
    there = c.emit("Greater", values, c.constant(LOWEST))
    shared, union = _overlaps(c, _columns(c, rows, 2))
    share = c.emit("Where", c.emit("Greater", union, c.constant(0)), c.emit("Div", shared, union), c.constant(0))
    over = c.emit("GreaterOrEqual", share, c.constant(limit))
    ids = "" if c.node.flag("force_suppress") else _column(c, rows, 0)
    kept = _kept(c, c.emit("Cast", there, to=1), _dropped(c, over, ids, count), count)
    best = _marked(c, rows, kept, there)
    return best if count == total else c.emit("Concat", best, _rest(c, found, valid, count, total), axis=1)


def _rest(c: Context, rows: str, valid: str, count: int, total: int) -> str:
    """What MXNet leaves after the ``count`` best: the ``valid`` rows at these places as if none had been sorted."""
    places = c.emit("Where", valid, c.constant(np.arange(total, 0, -1)), c.constant(0))
    values, order = c.emit_many("TopK", places, c.integers(total), outputs=2, axis=1)
    there = c.emit("Greater", c.sliced(values, 1, count), c.constant(0))
    rows = _picked(c, rows, c.sliced(order, 1, count))
    return _marked(c, rows, c.emit("Mul", c.sliced(values, 1, count), c.constant(0)), there)


def _marked(c: Context, rows: str, kept: str, there: str) -> str:
    """Rows whose class is -1 where they were dropped, and that are -1 where nothing was."""
    stays = c.emit("Cast", c.emit("Unsqueeze", kept, c.integers(-1)), to=9)
    ids = c.emit("Where", stays, _column(c, rows, 0), c.constant(-1))
    rows = c.emit("Concat", ids, c.sliced(rows, 2, 1), axis=-1)
    return c.emit("Where", c.emit("Unsqueeze", there, c.integers(-1)), rows, c.constant(-1))


def _boxes(c: Context) -> str:
    """The boxes (N, anchors, 4) that the layer of places predicts."""
    batch, _, total = c.shape()
    moves = c.reshape(c.read(1), (batch, total, 4))
    priors = _centres(c, _columns(c, c.read(2)))
    found = _decoded(c, moves, priors, _floats(c, "variances", [0.1, 0.1, 0.2, 0.2]))
    return c.emit("Clip", found, c.constant(0), c.constant(1)) if c.node.flag("clip", True) else found


# ---- regions -------------------------------------------------------------------------------------------------


def roi_align(c: Context) -> str:
    """``roi_align.cc``: rows of (which example, left, top, right, bottom)."""
    if c.node.flag("position_sensitive"):
        raise Unfit(Why.ATTRIBUTE, "position_sensitive; allowed: plain averages")
    height, width = (c.node.ints("pooled_size") * 2)[:2]
    rois = c.read(1)
    which = c.cast(c.emit("Squeeze", _column(c, rois, 0), c.integers(-1)), "int64")
    return c.emit(
        "RoiAlign",
        c.read(),
        c.sliced(rois, 1, 1, 5),
        which,
        output_height=height,
        output_width=width,
        sampling_ratio=max(0, c.node.integer("sample_ratio", -1)),
        spatial_scale=c.node.number("spatial_scale", 1.0),
        coordinate_transformation_mode="half_pixel" if c.node.flag("aligned") else "output_half_pixel",
        mode="avg",
    )


ROWS: Final[Rows] = {
    "_contrib_MultiBoxPrior": Row(anchors),
    "_contrib_box_decode": Row(box_decode),
    "_contrib_box_nms": Row(box_nms),
    "_contrib_MultiBoxDetection": Row(multibox_detection, "background 0, `nms_threshold` above 0 and up to 1"),
    "_contrib_ROIAlign": Row(roi_align, "plain averages"),
}
