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

OF_ALL: Final[Limits] = MappingProxyType(
    {
        "kernel": Limit(1, SIZE),
        "stride": Limit(1, SIZE),
        "dilate": Limit(1, SIZE),
        "pad": Limit(0, SIZE),
        "adj": Limit(0, SIZE),
        "num_filter": Limit(1, 2**24),
        "num_group": Limit(1, 2**24),
        "num_groups": Limit(1, 2**24),
        "num_hidden": Limit(1, 2**28),
        "num_args": Limit(1, 2**14),
        "num_outputs": Limit(1, 2**14),
        "num_arrays": Limit(1, 2**14),
        "sections": Limit(0, 2**14),
    }
)
"""Attribute -> what it may hold, in every operator that has it."""

BY_OPERATOR: Final[Mapping[str, Limits]] = MappingProxyType(
    {
        "UpSampling": {"scale": Limit(1, SIZE), "num_filter": Limit(0, 2**24)},
        "RNN": {"state_size": Limit(1, 2**20), "num_layers": Limit(1, 2**10), "projection_size": Limit(1, 2**20)},
        "Embedding": {"input_dim": Limit(1, INT32), "output_dim": Limit(1, 2**24)},
    }
)
"""Operator -> attribute -> what it may hold there, in place of `OF_ALL`."""

_NOT_TO_RUN = re.compile(
    r"_backward_.*|.*_update|_?multi_.*|_?preloaded_multi_.*|reset_arrays|_Native|_NDArray|_CachedOp.*|_contrib_dgl_.*"
    r"|_NoGradient|_cvimread|_cvimdecode|_cvcopyMakeBorder|_copyto|_set_value|_onehot_encode|_broadcast"
)


def is_to_run(op: str) -> bool:
    """Whether a network that is made to be run may have the operator ``op``: no gradient, no optimizer's step."""
    return not _NOT_TO_RUN.fullmatch(op)


def limit_of(op: str, attr: str) -> Limit:
    """What the attribute ``attr`` of the operator ``op`` may hold."""
    return BY_OPERATOR.get(op, {}).get(attr) or OF_ALL.get(attr, ANY)
