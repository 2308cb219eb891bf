"""The settings of `QuantConfig` as keyword arguments, for editors and type checkers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from mxq.config import LayerConfig, Selector
from mxq.data.preprocess import Preprocess
from mxq.quant.bits import Width

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack  # noqa: PLC0414  (from here; mxq does not depend on that package)
else:

    class Unpack:
        """``typing.Unpack``, which Python 3.10 does not have: for `typing.get_type_hints`."""

        __class_getitem__ = classmethod(GenericAlias)


Names: TypeAlias = str | Iterable[str]
Selectors: TypeAlias = Selector | Iterable[Selector]
Sides: TypeAlias = Sequence[int] | str


class OwnOptions(TypedDict, total=False):
    """What MXNet's functions do not have; None, like leaving it out, stands for the default."""

    weight_calib_mode: str | None
    exclude_passes: Names | None
    include_layers: Selectors | None
    overrides: Mapping[str, LayerConfig | Mapping[str, Any]] | None
    input_dtype: str | None
    preprocess: Preprocess | Mapping[str, Any] | None
    effort: str | None
    equalize: bool | None
    bias_correction: str | None
    rounding: str | None
    range_choice: str | None
    recalibrate_batchnorm: bool | None
    stem: str | None
    target: str | None
    input_shape: Sides | Mapping[str, Sides] | None
    backend: str | None
    simulate: bool | None
    hardware: str | None
    bits: Width | None


class OwnModelOptions(OwnOptions, total=False):
    """And which layers become int8, for which MXNet's `quantize_model` has other names."""

    exclude_layers: Selectors | None
    exclude_layers_match: Names | None
    exclude_operators: Names | None


class Options(OwnModelOptions, total=False):
    """All fields of `QuantConfig`, which says what they mean, each in the forms that may be given for it.

    None, like leaving it out, stands for the default; only ``calib_mode=None`` means "none", as in MXNet. A function of
    yours can hand them on::

        def quantized(net, data, **options: Unpack[mxq.Options]):
            return mxq.quantize_net(net, data, **options)
    """

    calib_mode: str | None
    quantized_dtype: str | None
    quantize_mode: str | None
    quantize_granularity: str | None
    num_calib_examples: int | str | None


class MxnetOptions(Options, total=False):
    """And an argument of MXNet's that has to be None: mxq fuses the tensors away that a collector would see."""

    LayerOutputCollector: None
