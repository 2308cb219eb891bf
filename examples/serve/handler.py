"""Handler of multi-model-server for a classifier: any pair of MXNet, float or INT8, beside a ``preprocess.json``.

It knows nothing of INT8, and serves both alike. Requests are pictures; answers the best classes with their scores.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from PIL import Image

TOP = 3


class Classifier:
    """A network bound once, for pictures one by one."""

    def __init__(self, folder: str) -> None:
        (symbol,) = Path(folder).glob("*-symbol.json")
        self.settings = json.loads((Path(folder) / "preprocess.json").read_text())
        height, width = self.settings["resize"]
        net, args, states = mx.model.load_checkpoint(str(symbol)[: -len("-symbol.json")], 0)
        self.net = net.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, height, width))
        self.net.copy_params_from(args, states)

    def __call__(self, encoded: bytes) -> list:
        """The best classes of one picture, each with its probability."""
        height, width = self.settings["resize"]
        with Image.open(io.BytesIO(encoded)) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((width, height)), np.float32)
        mean, std = (np.float32(self.settings[name]) for name in ("mean", "std"))
        self.net.arg_dict["data"][:] = ((pixels - mean) / std).transpose(2, 0, 1)[None]
        scores = mx.nd.softmax(self.net.forward(is_train=False)[0]).asnumpy()[0]
        return [[int(i), float(scores[i])] for i in np.argsort(-scores)[:TOP]]


_loaded = []


def handle(data: Any, context: Any) -> Any:
    """What the server calls: first without data, then with a list of requests."""
    if not _loaded:
        _loaded.append(Classifier(context.system_properties["model_dir"]))
    if data is None:
        return None
    return [_loaded[0](request.get("body") or request.get("data")) for request in data]
