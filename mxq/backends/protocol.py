"""`Backend`: who takes a quantized network to files, and what it asks of it before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mxq.backends.spec import BackendSpec
from mxq.graph.ir import Model
from mxq.quant import QuantizedNetwork
from mxq.quant.plan import InputRecord, TensorRecord
from mxq.rewrite import NO_EVENTS, Trace


@dataclass(frozen=True)
class Lowered:
    """A quantized network as a backend writes it.

    Attributes:
        model: what goes into the files.
        tensors: name of each tensor of codes in ``model`` -> how it is stored; empty where it has none.
        input: what ``model`` is to be fed; None for float.
        trace: what was done.
    """

    model: Model
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    input: InputRecord | None = None
    trace: Trace = NO_EVENTS


@runtime_checkable
class Backend(Protocol):
    """One kind of kernels and files."""

    @property
    def name(self) -> str:
        """By which `mxq.backends.get` gives it."""

    @property
    def spec(self) -> BackendSpec:
        """The capability table."""

    def constrain(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """``network`` with what the kernels and files ask of its ranges, types and layers; it may have other tensors.

        Raises:
            QuantizeError: something cannot be held; names it, its spec, and those that can.
        """

    def lower(self, network: QuantizedNetwork) -> Lowered:
        """What is written of a network from `constrain`.

        Raises:
            QuantizeError: as of `constrain`.
        """
