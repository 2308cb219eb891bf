"""Run a pair by MXNet's C predict API through ctypes; float or INT8, the calls are the same.

Usage::

    python examples/serve/predict.py output/resnet_digits-int8 --shape 1,3,48,48
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np

UINT = ctypes.c_uint


def library() -> ctypes.CDLL:
    """MXNet's library, without its Python package being imported."""
    found = importlib.util.find_spec("mxnet")
    if found is None or found.origin is None:
        sys.exit("mxnet is not installed")
    lib = ctypes.CDLL(str(Path(found.origin).with_name("libmxnet.so")))
    lib.MXGetLastError.restype = ctypes.c_char_p
    return lib


class Predictor:
    """A pair with the input "data" of one shape."""

    def __init__(self, prefix: str, shape: tuple) -> None:
        self.lib, self.handle = library(), ctypes.c_void_p()
        self.shape = shape
        params = Path(f"{prefix}-0000.params").read_bytes()
        names = (ctypes.c_char_p * 1)(b"data")
        ends, sides = (UINT * 2)(0, len(shape)), (UINT * len(shape))(*shape)
        symbol = Path(f"{prefix}-symbol.json").read_bytes()
        self._check(
            self.lib.MXPredCreate(symbol, params, len(params), 1, 0, 1, names, ends, sides, ctypes.byref(self.handle))
        )

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The first output."""
        fed = np.ascontiguousarray(batch, np.float32)
        floats = ctypes.POINTER(ctypes.c_float)
        self._check(self.lib.MXPredSetInput(self.handle, b"data", fed.ctypes.data_as(floats), UINT(fed.size)))
        self._check(self.lib.MXPredForward(self.handle))
        sides, count = ctypes.POINTER(UINT)(), UINT()
        self._check(self.lib.MXPredGetOutputShape(self.handle, 0, ctypes.byref(sides), ctypes.byref(count)))
        out = np.empty([sides[i] for i in range(count.value)], np.float32)
        self._check(self.lib.MXPredGetOutput(self.handle, 0, out.ctypes.data_as(floats), UINT(out.size)))
        return out

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(self.lib.MXGetLastError().decode(errors="replace"))


def main() -> None:
    """Run the pair on noise and time it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix")
    parser.add_argument("--shape", default="1,3,48,48", help="of a batch")
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    if not Path(f"{args.prefix}-symbol.json").is_file():
        sys.exit(f"{args.prefix}-symbol.json is missing: run examples/resnet/quantize.py first")
    shape = tuple(map(int, args.shape.split(",")))
    predict, batch = Predictor(args.prefix, shape), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scores = predict(batch)
    took = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        predict(batch)
        took.append(1e3 * (time.perf_counter() - start))
    print(f"class {scores[0].argmax()}; p50 {np.percentile(took, 50):.2f} ms, p99 {np.percentile(took, 99):.2f} ms")


if __name__ == "__main__":
    main()
