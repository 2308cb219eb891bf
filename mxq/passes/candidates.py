"""Chooses the best k of a detector's scored candidates inside the graph, ties as `box_nms` breaks them.

`_contrib_box_nms` sorts its rows by score, equal scores by row number (``std::stable_sort`` in ``sort_op.h``), and goes
on with the first k. MXNet's ``topk`` leaves the order of equal scores, and which of them it keeps, to
``std::partial_sort``. So it is given keys of which no two are equal. For the score s > 0 of the row of rank r:

    key = s (1 - r 2^-51), in float64        r = (part * C + class) 2^p + anchor,   r < 2^26

Two float32 scores that differ do so by 2^-24 of the larger one, and r 2^-51 < 2^-25, so keys are ordered like scores.
Ranks that differ move equal scores apart by two or more units in the last place, so the earlier row has the larger key.
And a key rounds to its score in float32, so ``topk``'s values give the scores back. This holds for up to 2^p anchors,
two million with 20 classes; a picture with more could have equal scores chosen in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mxq.graph.ir import Model, Node, Ref

UNIT = 2.0**-51
_RANK_BITS = 26


@dataclass
class Maker:
    """Collects new nodes, whose names start with that of the node they serve."""

    model: Model
    owner: Node
    nodes: list[Node] = field(default_factory=list)

    def __call__(self, suffix: str, op: str, *inputs: Ref, **attrs: object) -> Ref:
        """The first output of a new node."""
        name = self.model.graph.unused(f"{self.owner.name}_{suffix}")
        self.nodes.append(Node(name, op, {k: str(v) for k, v in attrs.items()}, inputs))
        return Ref(name)


@dataclass(frozen=True)
class Chosen:
    """The k candidates with the best scores of each example, best first; each field is (N, k) float64.

    Where there are fewer than k of positive score, ``score`` ends in numbers of no meaning that are not positive, and
    ``row`` is 0 there.
    """

    row: Ref
    kind: Ref
    score: Ref
    real: Ref


def choose(make: Maker, scores: Sequence[Ref], classes: int, k: int) -> Chosen:
    """The best ``k`` of all candidates.

    Args:
        make: makes the nodes.
        scores: the parts of the candidates in their order, each (N, A, C) float32; inside a part all anchors of class 0
            come first, then those of class 1.
        classes: C.
        k: how many to choose; there may be fewer.
    """
    anchor_bits = _RANK_BITS - max(len(scores) * classes - 1, 1).bit_length()
    keys = [_keys(make, part, i, classes, anchor_bits) for i, part in enumerate(scores)]
    rows = -(-k // classes)
    none = make("none", "_zeros", shape=f"(1, {rows}, {classes})", dtype="float64")
    padding = make("padding", "broadcast_like", none, keys[0], lhs_axes="(0,)", rhs_axes="(0,)")
    together = make("keys", "Concat", *keys, padding, dim=1, num_args=len(keys) + 1)
    flat = make("flat_keys", "Reshape", together, shape="(0, -1)")
    best = make("best", "topk", flat, axis=-1, k=k, ret_typ="both", is_ascend="False", dtype="float64")
    return _unravel(make, best, Ref(best.name, 1), classes)


def _keys(make: Maker, scores: Ref, part: int, classes: int, anchor_bits: int) -> Ref:
    """See the module: (N, A, C) float64."""
    first, last = part * classes, (part + 1) * classes
    number = make(f"classes{part}", "_arange", start=first, stop=last, step=1, repeat=1, dtype="float64")
    behind = make(f"class_rank{part}", "_mul_scalar", number, scalar=repr(UNIT * 2**anchor_bits))
    of_class = make(f"class_factor{part}", "_rminus_scalar", behind, scalar="1.0")
    row = make(f"class_row{part}", "Reshape", of_class, shape=f"(1, 1, {classes})")
    anchors = make(f"anchors{part}", "_contrib_arange_like", scores, axis=1)
    exact = make(f"anchors_double{part}", "Cast", anchors, dtype="float64")
    rank = make(f"anchor_rank{part}", "_mul_scalar", exact, scalar=repr(UNIT))
    column = make(f"anchor_column{part}", "Reshape", rank, shape="(1, -1, 1)")
    factor = make(f"factor{part}", "broadcast_sub", row, column)
    double = make(f"double{part}", "Cast", scores, dtype="float64")
    return make(f"key{part}", "broadcast_mul", double, factor)


def _unravel(make: Maker, key: Ref, index: Ref, classes: int) -> Chosen:
    """Rows and classes of flat indices; exact whatever becomes of the division, as only multiples of C are divided."""
    kind = make("kind", "_mod_scalar", index, scalar=float(classes))
    multiple = make("multiple", "elemwise_sub", index, kind)
    quotient = make("quotient", "_mul_scalar", multiple, scalar=repr(1 / classes))
    row = make("any_row", "rint", quotient)
    real = make("real", "_greater_scalar", key, scalar="0.0")
    return Chosen(make("row", "elemwise_mul", row, real), kind, key, real)


def gather(make: Maker, table: Ref, row: Ref) -> Ref:
    """Rows ``row``, (N, k), of ``table``, (N, A, W): (N, k, W)."""
    examples = make("examples", "_contrib_arange_like", row, axis=0)
    column = make("example_column", "Reshape", examples, shape="(-1, 1)")
    example = make("example", "broadcast_like", column, row)
    place = make("place", "stack", example, row, axis=0, num_args=2)
    return make("chosen", "gather_nd", table, place)
