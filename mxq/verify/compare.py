"""Runs the float and the int8 model over the same batches and keeps the sums that a `Verification` needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mxq import numerics
from mxq.errors import DataError
from mxq.ir import Array, Graph, Model, Node, Ref, Runner
from mxq.verify.measures import Boxes, Energy, match_boxes
from mxq.verify.result import Accuracy, Layer, Output, Verification

SOFTMAX = ("softmax", "SoftmaxOutput", "SoftmaxActivation")
BOX_WIDTH = 6
TOP = 5
_TINY = float(np.finfo(np.float32).tiny)
_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor in both models: where the float model has it and where the int8 model does.

    ``op`` is what makes it; for a fused operator the chain, such as "Convolution+Activation".

    ``int8`` is one float tensor, or the three outputs of an int8 operator: values, minimum, maximum.
    """

    name: str
    op: str
    float: Ref
    int8: tuple[Ref, ...]


def verify(
    runner: Runner,
    float_model: Model,
    int8_model: Model,
    feeds: Iterable[Mapping[str, Array]],
    layers: bool = False,
    *,
    labels: Array | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Runs both models over ``feeds`` and compares.

    Args:
        runner: what runs a model.
        float_model: the reference; source or fused, layers are matched by name.
        int8_model: what was made of it.
        feeds: batches: input name -> array, examples along the first axis.
        layers: compare intermediate tensors too.
        labels: (examples,) int, in the order of the feeds: for accuracy.
        progress: told after each batch how many examples are done.

    Raises:
        DataError: no examples, labels that do not fit, or models whose outputs differ in number or shape.
    """
    taps = corresponding(float_model.graph, int8_model.graph) if layers else ()
    reference = runner.compile(float_model, [t.float for t in taps])
    candidate = runner.compile(int8_model, [ref for t in taps for ref in t.int8])
    heads = len(float_model.graph.heads)
    if len(int8_model.graph.heads) != heads:
        raise DataError(f"the float model has {heads} outputs, the int8 model {len(int8_model.graph.heads)}")
    tally = _Tally(float_model.graph, taps, None if labels is None else np.asarray(labels))
    for batch in feeds:
        examples = len(next(iter(batch.values())))
        tally.add(examples, reference(batch), candidate(batch))
        if progress is not None:
            progress(tally.examples)
    return tally.result()


def corresponding(float_graph: Graph, int8_graph: Graph) -> tuple[Tap, ...]:
    """The tensors that both graphs compute, in order of the float graph.

    The int8 operator made from ``x`` is called ``quantized_x`` and gives values, minimum and maximum, or plain
    float values where it dequantizes on the way out; dequantizers and operators left in float are called ``x``.
    """
    taps = []
    for node in float_graph.operators:
        made, kept = int8_graph.by_name.get(f"quantized_{node.name}"), int8_graph.by_name.get(node.name)
        found = made or kept
        if found is None or found.is_variable:
            continue
        coded = made is not None and not _gives_float(made)
        outputs = (0, 1, 2) if coded else (0,)
        taps.append(Tap(node.name, _chain(found) or node.op, node.out, tuple(Ref(found.name, i) for i in outputs)))
    return tuple(taps)


class _Tally:
    """Running sums of `verify`."""

    def __init__(self, graph: Graph, taps: Sequence[Tap], labels: Array | None) -> None:
        self.heads = [str(h) for h in graph.heads]
        self.softmax = [_is_softmax(graph[h.name]) for h in graph.heads]
        self.taps = taps
        self.labels = labels
        self.examples = 0
        self.kinds: list[str] = []
        self.agreeing = 0
        self.hits = np.zeros((2, 2), np.int64)  # float, int8 by top-1, top-5
        self.classes = 0
        self.boxes = Boxes()
        self.plain = [Energy() for _ in self.heads]
        self.centred = [Energy() for _ in self.heads]
        self.layers = [Energy() for _ in taps]
        self.dtypes = ["" for _ in taps]

    def add(self, examples: int, reference: Sequence[Array], candidate: Sequence[Array]) -> None:
        """Takes in one batch: the heads, then the taps, of both models. Taps are read one by one."""
        count = len(self.heads)
        first, second = ([outputs[i] for i in range(count)] for outputs in (reference, candidate))
        for name, x, y in zip(self.heads, first, second, strict=True):
            if x.shape != y.shape:
                raise DataError(f"output {name!r} has shape {x.shape} in the float model, {y.shape} in the int8 model")
        if not self.kinds:
            self.kinds = _kinds(first, examples)
        self._add_heads(first, second)
        at = count
        for i, tap in enumerate(self.taps):
            x, coded = reference[count + i], [candidate[at + j] for j in range(len(tap.int8))]
            at += len(tap.int8)
            values = _decoded(coded)
            if x.shape == values.shape:
                self.layers[i] = self.layers[i].update(x, values)
                self.dtypes[i] = str(coded[0].dtype)
        self.examples += examples

    def _add_heads(self, reference: Sequence[Array], candidate: Sequence[Array]) -> None:
        for i, (x, y) in enumerate(zip(reference, candidate, strict=True)):
            if self.kinds[i] == "boxes":
                continue
            self.plain[i] = self.plain[i].update(x, y)
            if self.kinds[i] == "scores":
                self.centred[i] = self.centred[i].update(*(_centred(s, self.softmax[i]) for s in (x, y)))
        if "scores" in self.kinds:
            first = self.kinds.index("scores")
            self._add_scores(reference[first], candidate[first])
        if "boxes" in self.kinds:
            for x, y in zip(*(_rows(heads, self.kinds) for heads in (reference, candidate)), strict=True):
                found = match_boxes(x, y)
                self.boxes = Boxes(
                    self.boxes.float_boxes + found.float_boxes,
                    self.boxes.int8_boxes + found.int8_boxes,
                    self.boxes.matched + found.matched,
                )

    def _add_scores(self, reference: Array, candidate: Array) -> None:
        self.agreeing += int(np.sum(reference.argmax(axis=1) == candidate.argmax(axis=1)))
        self.classes = reference.shape[1]
        if self.labels is None:
            return
        labels = self.labels[self.examples : self.examples + len(reference)]
        if len(labels) != len(reference):
            raise DataError(f"there are {len(self.labels)} labels but more examples")
        if labels.min() < 0 or labels.max() >= self.classes:
            off = labels.max() if labels.max() >= self.classes else labels.min()
            raise DataError(f"label {off} in a network of {self.classes} classes; allowed: 0 to {self.classes - 1}")
        for i, scores in enumerate((reference, candidate)):
            ranked = np.argsort(-scores, axis=1, kind="stable")[:, :TOP] == labels[:, None]
            self.hits[i] += ranked[:, 0].sum(), ranked.any(axis=1).sum()

    def result(self) -> Verification:
        """The measures of all that was added."""
        if self.examples == 0:
            raise DataError("there is nothing to compare: the data has no examples")
        if self.labels is not None and "scores" in self.kinds and len(self.labels) != self.examples:
            raise DataError(f"there are {len(self.labels)} labels for {self.examples} examples")
        scores = "scores" in self.kinds
        return Verification(
            examples=self.examples,
            agreement=self.agreeing / self.examples if scores else None,
            outputs=tuple(self._output(i) for i in range(len(self.heads))),
            accuracy=self._accuracy() if scores and self.labels is not None else None,
            boxes=self.boxes if "boxes" in self.kinds else None,
            layers=tuple(
                Layer(t.name, t.op, d, e.sqnr, e.cosine)
                for t, d, e in zip(self.taps, self.dtypes, self.layers, strict=True)
                if d
            ),
        )

    def _output(self, i: int) -> Output:
        if self.kinds[i] == "boxes":
            return Output(self.heads[i], "boxes")
        plain, centred = self.plain[i], self.centred[i]
        return Output(
            self.heads[i],
            self.kinds[i],
            plain.sqnr,
            centred.sqnr if self.kinds[i] == "scores" else None,
            plain.cosine,
            plain.largest,
        )

    def _accuracy(self) -> Accuracy:
        (float1, float5), (int1, int5) = (self.hits / self.examples).tolist()
        return Accuracy(float1, int1, *((float5, int5) if self.classes > TOP else (None, None)))


def _decoded(tap: Sequence[Array]) -> Array:
    """A tap of the int8 model in float: as it is, or dequantized by its range."""
    if len(tap) == 1 or tap[0].dtype.kind == "f":
        return tap[0]
    codes, low, high = tap
    absmax = max(abs(float(low.ravel()[0])), abs(float(high.ravel()[0])))
    if codes.dtype == np.int32:  # a sum before it is requantized: its range spans all of int32
        return np.asarray(codes * (absmax / _INT32), np.float32)
    return numerics.dequantize(codes, numerics.scale(absmax, str(codes.dtype)))


def _chain(node: Node) -> str:
    """The op types inside a fused node, "Convolution+Activation"; empty for others."""
    return "+".join(inner.op for graph in node.subgraphs for inner in graph.operators)


def _gives_float(node: Node) -> bool:
    """Whether an int8 operator's result is float."""
    return node.flag("enable_float_output")


def _is_softmax(node: Node) -> bool:
    return node.op in SOFTMAX


def _centred(scores: Array, softmax: bool) -> Array:
    """Logits (N, classes) less their mean; the logarithm undoes a softmax but for a constant, which centring drops."""
    logits = np.log(np.maximum(scores.astype(np.float64), _TINY)) if softmax else scores.astype(np.float64)
    centred: Array = logits - logits.mean(axis=1, keepdims=True)
    return centred


def _kinds(heads: Sequence[Array], examples: int) -> list[str]:
    """What each output is, by its shape: the boxes of MXNet are (N, K, 6), those of gluoncv come as three outputs."""
    if [h.shape[2:] for h in heads if h.ndim == 3] == [(1,), (1,), (4,)] and len(heads) == 3:
        return ["boxes"] * 3
    kinds = []
    for head in heads:
        if head.ndim == 2 and head.shape[0] == examples and head.shape[1] > 1:
            kinds.append("scores")
        else:
            kinds.append("boxes" if head.ndim == 3 and head.shape[2] == BOX_WIDTH else "tensor")
    return kinds


def _rows(heads: Sequence[Array], kinds: Sequence[str]) -> Array:
    """The detections (N, K, 6) among the outputs."""
    boxes = [h for h, kind in zip(heads, kinds, strict=True) if kind == "boxes"]
    return boxes[0] if boxes[0].shape[2] == BOX_WIDTH else np.concatenate(boxes, axis=2)
