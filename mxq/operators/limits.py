"""What MXNet's registry does not say: values that attributes may have, and operators that no network has to run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

INT32 = 2**31 - 1
SIZE = 2**15
"""Of a window, a step or a scale: more than any picture has."""

Limits: TypeAlias = Mapping[str, "Limit"]


class Limit(NamedTuple):
    """The least and the greatest integer that an attribute may hold; ``least`` is how many it has at least."""

    low: int
    high: int
    least: int = 0


ANY: Final = Limit(-INT32, INT32)
"""MXNet keeps integers in 32 bits, and wraps greater ones."""

_WINDOW, _COUNT, _PARTS, _AXIS = Limit(1, SIZE), Limit(1, 2**24), Limit(1, 2**12), Limit(-32, 32)

OF_ALL: Final[Limits] = MappingProxyType(
    {
        **dict.fromkeys(("kernel", "kernel_size", "stride", "stride1", "stride2", "dilate"), _WINDOW),
        **dict.fromkeys(("pad", "pad_size", "adj", "max_displacement"), Limit(0, SIZE)),
        **dict.fromkeys(("scale", "block_size", "feature_stride", "nsize", "im2col_step", "heads"), _WINDOW),
        **dict.fromkeys(("pooled_size", "group_size", "part_size", "sample_per_part", "output_size"), _WINDOW),
        **dict.fromkeys(("num_filter", "num_group", "num_groups", "num_deformable_group"), _COUNT),
        **dict.fromkeys(("input_dim", "num_hidden"), Limit(1, INT32)),
        **dict.fromkeys(("output_dim", "out_dim", "depth", "state_size", "projection_size"), _COUNT),
        **dict.fromkeys(("num_args", "num_outputs", "num_arrays"), _PARTS),
        **dict.fromkeys(("repeat", "repeats"), Limit(0, 2**24)),
        **dict.fromkeys(("axis", "axis1", "axis2", "dim1", "dim2", "axes"), _AXIS),
        "num_layers": Limit(1, 2**10),
        "sections": Limit(0, 2**12),
    }
)
"""Attribute -> what it may hold, in every operator that has it."""

BY_OPERATOR: Final[Mapping[str, Limits]] = MappingProxyType(
    {
        "UpSampling": {"num_filter": Limit(0, 2**24)},
        "_contrib_quantized_concat": {"dim": Limit(0, 32)},  # it counts from the front alone
    }
)
"""Operator -> attribute -> what it may hold there, in place of `OF_ALL`."""

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"_contrib_quantize_asym": ("min_calib_range", "max_calib_range")}
)
"""Operator -> attributes without which MXNet makes it, and then crashes."""

NEVER_NONE: Final = frozenset(("use_length",))
"""Attributes that may be "None" by their type, at which MXNet ends the process."""

SPLITS: Final[Mapping[str, tuple[str, int]]] = MappingProxyType(
    {"Reshape": ("shape", -4), "reshape": ("shape", -4), "_npx_reshape": ("newshape", -6)}
)
"""Operator -> the attribute, and the code in it that splits an axis by the two sizes behind it; 0 ends the process."""

PARTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    dict.fromkeys(("_split_v2", "_npi_split", "_npi_hsplit", "_npi_dsplit"), ("indices", "sections"))
)
"""Operator -> the places, and the number, by one of which it counts its outputs: MXNet crashes where it has none."""

_NOT_TO_RUN = re.compile(
    r"_backward_.*|.*_update|_?multi_.*|_?preloaded_multi_.*|reset_arrays|_Native|_NDArray|_CachedOp.*|_contrib_dgl_.*"
    r"|_NoGradient|_cv.*|_npi_cv.*|_imdecode|_copyto|_set_value|_onehot_encode|_broadcast"
)

_UNSOUND = re.compile(
    r"_npi_tensordot(_int_axes)?|_npi_tensorsolve|_npi_lcm(_scalar)?|(_npi_|_)?random_randint|_npi_choice"
    r"|_?unravel_index|_npx_constraint_check|_sparse_where|_(npx__)?image_resize|(_npi_|_?sample_|_?random_)(generalized_)?(gamma|negative_binomial|poisson)(_like)?"
)
"""Operators that end the process, or never end, for shapes, types or values that their kernels alone look at."""


def is_sound(op: str) -> bool:
    """Whether MXNet answers what does not fit the operator ``op`` with an error."""
    return not _UNSOUND.fullmatch(op)


def is_to_run(op: str) -> bool:
    """Whether a network that is made to be run may have the operator ``op``: no gradient, optimizer's step or file."""
    return not _NOT_TO_RUN.fullmatch(op)


def is_of_numpy(op: str) -> bool:
    """Whether the operator ``op`` knows tensors without axes or values; MXNet goes by the same names."""
    return op.startswith(("_np_", "_npi_", "_npx_"))


def limit_of(op: str, attr: str) -> Limit:
    """What the attribute ``attr`` of the operator ``op`` may hold."""
    return BY_OPERATOR.get(op, {}).get(attr) or OF_ALL.get(attr, ANY)
