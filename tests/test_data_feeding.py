"""Every form of calibration data, the budget, in whole batches where data comes in such, and what is refused."""

from __future__ import annotations

import importlib
import operator
import pickle
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mxq.compat import prepare
from mxq.config import Budget
from mxq.data.examples import Source
from mxq.data.feed import examples_in, taken
from mxq.data.feeding import Feeds, feeds, peeked
from mxq.errors import DataError

ALL = Budget(percent=100.0)
X = np.arange(100 * 3, dtype=np.float32).reshape(100, 3)
LABELS = np.arange(100)


class Foreign:
    """An array of another library: `asnumpy`, `shape`, slicing, and nothing else."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value
        self.shape = value.shape

    def __getitem__(self, key: slice) -> Foreign:
        return Foreign(self._value[key])

    def asnumpy(self) -> np.ndarray:
        return self._value


class Loader:
    """Counts its batches, like a DataLoader, and how many were drawn."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.drawn += 1
            yield batch


class OldIter:
    """A DataIter with `next` alone."""

    def __init__(self, name: str = "data", pad: int | None = 4) -> None:
        self.provide_data = [(name, (8, 3))]
        self.pad = pad
        self.at = 99

    def reset(self) -> None:
        self.at = 0

    def next(self) -> Any:
        if self.at >= 16:
            raise StopIteration
        self.at += 8
        last = self.at == 16
        return SimpleNamespace(data=[X[self.at - 8 : self.at]], label=[LABELS[:8]], pad=self.pad if last else 0)


