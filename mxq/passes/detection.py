"""Detection: non-maximum suppression gets the k candidates that it keeps, and only those are made.

Before:  x (N, M, W) -> box_nms(topk=k) -> slice_axis(axis=1, 0, p)                                  any detector
After:   x -> topk(k) of the scores -> gather_nd(x) (N, k, W) -> box_nms -> slice_axis

Before:  Concat over classes c of Concat(id c, scores[..., c], boxes) -> box_nms -> slice_axis       SSD of gluoncv
After:   scores (N, A, C) -> topk(k) -> Concat(class, score, gather_nd(boxes)) -> box_nms -> slice_axis

Before:  Concat over scales of Concat(ids, scores, boxes tiled C times) -> box_nms -> slice_axis     YOLOv3 of gluoncv
After:   as above, scores and boxes of all scales in one row

`box_nms` sorts all M = A C candidates and counts them once for every example, on one thread, though it compares only
the first k; and SSD and YOLO write each box C times to make them. SSD-300-VGG16, batch 16: 174,640 candidates, k = 400.

Conditions: at most the first k rows of the result are read; k is given and small; valid_thresh >= 0; the network is
float32; no score is NaN. The tables of SSD and YOLO are exactly those of gluoncv (ids count the classes).
Formula: `mxq.passes.candidates`. ``box_nms`` takes the valid rows (score > valid_thresh, not background) in
descending order of score, equal scores in order of rows, and ignores all after the k-th (``bounding_box-inl.h``). The
rows chosen here are the first k of that order, in that order; so all that follows is the same, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.ranks import rank_of
from mxq.passes.candidate_tables import OtherTable, Part, Table, find_table
from mxq.passes.candidates import Chosen, Maker, choose, gather
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Match, Op, Pass, Reject, Rewrite, Rule, Trace, apply_rules

FEW = 1000
"""Up to how many candidates choosing them first is quicker than sorting all; region proposals ask for 6000."""

NMS = Op(("_contrib_box_nms",), bind="nms")


@dataclass(frozen=True)
class ChooseRows:
    """Any table of candidates: its rows are gathered whole."""

    name: str = "nms_of_chosen_rows"
    pattern: Op = NMS

    def check(self, model: Model, match: Match) -> Reject | None:
        nms = match.root
        if _is_chosen(model.graph, nms.inputs[0]):
            return NO_MATCH
        if (refusal := _refusal(model, nms)) is not None:
            return refusal
        if rank_of(model.graph, nms.inputs[0], model.args) != 3:
            return Reject("nothing shows that its candidates are (N, M, W)", (nms.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        nms, make = match.root, Maker(model, match.root)
        rows = nms.inputs[0]
        scores = _valid_scores(make, nms, rows)
        chosen = choose(make, (scores,), 1, _topk(nms))
        real = make("real_single", "Cast", chosen.real, dtype="float32")
        column = make("real_column", "expand_dims", real, axis=-1)
        table = make("candidates", "broadcast_mul", gather(make, rows, chosen.row), column)
        return Rewrite({nms.name: (*make.nodes, replace(nms, inputs=(table,)))})


def _valid_scores(make: Maker, nms: Node, rows: Ref) -> Ref:
    """The scores as (N, M, 1), those of the background class zero."""
    scores = _column(make, "scores", rows, nms.integer("score_index", 1))
    kind = nms.integer("id_index", -1)
    if kind < 0:
        return scores
    ids = _column(make, "ids", rows, kind)
    meant = make("is_meant", "_not_equal_scalar", ids, scalar=nms.attrs.get("background_id", "-1"))
    return make("meant", "where", meant, scores, make("zeros", "zeros_like", scores))


def _column(make: Maker, suffix: str, rows: Ref, index: int) -> Ref:
    return make(suffix, "slice_axis", rows, axis=-1, begin=index, end=index + 1)


@dataclass(frozen=True)
class ChooseBoxes:
    """Tables that repeat boxes for every class: only the chosen rows are made."""

    name: str = "nms_of_chosen_boxes"
    pattern: Op = NMS

    def check(self, model: Model, match: Match) -> Reject | None:
        nms = match.root
        if _is_chosen(model.graph, nms.inputs[0]):
            return NO_MATCH
        try:
            table = find_table(model.graph, nms.inputs[0])
        except OtherTable as other:
            return Reject(str(other), (nms.name,))
        return _refusal(model, nms) or _columns_refusal(nms, table)

    def build(self, model: Model, match: Match) -> Rewrite:
        nms, make = match.root, Maker(model, match.root)
        table = find_table(model.graph, nms.inputs[0])
        scores, boxes = zip(*(_flat(make, i, part, table.classes) for i, part in enumerate(table.parts)), strict=True)
        chosen = choose(make, scores, table.classes, _topk(nms))
        every = boxes[0] if len(boxes) == 1 else make("boxes", "Concat", *boxes, dim=1, num_args=len(boxes))
        made = _rows(make, chosen, every)
        threshold = max(nms.number("valid_thresh", 0), table.threshold)
        attrs = {**nms.attrs, "valid_thresh": repr(threshold)}
        return Rewrite({nms.name: (*make.nodes, replace(nms, attrs=attrs, inputs=(made,)))})


def _flat(make: Maker, index: int, part: Part, classes: int) -> tuple[Ref, Ref]:
    """Scores (N, A, C) and boxes (N, A, 4) of a part."""
    if part.flat:
        return part.scores, part.boxes
    scores = make(f"scores{index}", "Reshape", part.scores, shape=f"(0, -1, {classes})")
    return scores, make(f"boxes{index}", "Reshape", part.boxes, shape="(0, -1, 4)")


def _rows(make: Maker, chosen: Chosen, boxes: Ref) -> Ref:
    """(class, score, box) of the chosen, (N, k, 6)."""
    both = make("class_and_score", "stack", chosen.kind, chosen.score, axis=2, num_args=2)
    single = make("class_and_score_single", "Cast", both, dtype="float32")
    return make("candidates", "Concat", single, gather(make, boxes, chosen.row), dim=2, num_args=2)


def _columns_refusal(nms: Node, table: Table) -> Reject | None:
    found = tuple(nms.integer(*pair) for pair in (("id_index", -1), ("score_index", 1), ("coord_start", 2)))
    if found != (0, 1, 2):
        return Reject(f"it reads id, score and box from columns {found}, which are (0, 1, 2)", (nms.name,))
    if 0 <= nms.number("background_id", -1) < table.classes:
        return Reject(f"class {nms.attrs['background_id']} is its background", (nms.name,))
    return None


def _topk(nms: Node) -> int:
    return nms.integer("topk", -1)


def _refusal(model: Model, nms: Node) -> Reject | None:
    """What forbids to give ``nms`` its first k rows alone."""
    k = _topk(nms)
    if k < 1:
        return Reject("it compares all candidates (topk is not given)", (nms.name,))
    if k > FEW:
        return Reject(f"it keeps {k} candidates; choosing pays up to {FEW}", (nms.name,))
    if nms.number("valid_thresh", 0) < 0:
        return Reject(f"its valid_thresh {nms.attrs['valid_thresh']} lets scores of zero and less count", (nms.name,))
    if any(value.dtype == np.float16 for value in model.args.values()):
        return Reject("the network has float16 parameters", (nms.name,))
    return _readers_refusal(model, nms, k)


def _readers_refusal(model: Model, nms: Node, k: int) -> Reject | None:
    if nms.name in model.graph.head_names:
        return Reject("its whole result is an output of the network", (nms.name,))
    for reader in model.graph.consumers[nms.name]:
        axis, begin, end = (reader.attrs.get(a, "None") for a in ("axis", "begin", "end"))
        first_rows = reader.op == "slice_axis" and axis in ("1", "-2") and (begin == "None" or int(begin) >= 0)
        if not first_rows or end == "None" or not 0 < int(end) <= k:
            return Reject(f"{reader.name!r} may read more of its result than the first {k} rows", (reader.name,))
    return None


def _is_chosen(graph: Graph, ref: Ref) -> bool:
    """Whether the rows come from a choice made here."""
    node = graph[ref.name]
    return node.op in ("Concat", "broadcast_mul") and any(graph[r.name].op == "gather_nd" for r in node.inputs)


RULES: tuple[Rule, ...] = (ChooseBoxes(), ChooseRows())


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, RULES, "detection")


DETECTION = Pass("detection", _run, requires=(FLOAT,), ensures=(FLOAT,))
