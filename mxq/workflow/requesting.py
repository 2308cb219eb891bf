"""`FileRequest`: which ONNX file is to be written of which network, and all that is refused of it without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from mxq import runtime
from mxq.backends.runtimes import RUNTIMES
from mxq.config import ONNX, QuantConfig, Shape
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError, QuantizeError, StorageError, one_of
from mxq.formats.onnx_file import SUFFIX, is_onnx, require_onnx
from mxq.graph.ir import Model, Ref
from mxq.graph.tensors import Tensor
from mxq.passes.simplify import check_done, check_float
from mxq.planned import Planned
from mxq.qat.network import QatNetwork
from mxq.storage.writing import check_writable
from mxq.workflow.opening import Given

PORTABLE: Final = "portable"
"""The runtime of files that all runtimes are to run, see `mxq.backends.runtimes`."""


@dataclass(frozen=True)
class FileForm:
    """What a file is to take.

    Attributes:
        shapes: input -> shape of one example; under "" that of the only input.
        batch_size: examples to a batch; None: any number.
        pixels: whether pictures are prepared in the file; or the input that takes them.
        any_size: whether pictures may be of any height and width.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    batch_size: int | None = None
    pixels: bool | str = False
    any_size: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for what is no batch size, and no input."""
        size = self.batch_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ConfigError(f"batch_size is {size!r}; allowed: a whole number, 1 or more, or None for any")
        if not isinstance(self.pixels, bool | str):
            raise ConfigError(f"with_preprocess is {self.pixels!r}; allowed: True, False, or the name of an input")
        if not isinstance(self.any_size, bool):
            raise one_of("dynamic_size", self.any_size, (True, False))

    def tensors_of(self, model: Model, inputs: Mapping[str, Shape]) -> dict[Ref, Tensor]:
        """What the tensors of ``model`` are, whose ``inputs`` have these shapes of one example.

        Raises:
            ConfigError: the network takes no pictures, or not of any size, or not batches of any.
        """
        pictures: dict[str, tuple[int, int]] = {}
        if self.any_size:
            pixels = [name for name in inputs if model.graph[name].input_dtype == "uint8"]
            pictures = {name: (0, 1) if name in pixels else (1, 2) for name, shape in inputs.items() if len(shape) == 3}
            if not pictures:
                listed = ", ".join(f"{name!r} {tuple(shape)}" for name, shape in inputs.items())
                raise ConfigError(f"dynamic_size is for pictures, examples of three axes; the inputs are {listed}")
        return runtime.tensors_of(model, inputs, self.batch_size, pictures)


@dataclass(frozen=True, kw_only=True)
class CodesRequest:
    """A network that is to have the codes of ONNX files.

    Attributes:
        net: see `mxq.runtime.load_model`.
        form: what the file is to take.
        runtime: whose kernels decide which tensors are codes, one of `RUNTIMES`.
        epoch: for a prefix, which parameters.
        given: what ranges are to come from.
        config: the settings.
    """

    net: runtime.Net
    form: FileForm = field(default_factory=FileForm)
    runtime: str = PORTABLE
    epoch: int | None = None
    given: Given | None = None
    config: QuantConfig = field(default_factory=QuantConfig)

    def __post_init__(self) -> None:
        """Looks at all that can be looked at without data, and without running the network.

        Raises:
            ConfigError: settings that do not fit each other.
            QuantizeError: the network is a pair, or in training.
        """
        _ = self.coded
        if not runtime.is_deferred(self.net):
            check_unquantized(runtime.load_model(self.net, self.epoch))

    @cached_property
    def settings(self) -> QuantConfig:
        """``config`` for the kernels of ``runtime``."""
        if not isinstance(self.runtime, str) or self.runtime not in RUNTIMES:
            raise one_of("runtime", self.runtime, RUNTIMES)
        hardware, config = RUNTIMES[self.runtime], self.config
        if self.runtime == PORTABLE or config.hardware == hardware:
            return config
        if config.hardware != QuantConfig().hardware:
            raise ConfigError(
                f"hardware is {config.hardware!r} for an ONNX file of runtime {self.runtime!r}; allowed: {hardware!r}"
            )
        return replace(config, hardware=hardware)

    @cached_property
    def coded(self) -> QuantConfig:
        """`settings` of a network whose codes are those of files."""
        config = replace(self.settings, backend=ONNX)
        if config.input_dtype != "float32":
            raise ConfigError(f"input_dtype is {config.input_dtype!r} for an ONNX file; allowed: 'float32'")
        return config


@dataclass(frozen=True, kw_only=True)
class FileRequest(CodesRequest):
    """A network that is to be an ONNX file.

    Attributes:
        net: also the block of a `Planned`, or one in training for runtimes of such files; then without ``given`` and
            settings.
        path: the file.
        given: what ranges of an int8 file are to come from; None asks for a float one.
        preparation: how pictures become inputs; as is known of the network where None.
    """

    path: Path
    preparation: Preparation | None = None

    def __post_init__(self) -> None:
        """As of `CodesRequest`, of an int8 file.

        Raises:
            ConfigError: onnx is not installed; the name is none of an ONNX file.
            QuantizeError: the network was trained for other hardware.
            StorageError: the file cannot be written.
        """
        require_onnx()
        _check_path(self.path)
        _ = self.settings
        if self.is_quantized:
            self._check_nothing_more()
        elif self.given is not None:
            super().__post_init__()
        elif replace(self.settings, preprocess=None) != QuantConfig():
            raise ConfigError(
                "settings are given without calibration data; allowed: both (an INT8 file), or neither (a float one)"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the network has its codes already."""
        return Planned.of(self.net) is not None or self.trained is not None

    @property
    def trained(self) -> QatNetwork | None:
        """That of a block in training.

        Raises:
            QuantizeError: it trains for other hardware.
        """
        network = getattr(self.net, "qat", None)
        if not isinstance(network, QatNetwork):
            return None
        if not network.config.is_for_files:
            raise QuantizeError(
                f"the network was trained for {network.config.row.library}, which is no runtime of ONNX files; "
                f"allowed: one of mxq.qat.prepare with hardware {', '.join(map(repr, RUNTIMES.values()))}, or mxq.save "
                "of mxq.qat.convert(block) for a pair"
            )
        return network

    def _check_nothing_more(self) -> None:
        """Raises ConfigError for what a network that is quantized already has no use of."""
        usual = QuantConfig().to_json()
        odd = [field for field, value in self.config.to_json().items() if value != usual[field]]
        odd += [
            what for what, found in (("runtime", self.runtime != PORTABLE), ("data", self.given is not None)) if found
        ]
        if odd:
            raise ConfigError(
                f"{', '.join(odd)} given for a network that is quantized for ONNX files already; allowed: nothing more "
                "(give data, settings, and a runtime as hardware, to quantize_net), or the float network"
            )


def check_unquantized(model: Model) -> None:
    """Raises QuantizeError for a pair, whose codes are those of MXNet's kernels, and for a network in training."""
    check_done(model)
    check_float(
        model,
        "the float network that it was made of, as mxq.export_onnx(net, path, calib_data), or quantize_net(net, "
        "calib_data, backend='onnx')",
    )


def _check_path(path: Path) -> None:
    """Raises ConfigError for a name of no ONNX file, StorageError where none can be written."""
    if not is_onnx(path):
        raise ConfigError(
            f"the file is {str(path)!r}; allowed: a name that ends in {SUFFIX}, which tells it from a pair"
        )
    if not path.parent.is_dir():
        raise StorageError(f"{path} cannot be written: there is no folder {str(path.parent)!r}; make it first")
    check_writable(path)
