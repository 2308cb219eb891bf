"""Pictures and arrays from disk as batches: what the command line feeds to a network.

A data source is a folder of images, a ``.npy`` or an ``.npz`` file. Batches are made as they are asked for, so
a folder of any size is read in the memory of one batch.
"""

from __future__ import annotations

from mxq.data.examples import Source, open_source, read_picture, stacked
from mxq.data.preprocess import RAW, Preprocess, read_preprocess

__all__ = ["RAW", "Preprocess", "Source", "open_source", "read_picture", "read_preprocess", "stacked"]