def cut(x: Any, size: int = 10) -> list[Any]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def chosen(form: str, count: int) -> np.ndarray:
    """What ``count`` of the 100 examples of ``form`` are, or the whole batches that hold them."""
    batches = -(-count // 10)
    if form in ("generator", "loader"):
        return X[: batches * 10]
    if form.startswith("list") or form == "tuple of pairs":
        return np.concatenate([cut(X)[i * 10 // batches] for i in range(batches)])
    return X[[i * 100 // count for i in range(count)]]


def joined(got: Feeds, name: str = "data") -> np.ndarray:
    return np.concatenate([feed[name] for feed in got])


PAIRS = list(zip(cut(X), cut(LABELS), strict=True))
FORMS = {
    "array": lambda: X,
    "foreign array": lambda: Foreign(X),
    "tuple of arrays": lambda: (X, LABELS),
    "dict of arrays": lambda: {"label": LABELS, "data": X},
    "list of arrays": lambda: cut(X),
    "list of foreign arrays": lambda: [Foreign(x) for x in cut(X)],
    "list of pairs": lambda: PAIRS,
    "list of list pairs": lambda: [list(pair) for pair in PAIRS],
    "tuple of pairs": lambda: tuple(PAIRS),
    "list of nested batches": lambda: [((x,), [y]) for x, y in PAIRS],
    "list of dicts": lambda: [{"label": y, "data": x} for x, y in PAIRS],
    "list of batch objects": lambda: [SimpleNamespace(data=[x], label=[y], pad=0) for x, y in PAIRS],
    "generator": lambda: (pair for pair in PAIRS),
    "loader": lambda: Loader(PAIRS),
    "float64": lambda: X.astype(np.float64),
    "float16-exact": lambda: X.astype(np.float16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 10, 37, 100])
def test_every_form_gives_as_many_examples(form: str, count: int) -> None:
    got = feeds(FORMS[form](), ["data"], Budget(count=count), batch_size=10)
    every = list(got)
    assert all(list(feed) == ["data"] for feed in every)
    data = np.concatenate([feed["data"] for feed in every])
    assert data.dtype == np.float32
    wanted = chosen(form, count)
    np.testing.assert_array_equal(data, wanted)
    assert [len(feed["data"]) for feed in every] == [len(part) for part in cut(wanted)]
    assert (got.examples, got.batches, got.planned, got.warnings) == (len(wanted), len(every), count, ())
    assert operator.length_hint(got) == len(every)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "generator"])
def test_data_can_be_read_again(form: str) -> None:
    got = feeds(FORMS[form](), ["data"], Budget(count=25))
    np.testing.assert_array_equal(joined(got), joined(got))
    assert got.examples == len(chosen(form, 25))


def test_a_generator_cannot() -> None:
    got = feeds((x for x in cut(X)), ["data"], Budget(count=5))
    assert len(joined(got)) == 10
    with pytest.raises(DataError, match="generator, which can be read only once"):
        iter(got)


def test_the_last_batch_is_not_followed_by_another_draw() -> None:
    loader = Loader(cut(X))
    assert len(joined(feeds(loader, ["data"], Budget(count=20)))) == 20
    assert loader.drawn == 2


def test_batches_of_many_sizes_are_taken_until_there_are_enough() -> None:
    batches = [X[:40], X[40:50], X[50:55], X[55:100]]
    np.testing.assert_array_equal(joined(feeds(batches, ["data"], Budget(count=44))), X[[*range(40), *range(50, 55)]])
    assert len(joined(feeds(batches, ["data"], Budget(count=99)))) == 100


def test_a_source_reads_no_example_that_is_not_used() -> None:
    read: list[int] = []

    def look(numbers: Sequence[int]) -> dict[str, np.ndarray]:
        read.extend(numbers)
        return {"data": X[list(numbers)]}

    got = feeds(Source("pictures", 100, look, batch_size=10), ["data"], Budget(count=25))
    np.testing.assert_array_equal(joined(got), chosen("array", 25))
    assert read == [i * 4 for i in range(25)]
    read.clear()
    assert sum(len(feed["data"]) for feed in got.take(5)) == 5
    assert read == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("form", [form for form in FORMS if form != "generator"])
def test_a_part_of_what_is_used_is_spread_over_it(form: str) -> None:
    got = feeds(FORMS[form](), ["data"], Budget(count=40), batch_size=10)
    some = np.concatenate([feed["data"] for feed in got.take(8)])
    if chosen(form, 40)[1, 0] == 3:  # whole batches: of each its share, first and last
        np.testing.assert_array_equal(some, chosen(form, 40)[[0, 9, 10, 19, 20, 29, 30, 39]])
    else:
        np.testing.assert_array_equal(some, chosen(form, 40)[::5])
    assert sum(len(feed["data"]) for feed in got.take(99)) == 40


@pytest.mark.parametrize("form", FORMS)
def test_the_first_batch_can_be_seen_before(form: str) -> None:
    first, data = peeked(FORMS[form](), ["data"], 10)
    np.testing.assert_array_equal(first["data"], X[:10])
    np.testing.assert_array_equal(joined(feeds(data, ["data"], ALL)), X)


def test_feeds_pass_through() -> None:
    got = feeds(X, ["data"], ALL)
    assert feeds(got, ["data"], ALL) is got


# ------------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(
    ("data", "planned"),
    [
        (np.zeros((20, 1)), 20),
        (np.zeros((100, 1)), 32),
        (np.zeros((2000, 1)), 100),
        (np.zeros((50_000, 1)), 1024),
        ([np.zeros((100, 1))] * 20, 100),
    ],
    ids=["20", "100", "2000", "50000", "list"],
)
def test_the_default_is_five_percent_between_bounds(data: Any, planned: int) -> None:
    got = feeds(data, ["data"], Budget.parse(None))
    assert got.planned == planned
    assert len(joined(got)) == planned


def test_the_default_of_unknown_length_ends_at_its_bound() -> None:
    got = feeds((np.zeros((100, 1)) for _ in range(20)), ["data"], Budget.parse(None))
    assert len(joined(got)) == 1100
    assert got.warnings == ()
    short = feeds((np.zeros((100, 1)) for _ in range(2)), ["data"], Budget.parse(None))
    assert len(joined(short)) == 200
    assert short.warnings == ()


def test_a_loader_that_counts_only_batches_is_sized_by_its_first() -> None:
    got = feeds(Loader([np.zeros((50, 1))] * 40), ["data"], Budget(percent=10.0))
    assert operator.length_hint(got) == 40
    assert len(joined(got)) == 200
    assert got.planned == 200


def test_a_loader_that_shows_its_dataset_is_sized_by_it() -> None:
    loader = Loader(cut(X))
    loader.dataset = range(1000)
    assert feeds(loader, ["data"], Budget(percent=1.0)).planned == 10


@pytest.mark.parametrize("form", FORMS)
def test_too_few_examples_are_a_warning(form: str) -> None:
    got = feeds(FORMS[form](), ["data"], Budget(count=500))
    assert len(joined(got)) == 100
    assert got.warnings == ("500 calibration examples were asked for, the data held 100",)


# ------------------------------------------------------------------------------------------------ resumed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [10, 37, 40, 100])
@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_resumed_pass_gives_the_first_batch_and_those_not_yet_seen(form: str, count: int, done: int) -> None:
    def anew() -> Feeds:
        return feeds(FORMS[form](), ["data"], Budget(count=count), batch_size=10)

    whole, got = list(anew()), anew()
    resumed = list(got.resumed(done, min(10 * done, len(chosen(form, count)))))
    for found, expected in zip(resumed, [whole[0], *whole[done:]], strict=True):
        np.testing.assert_array_equal(found["data"], expected["data"])
    assert (got.examples, got.batches) == (len(chosen(form, count)), max(done, len(whole)))
    assert got.warnings == ()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "generator"])
def test_the_pass_after_a_resumed_one_is_whole_again(form: str) -> None:
    got = feeds(FORMS[form](), ["data"], Budget(count=45), batch_size=10)
    list(got.resumed(3, 30))
    np.testing.assert_array_equal(joined(got), chosen(form, 45))
    assert (got.examples, got.batches) == (len(chosen(form, 45)), 5)


class Startable(Loader):
    """Starts at any batch, as `mxq.images.Source` does; drawing one that was left out fails."""

    def __init__(self, batches: list[Any], untouchable: range) -> None:
        super().__init__(batches)
        self.untouchable = untouchable

    def __iter__(self) -> Iterator[Any]:
        return self.starting_at(0)

    def starting_at(self, batch: int) -> Iterator[Any]:
        for number in range(batch, len(self.batches)):
            assert number not in self.untouchable
            self.drawn += 1
            yield self.batches[number]


def test_what_is_left_out_is_not_read_where_that_can_be_helped() -> None:
    loader = Startable(cut(X), range(1, 7))
    assert len(list(feeds(loader, ["data"], ALL).resumed(7, 70))) == 4
    assert loader.drawn == 4
    plain = Loader(cut(X))
    assert len(list(feeds(plain, ["data"], ALL).resumed(7, 70))) == 4
    assert plain.drawn == 10


def test_batches_after_a_resumption_keep_their_numbers() -> None:
    got = feeds([*cut(X)[:6], np.array(["a"])], ["data"], ALL)
    with pytest.raises(DataError, match=r"^calibration batch 7: input 'data' has dtype <U1; allowed: floats, uint8"):
        list(got.resumed(4, 40))


def test_too_few_examples_are_a_warning_also_after_a_resumption() -> None:
    got = feeds(cut(X), ["data"], Budget(count=500))
    assert len(list(got.resumed(4, 40))) == 7
    assert got.warnings == ("500 calibration examples were asked for, the data held 100",)


def test_a_data_iter_is_reset_for_a_resumption() -> None:
    got = feeds(OldIter(), ["data"], ALL)
    for _ in range(2):
        first, last = got.resumed(1, 8)
        np.testing.assert_array_equal(first["data"], X[:8])
        np.testing.assert_array_equal(last["data"], X[8:12])  # padded with four


# ------------------------------------------------------------------------------------------------ several inputs


@pytest.mark.parametrize(
    "data",
    [
        (X, LABELS, LABELS),
        {"types": LABELS, "tokens": X},
        [(x, y, y) for x, y in PAIRS],
        [((x, y), y) for x, y in PAIRS],
        [{"types": y, "tokens": x} for x, y in PAIRS],
        [SimpleNamespace(data=[x, y], label=None, pad=None) for x, y in PAIRS],
    ],
    ids=["tuple", "dict", "list of tuples", "nested", "list of dicts", "batch objects"],
)
def test_several_inputs(data: Any) -> None:
    for feed in feeds(data, ["tokens", "types"], Budget(count=25)):
        np.testing.assert_array_equal(feed["tokens"][:, 0], 3 * feed["types"])
        assert feed["tokens"].dtype == np.float32
        assert feed["types"].dtype == LABELS.dtype


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_integers_stay(dtype: str) -> None:
    assert joined(feeds(X.astype(dtype), ["data"], ALL)).dtype == dtype


@pytest.mark.parametrize("form", ["tuple", "generator", "batch object"])
def test_an_argument_that_the_network_does_not_read_takes_its_place(form: str) -> None:
    batch: Any = (X, LABELS, X + 1)
    data = {"tuple": batch, "generator": iter([batch]), "batch object": [SimpleNamespace(data=batch, pad=0)]}[form]
    got = feeds(data, ["", "types", ""], ALL)
    np.testing.assert_array_equal(joined(got, "types"), LABELS)


def test_arguments_that_are_none_are_left_out() -> None:
    for data in ([(X, None, LABELS)], [(X, [None, LABELS])], [{"tokens": X, "mask": None, "types": LABELS}]):
        (feed,) = feeds(data, ["tokens", "types"], ALL)
        np.testing.assert_array_equal(feed["types"], LABELS)


def test_a_single_named_array_is_the_single_input() -> None:
    for data in ({"image": X, "label": LABELS}, [{"image": x} for x in cut(X)]):
        np.testing.assert_array_equal(joined(feeds(data, ["data"], ALL)), X)


# ------------------------------------------------------------------------------------------------ what counts examples


SEQUENCE, STATE = np.arange(7 * 4 * 3.0).reshape(7, 4, 3), np.arange(2 * 4 * 5.0).reshape(2, 4, 5)


def test_the_first_axis_counts_examples_where_all_agree() -> None:
    (feed,) = feeds([(X, LABELS)], ["a", "b"], ALL)
    assert (feed.examples, feed.axes) == (100, {"a": 0, "b": 0})


def test_a_batch_whose_first_axes_differ_is_counted_by_what_is_common_and_not_cut() -> None:
    (feed,) = feeds([(SEQUENCE, STATE)], ["data", "state"], Budget(count=1))
    assert (feed.examples, feed.axes) == (4, None)
    assert taken(feed, slice(1)) is feed
    (feed,) = feeds([(X, STATE)], ["image", "boxes"], ALL)  # nothing in common: the first array counts
    assert (feed.examples, feed.axes) == (100, None)


@pytest.mark.parametrize("time", [3, 7])
@pytest.mark.parametrize("form", ["tuples", "feeds"])
def test_a_list_of_batches_whose_first_axes_differ_is_used_whole(time: int, form: str) -> None:
    """Time before the batch: what a list holds is not counted by its first axis."""
    batches: Any = [(np.zeros((time, 4, 3), np.float32), STATE)] * 5
    batches = list(feeds(batches, ["data", "state"], ALL)) if form == "feeds" else batches
    got = feeds(batches, ["data", "state"], Budget(count=20))
    assert (len(list(got)), got.examples, got.warnings) == (5, 20, ())
    assert len(list(feeds(batches, ["data", "state"], Budget(count=9)))) == 3


class Described:
    """A DataIter that describes its arrays with layouts, and ends with two examples of padding."""

    def __init__(self, *layouts: str) -> None:
        self.provide_data = [SimpleNamespace(name=n, layout=x) for n, x in zip("ab", layouts, strict=True)]

    def __iter__(self) -> Iterator[Any]:
        for pad in (0, 2):
            yield SimpleNamespace(data=[SEQUENCE, STATE], label=None, pad=pad)


def test_layouts_say_what_counts_examples() -> None:
    first, last = got = list(feeds(Described("TNC", "LNC"), ["a", "b"], ALL))
    assert [(feed.examples, feed.axes) for feed in got] == [(4, {"a": 1, "b": 1}), (2, {"a": 1, "b": 1})]
    np.testing.assert_array_equal(first["a"], SEQUENCE)
    np.testing.assert_array_equal(last["a"], SEQUENCE[:, :2])
    np.testing.assert_array_equal(last["b"], STATE[:, :2])
    np.testing.assert_array_equal(taken(first, [3, 0])["b"], STATE[:, [3, 0]])
    assert examples_in(taken(first, [3, 0])) == 2


@pytest.mark.parametrize("layouts", [("NTC", "NTC"), ("TC", "LNC")], ids=["wrong", "without examples"])
def test_layouts_that_do_not_say_it(layouts: tuple[str, str]) -> None:
    for feed in feeds(Described(*layouts), ["a", "b"], ALL):
        assert (feed.examples, feed.axes, feed["a"].shape) == (4, None, SEQUENCE.shape)


def test_a_feed_goes_through_feeds_and_a_pickle_as_it_is() -> None:
    (first, _) = feeds(Described("TNC", "LNC"), ["a", "b"], ALL)
    (again,) = feeds([pickle.loads(pickle.dumps(first.with_arrays({"label": LABELS[:4]})))], ["b", "a"], ALL)
    assert (list(again), again.examples, again.axes) == (["b", "a"], 4, {"b": 1, "a": 1})


def test_a_plain_dict_counts_along_its_first_axis() -> None:
    assert examples_in({"a": X, "b": LABELS}) == 100
    assert examples_in(taken({"a": X, "b": LABELS}, slice(5, 9))) == 4


# ------------------------------------------------------------------------------------------------ DataIter


def test_labels_of_a_data_iter_feed_what_computes_with_them() -> None:
    source = OldIter()
    source.provide_label = [("softmax_label", (8,))]
    for feed in feeds(source, ["softmax_label", "data"], Budget(count=8)):
        np.testing.assert_array_equal(feed["softmax_label"], LABELS[:8])
    with pytest.raises(DataError, match=r"no array for input 'softmax_label', only 'data'; .* with this label"):
        list(feeds(OldIter(), ["data", "softmax_label"], ALL))


def test_labels_of_batch_objects_follow_their_data() -> None:
    (feed,) = feeds([SimpleNamespace(data=[X], label=[LABELS], pad=0)], ["data", "softmax_label"], ALL)
    np.testing.assert_array_equal(feed["softmax_label"], LABELS)


def test_a_data_iter_is_reset_and_its_padding_dropped() -> None:
    got = feeds(OldIter(), ["data"], Budget(count=500))
    for _ in range(2):
        np.testing.assert_array_equal(joined(got), X[:12])
    assert got.warnings == ("500 calibration examples were asked for, the data held 12",)


def test_padding_of_none_is_no_padding() -> None:
    assert len(joined(feeds(OldIter(pad=None), ["data"], Budget(count=500)))) == 16


def test_a_single_array_of_a_data_iter_may_have_any_name() -> None:
    assert len(joined(feeds(OldIter("pixels"), ["data"], Budget(count=9)))) == 12


def test_several_arrays_of_a_data_iter_go_by_name() -> None:
    source = OldIter()
    source.provide_data = [("b", ()), ("a", ())]
    source.next = iter([SimpleNamespace(data=[X[:4], X[4:8]], pad=1)]).__next__
    (feed,) = feeds(source, ["a", "b"], ALL)
    np.testing.assert_array_equal(feed["a"], X[4:7])
    np.testing.assert_array_equal(feed["b"], X[:3])


def test_names_of_a_data_iter_must_fit() -> None:
    source = OldIter()
    source.provide_data = [("b", ()), ("c", ())]
    source.next = lambda: SimpleNamespace(data=[X, X], pad=0)
    with pytest.raises(
        DataError, match=r"batch 1: it has no array for input 'a', only 'b', 'c'; the inputs are 'a', 'b'"
    ):
        list(feeds(source, ["a", "b"], ALL))


# ------------------------------------------------------------------------------------------------ the real ones


@pytest.fixture(scope="module")
def mx() -> Any:
    prepare()
    return importlib.import_module("mxnet")


def test_ndarray(mx: Any) -> None:
    np.testing.assert_array_equal(joined(feeds(mx.nd.array(X), ["data"], Budget(count=37))), chosen("array", 37))


@pytest.mark.parametrize("last_batch", ["keep", "discard", "rollover"])
@pytest.mark.parametrize("labels", [False, True], ids=["alone", "with labels"])
def test_gluon_data_loader(mx: Any, labels: bool, last_batch: str) -> None:
    dataset = mx.gluon.data.ArrayDataset(*([X, LABELS] if labels else [X]))
    loader = mx.gluon.data.DataLoader(dataset, batch_size=32, last_batch=last_batch)
    got = feeds(loader, ["data"], Budget.parse("50%"))
    assert got.planned == 50
    np.testing.assert_array_equal(joined(got), X[:64])
    everything = feeds(loader, ["data"], ALL)
    used = len(joined(everything))
    assert used in {96, 100}
    assert bool(everything.warnings) == (used < 100)


def test_ndarray_iter(mx: Any) -> None:
    source = mx.io.NDArrayIter(X, LABELS, batch_size=32)
    for _ in range(2):  # 100 examples in batches of 32: the last is padded with 28 from the front
        np.testing.assert_array_equal(joined(feeds(source, ["data"], ALL)), X)
    assert feeds(source, ["data"], Budget.parse(None)).planned == 32


def test_ndarray_iter_of_named_inputs(mx: Any) -> None:
    source = mx.io.NDArrayIter({"a": X, "b": X * 2}, batch_size=10)
    for feed in feeds(source, ["b", "a"], Budget(count=15)):
        np.testing.assert_array_equal(feed["b"], 2 * feed["a"])


# ------------------------------------------------------------------------------------------------ refusals


def failing() -> Iterator[Any]:
    yield X[:10]
    raise KeyError("no such file")


class Dataset:
    """Examples by index, as a gluon dataset."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> np.ndarray:
        return X[index]


REFUSED = {
    "nothing": (None, "calibration data is NoneType None; allowed: an array, a tuple"),
    "a path": ("train.rec", "calibration data is str 'train.rec'; allowed"),
    "a number": (5, "calibration data is int 5; allowed"),
    "a dataset": (Dataset(), "wrap a dataset in a DataLoader"),
    "an empty list": ([], "empty list; at least one batch"),
    "an empty tuple": ((), "empty tuple; at least one batch"),
    "an empty dict": ({}, "holds no examples"),
    "an empty array": (X[:0], "holds no examples"),
    "an empty loader": (Loader([]), "holds no batch"),
    "an empty generator": (iter(()), "holds no batch"),
    "an empty batch": ([X[:90], X[:0], X[:5]], r"batch 2: input 'data' holds no examples; its shape is \(0, 3\)"),
    "rank 0": (np.array(3.0), "rank 0"),
    "rank 0 in a batch": ([np.array(3.0)], "batch 1: input 'data' has rank 0"),
    "another rank": ([X, X[:, 0]], "batch 2: input 'data' has rank 1; the batches before it had rank 2"),
    "strings": (np.array(["a", "b"]), "batch 1: input 'data' has dtype <U1; allowed: floats, uint8"),
    "objects": (np.array([{}, {}]), "input 'data' has dtype object"),
    "complex numbers": (X.astype(np.complex64), "input 'data' has dtype complex64"),
    "integers that MXNet lacks": (X.astype(np.uint64), "input 'data' has dtype uint64; allowed: floats, uint8, int8"),
    "booleans": (X > 0, "input 'data' has dtype bool"),
    "numbers": ([1.0, 2.0], "batch 1: it is float 1.0; allowed: an array"),
    "lists of numbers": ([[1.0, 2.0]], "batch 1: input 'data' is float 1.0; allowed: an array"),
    "wrong names": (
        {"dta": X, "mask": X},
        "batch 1: it has no array for input 'data', only 'dta', 'mask'; the inputs are 'data': name the arrays so, or",
    ),
    "labels alone": ({"label": X}, "batch 1: it has no array for input 'data', only 'label'"),
    "wrong name in a batch": (
        [{"data": X}, {"x": X, "y": X}],
        "batch 2: it has no array for input 'data', only 'x', 'y'",
    ),
    "no name": ([{}], "it has no array for input 'data', only nothing"),
    "different lengths": ((X, X[:50]), r"hold \[50, 100\] examples"),
    "a dict of lists": ({"data": [1, 2]}, "calibration data holds list; allowed: arrays"),
    "an empty pair": ([()], "batch 1: it holds 0 arrays; the inputs are 1: 'data'"),
    "a raising generator": (failing(), "reading calibration batch 2 failed: KeyError: 'no such file'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        list(feeds(data, ["data"], ALL))


def test_what_the_data_raised_is_chained() -> None:
    with pytest.raises(DataError) as caught:
        list(feeds(failing(), ["data"], ALL))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted() -> Iterator[Any]:
        yield X
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(feeds(interrupted(), ["data"], ALL))


def test_too_few_arrays_for_the_inputs() -> None:
    message = re.escape("calibration batch 1: it holds 1 arrays; the inputs are 2: 'tokens', 'types'")
    for data in (X, [X], [(X,)], [SimpleNamespace(data=[X], pad=0)]):
        with pytest.raises(DataError, match=message):
            list(feeds(data, ["tokens", "types"], ALL))


@pytest.mark.parametrize("size", [0, -1, "4", 1.5, None, True])
def test_batch_size_is_a_positive_number(size: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"batch_size is {size!r}; allowed: a whole number, 1 or more")):
        feeds(X, ["data"], ALL, batch_size=size)


def test_batch_size_may_be_of_numpy() -> None:
    got = feeds(X, ["data"], ALL, batch_size=np.int64(30))  # type: ignore[arg-type]
    assert [operator.length_hint(got), *(len(feed["data"]) for feed in got)] == [4, 30, 30, 30, 10]


def test_a_label_that_the_network_computes_with_and_nobody_gives() -> None:
    with pytest.raises(DataError, match=r"'softmax_label', only 'data', 'x'; .* before its loss \(sym.get_internals"):
        list(feeds([{"data": X, "x": X}], ["data", "softmax_label"], ALL))
