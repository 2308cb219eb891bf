"""Accuracy and other metrics: with a runner in numpy, then on partitions and on workers, always the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq import distributed, evaluation
from mxq.data.examples import Source
from mxq.distributed import Partitions
from mxq.evaluation import Averaged, Evaluation, TopK, metric_of
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.runtime import MxnetRunner, from_symbol

CLASSES, EXAMPLES = 8, 40
RNG = np.random.default_rng(0)
X = RNG.standard_normal((EXAMPLES, CLASSES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, EXAMPLES)


class Same:
    """Its "network" gives back what it is fed."""

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Any:
        return lambda feeds: [feeds["data"]]

    def watch(self, model: Model, refs: Sequence[Ref]) -> Any:
        raise NotImplementedError


MODEL = Model(Graph((Node("data", "null"), Node("same", "_copy", inputs=(Ref("data"),))), (Ref("same"),)))


def evaluate(data: Any, **options: Any) -> Evaluation:
    return distributed.evaluate(MODEL, data, Same(), progress=False, **options)


def shares(x: np.ndarray = X, y: np.ndarray = Y) -> dict[str, float]:
    ranked = np.argsort(-x, axis=1, kind="stable")[:, :5] == y[:, None]
    return {"top1": ranked[:, 0].mean(), "top5": ranked.any(axis=1).mean()}


class Batch:
    """As MXNet's DataBatch, with three examples that are padding."""

    def __init__(self, at: int) -> None:
        pad = slice(at, at + 11)
        self.data, self.label, self.pad = (
            [np.resize(X[pad], (11, CLASSES))],
            [np.resize(Y[pad], 11)],
            max(0, at + 11 - 40),
        )


class DataIter:
    """As MXNet's."""

    provide_data = (("data", (11, CLASSES)),)
    batch_size = 11

    def reset(self) -> None: ...

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(at) for at in range(0, EXAMPLES, 11))


def source(labels: Any = Y) -> Source:
    return Source("rows", EXAMPLES, lambda numbers: {"data": X[list(numbers)]}, labels, 7)


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ((X, Y), None),
        (X, Y),
        (X, mx.nd.array(Y)),
        ({"data": X, "label": Y}, None),
        ({"data": X, "labels": Y[:, None]}, None),
        ([(X[:15], Y[:15]), [X[15:], Y[15:].astype(np.float32)]], None),
        ([{"data": X, "label": Y}], None),
        (((X[:15], Y[:15]), (X[15:], Y[15:])), None),
        ((pair for pair in [(X, Y)]), None),
        (mx.io.NDArrayIter(X, Y, batch_size=11), None),
        (DataIter(), None),
        (source(), None),
        (source(None), Y),
        ([X[:3], X[3:]], Y),
        (mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(X, Y), batch_size=6), None),
    ],
)
def test_labelled_data_in_any_form(data: Any, labels: Any) -> None:
    found = evaluate(data, labels=labels)
    assert found.examples == EXAMPLES
    assert found.metrics == pytest.approx(shares(), abs=0)
    assert json.loads(json.dumps(found.to_json())) == {"examples": EXAMPLES, "metrics": shares()}


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    assert evaluate((X, Y), batch_size=batch_size) == evaluate((X, Y))


def test_few_classes_have_no_top5() -> None:
    assert evaluate((X[:, :5], Y % 5)).metrics == {"top1": shares(X[:, :5], Y % 5)["top1"]}


def test_of_equal_scores_the_first_class_counts() -> None:
    assert evaluate((np.zeros((2, 6), np.float32), np.array([0, 5]))).metrics == {"top1": 0.5, "top5": 0.5}


