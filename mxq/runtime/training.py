"""Training a Gluon block: a step of SGD, the state that the next one depends on, the seeds of all that is random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mxq.errors import MxqError, QuantizeError, RuntimeFailure
from mxq.graph.ir import Array
from mxq.host.interrupts import held
from mxq.runtime.blocks import arguments
from mxq.runtime.mxnet import mx, mxnet_says, of_mode, sentence, to_ndarray, to_numpy

Loss: TypeAlias = Callable[[Any, Any], Any]
"""From what a block gives, and labels, both MXNet's arrays, to losses: a ``gluon.loss.Loss``, or a function."""


class CrossEntropy:
    """Softmax cross-entropy of a block's first output, the loss where none is given."""

    def __init__(self) -> None:
        self._loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def __call__(self, output: Any, labels: Any) -> Any:
        first = output[0] if isinstance(output, list | tuple) else output
        return self._loss(first, labels)


@dataclass(frozen=True)
class Settings:
    """Of SGD: ``decays`` is the weight decay of some parameters by name, ``weight_decay`` that of the others."""

    momentum: float
    nesterov: bool
    weight_decay: float
    decays: Mapping[str, float]


class Trainee:
    """A block under training, on the CPU.

    Attributes:
        block: it.
        inputs: the names of its arguments.

    Raises:
        QuantizeError: it is no Gluon block, has parameters without values, or none that train.
    """

    def __init__(self, block: Any, loss: Loss | None, settings: Settings) -> None:
        self.block, self.inputs = block, _inputs(block)
        self._table = _parameters(block)
        self._trained = {name: p for name, p in self._table.items() if p.grad_req != "null"}
        if not self._trained:
            raise QuantizeError(f"the {type(block).__name__} has no parameters that train; allowed: one that has some")
        self._loss = CrossEntropy() if loss is None else loss
        self._updater = mx.optimizer.get_updater(_optimizer(settings, [p.name for p in self._trained.values()]))

    def step(self, feed: Mapping[str, Array], labels: Array, rate: float) -> tuple[float, list[Array]]:
        """One step on a batch.

        Returns:
            The mean loss and the outputs, both before it. Where the loss is not finite, nothing was changed.

        Raises:
            RuntimeFailure: MXNet does not run the block, or the loss, on the batch.
        """
        with held(), mxnet_says(f"MXNet cannot train on a batch {_described(feed)} with labels {list(labels.shape)}"):
            with mx.autograd.record():
                output = self.block(*self._arrays(feed))
                loss = self._mean(output, labels)
            value = float(loss.asnumpy())
            if np.isfinite(value):
                loss.backward()
                self._update(rate)
            return value, [to_numpy(each) for each in _listed(output)]

    def _update(self, rate: float) -> None:
        self._updater.optimizer.set_learning_rate(rate)
        for index, parameter in enumerate(self._trained.values()):
            self._updater(index, parameter.grad(), parameter.data())

    def loss(self, feed: Mapping[str, Array], labels: Array) -> float:
        """The mean loss in inference."""
        said = mxnet_says(f"MXNet cannot run the loss on a batch {_described(feed)}")
        with held(), said, mx.autograd.predict_mode():
            return float(self._mean(self.block(*self._arrays(feed)), labels).asnumpy())

    def _mean(self, output: Any, labels: Array) -> Any:
        """The loss of a batch.

        Raises:
            RuntimeFailure: the loss, which is the user's code, raises something or gives no array.
        """
        try:
            found = self._loss(output, of_mode(to_ndarray(labels)))
        except (MxqError, mx.base.MXNetError):
            raise
        except Exception as error:
            raise RuntimeFailure(f"the loss raised {type(error).__name__}: {sentence(str(error))}") from error
        if not isinstance(found, mx.nd.NDArray):
            raise RuntimeFailure(
                f"the loss gave a {type(found).__name__}; allowed: an array of MXNet, such as one loss an example"
            )
        return found.mean()

    def outputs(self, feed: Mapping[str, Array]) -> list[Array]:
        """What the block gives in inference."""
        said = mxnet_says(f"MXNet cannot run the block on a batch {_described(feed)}")
        with held(), said, mx.autograd.predict_mode():
            return [to_numpy(each) for each in _listed(self.block(*self._arrays(feed)))]

    def _arrays(self, feed: Mapping[str, Array]) -> list[Any]:
        return [of_mode(to_ndarray(feed[name])) for name in self.inputs]

    # ---- state ----

    @property
    def values(self) -> dict[str, Array]:
        """All parameters, by their place in the block.

        Raises:
            RuntimeFailure: an operator failed in a step before, which MXNet tells of only now.
        """
        with mxnet_says("MXNet failed in training; it cannot compute the gradient of some operator of the block"):
            return {name: to_numpy(p.data()) for name, p in self._table.items()}

    def assign(self, values: Mapping[str, Array]) -> None:
        """Gives them other values."""
        for name, parameter in self._table.items():
            parameter.set_data(of_mode(to_ndarray(values[name])).astype(parameter.dtype))

    @property
    def momenta(self) -> dict[str, Array]:
        """What SGD keeps of earlier gradients; empty before the first step, or without momentum."""
        states = self._updater.states
        names = enumerate(self._trained)
        return {name: to_numpy(states[i]) for i, name in names if states.get(i) is not None}

    def resume(self, momenta: Mapping[str, Array]) -> None:
        """Goes on as after steps that left ``momenta``."""
        for index, name in enumerate(self._trained):
            if name in momenta:
                self._updater.states[index] = of_mode(to_ndarray(momenta[name]))
                self._updater.states_synced[index] = True

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of all parameters, by their place."""
        return {name: list(p.data().shape) for name, p in self._table.items()}


def _inputs(block: Any) -> tuple[str, ...]:
    if not isinstance(block, mx.gluon.Block):
        raise QuantizeError(f"block is a {type(block).__name__}; allowed: a Gluon block, such as mxq.qat.prepare gives")
    return arguments(block) if isinstance(block, mx.gluon.HybridBlock) else ("data",)


def _parameters(block: Any) -> dict[str, Any]:
    """By their place in the block, which does not depend on how many blocks were made before."""
    found = dict(sorted(block._collect_params_with_prefix().items()))  # noqa: SLF001  (save_parameters names them so)
    open_ = [p.name for p in found.values() if p._data is None]  # noqa: SLF001
    if open_:
        raise QuantizeError(
            f"parameter {open_[0]!r} has no value ({len(open_)} in all); allowed: a block that was initialised or "
            "loaded, and run once on a batch"
        )
    return found


def _optimizer(settings: Settings, names: Sequence[str]) -> Any:
    """SGD whose weight decay is all in the multipliers, so that each parameter has its own."""
    name = "nag" if settings.nesterov else "sgd"
    found = mx.optimizer.create(name, momentum=settings.momentum, wd=1.0, param_idx2name=dict(enumerate(names)))
    found.set_wd_mult({name: settings.decays.get(name, settings.weight_decay) for name in names})
    return found


def _listed(output: Any) -> list[Any]:
    return list(output) if isinstance(output, list | tuple) else [output]


def _described(feed: Mapping[str, Array]) -> str:
    return ", ".join(f"{name!r} {value.dtype}{list(value.shape)}" for name, value in feed.items())


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Within, all that MXNet, numpy and Python draw follows from ``seed``; the last two go on as before after it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (loaders draw from it)
    drawn = [int(x) for x in np.random.SeedSequence(list(seed)).generate_state(3)]
    random.seed(drawn[0])
    np.random.seed(drawn[1])  # noqa: NPY002
    mx.random.seed(drawn[2] % 2**31)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
