"""What a tuning found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.quant.plan import Report
from mxq.text import Shown
from mxq.tuning.search import DONE, INTERRUPTED, Bar, Trial

if TYPE_CHECKING:
    from mxq.runtime import QuantizedBlock


@dataclass(frozen=True)
class Tuned(Shown):
    """The best network, and how it was found.

    Attributes:
        model: the int8 network.
        record: every decision in it, as `mxq.quantize_net` reports them.
        config: its settings; `mxq.quantize_net` makes it again with them, unless it was trained (``best.settings``).
        best: its trial.
        trials: all, in order.
        bar: the float network's score, and how much less was allowed.
        stopped: why the search ended.
        by: how networks were scored, in words.
        float_cost: the modelled time of the float network, in the unit of the trials' costs.
        seconds: that the search took, with earlier runs.
        prefix: of the files, where there was a workdir.
        share: whether scores are shares of examples, which are shown in per cent.
    """

    model: Model
    record: Report
    config: QuantConfig
    best: Trial
    trials: tuple[Trial, ...]
    bar: Bar
    stopped: str
    by: str
    float_cost: float
    seconds: float
    prefix: Path | None = None
    share: bool = False

    def said(self, score: float) -> str:
        """A score as it is shown."""
        return f"{100 * score:.2f} %" if self.share else f"{score:.4f}"

    def said_drop(self, drop: float) -> str:
        """A difference of scores as it is shown: of shares in percentage points."""
        return f"{100 * drop:.2f} points" if self.share else f"{drop:.4f}"

    @property
    def met(self) -> bool:
        """Whether the network meets the bar. Where none does, it is the most accurate."""
        return self.bar.met(self.best)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search."""
        return self.stopped == INTERRUPTED

    @property
    def score(self) -> float:
        return self.best.score or 0.0

    @property
    def block(self) -> QuantizedBlock:
        """The network as a Gluon block, which `mxq.save` writes."""
        from mxq import runtime  # noqa: PLC0415  (what a search found needs no MXNet)

        return runtime.reported_block(self.model, self.record)

    def speedup(self, trial: Trial) -> float | None:
        """How much faster than float a trial's network is, by the model of `mxq.tuning.cost`; None where it failed."""
        return self.float_cost / trial.cost if trial.cost else None

    @property
    def verdict(self) -> str:
        """One sentence: whether the bar is met, and by what."""
        drop, floats = self.bar.drop(self.best) or 0.0, len(self.best.settings.floats)
        how = f"{self.best.settings.calib_mode}, {self.best.settings.how}, {floats or 'no'} layers in float"
        side = "above" if drop < 0 else "below"
        place = f"{self.said(self.score)}, {self.said_drop(abs(drop))} {side} float's {self.said(self.bar.reference)}"
        if self.met:
            return f"the bar is met: {place} ({how})"
        return f"nothing met the bar, which allows {self.allowed}; the most accurate has {place} ({how})"

    @property
    def allowed(self) -> str:
        """The drop that is allowed, as it is shown."""
        return f"{100 * self.bar.max_drop:g} points" if self.share else f"{self.bar.max_drop:g}"

    @property
    def report(self) -> str:
        """What was tried, why it stopped, and what was found, as text."""
        lines = [f"scored by {self.by}; float {self.said(self.bar.reference)}, allowed drop {self.allowed}"]
        for trial in self.trials:
            s = trial.settings
            what = ", ".join((f"{trial.stage}: {s.calib_mode}", s.how, *(f"float {name}" for name in s.floats)))
            drop, speedup = self.bar.drop(trial), self.speedup(trial)
            found = f"{trial.state}: {trial.reason}"
            if trial.state == DONE and drop is not None:
                score = self.said(trial.score or 0.0)
                found = f"{score}, drop {self.said_drop(drop)}, {speedup or 0:.2f}x float (modelled)"
            lines.append(f"{'*' if trial is self.best else ' '} {what}: {found}, {trial.seconds:.1f} s")
        return "\n".join((*lines, f"stopped: {self.stopped}", f"result: {self.verdict}"))

    def to_json(self) -> Mapping[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "met": self.met,
            "verdict": self.verdict,
            "stopped": self.stopped,
            "by": self.by,
            "float_score": self.bar.reference,
            "max_drop": self.bar.max_drop,
            "seconds": self.seconds,
            "best": self._row(self.best),
            "trials": [self._row(trial) for trial in self.trials],
            "config": self.config.to_json(),
            "prefix": None if self.prefix is None else str(self.prefix),
        }

    def _row(self, trial: Trial) -> Mapping[str, Any]:
        return {**trial.to_json(), "drop": self.bar.drop(trial), "modelled_speedup": self.speedup(trial)}