def loss(outputs: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Mean cross entropy: numbers whose sum depends on the order of adding."""
    logits = outputs[0] - outputs[0].max(axis=1, keepdims=True)
    return {"loss": float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]).mean())}


def test_a_function_is_averaged_over_examples() -> None:
    found = evaluate((X, Y), metric=loss, batch_size=7)
    assert found.metrics["loss"] == pytest.approx(loss([X], Y)["loss"], rel=1e-6)
    batches = [(X[i : i + 7], Y[i : i + 7]) for i in range(0, EXAMPLES, 7)]
    assert evaluate(batches[::-1], metric=loss) == found  # exact sums know no order


def test_labels_may_be_missing_where_a_metric_needs_none() -> None:
    found = evaluate([X[:3], X[3:]], metric=lambda outputs, labels: {"labels": labels is not None, "one": 1})
    assert found == Evaluation(EXAMPLES, {"labels": 0.0, "one": 1.0})


class Largest:
    """A metric of its own: the largest output, and how many batches there were."""

    def empty(self) -> tuple[float, int]:
        return -math.inf, 0

    def update(self, state: tuple[float, int], outputs: Sequence[np.ndarray], labels: Any) -> tuple[float, int]:
        return self.merge(state, (float(outputs[0].max()), 1))

    def merge(self, a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
        return max(a[0], b[0]), a[1] + b[1]

    def result(self, state: tuple[float, int]) -> Mapping[str, float]:
        return {"largest": state[0], "batches": state[1]}


def test_a_metric_with_a_state() -> None:
    assert evaluate((X, Y), metric=Largest()).metrics == {"largest": float(X.max()), "batches": 2}


def test_numbers_that_json_cannot_say() -> None:
    assert Evaluation(1, {"a": math.inf}).to_json() == {"examples": 1, "metrics": {"a": "inf"}}


NAN = X.copy()
NAN[12, 3] = math.nan


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        ((X, Y[:-1]), {}, r"evaluation arrays hold \[39, 40\] examples"),
        (X, {"labels": Y[:-1]}, "there are 39 labels but more examples"),
        (X, {"labels": [*Y, 0]}, "there are 41 labels for 40 examples"),
        (X, {"labels": 3}, "labels is 3; allowed: an array with one for each example"),
        ([(X, Y[:-1])], {}, r"batch 1 holds labels of shape \(39,\) for 40 examples"),
        ((X, np.where(Y == 3, 8, Y)), {}, "batch 1: label 8 in a network of 8 classes; allowed: 0 to 7"),
        ((X, np.where(Y == 3, -1, Y)), {}, "label -1 in a network of 8 classes; allowed: 0 to 7"),
        ((X, Y + 0.5), {}, r"label \d\.5 in a network of 8 classes"),
        (
            (X, np.zeros((EXAMPLES, 2))),
            {},
            r"labels are float64 of shape \(32, 2\); top-1 needs a class for each of 32",
        ),
        (X, {}, "batch 1: there are no labels in the data; give labels, or batches of inputs and labels"),
        ((NAN, Y), {"batch_size": 10}, "output 'same' of batch 2 holds 1 NaN among 80 values"),
        ((X[:, 0], Y), {}, r"the first output has shape \(32,\); top-1 needs \(examples, classes\)"),
        (np.zeros((0, 3)), {}, "holds no examples"),
        ([], {}, "empty list"),
        (3, {}, "data is int 3; allowed"),
        ((X, Y), {"metric": lambda outputs, labels: 3.0}, "the metric returned 3.0; allowed: a mapping of names to"),
        ((X, Y), {"metric": lambda outputs, labels: {"a": math.nan}}, "metric 'a' is nan for a batch of 32 examples"),
        (
            (X, Y),
            {"metric": lambda outputs, labels: {f"a{len(labels)}": 1}},
            "metric 'a32' is there for some batches and missing for others",
        ),
    ],
)
def test_data_that_is_refused(data: Any, options: Any, says: str) -> None:
    with pytest.raises(mxq.DataError, match=says):
        evaluate(data, **options)


@pytest.mark.parametrize("metric", ["top1", 3, Largest])
def test_metrics_that_are_refused(metric: Any) -> None:
    with pytest.raises(
        mxq.ConfigError, match=r"metric is .*; allowed: a function of outputs and labels, or what has emp"
    ):
        metric_of(metric)
    assert metric_of(None) == TopK()
    assert metric_of(loss) == Averaged(loss)


# ---- partitions ----------------------------------------------------------------------------------------------


def rows(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Partition ``number`` of eight, in batches of two and three."""
    cuts = slice(5 * number, 5 * number + 2), slice(5 * number + 2, 5 * number + 5)
    return [(X[s], Y[s]) for s in cuts]


def all_rows() -> list[tuple[np.ndarray, np.ndarray]]:
    return [batch for number in range(8) for batch in rows(number)]


def partitions(load: Any = rows) -> Partitions:
    return Partitions.of(load, range(8))


@pytest.mark.parametrize("metric", [None, loss, Largest()])
def test_partitions_give_the_result_of_the_whole(metric: Any) -> None:
    assert evaluate(partitions(), metric=metric) == evaluate(all_rows(), metric=metric)


def mislabelled(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Only partition 3 is wrong: workers race, and whichever failure comes first is the one that is told."""
    return [(X[:2], np.array([0, 8 if number == 3 else 5]))]


def test_failures_name_the_partition() -> None:
    with pytest.raises(mxq.DataError, match="partition '3': batch 1: label 8 in a network of 8 classes"):
        evaluate(partitions(mislabelled))
    with pytest.raises(
        mxq.DataError, match="partition '0': batch 1: the metric raised ZeroDivisionError: division by zero"
    ):
        evaluate(partitions(), metric=lambda outputs, labels: {"a": 1 / 0})


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (partitions(), {"labels": Y}, "labels are given beside partitions; allowed: labels in their batches"),
        ((X, Y), {"client": 3}, "the data is a tuple; on workers it has to be partitions"),
        (partitions(), {"client": 3}, "client is 3; allowed: a distributed.Client"),
    ],
)
def test_calls_that_are_refused(data: Any, options: Any, says: str) -> None:
    with pytest.raises(mxq.ConfigError, match=says):
        evaluate(data, **options)


@pytest.mark.slow
def test_workers_give_the_result_of_one_process(tmp_path: Path) -> None:
    symbol = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=CLASSES, name="dense")
    weights = {"dense_weight": np.eye(CLASSES) + 0.3, "dense_bias": np.zeros(CLASSES)}
    model = from_symbol(symbol, {k: mx.nd.array(v) for k, v in weights.items()}, {})
    runner = MxnetRunner()
    with distributed.local_client(2) as client:
        for metric in (None, loss, Largest()):
            one = distributed.evaluate(model, all_rows(), runner, metric=metric)
            assert distributed.evaluate(model, partitions(), runner, metric=metric, client=client) == one
        with pytest.raises(mxq.DataError, match="partition '3': batch 1: label 8 in a network of 8 classes"):
            distributed.evaluate(model, partitions(mislabelled), runner, client=client)


def test_labels_of_feeds_are_those_of_their_examples() -> None:
    pairs = list(evaluation.labelled((X, Y), ["data"], batch_size=7))
    assert [len(y) for _, y in pairs] == [7] * 5 + [5]
    np.testing.assert_array_equal(np.concatenate([feed["data"] for feed, _ in pairs]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in pairs]), Y)
