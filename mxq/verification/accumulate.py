"""Runs the float network and what was made of it over the same batches; keeps the sums that a `Verification` needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import TypeAlias

import numpy as np

from mxq.data.feed import examples_in
from mxq.errors import DataError
from mxq.graph.ir import Array, Executable, Graph, Model, Runner
from mxq.graph.traits import traits_of
from mxq.verification.agreement import Accuracy, Output, Verification
from mxq.verification.layerwise import LayerTally
from mxq.verification.measures import Boxes, Energy, match_boxes
from mxq.verification.taps import corresponding

BOX_WIDTH = 6
TOP = 5
_TINY = float(np.finfo(np.float32).tiny)

Labels: TypeAlias = Array | Iterator[Array | None] | None
"""Of all examples, or of each batch in turn."""


@dataclass(frozen=True, slots=True)
class Head:
    """An output of the float network: its ``name``, and whether it is a ``softmax``."""

    name: str
    softmax: bool = False


def heads_of(graph: Graph) -> tuple[Head, ...]:
    """The outputs of a graph."""
    return tuple(Head(str(head), traits_of(graph[head.name]).distribution) for head in graph.heads)


def verify(
    runner: Runner,
    float_model: Model,
    int8_model: Model,
    feeds: Iterable[Mapping[str, Array]],
    layers: bool = False,
    *,
    labels: Labels = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Runs both models over ``feeds`` and compares.

    Args:
        runner: what runs a model.
        float_model: the reference; source or fused, layers are matched by name.
        int8_model: what was made of it.
        feeds: batches: input name -> array, examples along the first axis.
        layers: compare intermediate tensors too; see `mxq.verification.layerwise`.
        labels: for accuracy: (examples,) int, in the order of the feeds; or of each batch in turn, (n,) int or None.
        progress: told after each batch how many examples are done.

    Raises:
        DataError: no examples, labels that do not fit, or models whose outputs differ in number or shape.
    """
    each = LayerTally(runner, float_model, corresponding(float_model, int8_model) if layers else ())
    reference = runner.compile(float_model, each.float_refs)
    candidate = runner.compile(int8_model, each.int8_refs)
    heads = len(float_model.graph.heads)
    if len(int8_model.graph.heads) != heads:
        raise DataError(f"the float model has {heads} outputs, the int8 model {len(int8_model.graph.heads)}")
    tally = _Tally(heads_of(float_model.graph), each, labels)
    _run(reference, {"int8": (candidate, tally)}, feeds, progress)
    return tally.result()


def verify_each(
    reference: Executable,
    candidates: Mapping[str, Executable],
    heads: Sequence[Head],
    feeds: Iterable[Mapping[str, Array]],
    *,
    labels: Labels = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Verification]:
    """Compares several forms of a network with it, in one pass over ``feeds``.

    Args:
        reference: the float network, ready to run.
        candidates: name -> a form of it, which gives the same outputs.
        heads: the outputs of the float network.
        feeds, labels, progress: as of `verify`.

    Raises:
        DataError: as of `verify`.
    """
    shared = tee(labels, len(candidates)) if isinstance(labels, Iterator) else [labels] * len(candidates)
    tallies = {name: _Tally(heads, None, own) for name, own in zip(candidates, shared, strict=True)}
    _run(reference, {name: (candidates[name], tally) for name, tally in tallies.items()}, feeds, progress)
    return {name: tally.result() for name, tally in tallies.items()}


def _run(
    reference: Executable,
    compared: Mapping[str, tuple[Executable, _Tally]],
    feeds: Iterable[Mapping[str, Array]],
    progress: Callable[[int], None] | None,
) -> None:
    done = 0
    for batch in feeds:
        examples = examples_in(batch)
        wanted = reference(batch)
        for candidate, tally in compared.values():
            tally.add(examples, wanted, candidate(batch))
        done += examples
        if progress is not None:
            progress(done)


