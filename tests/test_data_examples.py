"""Pictures and arrays from disk."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from PIL import Image, ImageFile

from mxq.config import Budget
from mxq.data import pictures
from mxq.data.examples import open_source, read_picture
from mxq.data.feeding import feeds
from mxq.data.preprocess import Preprocess, read_preprocess
from mxq.errors import ConfigError, DataError, FormatError


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Every pixel is different: red counts rows, green columns, blue is 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def folder(where: Path, count: int, size: tuple[int, int] = (6, 8), labels: str | None = None) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(*size) + np.uint8(i)).save(where / f"{i:02}.png")
    if labels is not None:
        (where / "labels.csv").write_text(labels)
    return where


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found, np.asarray(expected))


class TestPreprocess:
    def test_pixels_become_channels_first_floats(self) -> None:
        example = Preprocess()(Image.fromarray(picture(4, 5)))
        assert (example.shape, example.dtype) == ((3, 4, 5), np.float32)
        same(example, picture(4, 5).transpose(2, 0, 1))

    def test_numbers_of_numpy_can_be_written(self) -> None:
        found = Preprocess(scale=np.float32(0.5), mean=(np.float32(1),) * 3, std=np.float64(2)).to_json()
        assert json.loads(json.dumps(found))["scale"] == 0.5

    def test_scale_comes_before_mean_and_std(self) -> None:
        example = Preprocess(scale=0.5, mean=(1, 2, 3), std=(2, 4, 8))(Image.fromarray(picture(4, 5)))
        same(example[:, 3, 4], [(3 * 0.5 - 1) / 2, (4 * 0.5 - 2) / 4, (7 * 0.5 - 3) / 8])

    def test_layout_color_and_rotation(self) -> None:
        image = Image.fromarray(picture(4, 5))
        same(Preprocess(layout="NHWC")(image), picture(4, 5))
        same(Preprocess(color="BGR", layout="NHWC")(image)[1, 2], [7, 2, 1])
        same(Preprocess(rotate180=True, layout="NHWC")(image)[0, 0], [3, 4, 7])
        # The statistics are given in the order of the network's channels.
        same(Preprocess(color="BGR", mean=(7, 0, 0), layout="NHWC")(image)[1, 2], [0, 2, 1])
        assert Preprocess(color="GRAY")(image).shape == (1, 4, 5)

    def test_crop_takes_the_middle(self) -> None:
        example = Preprocess(crop=(2, 3), layout="NHWC")(Image.fromarray(picture(6, 9)))
        same(example[0, 0], [2, 3, 7])
        assert example.shape == (2, 3, 3)

    def test_short_side_keeps_proportions(self) -> None:
        assert Preprocess(short_side=10)(Image.fromarray(picture(20, 30))).shape == (3, 10, 15)
        assert Preprocess(short_side=10)(Image.fromarray(picture(30, 20))).shape == (3, 15, 10)
        assert Preprocess(short_side=10, crop=8)(Image.fromarray(picture(30, 20))).shape == (3, 8, 8)  # type: ignore[arg-type]

    def test_resize_stretches(self) -> None:
        assert Preprocess(resize=(4, 9))(Image.fromarray(picture(30, 20))).shape == (3, 4, 9)

    def test_shape_is_known_beforehand_where_it_does_not_depend_on_the_picture(self) -> None:
        for settings in (
            Preprocess(resize=(4, 9)),
            Preprocess(crop=(4, 9), layout="NHWC"),
            Preprocess(crop=(4, 9), color="GRAY"),
        ):
            assert settings.shape == settings(Image.fromarray(picture(30, 20))).shape
        assert Preprocess(short_side=10).shape is None

    def test_a_crop_that_does_not_fit(self) -> None:
        with pytest.raises(DataError, match=r"crop 8x8 does not fit a picture of 6x9"):
            Preprocess(crop=(8, 8))(Image.fromarray(picture(6, 9)))

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({"color": "rgb"}, "color is 'rgb'; allowed: 'RGB', 'BGR', 'GRAY'"),
            ({"layout": "CHW"}, "layout is 'CHW'"),
            ({"mean": (1, 2)}, r"mean is \(1, 2\); allowed: one number, or 3"),
            ({"mean": ("a",)}, "mean is"),
            ({"std": 0}, "std is .* allowed: numbers from 1e-12 to"),
            ({"scale": 0}, "scale is 0"),
            ({"short_side": 2.5}, "short_side is 2.5; allowed: a whole number"),
            ({"crop": (1, 2, 3)}, r"crop is \(1, 2, 3\); allowed: a side, or \(height, width\)"),
            ({"crop": 0}, "crop is 0"),
            ({"resize": (2, 2), "crop": (1, 1)}, "one way or the other"),
            ({"scale": "x"}, "scale is 'x'; allowed: a number from 1e-12 to"),
            ({"scale": None}, "scale is None"),
            ({"scale": np.inf}, "scale is inf"),
            ({"scale": True}, "scale is True"),
            ({"mean": "124"}, "mean is '124'; allowed: one number"),
            ({"mean": np.nan}, "mean is nan"),
            ({"mean": (0, 0, -np.inf)}, "mean is"),
            ({"mean": 10**400}, "mean is 1000"),
            ({"std": np.inf}, "std is inf"),
            ({"std": 1e-40}, "std is"),
            ({"label_offset": "x"}, "label_offset is 'x'; allowed: a whole number"),
            ({"label_offset": 2**70}, "label_offset is .* to 2147483648"),
            ({"rotate180": 1}, "rotate180 is 1; allowed: True, False"),
        ],
    )
    def test_mistakes_are_named(self, settings: dict[str, Any], found: str) -> None:
        with pytest.raises(ConfigError, match=found):
            Preprocess(**settings)

    def test_json(self, tmp_path: Path) -> None:
        settings = Preprocess(short_side=256, crop=(224, 224), mean=(1, 2, 3), rotate180=True, label_offset=1)
        file = tmp_path / "preprocess.json"
        file.write_text(json.dumps(settings.to_json()))
        assert read_preprocess(file) == settings

    def test_json_may_spell_out_a_stretch(self) -> None:
        data = {"width": 320, "height": 240, "resize": "stretch, bilinear", "classes": ["face"], "output": "rows"}
        assert Preprocess.from_json(data) == Preprocess(resize=(240, 320))
        with pytest.raises(ConfigError, match="resize is 'letterbox'"):
            Preprocess.from_json({**data, "resize": "letterbox"})

    def test_json_mistakes(self, tmp_path: Path) -> None:
        file = tmp_path / "preprocess.json"
        file.write_text('{"means": 3}')
        with pytest.raises(
            FormatError, match=r"preprocess.json has an unknown field 'means'; allowed: short_side, crop"
        ):
            read_preprocess(file)
        file.write_text('{"color": 3}')
        with pytest.raises(ConfigError, match=r"preprocess.json: color is 3"):
            read_preprocess(file)
        file.write_text("{")
        with pytest.raises(FormatError, match="is not JSON"):
            read_preprocess(file)
        file.write_text("[]")
        with pytest.raises(FormatError, match="is a list"):
            read_preprocess(file)
        with pytest.raises(FormatError, match=r"no file '.*none.json'"):
            read_preprocess(tmp_path / "none.json")


class TestFolder:
    def test_batches_are_sorted_and_the_last_is_short(self, tmp_path: Path) -> None:
        source = open_source(folder(tmp_path, 5), ("x",), batch_size=2)
        assert (len(source), source.examples, source.labels) == (3, 5, None)
        for _ in range(2):  # reads anew each time
            batches = [b["x"] for b in source]
            assert [b.shape for b in batches] == [(2, 3, 6, 8), (2, 3, 6, 8), (1, 3, 6, 8)]
            same(np.concatenate(batches)[:, 2, 0, 0], [7, 8, 9, 10, 11])

    def test_files_are_read_when_their_batch_is_asked_for(self, tmp_path: Path) -> None:
        folder(tmp_path, 3)
        (tmp_path / "02.png").write_bytes(b"nothing")
        batches = iter(open_source(tmp_path, batch_size=2))
        next(batches)
        with pytest.raises(DataError, match=r"02.png cannot be read as an image"):
            next(batches)

    def test_a_truncated_image_is_named(self, tmp_path: Path) -> None:
        folder(tmp_path, 1, (60, 80))
        file = tmp_path / "00.png"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(DataError, match=r"00.png"):
            list(open_source(tmp_path))

    def test_folders_within_and_other_files(self, tmp_path: Path) -> None:
        folder(tmp_path / "cats", 2)
        folder(tmp_path / "dogs", 1)
        (tmp_path / "readme.txt").write_text("no image")
        assert open_source(tmp_path).examples == 3

    def test_labels(self, tmp_path: Path) -> None:
        folder(tmp_path, 3, labels="file,label\n02.png,20\n00.png,0\n")
        source = open_source(tmp_path, preprocess=Preprocess(label_offset=1))
        assert source.labels is not None
        same(source.labels, [21, 1])
        same(next(iter(source))["data"][:, 2, 0, 0], [9, 7])

    def test_labels_by_index_and_from_elsewhere(self, tmp_path: Path) -> None:
        folder(tmp_path / "images", 2)
        (tmp_path / "other.csv").write_text('file,index,wnid,name\n00.png,4,n0,a fish\n01.png,6,n1,"b, c"\n')
        source = open_source(tmp_path / "images", labels=tmp_path / "other.csv")
        assert source.labels is not None
        same(source.labels, [4, 6])

    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ("name,label\n", "has columns name, label; needed: file, and label or index"),
            ("", "has columns none"),
            ("file,label\n00.png,cat\n", "line 2: label is 'cat'"),
            ("file,label\n00.png\n", "line 2: label is None"),
            ("file,label\n09.png,1\n", "lists '09.png'"),
            ("file,label\n", "holds no images"),
        ],
    )
    def test_label_mistakes(self, tmp_path: Path, labels: str, found: str) -> None:
        with pytest.raises(DataError, match=found):
            open_source(folder(tmp_path, 1, labels=labels))

    def test_take_spreads_evenly(self, tmp_path: Path) -> None:
        table = "file,label\n" + "".join(f"{i:02}.png,{i}\n" for i in range(10))
        source = open_source(folder(tmp_path, 10, labels=table), batch_size=2)
        part = source.take(4)
        assert (part.examples, len(part), part.take(99)) == (4, 2, part)
        assert part.labels is not None
        same(part.labels, [0, 2, 5, 7])
        same(np.concatenate([b["data"] for b in part])[:, 2, 0, 0], [7, 9, 12, 14])
        again = part.take(2)
        assert again.labels is not None
        same(again.labels, [0, 5])
        same(next(iter(again))["data"][:, 2, 0, 0], [7, 12])

    @pytest.mark.parametrize("picked", [10, 7])
    def test_it_starts_at_any_batch(self, tmp_path: Path, picked: int) -> None:
        source = open_source(folder(tmp_path, 10), batch_size=3).take(picked)
        whole = [b["data"] for b in source]
        for start in range(len(source) + 2):
            rest = [b["data"] for b in source.starting_at(start)]
            assert len(rest) == max(len(source) - start, 0)
            for found, expected in zip(rest, whole[start:], strict=True):
                same(found, expected)

    def test_what_comes_before_the_start_is_not_read(self, tmp_path: Path) -> None:
        source = open_source(folder(tmp_path, 8), batch_size=2)
        wanted = [b["data"] for b in source]
        got = feeds(source, ["data"], Budget(percent=100.0))
        for i in range(2, 6):
            (tmp_path / f"{i:02}.png").unlink()
        for found, expected in zip(got.resumed(3, 6), [wanted[0], wanted[3]], strict=True):
            same(found["data"], expected)
        assert (got.examples, got.batches) == (8, 4)
        with pytest.raises(DataError, match=r"no file '.*02.png'"):
            list(got)

    def test_sizes_that_differ(self, tmp_path: Path) -> None:
        folder(tmp_path, 1)
        Image.fromarray(picture(5, 5)).save(tmp_path / "99.png")
        with pytest.raises(DataError, match=r"99.png has shape \(3, 5, 5\), 00.png \(3, 6, 8\); .* resize"):
            list(open_source(tmp_path))

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no images"):
            open_source(tmp_path)
        with pytest.raises(DataError, match="does not exist; allowed: a folder"):
            open_source(tmp_path / "none")
        (tmp_path / "x.rec").write_text("")
        with pytest.raises(DataError, match=r"x.rec is a .rec file; allowed"):
            open_source(tmp_path / "x.rec")
        with pytest.raises(DataError, match="the network has 2 inputs"):
            open_source(tmp_path, ("a", "b"))
        with pytest.raises(ConfigError, match="batch_size is 0"):
            open_source(tmp_path, batch_size=0)

    def test_the_size_of_a_batch_may_be_of_numpy(self, tmp_path: Path):
        source = open_source(folder(tmp_path, 5), batch_size=np.int64(2))
        assert (type(source.batch_size), len(source)) == (int, 3)


class TestArrays:
    def test_floats_are_fed_as_they_are(self, tmp_path: Path) -> None:
        values = np.arange(5 * 3 * 2 * 2, dtype=np.float64).reshape(5, 3, 2, 2)
        np.save(tmp_path / "x.npy", values)
        batches = [b["data"] for b in open_source(tmp_path / "x.npy", preprocess=Preprocess(mean=(9,)), batch_size=3)]
        assert [b.shape[0] for b in batches] == [3, 2]
        assert batches[0].dtype == np.float32
        same(np.concatenate(batches), values)

    def test_bytes_are_pictures(self, tmp_path: Path) -> None:
        images = np.stack([picture(4, 4), picture(4, 4) + 1])
        np.savez(tmp_path / "x.npz", images=images, labels=np.int32([3, 4]), classes=np.array(["a", "b"]))
        source = open_source(tmp_path / "x.npz", preprocess=Preprocess(scale=2, label_offset=1))
        same(next(iter(source))["data"], images.transpose(0, 3, 1, 2) * 2.0)
        assert source.labels is not None
        same(source.labels, [4, 5])
        np.save(tmp_path / "gray.npy", images[..., :1])
        assert next(iter(open_source(tmp_path / "gray.npy", preprocess=Preprocess(color="GRAY"))))["data"].shape == (
            2,
            1,
            4,
            4,
        )
        np.save(tmp_path / "flat.npy", images[..., 0])
        assert next(iter(open_source(tmp_path / "flat.npy", preprocess=Preprocess(color="GRAY"))))["data"].shape == (
            2,
            1,
            4,
            4,
        )

    def test_several_inputs_by_name(self, tmp_path: Path) -> None:
        tokens = np.arange(6, dtype=np.int32).reshape(3, 2)
        np.savez(tmp_path / "x.npz", tokens=tokens, mask=np.ones((3, 2), bool), label=np.zeros(3, int))
        (batch,) = open_source(tmp_path / "x.npz", ("mask", "tokens"))
        assert list(batch) == ["mask", "tokens"]
        assert (batch["tokens"].dtype, batch["mask"].dtype) == (np.int32, np.float32)
        part = open_source(tmp_path / "x.npz", ("mask", "tokens")).take(2)
        same(next(iter(part))["tokens"], tokens[[0, 1]])

    def test_mistakes(self, tmp_path: Path) -> None:
        file = tmp_path / "x.npz"
        np.savez(file, a=np.ones((3, 2)), b=np.ones((2, 2)))
        with pytest.raises(DataError, match=r"holds a \(3, 2\), b \(2, 2\); needed: an array for each of data"):
            open_source(file)
        with pytest.raises(DataError, match="equally long"):
            open_source(file, ("a", "b"))
        np.savez(file, x=np.ones((0, 2)))
        with pytest.raises(DataError, match="not empty"):
            open_source(file)
        np.savez(file, data=np.float32(1))
        with pytest.raises(DataError, match="a single number"):
            open_source(file)
        np.savez(file, x=np.ones((3, 2)), labels=np.ones(2))
        with pytest.raises(DataError, match=r"labels have shape \(2,\); needed: \(3,\)"):
            open_source(file)
        file.write_bytes(b"junk")
        with pytest.raises(DataError, match="cannot be read as arrays"):
            open_source(file)
        np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
        with pytest.raises(DataError, match="cannot be read as arrays"):
            open_source(tmp_path / "o.npy")


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PLAIN = Preprocess(layout="NHWC")
SIXTEEN = np.array([[0, 255, 256, 32768], [40000, 65535, 257, 511]], np.uint16)


class TestPictures:
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_are_the_upper_eight(self, form: str) -> None:
        """As OpenCV reads them; Pillow alone makes all above 255 white."""
        image = Image.fromarray(SIXTEEN)
        found = read_picture(encoded(image, form), "x", Preprocess(color="GRAY", layout="NHWC"))[..., 0]
        same(found, SIXTEEN >> 8)
        same(read_picture(encoded(image, form), "x", PLAIN), np.repeat((SIXTEEN >> 8)[..., None], 3, axis=2))

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_other_depths_are_refused(self, mode: str) -> None:
        image = Image.fromarray(SIXTEEN.astype(np.int32)).convert(mode)
        with pytest.raises(DataError, match=rf"^x has values of 32 bits \({mode}\); allowed: 8 or 16 bits"):
            read_picture(encoded(image, "TIFF"), "x", PLAIN)

    def test_every_mode_becomes_rgb(self) -> None:
        """Transparency is dropped; grey, palettes and one bit are spread over three channels."""
        rgb = Image.fromarray(picture(4, 5) * np.uint8(20))
        expected = np.asarray(rgb)
        clear = rgb.copy()
        clear.putalpha(7)
        same(read_picture(encoded(clear), "x", PLAIN), expected)
        same(read_picture(encoded(rgb.quantize(20)), "x", PLAIN), np.asarray(rgb.quantize(20).convert("RGB")))
        grey = rgb.convert("L")
        for image in (grey, grey.convert("LA")):
            same(read_picture(encoded(image), "x", PLAIN), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
        bits = grey.convert("1")
        same(read_picture(encoded(bits), "x", PLAIN)[..., 0], np.asarray(bits) * 255)
        cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        found = read_picture(encoded(cmyk, "JPEG", quality=95), "x", PLAIN)
        assert_close(found, np.broadcast_to([0, 255, 255], found.shape), rtol=0, atol=4)

    def test_of_an_animation_the_first(self) -> None:
        first, second = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
        for form in ("GIF", "PNG", "WEBP"):
            found = read_picture(encoded(first, form, save_all=True, append_images=[second]), "x", PLAIN)
            assert_close(found, np.broadcast_to([255, 0, 0], found.shape), rtol=0, atol=4)

    def test_a_rotation_in_exif_is_not_applied(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        image = Image.fromarray(picture(4, 9))
        assert read_picture(encoded(image, "JPEG", exif=exif), "x", PLAIN).shape == (4, 9, 3)

    @pytest.mark.parametrize("side", [9_000, 50_000, 2**31 - 1])
    def test_large_ones_are_refused_before_they_are_decoded(self, side: int) -> None:
        with pytest.raises(DataError, match=r"^big.png .*pixels"):
            read_picture(blank_png(side, side), "big.png", PLAIN)

    def test_what_would_become_large(self) -> None:
        thin = encoded(Image.new("L", (60_000, 1)))
        with pytest.raises(DataError, match=r"^x: a picture of 1x60000 would become 2000x120000000"):
            read_picture(thin, "x", Preprocess(short_side=2000))
        with pytest.raises(DataError, match="an example of 4200x4200 pixels is too large"):
            read_picture(encoded(Image.new("1", (4200, 4200))), "x", PLAIN)
        with pytest.raises(ConfigError, match=r"crop is .*; allowed: up to 16777216 pixels"):
            Preprocess(crop=(100_000, 100_000))

    def test_decoders_that_run_programs_are_not_used(self) -> None:
        postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        with pytest.raises(DataError, match="x cannot be read as an image: cannot identify"):
            read_picture(postscript, "x", PLAIN)

    def test_cut_anywhere(self) -> None:
        """Refused, or (where only what follows the pixels is lost) read as it was."""
        for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
            whole = encoded(Image.fromarray(picture(4, 5)), form)
            expected = read_picture(whole, "x", PLAIN)
            for size in range(len(whole)):
                with suppress(DataError):
                    same(read_picture(whole[:size], "x", PLAIN), expected)

    def test_cut_ones_in_threads_while_others_allow_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is in the process's settings before is there afterwards, however threads follow each other."""
        monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
        cut = encoded(Image.fromarray(picture(300, 300)), "JPEG")[:3000]
        inside, both = threading.Event(), threading.Event()

        def hold() -> None:
            with pictures.STRICT:
                inside.set()
                both.wait(60)

        first = threading.Thread(target=hold)
        first.start()
        inside.wait(60)
        with pictures.STRICT:
            both.set()
            first.join(60)
            with pytest.raises(DataError, match="truncated"):
                read_picture(cut, "x", PLAIN)
            assert not ImageFile.LOAD_TRUNCATED_IMAGES
        assert ImageFile.LOAD_TRUNCATED_IMAGES

    def test_bytes_without_end_are_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(DataError, match="holds no images"):
            open_source(tmp_path)
        with pytest.raises(DataError, match="is a pipe; allowed: a file"):
            read_picture(tmp_path / "a.png", "a.png", PLAIN)


