"""Data for a network: arrays, loaders, folders of pictures; as feeds, as labelled feeds, as integers.

Calibration data in any of its forms, as an iterable of feeds ``{input name: array}``.

What is understood, told apart by what an object offers (nothing here imports a framework):

=============================  ======================================================================================
an array (numpy, NDArray)      all examples along the first axis, cut into batches
a tuple of arrays              (data, ..., label ...): whole arrays, cut into batches together
a dict name -> array           whole arrays by input name, cut into batches together
a DataIter                     has ``provide_data``; reset before reading; padded examples are dropped
any other iterable             of batches: a list, a DataLoader, a generator
=============================  ======================================================================================

A *list* is always a list of batches, a *tuple of arrays* always one set of whole arrays. A batch is an array, a
list or tuple of arrays (nested or not, None left out; the first ones are the network's arguments in order, the rest
labels, ignored), a dict by input name (other names ignored), or a DataBatch, whose labels are there for a network that
computes with them. Floats become float32; integers stay as they are.

Which examples are used, where not all are: data may be sorted by class, so they are spread evenly wherever that costs
nothing. Of whole arrays and of files (`mxq.data.examples.Source`) example ``i * held // used`` for each i, and no other
is read; of a list of batches as many whole ones as hold enough. Of what can only be read in order (a DataLoader, a
DataIter, a generator) the first ones: there the data has to be shuffled.

A batch is never cut: its first axis may be time, or the network may be made for its size. So where the data comes in
batches, their number is rounded up to whole ones, as MXNet does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxq.data.integers import IntegerTransform, loader, transform_for

__all__ = ["IntegerTransform", "loader", "transform_for"]


def __getattr__(name: str) -> Any:
    """What is public here, imported when it is asked for: it reads pictures, which most users of this room do not."""
    if name in __all__:
        return getattr(importlib.import_module("mxq.data.integers"), name)
    raise AttributeError(f"module 'mxq.data' has no attribute {name!r}")
