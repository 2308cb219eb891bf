"""From pictures to integers: equal to the float pipeline and the quantize node, in Gluon's loader, in stock MXNet."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import CONV3, RELU, build, conv, fc, quantized, run
from helpers import WITHOUT_MXQ
from test_runtime import has_distutils
from typer.testing import CliRunner

from mxq import runtime
from mxq.artifacts import record
from mxq.bench.timing import random_feeds
from mxq.cli import app
from mxq.data.integers import IntegerTransform, feeding, input_of, loader, transform_for
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, DataError, FormatError, RuntimeFailure
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.quant import INT8, QParams
from mxq.quant.plan import InputRecord
from mxq.verification import verify

SIDE = 16
SETTINGS = {"short_side": 20, "crop": [SIDE, SIDE], "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
PREPROCESS = Preprocess.from_json(SETTINGS)
KINDS = ("int8", "uint8")


def pictures(count: int = 6) -> np.ndarray:
    """Noise that is not all high in frequency: (count, 24, 30, 3) uint8."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 6, 8, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((30, 24))) for c in coarse])


def floats(images: np.ndarray | None = None) -> np.ndarray:
    return np.stack([PREPROCESS(Image.fromarray(i)) for i in (pictures() if images is None else images)])


def net(**shape: tuple[int, ...]) -> Model:
    lines = (conv("c", "data", CONV3), "r = Activation(c) " + RELU, fc("f", "r"), "return f")
    return build(*lines, **(shape or {"data": (6, 3, SIDE, SIDE)}))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network, written with each type of input."""
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    for dtype in ("float32", *KINDS):
        made = quantized(net(), floats(), input_dtype=dtype, preprocess=SETTINGS)
        found[dtype] = folder / dtype
        pair = runtime.write_pair(made.model, found[dtype])
        record.write(found[dtype], made.report, pair)
    runtime.write_pair(net(), folder / "net")
    found["net"] = folder / "net"
    return found


def fed(**fields: Any) -> InputRecord:
    return InputRecord(**{"name": "data", "dtype": "int8", "holds": "codes", "scale": 48.25, **fields})


# ---- the transform -------------------------------------------------------------------------------------------


class TestTransform:
    def test_codes_are_those_of_the_float_pipeline(self, pairs):
        transform = transform_for(pairs["int8"])
        for image in pictures():
            example = transform(image)
            wanted = QParams(INT8, transform.record.scale).quantize(PREPROCESS(Image.fromarray(image)))
            assert example.dtype == np.int8
            assert example.flags.c_contiguous
            np.testing.assert_array_equal(example, wanted)

    def test_every_pixel_of_every_channel(self):
        for settings in (SETTINGS, {"scale": 1 / 255}, {"mean": [7.0], "std": [3.0], "color": "GRAY"}):
            transform = IntegerTransform(fed(preprocess=settings))
            made = Preprocess.from_json(settings)
            every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], made.channels, axis=1)
            np.testing.assert_array_equal(transform.tables.T, QParams(INT8, 48.25).quantize(made.normalized(every)))

    def test_pixels_are_the_pictures(self, pairs):
        transform, image = transform_for(pairs["uint8"]), pictures(1)[0]
        wanted = PREPROCESS.pixels(Image.fromarray(image)).transpose(2, 0, 1)
        np.testing.assert_array_equal(transform(image), wanted)
        assert transform(image).dtype == np.uint8

    @pytest.mark.parametrize("kind", ["NDArray", "PIL", "path", "text"])
    def test_kinds_of_pictures(self, kind, pairs, tmp_path):
        transform, image = transform_for(pairs["int8"]), pictures(1)[0]
        file = tmp_path / "a.png"
        Image.fromarray(image).save(file)
        given = {
            "NDArray": mx.nd.array(image, dtype="uint8"),
            "PIL": Image.fromarray(image),
            "path": file,
            "text": str(file),
        }
        np.testing.assert_array_equal(transform(given[kind]), transform(image))

    @pytest.mark.parametrize("shape", [(24, 30), (24, 30, 1)])
    def test_gray(self, shape):
        settings = {"color": "GRAY", "mean": [100.0], "std": [50.0]}
        image = pictures(1)[0][..., 0].reshape(shape)
        example = IntegerTransform(fed(preprocess=settings))(image)
        wanted = QParams(INT8, 48.25).quantize((image.reshape(1, 24, 30).astype(np.float32) - 100) / np.float32(50))
        np.testing.assert_array_equal(example, wanted)

    @pytest.mark.parametrize("holds", ["codes", "pixels"])
    def test_channels_last_upside_down_and_bgr(self, holds):
        settings = {**SETTINGS, "layout": "NHWC", "rotate180": True, "color": "BGR"}
        image = pictures(1)[0]
        transform = IntegerTransform(fed(holds=holds, preprocess=settings))
        x = Preprocess.from_json(settings)(Image.fromarray(image))
        np.testing.assert_array_equal(transform(image), transform.from_floats(x[None])[0])
        assert transform(image).shape == (SIDE, SIDE, 3)

    @pytest.mark.parametrize("dtype", KINDS)
    def test_floats_become_what_pictures_became(self, dtype, pairs):
        transform = transform_for(pairs[dtype])
        np.testing.assert_array_equal(transform.from_floats(floats()), np.stack([transform(i) for i in pictures()]))

    def test_it_can_be_pickled(self, pairs):
        transform, image = transform_for(pairs["int8"]), pictures(1)[0]
        for used in (False, True):
            if used:
                transform(image)
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(transform))(image), transform(image))

    def test_refuses_what_is_no_picture(self, tmp_path):
        transform = IntegerTransform(fed(preprocess=SETTINGS))
        for wrong in (floats()[0], pictures(), pictures()[0].transpose(2, 0, 1)):
            with pytest.raises(DataError, match=r"a picture is .*; allowed: uint8 \(height, width, 3\)"):
                transform(wrong)
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
            transform(tmp_path / "a.png")

    def test_without_preprocess_floats_only(self):
        transform = IntegerTransform(fed())
        np.testing.assert_array_equal(transform.from_floats(np.float32([0.1, -9])), np.int8([5, -128]))
        with pytest.raises(ConfigError, match="nothing says how pictures become input 'data'; allowed: to quantize"):
            transform(pictures(1)[0])

    def test_of_a_network_that_takes_floats(self, pairs, tmp_path):
        with pytest.raises(ConfigError, match="float32 takes float32; allowed: a network made with input_dtype"):
            transform_for(pairs["float32"])
        with pytest.raises(FormatError, match="does not exist"):
            transform_for(tmp_path / "none")

    def test_it_is_in_the_public_names(self):
        assert mxq.data.transform_for is transform_for


# ---- the loader ----------------------------------------------------------------------------------------------


class Pictures(mx.gluon.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return pictures()[i], i


class TestLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("dtype", KINDS)
    def test_batches(self, dtype, workers, pairs):
        transform = transform_for(pairs[dtype])
        batches = list(loader(Pictures(), pairs[dtype], 4, num_workers=workers))
        assert [(b.shape[0], b.dtype) for b, _ in batches] == [(4, np.dtype(dtype)), (2, np.dtype(dtype))]
        found = np.concatenate([b.asnumpy() for b, _ in batches])
        np.testing.assert_array_equal(found, np.stack([transform(i) for i in pictures()]))
        assert [int(i) for _, labels in batches for i in labels.asnumpy()] == list(range(6))

    def test_a_folder_with_one_for_each_class(self, pairs, tmp_path):
        for i, image in enumerate(pictures()):
            (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i}.png")
        batches = list(loader(tmp_path, transform_for(pairs["int8"]), 6))
        assert [(b.shape, list(labels.asnumpy())) for b, labels in batches] == [((6, 3, SIDE, SIDE), [0] * 3 + [1] * 3)]
        order = [0, 2, 4, 1, 3, 5]
        np.testing.assert_array_equal(
            batches[0][0].asnumpy(), np.stack([transform_for(pairs["int8"])(pictures()[i]) for i in order])
        )

    def test_refuses(self, pairs, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(DataError, match="holds no folders of pictures; allowed: a folder with one for each"):
                loader(folder, pairs["int8"], 4)
        with pytest.raises(ConfigError, match="nothing says how pictures become input"):
            loader(Pictures(), IntegerTransform(fed()), 4)

    def test_mxq_evaluates_what_it_gives(self, pairs):
        found = mxq.evaluate(pairs["int8"], loader(Pictures(), pairs["int8"], 4))
        wanted = mxq.evaluate(pairs["float32"], (floats(), np.arange(6)))
        assert found == wanted


# ---- feeding both networks -----------------------------------------------------------------------------------


class TestFeeding:
    def test_codes_give_the_bits_of_the_float_input_network(self, pairs):
        models = {k: runtime.load_model(v) for k, v in pairs.items()}
        runner = feeding(runtime.MxnetRunner(), input_of(pairs["int8"]))
        feeds = {"data": floats()}
        found, wanted = ([o[0] for o in [runner.compile(models[k])(feeds)]] for k in ("int8", "float32"))
        np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("dtype", KINDS)
    def test_verify(self, dtype, pairs):
        runner = feeding(runtime.MxnetRunner(), input_of(pairs[dtype]))
        models = [runtime.load_model(pairs[k]) for k in ("net", dtype)]
        found = verify(runner, *models, [{"data": floats()}], layers=True)
        assert found.outputs[0].sqnr > 25
        assert [layer.name for layer in found.layers] == ["data", "r", "f"]

    def test_watching(self, pairs):
        runner, seen = feeding(runtime.MxnetRunner(), input_of(pairs["int8"])), []
        model = runtime.load_model(pairs["int8"])
        runner.watch(model, [Ref("f")])({"data": floats()}, lambda ref, values: seen.append((str(ref), values.shape)))
        assert seen == [("f", (60,))]

    def test_a_network_of_floats_is_fed_floats(self, pairs):
        runner = runtime.MxnetRunner()
        assert feeding(runner, input_of(pairs["float32"])) is runner
        assert input_of(pairs["net"]) is None

    @pytest.mark.parametrize("dtype", KINDS)
    def test_floats_are_refused(self, dtype, pairs):
        call = runtime.MxnetRunner().compile(runtime.load_model(pairs[dtype]))
        with pytest.raises(RuntimeFailure, match=f"input 'data' takes {dtype}, but float32 was fed; mxq.data makes"):
            call({"data": floats()})


# ---- the record and the doors of stock MXNet -----------------------------------------------------------------


def test_the_record_comes_back(pairs):
    for dtype, holds in zip(KINDS, ("codes", "pixels"), strict=True):
        found = record.read(pairs[dtype])
        assert (found.input.dtype, found.input.holds, found.input.preprocess) == (dtype, holds, SETTINGS)
        assert record.from_json(record.to_json(found)) == found
    assert record.read(pairs["float32"]).input is None


def test_an_older_record_says_nothing_of_the_input(pairs):
    data = record.to_json(record.read(pairs["float32"]))
    del data["input"]
    assert record.from_json(data).input is None


LOADERS = (
    WITHOUT_MXQ
    + """\
