"""The rewrite engine: patterns as data, rules that say why they refuse, passes with contracts, and a trace."""

from mxq.rewrite.driver import (
    NO_EVENTS,
    Contract,
    Event,
    Pass,
    Step,
    Trace,
    apply_rules,
    exhaust_each,
    run_pass,
    run_passes,
)
from mxq.rewrite.pattern import Any_, Match, Op, Pattern, match
from mxq.rewrite.rule import NO_MATCH, Reject, Rewrite, Rule

__all__ = [
    "NO_EVENTS",
    "NO_MATCH",
    "Any_",
    "Contract",
    "Event",
    "Match",
    "Op",
    "Pass",
    "Pattern",
    "Reject",
    "Rewrite",
    "Rule",
    "Step",
    "Trace",
    "apply_rules",
    "exhaust_each",
    "match",
    "run_pass",
    "run_passes",
]