class TestLabels:
    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ("a.png,x", "line 2: label is 'x', not a whole number"),
            ("a.png", "line 2: label is None, not a whole number"),
            ("a.png,1.5", "label is '1.5'"),
            ("a.png,1e3", "label is '1e3'"),
            ("a.png,nan", "label is 'nan'"),
            ("a.png," + "9" * 30, r"not a whole number up to 2147483648"),
            ("a.png," + "9" * 5000, r"not a whole number up to 2147483648"),
            ("a.png,1\na.png,2", "line 3: 'a.png' has label 1 further up"),
            (",1", "lists '' and 0 others that"),
            ("../out.png,1", r"lists '../out.png', which lies outside"),
            ("sub/../../out.png,1", r"lists 'sub/../../out.png', which lies outside"),
            ("link.png,1", r"lists 'link.png', which lies outside"),
            ("away/out.png,1", r"lists 'away/out.png', which lies outside"),
            ("a\0.png,1", "cannot be read|does not hold"),
            ("a" * 300 + ".png,1", "cannot be read"),
            ("a" * 200_000 + ",1", "cannot be read as a table: field larger than field limit"),
            ("pipe,1", "lists 'pipe' and 0 others that"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, rows: str, says: str) -> None:
        where = folder(tmp_path / "in", 1, labels="file,label\n" + rows)
        folder(where / "sub", 1)
        (where / "00.png").rename(where / "a.png")
        (tmp_path / "out.png").write_bytes((where / "a.png").read_bytes())
        (where / "link.png").symlink_to(tmp_path / "out.png")
        (where / "away").symlink_to(tmp_path)
        os.mkfifo(where / "pipe")
        with pytest.raises(DataError, match=says):
            open_source(where)

    def test_an_absolute_path(self, tmp_path: Path) -> None:
        where = folder(tmp_path / "in", 1)
        (tmp_path / "out.png").write_bytes((where / "00.png").read_bytes())
        (where / "labels.csv").write_text(f"file,label\n{where / '00.png'},1\n")
        assert open_source(where).examples == 1  # it lies within
        (where / "labels.csv").write_text(f"file,label\n{tmp_path / 'out.png'},1\n")
        with pytest.raises(DataError, match=r"out.png', which lies outside"):
            open_source(where)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_encodings(self, tmp_path: Path, encoding: str) -> None:
        """Spreadsheets put a byte order mark first."""
        where = folder(tmp_path, 1)
        (where / "00.png").rename(where / "é.png")
        (where / "labels.csv").write_text("file,label\r\né.png,-3\r\n", encoding=encoding)
        assert open_source(where).labels.tolist() == [-3]
        (where / "labels.csv").write_text("file,label\né.png,3\n", encoding="latin-1")
        with pytest.raises(DataError, match=r"labels.csv cannot be read as a table: 'utf-8' codec"):
            open_source(where)


