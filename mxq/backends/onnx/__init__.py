"""ONNX: a network written for other runtimes, operator by operator, from mxq's own graph.

    mxq.graph.ir.Model --lower (table, feed)--> Lowering --write (onnx)--> net.onnx

* `table`: one `Row` for each operator of MXNet, in `rows` by topic. A row is a function ``lower(context)`` that
  writes ONNX operators for one node and gives the names of what they make. A node that it cannot write it refuses with
  `Unfit`: one of the reasons of `Why`, and what of the node is meant. `lowering.lower` goes on after a refusal, so
  that one error names all of them.
* `context.Context`: what a row knows and does. It knows the node and the shape and type of every tensor. MXNet's own
  inference found these (`mxq.runtime.tensors`), so rows repeat none of MXNet's rules on shapes: Reshape's codes,
  pooling's conventions and broadcasting are all in the shape of what is made. It writes operators, by names that are
  free, and constants, each once.
* Shapes follow the batch: a side is a number, or ``times * batch + plus`` (`mxq.graph.tensors.PerBatch`), found by
  inferring at several batch sizes. A Reshape with one such side is written with -1; with several, the shape is
  computed in the file. A row that needs a number where the batch stands refuses with `Why.BATCH`, and a network that is
  made for one batch size is written for that one.
* Sides that follow the size of pictures, where any is to do, are `Open`: a row that needs a number there
  refuses with `Why.SIZE`.
* Rows know nothing of onnx: they make `context.Operator` objects. `file` alone imports the package, late, makes the
  protocol buffers, has ``onnx.checker`` look at them with full shape inference, and writes, whole or not at all.
* Rows know nothing of codes. A row reads a tensor by ``context.read(place)`` and parameters by
  ``context.weight(place, axes)``, and what it makes is announced. What stands for these tensors is the business of a
  `context.Feed`: `FloatFeed` hands them on as they are; `codes.CodeFeed` of a `QuantizedNetwork` hands on what a
  DequantizeLinear makes of them, of weights by the codes with their axes in the order that was asked for, and puts a
  QuantizeLinear after what is made as codes. What only moves values (Flatten before a Gemm) is told to ``read`` so that
  it comes before the codes, which runtimes ask for. Which tensors are codes is for a capability table to say.
* Files are of opset 17 (IR 8), which has LayerNormalization and which all current runtimes read; those with
  weights of 4 bits of opset 21 (IR 10).
"""

from __future__ import annotations

from mxq.backends.onnx.codes import Coded, CodeFeed, plain_operators
from mxq.backends.onnx.context import Unfit, Why
from mxq.backends.onnx.file import write
from mxq.backends.onnx.lowering import Lowering, lower
from mxq.backends.onnx.row import Row
from mxq.backends.onnx.table import TABLE, TOPICS, row_of

__all__ = [
    "TABLE",
    "TOPICS",
    "CodeFeed",
    "Coded",
    "Lowering",
    "Row",
    "Unfit",
    "Why",
    "lower",
    "plain_operators",
    "row_of",
    "write",
]
