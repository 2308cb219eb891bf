"""examples/voc.py: against gluoncv's metric, on cases worked out by hand, and on a directory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import voc

CLASSES = 4
UNIT = np.array([[0, 0.9, 0, 0, 10, 10]], np.float32)
TRUTH = np.array([[0, 0, 0, 10, 10]], np.float32)


def moved(rows: np.ndarray, score: float | None = None) -> np.ndarray:
    """Rows of detections or objects 50 to the right and down, with another score."""
    rows = rows.copy()
    rows[:, -4:] += 50
    if score is not None:
        rows[:, 1] = score
    return rows


def random_case(seed: int, pictures: int = 30) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Objects, and detections that find some of them, on a 100 x 100 pixel grid.

    Returns:
        For each picture (m, 6) detections, (k, 5) objects and (k,) difficult flags.
    """
    rng = np.random.default_rng(seed)
    found, truths, difficult = [], [], []
    for _ in range(pictures):
        count = rng.integers(1, 7)
        corner, side = rng.integers(0, 60, (count, 2)), rng.integers(10, 40, (count, 2))
        label = rng.integers(0, CLASSES, (count, 1))
        truths.append(np.hstack([label, corner, corner + side]).astype(np.float32))
        difficult.append(rng.random(count) < 0.25)
        copies = rng.integers(0, count, rng.integers(1, 12))
        boxes = truths[-1][copies, 1:] + rng.normal(0, 4, (len(copies), 4))
        wrong = rng.integers(0, CLASSES, len(copies))
        label = np.where(rng.random(len(copies)) < 0.8, truths[-1][copies, 0], wrong)
        score = rng.random(len(copies))
        found.append(np.column_stack([label, score, boxes]).astype(np.float32))
    return found, truths, difficult


@pytest.fixture(scope="module")
def metrics() -> ModuleType:
    """gluoncv's metrics, tried once: a failed import leaves half of gluoncv behind."""
    return pytest.importorskip("gluoncv.utils.metrics.voc_detection", reason="needs gluoncv", exc_type=ImportError)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("eleven_point", [True, False])
def test_equals_gluoncv(metrics: ModuleType, seed: int, eleven_point: bool) -> None:
    """Means and classes agree; gluoncv adds 1 to the last pixel, so it gets pixels."""
    found, truths, difficult = random_case(seed)
    names = [str(i) for i in range(CLASSES)]
    kind = metrics.VOC07MApMetric if eleven_point else metrics.VOCMApMetric
    metric = kind(iou_thresh=0.5, class_names=names)
    pixels = np.float32([0, 0, 1, 1])
    for boxes, truth, flags in zip(found, truths, difficult, strict=True):
        metric.update(
            boxes[None, :, 2:] - pixels, boxes[None, :, 0], boxes[None, :, 1],
            truth[None, :, 1:] - pixels, truth[None, :, 0], flags[None].astype(np.float32),
        )  # fmt: skip
    theirs = np.array(metric.get()[1], float)
    ours = voc.mean_ap(found, truths, CLASSES, difficult=difficult, eleven_point=eleven_point)
    np.testing.assert_allclose([*ours.classes, ours.mean], theirs, rtol=0, atol=1e-9)


def test_second_find_of_an_object_is_wrong() -> None:
    """One object found twice: precision 1 at full recall, in either definition."""
    twice = [np.concatenate([UNIT, UNIT * np.float32([1, 0.5, 1, 1, 1, 1])])]
    assert voc.mean_ap(twice, [TRUTH], 1).mean == pytest.approx(1.0)
    first_is_wrong = [np.concatenate([moved(UNIT), twice[0][1:]])]
    assert voc.mean_ap(first_is_wrong, [TRUTH], 1).mean == pytest.approx(0.5)


def test_eleven_points_and_area_differ() -> None:
    """One of two objects found: 6 of 11 levels reach 0..0.5, half of the area."""
    truth = np.concatenate([TRUTH, moved(TRUTH)])
    assert voc.mean_ap([UNIT], [truth], 1).mean == pytest.approx(6 / 11)
    assert voc.mean_ap([UNIT], [truth], 1, eleven_point=False).mean == pytest.approx(0.5)


def test_difficult_objects_do_not_count() -> None:
    """A difficult object is neither missed nor found; without others there is no AP."""
    truth = np.concatenate([TRUTH, moved(TRUTH)])
    hard = [np.array([False, True])]
    both = np.concatenate([moved(UNIT, 0.95), UNIT])
    for found in (UNIT, both):
        assert voc.mean_ap([found], [truth], 1, difficult=hard).mean == pytest.approx(1.0)
    assert np.isnan(voc.mean_ap([UNIT], [TRUTH], 1, difficult=[np.array([True])]).mean)


def test_empty_pictures() -> None:
    """No detections score 0; unused rows (class -1) and classes without objects are left out."""
    nothing = np.empty((0, 6), np.float32)
    assert voc.mean_ap([nothing], [TRUTH], 3).mean == 0
    score = voc.mean_ap([np.concatenate([UNIT, -np.ones((1, 6))])], [TRUTH], 3)
    assert score.mean == pytest.approx(1.0)
    assert np.isnan(score.classes).tolist() == [False, True, True]


def test_lengths_must_agree() -> None:
    """The message names the numbers found."""
    with pytest.raises(ValueError, match="1 detections, 2 truths"):
        voc.mean_ap([UNIT], [TRUTH, TRUTH], 1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A VOC directory of two pictures, 20 x 10 pixels."""
    box = "<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
    objects = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult>{box}</object>"
        for name, hard in (("dog", 0), ("unicorn", 0), ("cat", 1))
    )
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, content in (("b", objects), ("a", "")):
        size = "<size><width>20</width><height>10</height></size>"
        text = f"<annotation>{size}{content}</annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
        Image.new("RGB", (20, 10), (250, 0, 0)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("b -1\n\n")
    return tmp_path


def test_read_directory(directory: Path) -> None:
    """Pixels 1..20 of 20 are the edges 0..1; unknown classes are left out."""
    empty, full = voc.read(directory)
    assert (empty.path.name, full.path.name) == ("a.jpg", "b.jpg")
    assert empty.boxes.shape == (0, 5)
    dog, cat = voc.CLASSES.index("dog"), voc.CLASSES.index("cat")
    np.testing.assert_allclose(full.boxes, [[dog, 0, 0.2, 1, 1], [cat, 0, 0.2, 1, 1]], atol=1e-7)
    assert full.difficult.tolist() == [False, True]
    images = voc.load_images([empty, full], 32)
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images[..., 0].min() > 240


def test_read_image_set(directory: Path) -> None:
    """A list chooses the pictures; a missing picture is an error that names it."""
    assert [s.path.stem for s in voc.read(directory, image_set="test")] == ["b"]
    (directory / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        voc.read(directory)


def test_read_nothing(tmp_path: Path) -> None:
    """An empty directory is an error, not an empty list."""
    with pytest.raises(FileNotFoundError, match="no annotated pictures"):
        voc.read(tmp_path)