prefix, x = sys.argv[1], numpy.load(sys.argv[2])
x = mx.nd.array(x, dtype=x.dtype)
results = {}
block = mx.gluon.SymbolBlock.imports(prefix + "-symbol.json", ["data"], prefix + "-0000.params")
results["imports"] = block(x)
block.hybridize(static_alloc=True, static_shape=True)
results["hybridized"] = block(x)
sym, args, auxs = mx.model.load_checkpoint(prefix, 0)
results["bind"] = sym.bind(mx.cpu(), {**args, "data": x}, aux_states=auxs, grad_req="null").forward()[0]
bound = sym.simple_bind(mx.cpu(), data=x.shape, grad_req="null")  # it infers the type
assert bound.arg_dict["data"].dtype == x.dtype
bound.copy_params_from(args, auxs)
results["simple_bind"] = bound.forward(data=x)[0]
for name, shapes in (("Module", [mx.io.DataDesc("data", x.shape, dtype=x.dtype)]), ("plain", [("data", x.shape)])):
    module = mx.mod.Module.load(prefix, 0, label_names=None)
    module.bind(for_training=False, data_shapes=shapes)
    module.forward(mx.io.DataBatch([x]), is_train=False)
    results[name] = module.get_outputs()[0]
try:
    block(x.astype("float32")).wait_to_read()
    print("floats were taken")
