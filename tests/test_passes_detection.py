"""Detection: what is chosen from, that every detection stays the same bit by bit, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import GOLDENS, graph, reasons, rewritten, run
from helpers import assert_golden

from mxq import pipeline
from mxq.graph.ir import Model, Ref
from mxq.graph.serde import write_text
from mxq.passes import candidates
from mxq.passes.detection import DETECTION, ChooseBoxes, ChooseRows
from mxq.rewrite import apply_rules, run_pass
from mxq.runtime import MxnetRunner

K, KEPT, CLASSES = 12, 8, 3
NMS = f'coord_start="2" id_index="0" score_index="1" overlap_thresh="0.5" topk="{K}" valid_thresh="0.01"'
OUTPUTS = (
    f'kept = slice_axis(nms) axis="1" begin="0" end="{KEPT}"',
    'ids = slice_axis(kept) axis="2" begin="0" end="1"',
    'scores = slice_axis(kept) axis="2" begin="1" end="2"',
    'boxes = slice_axis(kept) axis="2" begin="2" end="6"',
    "return ids, scores, boxes",
)


def rows(nms: str = NMS, *, table: str = 'table = Reshape(data) shape="(0, -1, 6)"', outputs=OUTPUTS) -> Model:
    """The rows of "data" go to box_nms as they are."""
    return Model(graph(table, f"nms = _contrib_box_nms(table) {nms}", *outputs))


def ssd(nms: str = NMS, *, classes: int = CLASSES, threshold: float = 0.01, swap: tuple[str, str] = ("", "")) -> Model:
    """The end of gluoncv's SSD: class probabilities "data" (N, A, C + 1) and "every" box (N, A, 4) are fed."""
    numbers = f'repeat="1" start="{classes}" step="1.0" stop="None"'
    lines = [
        f'data3 = Reshape(data) shape="(0, -1, {classes + 1})"',
        'raw = slice_axis(data3) axis="-1" begin="1" end="None"',
        f'mask = _greater_scalar(raw) scalar="{threshold}"',
        "none = zeros_like(raw)",
        "score = where(mask, raw, none)",
        'first = slice_axis(data3) axis="-1" begin="0" end="1"',
        "zero = zeros_like(first)",
        f'count = _arange() dtype="float32" {numbers}',
        f'classes = Reshape(count) shape="(1, 1, {classes})"',
        "id = broadcast_add(zero, classes)",
        "one = ones_like(id)",
        'minus = _mul_scalar(one) scalar="-1"',
        "kind = where(mask, id, minus)",
    ]
    for i in range(classes):
        lines += [
            f'kind{i} = slice_axis(kind) axis="-1" begin="{i}" end="{i + 1}"',
            f'score{i} = slice_axis(score) axis="-1" begin="{i}" end="{i + 1}"',
        ]
    lines += [f'block{i} = Concat(kind{i}, score{i}, every) dim="-1" num_args="3"' for i in range(classes)]
    blocks = ", ".join(f"block{i}" for i in range(classes))
    lines += [f'table = Concat({blocks}) dim="1" num_args="{classes}"', f"nms = _contrib_box_nms(table) {nms}"]
    return Model(graph(*(line.replace(*swap) for line in (*lines, *OUTPUTS))))