class _Tally:
    """Running sums of `verify`."""

    def __init__(self, heads: Sequence[Head], layers: LayerTally | None, labels: Labels) -> None:
        self.heads = [head.name for head in heads]
        self.softmax = [head.softmax for head in heads]
        self.layers = layers
        self.labels = labels if labels is None or isinstance(labels, Iterator) else np.asarray(labels)
        self.examples = self.labelled = 0
        self.kinds: list[str] = []
        self.agreeing = 0
        self.hits = np.zeros((2, 2), np.int64)  # float, int8 by top-1, top-5
        self.classes = 0
        self.boxes = Boxes()
        self.plain = [Energy() for _ in self.heads]
        self.centred = [Energy() for _ in self.heads]

    def add(self, examples: int, reference: Sequence[Array], candidate: Sequence[Array]) -> None:
        """Takes in one batch: the heads, then what the layers are compared by, of both models."""
        count = len(self.heads)
        if self.layers is None and len(candidate) != count:
            raise DataError(f"the float network has {count} outputs, what was made of it {len(candidate)}")
        first, second = ([outputs[i] for i in range(count)] for outputs in (reference, candidate))
        for name, x, y in zip(self.heads, first, second, strict=True):
            if x.shape != y.shape:
                raise DataError(f"output {name!r} has shape {x.shape} in the float model, {y.shape} in the int8 model")
        if not self.kinds:
            self.kinds = _kinds(first, examples)
        self._add_heads(first, second, self._labels_of(examples))
        if self.layers is not None:
            self.layers.add(lambda i: reference[count + i], lambda i: candidate[count + i])
        self.examples += examples

    def _labels_of(self, examples: int) -> Array | None:
        """Those of the next batch."""
        if isinstance(self.labels, Iterator):
            return next(self.labels)
        return None if self.labels is None else self.labels[self.examples : self.examples + examples]

    def _add_heads(self, reference: Sequence[Array], candidate: Sequence[Array], labels: Array | None) -> None:
        for i, (x, y) in enumerate(zip(reference, candidate, strict=True)):
            if self.kinds[i] == "boxes":
                continue
            self.plain[i] = self.plain[i].update(x, y)
            if self.kinds[i] == "scores":
                self.centred[i] = self.centred[i].update(*(_centred(s, self.softmax[i]) for s in (x, y)))
        if "scores" in self.kinds:
            first = self.kinds.index("scores")
            self._add_scores(reference[first], candidate[first], labels)
        if "boxes" in self.kinds:
            for x, y in zip(*(_rows(heads, self.kinds) for heads in (reference, candidate)), strict=True):
                found = match_boxes(x, y)
                self.boxes = Boxes(
                    self.boxes.float_boxes + found.float_boxes,
                    self.boxes.int8_boxes + found.int8_boxes,
                    self.boxes.matched + found.matched,
                )

    def _add_scores(self, reference: Array, candidate: Array, labels: Array | None) -> None:
        self.agreeing += int(np.sum(reference.argmax(axis=1) == candidate.argmax(axis=1)))
        self.classes = reference.shape[1]
        if labels is None:
            return
        self.labelled += len(labels)
        if len(labels) != len(reference):
            raise DataError(f"there are {self.labelled} labels but more examples")
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
        scores = "scores" in self.kinds
        labels = self.labelled if self.labels is None or isinstance(self.labels, Iterator) else len(self.labels)
        if labels and scores and labels != self.examples:
            raise DataError(f"there are {labels} labels for {self.examples} examples")
        return Verification(
            examples=self.examples,
            agreement=self.agreeing / self.examples if scores else None,
            outputs=tuple(self._output(i) for i in range(len(self.heads))),
            accuracy=self._accuracy() if scores and labels else None,
            boxes=self.boxes if "boxes" in self.kinds else None,
            layers=() if self.layers is None else self.layers.result(),
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
