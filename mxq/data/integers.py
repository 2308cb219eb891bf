"""Pictures as the integers that a network with an input of integers takes: a Gluon transform, and a loader.

    mxq.save(mxq.quantize_net(net, calib, input_dtype="int8", preprocess=...), "model-int8")

    transform = mxq.data.transform_for("model-int8")              # its record says what it expects
    batches = mxq.data.loader("images/", transform, batch_size=32, num_workers=4)
    batches = gluon.data.DataLoader(dataset.transform_first(transform), 32, num_workers=4)     # the same

The transform resizes and crops as in calibration and then looks each pixel up in a table of 256 entries for its
channel, which holds normalisation and quantization together. The result is what the float pipeline and the network's
quantize node made, bit for bit, in a quarter of the bytes and without a float operation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mxq.artifacts import record as records
from mxq.data.pictures import decode
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, DataError
from mxq.formats.reading import path_given
from mxq.graph.ir import Array, Executable, Model, Ref, Runner, Watched
from mxq.quant import BY_DTYPE, QParams
from mxq.quant.plan import InputRecord

if TYPE_CHECKING:
    from collections.abc import Callable

CODES = "codes"
LEVELS = 256
"""Values of a pixel."""


@dataclass(frozen=True)
class IntegerTransform:
    """A picture becomes one example of integers, as ``record`` says. It can be pickled, for a loader's workers."""

    record: InputRecord

    @staticmethod
    def load(prefix: str | os.PathLike[str]) -> IntegerTransform:
        """The transform for the pair ``prefix``, from the record beside it.

        Raises:
            FormatError: there is no record, or it is damaged.
            ConfigError: the network takes floats.
        """
        found = records.read(prefix).input
        if found is None:
            raise ConfigError(
                f"{os.fspath(prefix)} takes float32; allowed: a network made with input_dtype 'int8' or 'uint8'"
            )
        return IntegerTransform(found)

    def __call__(self, picture: Any) -> Array:
        """One example from a picture.

        Args:
            picture: (H, W, C) or (H, W) uint8, an NDArray or numpy array in RGB as Gluon's datasets give it; a PIL
                image; or the path of a picture.

        Returns:
            (C, H, W), or (H, W, C) in layout NHWC, of the record's type.

        Raises:
            ConfigError: the record does not say how pictures are prepared.
            DataError: it is no picture, or the crop does not fit.
        """
        pixels, nchw = self._preprocess.pixels(_image(picture)), self._preprocess.layout == "NCHW"
        values = self._looked_up(pixels) if self.record.holds == CODES else pixels
        return np.ascontiguousarray(values.transpose(2, 0, 1) if nchw else values)

    def from_floats(self, x: Array) -> Array:
        """The integers of the float network's input: those of x, or of the pixels that x was made from.

        Args:
            x: (N, C, H, W), or (N, H, W, C) in layout NHWC, float; for codes any shape.

        Returns:
            The shape of ``x``, of the record's type.
        """
        if self.record.holds == CODES:
            return self._coded(x)
        found: Array = np.clip(np.rint(self._preprocess.restored(x)), 0, LEVELS - 1).astype(np.uint8)
        return found

    @cached_property
    def tables(self) -> Array:
        """What each pixel becomes: (C, 256) of the record's type, for codes."""
        settings = self._preprocess
        every = np.repeat(np.arange(LEVELS, dtype=np.uint8)[:, None], settings.channels, axis=1)
        return np.ascontiguousarray(self._coded(settings.normalized(every)).T)

    def _looked_up(self, pixels: Array) -> Array:
        """The codes of pixels, both (H, W, C). Pillow's loop over bytes is twice as fast as numpy's ``take``."""
        planes = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        found = Image.fromarray(np.ascontiguousarray(planes)).point(self._table)
        return np.asarray(found).reshape(pixels.shape).view(self.record.dtype)

    @cached_property
    def _table(self) -> list[int]:
        """All of `tables` as bytes, for Pillow."""
        found: list[int] = self.tables.view(np.uint8).reshape(-1).tolist()
        return found

    def _coded(self, x: Array) -> Array:
        return self._params.quantize(x)

    @cached_property
    def _params(self) -> QParams:
        return QParams(BY_DTYPE[self.record.dtype], np.float32(self.record.scale))

    @cached_property
    def _preprocess(self) -> Preprocess:
        if self.record.preprocess is None:
            raise ConfigError(
                f"nothing says how pictures become input {self.record.name!r}; allowed: to quantize with preprocess=, "
                "or to code floats with from_floats"
            )
        return Preprocess.from_json(dict(self.record.preprocess))


def transform_for(prefix: str | os.PathLike[str]) -> IntegerTransform:
    """See `IntegerTransform.load`."""
    return IntegerTransform.load(prefix)


def loader(
    data: Any,
    transform: IntegerTransform | str | os.PathLike[str],
    batch_size: int,
    *,
    num_workers: int = 0,
    **options: Any,
) -> Any:
    """A Gluon DataLoader of integer batches.

    Args:
        data: a Gluon dataset whose items are pictures, or tuples that begin with one; or a folder with a folder of
            pictures for each class (`ImageFolderDataset`).
        transform: from `transform_for`, or the prefix of the network.
        batch_size: examples to a batch.
        num_workers: processes that prepare batches.
        **options: others of ``mxnet.gluon.data.DataLoader``: ``shuffle``, ``last_batch``, ``thread_pool``, ...

    Raises:
        ConfigError: the network takes floats, or its record does not say how pictures are prepared.
        DataError: the folder is not there, or has no folders of pictures.
        FormatError: the network has no record.
    """
    if not isinstance(transform, IntegerTransform):
        transform = transform_for(path_given("transform", transform))
    if transform.record.holds == CODES:
        transform._table  # noqa: B018, SLF001  (an error belongs here, not in a worker, and they need not make it)
    from mxq import runtime  # noqa: PLC0415  (a transform needs no MXNet)

    return runtime.data_loader(data, transform, batch_size, num_workers=num_workers, **options)


def input_of(prefix: str | os.PathLike[str]) -> InputRecord | None:
    """What the pair ``prefix`` is to be fed; None where it takes floats or mxq wrote no record of it.

    Raises:
        FormatError: the record is damaged.
    """
    return records.read(prefix).input if records.recorded(prefix) else None


def feeding(runner: Runner, record: InputRecord | None) -> Runner:
    """A runner that takes the *float* network's feeds for either network, and feeds integers where those are taken.

    Args:
        runner: what runs.
        record: of the integer network; with None the runner is returned as it is.
    """
    return runner if record is None else _Feeding(runner, IntegerTransform(record))


@dataclass(frozen=True)
class _Feeding:
    """See `feeding`."""

    runner: Runner
    transform: IntegerTransform

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        bound, convert = self.runner.compile(model, taps), self._converter(model)
        return lambda feeds: bound(convert(feeds))

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        bound, convert = self.runner.watch(model, refs), self._converter(model)
        return lambda feeds, visit: bound(convert(feeds), visit)

    def _converter(self, model: Model) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
        name = self.transform.record.name
        if name not in model.inputs or model.graph[name].input_dtype == "float32":
            return dict
        return lambda feeds: {**feeds, name: self.transform.from_floats(feeds[name])}


def _image(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return decode(picture, str(picture))
    pixels = np.asarray(picture.asnumpy() if hasattr(picture, "asnumpy") else picture)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise DataError(
            f"a picture is {pixels.dtype}{list(pixels.shape)}; allowed: uint8 (height, width, 3), a PIL image, a path"
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