def yolo(nms: str = NMS, *, scales: int = 2, swap: tuple[str, str] = ("", "")) -> Model:
    """The end of gluoncv's YOLOv3: for each scale scores "s" (N, P, 3, C) and boxes "b" (N, P, 3, 4) are fed."""
    lines = []
    for i in range(scales):
        numbers = f'repeat="1" start="0" step="1.0" stop="{CLASSES}"'
        lines += [
            f'turned{i} = transpose(s{i}) axes="(3, 0, 1, 2)"',
            f'column{i} = expand_dims(turned{i}) axis="-1"',
            f'zero{i} = _mul_scalar(column{i}) scalar="0"',
            f'count{i} = _arange() dtype="float32" infer_range="False" {numbers}',
            f'classes{i} = Reshape(count{i}) shape="(0, 1, 1, 1, 1)"',
            f"id{i} = broadcast_add(zero{i}, classes{i})",
            f'tile{i} = tile(b{i}) reps="({CLASSES}, 1, 1, 1, 1)"',
            f'all{i} = Concat(id{i}, column{i}, tile{i}) dim="-1" num_args="3"',
            f'order{i} = transpose(all{i}) axes="(1, 0, 2, 3, 4)"',
            f'part{i} = Reshape(order{i}) shape="(0, -1, 6)"',
        ]
    parts = ", ".join(f"part{i}" for i in range(scales))
    lines += [f'table = Concat({parts}) dim="1" num_args="{scales}"', f"nms = _contrib_box_nms(table) {nms}"]
    return Model(graph(*(line.replace(*swap) for line in (*lines, *OUTPUTS))))


# ---- inputs ------------------------------------------------------------------------------------------------------


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0, 1, shape)


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Four values, as the end of an int8 network may give."""
    return rng.integers(0, 4, shape) / 4


def _equal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 0.7)


def _low(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """At most the threshold."""
    return rng.choice([0.0, 0.005, 0.01, -0.3], shape)


def _few(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Fewer over the threshold than are kept."""
    return np.where(rng.uniform(0, 1, shape) < 0.02, rng.uniform(0, 1, shape), 0)


