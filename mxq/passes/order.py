"""The order of the passes that take a network as it is given to its fused float form, and places for others.

Each pass stands in a stage, or after another pass; `mxq.pipeline` asks for the steps of a stage and runs them under
their contracts. A pass of another package is registered by a call or by an entry point of the group "mxq.passes", which
gives a `Placed`; it is then run for every network, but where settings exclude it. See docs/extending.md.

===================== =============================================================================================
stage                 the network
===================== =============================================================================================
``"simplified"``      as inference means it; constants are computed after it
``"prepared"``        BatchNorm and factors folded, slow operators replaced; one input shape is made use of after it
``"fused"``           layers are what int8 kernels take at once
``"fused_float"``     layers are what float kernels take at once
===================== =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from mxq.backends import BackendSpec
from mxq.errors import ConfigError, one_of
from mxq.logs import LOG
from mxq.passes.avgpool_after_conv1x1 import AVGPOOL_AFTER_CONV1X1
from mxq.passes.avgpool_to_depthwise import AVGPOOL_TO_DEPTHWISE
from mxq.passes.batch_norm_to_depthwise import batch_norm_to_depthwise
from mxq.passes.conv1x1_to_dense import CONV1X1_TO_DENSE, HEAD_TO_DENSE
from mxq.passes.detection import DETECTION
from mxq.passes.fold_affine import FOLD_AFFINE
from mxq.passes.fold_bn import FOLD_BN
from mxq.passes.fold_scale import FOLD_SCALE
from mxq.passes.fuse import fuse_float, fuse_int8
from mxq.passes.reduce_strength import REDUCE_STRENGTH, REDUCE_STRENGTH_AFTER_FUSION, UPSAMPLING_AS_DECONVOLUTION
from mxq.passes.shape_only import SHAPE_ONLY
from mxq.passes.simplify import SIMPLIFY
from mxq.passes.split_groups import SPLIT_GROUPS
from mxq.passes.subsample_early import SUBSAMPLE_EARLY
from mxq.registry import Registry
from mxq.rewrite import Pass

Stage: TypeAlias = Literal["simplified", "prepared", "fused", "fused_float"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


@dataclass(frozen=True)
class ForKernels:
    """A pass that differs by what kernels there are: ``of`` a backend's table, it is made."""

    name: str
    of: Callable[[BackendSpec], Pass]


P = TypeVar("P", Pass, ForKernels)


@dataclass(frozen=True)
class Placed:
    """A pass and its place: last in ``stages``, or wherever the pass named ``after`` stands, after that."""

    step: Pass | ForKernels
    stages: tuple[Stage, ...] = ()
    after: str = ""

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise one_of(f"stage of pass {self.name!r}", stage, STAGES)
        if bool(self.stages) == bool(self.after):
            raise ConfigError(
                f"pass {self.name!r} has stages {self.stages!r} and after {self.after!r}; allowed: one of them"
            )

    @property
    def name(self) -> str:
        return self.step.name

    def made(self, spec: BackendSpec) -> Pass:
        """The pass for the kernels of ``spec``."""
        return self.step.of(spec) if isinstance(self.step, ForKernels) else self.step


PASSES: Final = Registry[Placed]("pass", "mxq.passes", Placed)
"""All passes, in order within their stages."""

NEEDED: Final = frozenset({"simplify", "fuse_int8", "fuse_float"})
"""Passes that cannot be excluded: without them operators are not what the table of kernels has rows for."""

for _each in (
    Placed(SIMPLIFY, ("simplified",)),
    Placed(DETECTION, ("simplified",)),
    Placed(SHAPE_ONLY, ("prepared",)),
    Placed(FOLD_BN, ("prepared",)),
    Placed(ForKernels("batch_norm_to_depthwise", batch_norm_to_depthwise), ("prepared",)),
    Placed(FOLD_AFFINE, ("prepared",)),
    Placed(FOLD_SCALE, ("prepared",)),
    Placed(REDUCE_STRENGTH, ("prepared",)),
    Placed(UPSAMPLING_AS_DECONVOLUTION, ("prepared",)),
    Placed(AVGPOOL_AFTER_CONV1X1, ("prepared",)),
    Placed(SUBSAMPLE_EARLY, ("prepared",)),
    Placed(CONV1X1_TO_DENSE, ("prepared",)),
    Placed(HEAD_TO_DENSE, ("prepared",)),
    Placed(AVGPOOL_TO_DEPTHWISE, ("prepared",)),
    Placed(SPLIT_GROUPS, ("fused",)),
    Placed(ForKernels("fuse_int8", fuse_int8), ("fused",)),
    Placed(ForKernels("fuse_float", fuse_float), ("fused_float",)),
    Placed(REDUCE_STRENGTH_AFTER_FUSION, ("fused", "fused_float")),
):
    PASSES.register(_each)


def register(step: P, *stages: Stage, after: str = "") -> P:
    """Makes ``step`` run for every network from now on: last in ``stages``, or after the pass of that name.

    Raises:
        ConfigError: another pass has its name, or there is no such stage or pass.
    """
    if after and after not in PASSES:
        raise one_of(f"pass {step.name!r}: after", after, PASSES.names())
    PASSES.register(Placed(step, stages, after))
    return step


def check_excluded(names: Collection[str]) -> None:
    """Every pass that settings exclude exists and can be spared.

    Raises:
        ConfigError: one does not, with those that can.
    """
    allowed = [name for name in PASSES.names() if name not in NEEDED]
    for name in names:
        if name not in allowed:
            raise one_of("exclude_passes", name, allowed)


def steps(stage: Stage, spec: BackendSpec, exclude: Collection[str] = ()) -> Iterator[Pass]:
    """The passes of ``stage``, in order, for the kernels of ``spec``; what comes after an excluded one stays."""
    known = {row.name: row for row in PASSES.values()}
    followers = {name: [other for other in known.values() if other.after == name] for name in known}
    for row in known.values():
        if stage in row.stages:
            found = _with_followers(row, followers)
            yield from (each.made(spec) for each in found if each.name not in {*exclude, *spec.without})
        elif row.after and not _is_reached(row, known):
            _warn(row.name, row.after)


def _with_followers(row: Placed, followers: Mapping[str, Sequence[Placed]]) -> Iterator[Placed]:
    yield row
    for follower in followers[row.name]:
        yield from _with_followers(follower, followers)


def _is_reached(row: Placed, known: Mapping[str, Placed]) -> bool:
    """Whether a pass comes, be it by way of others, after one that stands in a stage."""
    seen = set[str]()
    while row.after in known and row.name not in seen:
        seen.add(row.name)
        row = known[row.after]
    return bool(row.stages)


@cache
def _warn(name: str, after: str) -> None:
    """Once: entry points do not say where they go before they are all imported."""
    LOG.warning("pass %r is left out: it is to run after %r, which is no pass that runs", name, after)
