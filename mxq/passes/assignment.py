"""Assign: as what each tensor of the quantized network is stored, before anything is written.

A tensor that an int8 operator makes has the type of its kernel: a convolution writes u8 after ReLU or clip, s8
otherwise. What is quantized from float is u8 where the range has no negative part (``auto``). Where kernels want it
otherwise:

* conv + sum writes into its summand's memory with the summand's type. Under an s8 result a u8 summand is converted to
  s8 first; what is done of a u8 result over an s8 summand, `mxq.quant.records` says.
* int8 ReLU takes s8 only; on a u8 tensor it has nothing to do.
* a ReLU that its BatchNorm does by saturation (`mxq.passes.fuse_relu_into_batchnorm`) is one operator with it.
* conv + sum has no clip in int8. It is a ReLU with a range that ends at the clip's bound, where u8 saturates.

The ranges of what is stored follow from these types and the thresholds: `mxq.quant.records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mxq.backends import BackendSpec, OpSpec, result_of, summand_place
from mxq.config import QuantConfig
from mxq.errors import ConfigError, QuantizeError
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.passes.overrides import LayerChoices
from mxq.passes.partition import data_inputs, writes_float
from mxq.quant import Operation, QuantizedNetwork, Requests
from mxq.quant.plan import Plan
from mxq.quant.thresholds import Thresholds

INT8, UINT8 = "int8", "uint8"


def requested(choices: LayerChoices, config: QuantConfig) -> Requests:
    """What the settings ask of types."""
    asked = {name: choices.dtype(name) for name in choices.table}
    return Requests({name: dtype for name, dtype in asked.items() if dtype}, config.quantized_dtype)


def assign(model: Model, plan: Plan, thresholds: Thresholds, spec: BackendSpec, **others: Any) -> QuantizedNetwork:
    """The network that ``plan`` makes of a float one.

    Args:
        model: the fused float model that ``plan`` was made for.
        plan: from `partition`.
        thresholds: a range for every tensor in ``plan.observe``.
        spec: what kernels there are.
        others: further attributes of `QuantizedNetwork`, such as ``requests``.

    Raises:
        CalibrationError: a range is missing.
        QuantizeError: "uint8" was asked for a tensor with negative values, or of which nothing is known.
    """
    return assigned_anew(QuantizedNetwork(model, plan, thresholds, {}, (), **others), spec)


def assigned_anew(network: QuantizedNetwork, spec: BackendSpec) -> QuantizedNetwork:
    """``network`` with the types that its operators and ranges have now; see `assign`."""
    assigner = _Assigner(network, spec)
    graph, absorbed = network.fused.graph, set(network.plan.absorbed.values())
    for node in graph:  # an absorbed one is made with the ReLU that reads it
        if node.name in network.plan.absorbed:
            assigner.absorb_relu(node, graph[network.plan.absorbed[node.name]])
        elif node.name in network.plan.quantized and node.name not in absorbed:
            assigner.operation(node)
    return replace(network, operations=assigner.operations, conversions=tuple(assigner.conversions))


def check_requests(network: QuantizedNetwork, spec: BackendSpec) -> None:
    """Whether every type that was asked for is what a kernel writes.

    Raises:
        ConfigError: one is not.
    """
    for name, operation in network.operations.items():
        node, asked = network.fused.graph[name], network.requests.of(name)
        row = spec.find(node.op)
        if row is not None and row.output == "post_op" and asked not in ("", "auto", operation.dtype):
            raise ConfigError(
                f"overrides: dtype is {asked!r} for {name!r}, but its kernel writes {operation.dtype} "
                f"after {result_of(node).op}; allowed: 'auto' or {operation.dtype!r}"
            )


@dataclass
class _Assigner:
    network: QuantizedNetwork
    spec: BackendSpec
    operations: dict[str, Operation] = field(default_factory=dict)
    conversions: dict[tuple[Ref, str], None] = field(default_factory=dict)
    made: dict[Ref, str] = field(default_factory=dict)
    """Tensor of codes that an int8 operator makes -> its type."""
    floats: dict[Ref, str] = field(default_factory=dict)
    """What int8 layers write in float -> the type as which their int8 readers expect it."""

    @property
    def graph(self) -> Graph:
        return self.network.fused.graph

    def operation(self, node: Node) -> None:
        """An operator that becomes int8."""
        row = self._row(node)
        types = dict(zip(row.data_inputs, row.takes, strict=False))
        reads = {i: self._read(node.inputs[i], types.get(i, "")) for i in data_inputs(node, row)}
        dtype = _output_dtype(node, row, reads)
        if row.s8_only and reads[0] == UINT8:
            self._add(node, Operation(reads, UINT8, passes_on=True))
            return
        doubled = False
        if (summed := summand_place(node)) is not None:
            doubled = dtype == UINT8 and reads[summed] == INT8
            if dtype == INT8 and reads[summed] == UINT8:
                reads[summed] = self._read(node.inputs[summed], INT8)
        to_float = writes_float(self.graph, node, row, self.network.plan.quantized)
        ranged, bound = row.has_range(node), _bound(node, row)
        self._add(node, Operation(reads, dtype, ranged, doubled, bound, to_float, row.halves_u8))

    def absorb_relu(self, relu: Node, norm: Node) -> None:
        """A BatchNorm that does what the ReLU after it would; see `mxq.passes.fuse_relu_into_batchnorm`."""
        reads = {0: self._read(norm.inputs[0])}
        self._add(relu, Operation(reads, INT8, ranged=True, halves=self._row(norm).halves_u8, norm=norm.name))

    def _add(self, node: Node, operation: Operation) -> None:
        self.operations[node.name] = operation
        (self.floats if operation.writes_float else self.made)[node.out] = operation.dtype

    def _row(self, node: Node) -> OpSpec:
        row = self.spec.find(node.op)
        if row is None:
            raise QuantizeError(f"{node.name!r} ({node.op}) has no int8 kernel in {self.spec.name}")
        return row

    def _read(self, ref: Ref, dtype: str = "") -> str:
        """The type of ``ref`` where it is read as ``dtype`` or, without, as whatever it is."""
        made = self.made.get(ref)
        if made is not None and dtype in ("", made):
            return made
        dtype = dtype or self._input_dtype(ref)
        self.conversions[ref, dtype] = None
        return dtype

    def _input_dtype(self, ref: Ref) -> str:
        """The type in which a float tensor is quantized."""
        if ref in self.floats:
            return self.floats[ref]
        requests = self.network.requests
        wanted = requests.of(ref.name) or requests.default
        if self.network.at_run_time:
            if wanted == UINT8:
                raise QuantizeError(
                    f"quantized_dtype is 'uint8', but calib_mode is 'none', and nothing shows that tensor {str(ref)!r} "
                    "has no negative values, at which the int8 kernels would fail: use 'auto' or 'int8', or a "
                    "calib_mode that looks at data, such as 'naive'"
                )
            return INT8
        found = self.network.thresholds.range(str(ref))
        if wanted == UINT8 and found.min < 0:
            raise QuantizeError(
                f"quantized_dtype is 'uint8', but tensor {str(ref)!r} goes down to {found.min:.6g}; uint8 holds no "
                "negative value: use 'auto', which picks uint8 where the range allows it, or 'int8'"
            )
        return INT8 if wanted == INT8 or found.min < 0 else UINT8


def _output_dtype(node: Node, row: OpSpec, reads: Mapping[int, str]) -> str:
    """The type that the kernel of ``node`` writes."""
    if row.output == "post_op":
        post = row.post_op(result_of(node))
        return UINT8 if post is not None and post.unsigned else INT8
    if row.output == "same":
        return next(iter(reads.values()))
    return INT8 if row.output == "int8" or INT8 in reads.values() else UINT8


def _bound(node: Node, row: OpSpec) -> float:
    """What the values of ``node`` do not exceed, whatever range is asked for."""
    last = result_of(node)
    post = row.post_op(last)
    return last.number("a_max", np.inf) if post is not None and post.saturates else np.inf