def _neighbours(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Adjacent floats around powers of two, where their spacing changes, and the smallest scores that count."""
    near = np.float32([0.5, 0.25, 0.01, 1.0])
    steps = [np.nextafter(near, np.float32(2)), near, np.nextafter(near, np.float32(0))]
    return rng.choice(np.concatenate(steps), shape)


def _endless(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Tiny and huge."""
    return rng.choice(np.float32([1e-30, 0.02, 3e38, 1e20, -1e30]), shape)


def _ladder(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every score the float next to another's."""
    return 0.5 + rng.permutation(int(np.prod(shape))).reshape(shape) * 2.0**-24


SCORES = (_spread, _ties, _equal, _low, _few, _neighbours, _ladder, _endless)


def _boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    corner = rng.integers(0, 12, (*shape, 2))
    return np.concatenate([corner, corner + rng.integers(1, 8, (*shape, 2))], axis=-1).astype(np.float32)


def fed(net: str, scores, seed: int = 0, count: int = 40, batch: int = 3) -> dict[str, np.ndarray]:
    """Inputs of `rows`, `ssd` or `yolo`: ``count`` rows or boxes of each example."""
    rng = np.random.default_rng(seed)
    if net == "rows":
        ids = rng.integers(-1, CLASSES, (batch, count, 1))
        made = np.concatenate([ids, scores(rng, (batch, count, 1)), _boxes(rng, (batch, count))], axis=-1)
        return {"data": made.astype(np.float32)}
    if net == "ssd":
        given = scores(rng, (batch, count, CLASSES + 1)).astype(np.float32)
        return {"data": given, "every": _boxes(rng, (batch, count))}
    found = {}
    for i, cells in enumerate((count, max(count // 4, 1))):
        found[f"s{i}"] = scores(rng, (batch, cells, 3, CLASSES)).astype(np.float32)
        found[f"b{i}"] = _boxes(rng, (batch, cells, 3))
    return found


NETS = {
    "rows": (rows, "nms_of_chosen_rows"),
    "ssd": (ssd, "nms_of_chosen_boxes"),
    "yolo": (yolo, "nms_of_chosen_boxes"),
}


def assert_identical(model: Model, result: Model, given: dict[str, np.ndarray]) -> None:
    assert [str(h) for h in model.graph.heads] == [str(h) for h in result.graph.heads]
    for wanted, found in zip(run(model, given), run(result, given), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(found, wanted)


# ---- what fires --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_fires_once_and_settles(net, update_goldens):
    make, rule = NETS[net]
    model = make()
    result, trace = run_pass(DETECTION, model)
    assert [e.rule for e in trace.events if e.fired] == [rule]
    assert_golden(write_text(result.graph), GOLDENS / f"detection_{net}.txt", update=update_goldens)
    result, trace = run_pass(DETECTION, result)
    assert result is result


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("net", NETS)
def test_identical(net, scores):
    model = NETS[net][0]()
    result = rewritten(DETECTION, model)
    for seed in range(4):
        assert_identical(model, result, fed(net, scores, seed))


@pytest.mark.parametrize(("count", "batch"), [(400, 1), (2000, 2), (8, 3), (9, 1)])
@pytest.mark.parametrize("scores", [_spread, _ties, _equal])
@pytest.mark.parametrize("net", NETS)
def test_any_number_of_candidates_and_examples(net, scores, count, batch):
    """Also fewer candidates than topk, and so many that ``topk`` sorts in part."""
    model = NETS[net][0]()
    assert_identical(model, rewritten(DETECTION, model), fed(net, scores, count=count, batch=batch))


@pytest.mark.parametrize(
    "nms",
    [
        NMS + ' force_suppress="True"',
        NMS + ' in_format="center" out_format="corner"',
        NMS + ' out_format="center"',
        NMS.replace("0.5", "0.9").replace('valid_thresh="0.01"', 'valid_thresh="0.3"'),
        NMS.replace('valid_thresh="0.01"', ""),
    ],
)
@pytest.mark.parametrize("net", NETS)
def test_other_settings_of_nms(net, nms):
    model = NETS[net][0](nms)
    result = rewritten(DETECTION, model)
    assert result is not model
    for scores in (_spread, _ties):
        assert_identical(model, result, fed(net, scores))


@pytest.mark.parametrize(
    "nms", [NMS + ' background_id="0"', NMS.replace('id_index="0"', ""), NMS + ' background_id="1"']
)
def test_rows_of_the_background_take_no_place(nms):
    model = rows(nms)
    result = rewritten(DETECTION, model)
    assert result is not model
    for scores in (_spread, _ties, _equal):
        assert_identical(model, result, fed("rows", scores))


def test_columns_in_another_order():
    nms = NMS.replace('coord_start="2"', 'coord_start="0"').replace('id_index="0"', 'id_index="5"')
    model = rows(nms.replace('score_index="1"', 'score_index="4"'))
    result = rewritten(DETECTION, model)
    given = fed("rows", _ties)["data"]
    turned = np.ascontiguousarray(given[..., [2, 3, 4, 5, 1, 0]])
    assert_identical(model, result, {"data": turned})


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.4])
def test_the_decoders_threshold_counts(threshold):
    model = ssd(threshold=threshold)
    result = rewritten(DETECTION, model)
    assert result.graph["nms"].number("valid_thresh", 0) == max(threshold, 0.01)
    assert_identical(model, result, fed("ssd", _spread))


def test_what_made_the_table_goes():
    before, after = ssd(), rewritten(DETECTION, ssd())
    assert "table" in before.graph
    assert not {"table", "kind", "score", "block0"} & {n.name for n in after.graph}
    assert not {"tile0", "all1", "zero0"} & {n.name for n in rewritten(DETECTION, yolo()).graph}


def test_one_scale_and_one_class():
    assert_identical(
        yolo(scales=1), rewritten(DETECTION, yolo(scales=1)), {k: v for k, v in fed("yolo", _ties).items() if "0" in k}
    )
    model, given = ssd(classes=1), fed("ssd", _ties)
    result = rewritten(DETECTION, model)
    assert_identical(model, result, {"data": given["data"][..., :2], "every": given["every"]})


@pytest.mark.parametrize("runner", [None, MxnetRunner()], ids=["alone", "constants"])
def test_it_is_part_of_the_preparation(runner):
    result, trace = pipeline.prepare(ssd(), runner)
    assert trace.fired("nms_of_chosen_boxes") == 1
    assert_identical(ssd(), result, fed("ssd", _ties))
    assert_identical(yolo(), pipeline.fuse_float(yolo()), fed("yolo", _ties))


# ---- teeth -------------------------------------------------------------------------------------------------------


def differences(net: str) -> int:
    """How many of some hard inputs the rewritten network answers otherwise."""
    model, found = NETS[net][0](), 0
    result = rewritten(DETECTION, model)
    for seed, scores in enumerate((_ties, _equal, _ladder, _spread, _spread, _spread)):
        given = fed(net, scores, seed, count=400, batch=8)
        pairs = zip(run(model, given), run(result, given), strict=True)
        found += not all(np.array_equal(wanted, got) for wanted, got in pairs)
    return found


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0**-12, 2.0**27])
def test_wrong_keys_are_noticed(net, factor, monkeypatch):
    """No ranks, ranks the wrong way round, ranks too fine for float64, ranks that outweigh scores."""
    assert differences(net) == 0
    monkeypatch.setattr(candidates, "UNIT", factor * candidates.UNIT)
    assert differences(net) > 0


@pytest.mark.parametrize("net", NETS)
def test_choosing_too_few_is_noticed(net, monkeypatch):
    good = candidates.choose

    def wrong(make, scores, classes, k):
        return good(make, scores, classes, k - 4)

    monkeypatch.setattr("mxq.passes.detection.choose", wrong)
    assert differences(net) > 0


@pytest.mark.parametrize("net", ["ssd", "yolo"])
def test_boxes_of_other_rows_are_noticed(net, monkeypatch):
    good = candidates.gather
    monkeypatch.setattr("mxq.passes.detection.gather", lambda make, table, row: good(make, table, Ref("nms_kind")))
    assert differences(net) > 0


# ---- refusals ----------------------------------------------------------------------------------------------------

WHOLE = ("return nms",)
REFUSED = {
    "no topk": (NMS.replace(f'topk="{K}"', ""), OUTPUTS, "it compares all candidates (topk is not given)"),
    "many": (NMS.replace(f'topk="{K}"', 'topk="6000"'), OUTPUTS, "it keeps 6000 candidates; choosing pays up to 1000"),
    "negative scores": (
        NMS.replace("0.01", "-0.1"),
        OUTPUTS,
        "its valid_thresh -0.1 lets scores of zero and less count",
    ),
    "head": (NMS, WHOLE, "its whole result is an output of the network"),
    "read whole": (NMS, ("z = exp(nms)", "return z"), "'z' may read more of its result than the first 12 rows"),
    "read beyond": (
        NMS,
        ('z = slice_axis(nms) axis="1" begin="0" end="13"', "return z"),
        "'z' may read more of its result than the first 12 rows",
    ),
    "read from the end": (
        NMS,
        ('z = slice_axis(nms) axis="1" begin="-4" end="-1"', "return z"),
        "'z' may read more of its result than the first 12 rows",
    ),
    "another axis": (
        NMS,
        ('z = slice_axis(nms) axis="2" begin="0" end="2"', "return z"),
        "'z' may read more of its result than the first 12 rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    nms, outputs, reason = REFUSED[name]
    model = rows(nms, outputs=outputs)
    result, trace = apply_rules(model, (ChooseRows(),))
    assert result is model
    assert reasons(trace, "nms_of_chosen_rows") == [reason]


def test_refuses_a_table_of_unknown_axes():
    model = rows(table="table = exp(data)")
    result, trace = run_pass(DETECTION, model)
    assert result is model
    assert reasons(trace, "nms_of_chosen_rows") == ["nothing shows that its candidates are (N, M, W)"]


def test_refuses_half_precision():
    table = ("b = broadcast_mul(data, w)", 'table = Reshape(b) shape="(0, -1, 6)"')
    net = graph(*table, f"nms = _contrib_box_nms(table) {NMS}", *OUTPUTS)
    model = Model(net, {"w": np.ones((1, 1, 1), np.float16)})
    result, trace = run_pass(DETECTION, model)
    assert result is model
    assert reasons(trace, "nms_of_chosen_rows") == ["the network has float16 parameters"]


OTHER_SSD = {
    "another mask": ("kind = where(mask,", "kind = where(raw,", "'kind' (where) has another mask than the scores"),
    "another zero": ("none = zeros_like", "none = ones_like", "'none' (ones_like) is not a zeros_like"),
    "negative threshold": ('scalar="0.01"', 'scalar="-0.5"', "'mask' (_greater_scalar) lets scores below zero count"),
    "other boxes": ("block2 = Concat(kind2, score2, every)", "block2 = Concat(kind2, score2, more)",
                    "'block2' (Concat) is not the block of its class"),
    "scores exchanged": ("(kind1, score1,", "(kind1, score2,",
                          "'block1' (Concat) is not the block of its class"),
    "other numbers": ('start="3"', 'start="5"', "'count' (_arange) does not count to 3 classes"),
    "another step": ('step="1.0"', 'step="2.0"', "'count' (_arange) does not count to 3 classes"),
    "numbers elsewhere": ('shape="(1, 1, 3)"', 'shape="(1, 3, 1)"',
                          "'classes' (Reshape) does not lay the class numbers along the classes"),
}  # fmt: skip
OTHER_YOLO = {
    "another order": ('axes="(1, 0, 2, 3, 4)"', 'axes="(1, 2, 0, 3, 4)"',
                      "'order0' (transpose) does not put classes behind examples"),
    "another turn": ('axes="(3, 0, 1, 2)"', 'axes="(3, 0, 2, 1)"', "'turned0' (transpose) does not put classes first"),
    "another tile": ('reps="(3, 1, 1, 1, 1)"', 'reps="(3, 1, 1, 1, 2)"',
                     "'tile0' (tile) does not repeat boxes once for each class"),
    "ids not zero": ('scalar="0"', 'scalar="1"', "'zero0' (_mul_scalar) is not zero in the shape of the scores"),
    "other rows": ('shape="(0, -1, 6)"', 'shape="(0, -1, 3)"', "'part0' (Reshape) does not make rows of 6"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "old", "new", "reason"), [
    *((ssd, *case) for case in OTHER_SSD.values()), *((yolo, *case) for case in OTHER_YOLO.values()),
], ids=[*OTHER_SSD, *OTHER_YOLO])  # fmt: skip
def test_other_tables_are_not_taken_for_gluoncvs(make, old, new, reason):
    model = make(swap=(old, new))
    result, trace = apply_rules(model, (ChooseBoxes(),))
    assert result is model
    (why,) = reasons(trace, "nms_of_chosen_boxes")
    assert reason in why


@pytest.mark.parametrize(
    ("nms", "reason"),
    [
        (NMS + ' background_id="1"', "class 1 is its background"),
        (NMS.replace('id_index="0"', ""), "it reads id, score and box from columns (-1, 1, 2), which are (0, 1, 2)"),
    ],
)
def test_refuses_other_columns(nms, reason):
    model = ssd(nms)
    result, trace = apply_rules(model, (ChooseBoxes(),))
    assert result is model
    assert reasons(trace, "nms_of_chosen_boxes") == [reason]
    result, trace = run_pass(DETECTION, model)  # its rows are chosen whole
    assert trace.fired("nms_of_chosen_rows") == 1
    assert_identical(model, result, fed("ssd", _ties))


def test_a_taken_name_is_avoided():
    lines = ('nms_best = Reshape(data) shape="(0, -1, 6)"', f"nms = _contrib_box_nms(nms_best) {NMS}")
    model = Model(graph(*lines, *OUTPUTS))
    result = rewritten(DETECTION, model)
    assert result.graph["nms_best0"].op == "topk"
    assert_identical(model, result, fed("rows", _ties))
