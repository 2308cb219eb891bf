"""Data in partitions: how files, pictures and records are cut and read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from PIL import Image

from mxq.data.preprocess import Preprocess
from mxq.distributed import Partitions


def numbers(load: Any = range, items: Any = (1, 2)) -> Partitions:
    return Partitions.of(load, items, "numbers")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: numbers(items=[]), mxq.ConfigError, "numbers has no partitions; at least one is needed"),
        (
            lambda: numbers(items=[1, 2, 1]),
            mxq.ConfigError,
            "numbers has 2 partitions called '1'; the keys must differ",
        ),
        (lambda: numbers(load=3), mxq.ConfigError, "load is 3; allowed: a function from a partition to batches"),  # type: ignore[arg-type]
        (lambda: Partitions("p", ((1, 2),), len), mxq.ConfigError, "p has a partition called 1; allowed: a text"),  # type: ignore[arg-type]
        (lambda: Partitions.files([], len), mxq.ConfigError, "files has no partitions"),
        (lambda: Partitions.files(["a", "b", "a"], len), mxq.ConfigError, "files lists 'a' 2 times"),
        (
            lambda: Partitions.files(["a"], len, 0),
            mxq.ConfigError,
            "per_partition is 0; allowed: a whole number from 1",
        ),
        (lambda: Partitions.images([]), mxq.ConfigError, "images has no partitions"),
        (lambda: Partitions.images("nowhere"), mxq.DataError, "nowhere does not exist; allowed: a folder of images"),
        (lambda: Partitions.recordio("nowhere.rec"), mxq.DataError, "no file 'nowhere.rec'"),
        (lambda: Partitions.recordio([]), mxq.ConfigError, "records has no partitions"),
    ],
)
def test_partitions_that_are_refused(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def shapes(partitions: Partitions) -> dict[str, list[tuple[int, ...]]]:
    """Key -> the shapes of the arrays of all batches."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for key, payload in partitions.items:
        for batch in partitions.load(payload):
            found.setdefault(key, []).extend(a.shape for a in (batch if isinstance(batch, list) else [batch]))
    return found


def test_files_are_read_one_by_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.npy" for n in range(3)]
    for n, path in enumerate(paths):
        np.save(path, np.full((40 * n + 1, 2), n, np.float32))
    found = Partitions.files(paths, np.load, per_partition=2)
    assert found.keys == (f"{paths[0]} +1", str(paths[2]))
    assert [b.shape for b in found.load(found.items[0][1])] == [(1, 2), (32, 2), (9, 2)]
    assert found.load(found.items[1][1]).shape == (81, 2)  # whole, for the caller to cut


