"""Tables of scored candidates as gluoncv's detectors make them: which tensors they repeat, and in what order.

A table is (N, M, 6), its columns class, score and box. SSD (``ssd.py``, ``MultiPerClassDecoder`` in ``coder.py``) puts
a block of all anchors for each class one below the other. YOLOv3 (``YOLOOutputV3``) does so for each of its scales.
"""

from __future__ import annotations

from dataclasses import dataclass

from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.ranks import rank_of


@dataclass(frozen=True)
class Part:
    """``scores`` (N, A, C) and ``boxes`` (N, A, 4); with more axes between N and the last one where not ``flat``."""

    scores: Ref
    boxes: Ref
    flat: bool


@dataclass(frozen=True)
class Table:
    """Candidates of ``parts`` one below the other; a score up to ``threshold`` counts as zero."""

    parts: tuple[Part, ...]
    classes: int
    threshold: float = 0.0


class OtherTable(Exception):
    """The table is not of the kind looked for; says which node is in the way."""


def find_table(graph: Graph, ref: Ref) -> Table:
    """The table ``ref`` of an SSD or YOLOv3.

    Raises:
        OtherTable: it is neither.
    """
    try:
        return _ssd(graph, ref)
    except OtherTable as not_ssd:
        try:
            return _yolo(graph, ref)
        except OtherTable as not_yolo:
            raise OtherTable(f"its candidates are no SSD's, as {not_ssd}, and no YOLOv3's, as {not_yolo}") from None


def _ssd(graph: Graph, ref: Ref) -> Table:
    blocks = [_node(graph, r, "Concat", dim=("-1", "2")) for r in _node(graph, ref, "Concat", dim=("1", "-2")).inputs]
    ids, scores, boxes = _inputs(blocks[0], 3)
    ids, scores = (_node(graph, r, "slice_axis", axis=("-1", "2")).inputs[0] for r in (ids, scores))
    for i, block in enumerate(blocks):
        *columns, shared = _inputs(block, 3)
        want = (boxes, (ids, str(i), str(i + 1)), (scores, str(i), str(i + 1)))
        _need((shared, *(_slice(graph, r) for r in columns)) == want, block, "is not the block of its class")
    threshold, raw = _ssd_scores(graph, scores)
    _ssd_ids(graph, ids, len(blocks), graph[scores.name].inputs[0])
    _need(rank_of(graph, raw) == 3, graph[raw.name], "is not known to be (N, A, C)")
    return Table((Part(raw, boxes, flat=True),), len(blocks), threshold)


def _slice(graph: Graph, ref: Ref) -> tuple[Ref, str | None, str | None]:
    node = _node(graph, ref, "slice_axis", axis=("-1", "2"))
    return node.inputs[0], node.attrs.get("begin"), node.attrs.get("end")


def _ssd_scores(graph: Graph, ref: Ref) -> tuple[float, Ref]:
    """``where(raw > t, raw, 0)``: t, which must not be negative, and raw."""
    mask, raw, zeros = _inputs(_node(graph, ref, "where"), 3)
    test = _node(graph, mask, "_greater_scalar")
    _need(test.inputs[0] == raw, test, "tests another tensor")
    _node(graph, zeros, "zeros_like")
    threshold = test.number("scalar", 0)
    _need(threshold >= 0, test, "lets scores below zero count")
    return threshold, raw


def _ssd_ids(graph: Graph, ref: Ref, classes: int, mask: Ref) -> None:
    """``where(mask, 0 + [0 .. C-1], ...)``, with the mask of the scores."""
    node = _node(graph, ref, "where")
    _need(_inputs(node, 3)[0] == mask, node, "has another mask than the scores")
    zeros, numbers = _inputs(_node(graph, node.inputs[1], "broadcast_add"), 2)
    _node(graph, zeros, "zeros_like")
    _count(graph, numbers, classes, (1, 1, classes))


def _yolo(graph: Graph, ref: Ref) -> Table:
    node = graph[ref.name]
    scales = node.inputs if node.op == "Concat" and node.attrs.get("dim", "1") in ("1", "-2") else (ref,)
    found = [_yolo_scale(graph, scale) for scale in scales]
    classes = found[0][1]
    _need(all(count == classes for _, count in found), node, "joins scales with different numbers of classes")
    return Table(tuple(part for part, _ in found), classes)


def _yolo_scale(graph: Graph, ref: Ref) -> tuple[Part, int]:
    flat = _node(graph, ref, "Reshape")
    _need(flat.ints("shape") == (0, -1, 6), flat, "does not make rows of 6")
    order = _node(graph, flat.inputs[0], "transpose")
    _need(order.ints("axes") == (1, 0, 2, 3, 4), order, "does not put classes behind examples")
    ids, scores, boxes = _inputs(_node(graph, order.inputs[0], "Concat", dim=("-1", "4")), 3)
    tile = _node(graph, boxes, "tile")
    classes, *rest = tile.ints("reps")
    _need(rest == [1, 1, 1, 1], tile, "does not repeat boxes once for each class")
    column = _node(graph, scores, "expand_dims", axis=("-1", "4"))
    turned = _node(graph, column.inputs[0], "transpose")
    _need(turned.ints("axes") == (3, 0, 1, 2), turned, "does not put classes first")
    zeros, numbers = _inputs(_node(graph, ids, "broadcast_add"), 2)
    zero = _node(graph, zeros, "_mul_scalar")
    _need(zero.number("scalar", 1) == 0 and zero.inputs[0] == scores, zero, "is not zero in the shape of the scores")
    _count(graph, numbers, classes, (0, 1, 1, 1, 1))
    return Part(turned.inputs[0], tile.inputs[0], flat=False), classes


def _count(graph: Graph, ref: Ref, classes: int, shape: tuple[int, ...]) -> None:
    """The numbers 0 .. classes - 1, in ``shape``."""
    made = _node(graph, ref, "Reshape")
    _need(made.ints("shape") == shape, made, "does not lay the class numbers along the classes")
    numbers = _node(graph, made.inputs[0], "_arange")
    bounds = [numbers.attrs.get(a, "None") for a in ("start", "stop")]
    first, last = (0.0, float(bounds[0])) if bounds[1] == "None" else map(float, bounds)
    plain = numbers.number("step", 1) == 1 == numbers.number("repeat", 1)
    _need((first, last) == (0, classes) and plain, numbers, f"does not count to {classes} classes")


def _node(graph: Graph, ref: Ref, op: str, **attrs: tuple[str, ...]) -> Node:
    node = graph[ref.name]
    _need(node.op == op and ref.output == 0, node, f"is not a {op}")
    for name, allowed in attrs.items():
        found = node.attrs.get(name, "1")  # MXNet's default of Concat's dim
        _need(found in allowed, node, f"has {name} {found}")
    return node


def _inputs(node: Node, count: int) -> tuple[Ref, ...]:
    _need(len(node.inputs) == count, node, f"has {len(node.inputs)} inputs")
    return node.inputs


def _need(holds: bool, node: Node, otherwise: str) -> None:
    if not holds:
        raise OtherTable(f"{node.name!r} ({node.op}) {otherwise}")