except mx.base.MXNetError:
    print("floats were refused")
numpy.savez(sys.argv[3], **{k: v.asnumpy() for k, v in results.items()})
"""
)


@pytest.mark.skipif(not has_distutils(), reason="without distutils MXNet cannot be imported but through mxq")
@pytest.mark.parametrize("dtype", KINDS)
def test_stock_mxnet_reads_the_pair_and_computes_the_same_bits(dtype, pairs, tmp_path):
    transform = transform_for(pairs[dtype])
    x = np.stack([transform(i) for i in pictures()])
    np.save(tmp_path / "x.npy", x)
    wanted = run(runtime.load_model(pairs[dtype]), {"data": x})[0]
    files = [str(pairs[dtype]), str(tmp_path / "x.npy"), str(tmp_path / "results.npz")]
    done = subprocess.run(
        [sys.executable, "-c", LOADERS, *files], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "floats were refused\n"
    with np.load(files[2]) as results:
        assert sorted(results) == ["Module", "bind", "hybridized", "imports", "plain", "simple_bind"]
        for value in results.values():
            np.testing.assert_array_equal(value, wanted)


# ---- the public function and the command line ----------------------------------------------------------------


def test_quantize_net_save_and_load(tmp_path):
    block = runtime.to_block(net())
    made = mxq.quantize_net(block, floats(), input_dtype="int8", preprocess=PREPROCESS, num_calib_examples=6)
    mxq.save(made, tmp_path / "int8")
    transform, loaded = transform_for(tmp_path / "int8"), mxq.load(tmp_path / "int8")
    batch = next(iter(loader(Pictures(), transform, 6)))[0]
    np.testing.assert_array_equal(loaded(batch).asnumpy(), made(batch).asnumpy())
    assert sqnr_db(block(mx.nd.array(floats())).asnumpy(), made(batch).asnumpy()) > 25


@pytest.fixture
def folder(pairs, tmp_path) -> Path:
    """A float network with its preprocess.json and pictures."""
    runtime.write_pair(net(), tmp_path / "net")
    (tmp_path / "preprocess.json").write_text(str(SETTINGS).replace("'", '"'), encoding="utf-8")
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pictures()):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    lines = ["file,label", *(f"{i}.png,{i}" for i in range(6))]
    (tmp_path / "images" / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    return re.sub(r"\s+", " ", done.output)


@pytest.mark.parametrize("dtype", KINDS)
def test_the_command_line(dtype, folder):
    out, data = folder / f"out-{dtype}", ("--data", folder / "images")
    command("quantize", folder / "net", *data, "--out", out, "--input-dtype", dtype)
    assert input_of(out).preprocess == PREPROCESS.to_json()
    shown = command("inspect", out)
    holds = {"int8": "int8 codes, rint(", "uint8": "uint8 pixels, 0..255 (x = (pixel * scale - mean) / std"}
    assert f"data: {holds[dtype]}" in shown
    assert "mean 123.675, 116.28, 103.53" in shown
    command("quantize", folder / "net", *data, "--out", folder / "plain")
    mine, plain = (command("evaluate", folder / n, *data) for n in (out.name, "plain"))
    assert re.findall("top1 [0-9. %]+", mine) == re.findall("top1 [0-9. %]+", plain)


def test_pictures_are_prepared_as_the_record_says(pairs, folder):
    """No preprocess.json lies beside this network."""
    shown = command("evaluate", pairs["int8"], "--data", folder / "images")
    assert "pictures are prepared as the record of" in shown
    assert "top1" in shown


@pytest.mark.parametrize("dtype", ["float32", *KINDS])
def test_noise_to_time_a_network_with_is_of_its_type(dtype, pairs):
    feeds = random_feeds(runtime.load_model(pairs[dtype]), {"data": (3, SIDE, SIDE)}, 2)
    assert {k: (v.dtype, v.shape) for k, v in feeds.items()} == {"data": (np.dtype(dtype), (2, 3, SIDE, SIDE))}
    assert feeds["data"].max() > 3


def test_a_recipe_with_other_settings_is_refused(folder):
    text = "format: mxq-recipe/1\ninput_dtype: int8\npreprocess: {mean: [1, 2, 3]}\n"
    (folder / "net.yaml").write_text(text, encoding="utf-8")
    words = ("quantize", folder / "net", "--data", folder / "images", "--out", folder / "o", "--recipe")
    done = CliRunner().invoke(app, [str(w) for w in (*words, folder / "net.yaml")])
    assert done.exit_code != 0
    assert "in the recipe, but pictures are read by" in re.sub(r"\s+", " ", done.output)