def test_files_in_other_forms() -> None:
    x = np.arange(40.0).reshape(40, 1)
    forms = {"pair": (x, x[:, 0]), "names": {"data": x}, "batches": [x, x]}
    found = Partitions.files(forms, lambda path: forms[path.name], per_partition=3)
    pair, rest, names, other, *whole = found.load(found.items[0][1])
    assert [a.shape for a in (*pair, *rest)] == [(32, 1), (32,), (8, 1), (8,)]
    assert (names["data"].shape, other["data"].shape) == ((32, 1), (8, 1))
    assert [b.shape for b in whole] == [(40, 1), (40, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of 10 x 12, each of one grey, with labels."""
    target = tmp_path / "pictures"
    target.mkdir()
    for n in range(7):
        Image.new("RGB", (12, 10), (n, n, n)).save(target / f"{n}.png")
    (target / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n}\n" for n in range(7)))
    return target


def test_counts_may_be_of_numpy(folder: Path) -> None:
    two, three, four = cast("tuple[int, ...]", tuple(np.arange(2, 5)))
    found = Partitions.images(folder, batch_size=two, per_partition=three, examples=four)
    assert found.keys == ("pictures[0:3] of 4/7", "pictures[3:4] of 4/7")


def test_images_of_a_folder(folder: Path) -> None:
    found = Partitions.images(folder, batch_size=2, per_partition=3, preprocess=Preprocess(crop=(8, 8)))
    assert found.keys == ("pictures[0:3] of 7/7", "pictures[3:6] of 7/7", "pictures[6:7] of 7/7")
    assert shapes(found)["pictures[0:3] of 7/7"] == [(2, 3, 8, 8), (2,), (1, 3, 8, 8), (1,)]
    read = [batch for _, payload in found.items for batch in found.load(payload)]
    assert [n for x, _ in read for n in x[:, 0, 0, 0]] == list(range(7))
    assert [n for _, y in read for n in y] == list(range(7))


def test_some_images_spread_evenly(folder: Path) -> None:
    found = Partitions.images(folder, per_partition=2, examples=3)
    assert found.keys == ("pictures[0:2] of 3/7", "pictures[2:3] of 3/7")
    assert [n for _, payload in found.items for _, labels in found.load(payload) for n in labels] == [0, 2, 4]


def test_a_folder_that_changed(folder: Path) -> None:
    found = Partitions.images(folder, preprocess=Preprocess(scale=0.5))
    (folder / "labels.csv").write_text("file,label\n0.png,0\n")
    with pytest.raises(mxq.DataError, match=r"pictures holds 1 examples, not the 7 that were partitioned"):
        list(found.load(found.items[0][1]))


def test_images_by_their_paths(folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    found = Partitions.images(paths, batch_size=2, per_partition=3)
    assert list(shapes(found).values()) == [[(2, 3, 10, 12), (1, 3, 10, 12)]] * 2 + [[(1, 3, 10, 12)]]
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(mxq.DataError, match=r"1\.png cannot be read as an image"):
        list(found.load(found.items[0][1]))


def test_truncated_images_are_refused_whatever_others_allow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a folder: gluoncv makes Pillow fill in what is missing, in the whole process."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    photo = folder / "photo.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(photo)
    photo.write_bytes(photo.read_bytes()[:1000])
    found = Partitions.images([photo])
    with pytest.raises(mxq.DataError, match=r"photo\.jpg cannot be read as an image: image file is truncated"):
        list(found.load(found.items[0][1]))


@pytest.fixture
def shard(folder: Path, tmp_path: Path) -> Path:
    """The pictures of `folder` in a RecordIO file with its index."""
    target = tmp_path / "shard.rec"
    file = mx.recordio.MXIndexedRecordIO(str(target.with_suffix(".idx")), str(target), "w")
    for n in range(7):
        header = mx.recordio.IRHeader(0, float(n), n, 0)
        file.write_idx(n, mx.recordio.pack(header, (folder / f"{n}.png").read_bytes()))
    file.close()
    return target


def test_records(shard: Path) -> None:
    whole = Partitions.recordio(shard, batch_size=4, preprocess=Preprocess(label_offset=1))
    assert whole.keys == (str(shard),)
    assert shapes(whole)[str(shard)] == [(4, 3, 10, 12), (4,), (3, 3, 10, 12), (3,)]
    cut = Partitions.recordio([shard], batch_size=2, per_partition=3, preprocess=Preprocess(label_offset=1))
    assert cut.keys == tuple(f"{shard}[{a}]" for a in ("0:3", "3:6", "6:7"))
    for found in (whole, cut):
        read = [batch for _, payload in found.items for batch in found.load(payload)]
        assert [n for x, _ in read for n in x[:, 0, 0, 0]] == list(range(7))
        assert [n for _, y in read for n in y] == list(range(1, 8))


def test_records_that_are_none(shard: Path) -> None:
    promised = Partitions.recordio(shard, per_partition=7)
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(mxq.DataError, match=r"shard\.rec"):
        list(promised.load(promised.items[0][1]))
    shard.with_suffix(".idx").write_text("0 0\n")
    with pytest.raises(mxq.DataError, match="is no index of records: it has '0 0'; needed: a key, a tab"):
        Partitions.recordio(shard, per_partition=7)
    shard.with_suffix(".idx").unlink()
    with pytest.raises(mxq.DataError, match=r"no file .* without it a shard is one partition"):
        Partitions.recordio(shard, per_partition=7)