class TestArrayLabels:
    @pytest.mark.parametrize(
        "labels", [[0.5, 1], [np.nan, 0], [np.inf, 0], [2.0**40, 0], [2**62, 0], [-(2**63), 0], ["a", "b"], [1j, 2]]
    )
    def test_that_are_no_whole_numbers(self, tmp_path: Path, labels: Any) -> None:
        np.savez(tmp_path / "a.npz", data=np.zeros((len(labels), 3), np.float32), label=np.array(labels))
        with pytest.raises(DataError, match=r"labels have type .*; allowed: whole numbers up to 2147483648"):
            open_source(tmp_path / "a.npz")

    def test_that_are_whole_floats(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", data=np.zeros((2, 3), np.float32), label=np.array([3.0, -1.0], np.float32))
        assert open_source(tmp_path / "a.npz").labels.tolist() == [3, -1]

    def test_inputs_that_are_no_numbers(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", data=np.array(["a", "b"]))
        with pytest.raises(DataError, match="data has type <U1; allowed: floats and integers"):
            open_source(tmp_path / "a.npz")

    def test_many_examples_of_nothing(self, tmp_path: Path) -> None:
        """A trillion of them take no byte, and a year to be gone through."""
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 0), }"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
        with pytest.raises(DataError, match="must be equally long and not empty"):
            open_source(tmp_path / "a.npy")
