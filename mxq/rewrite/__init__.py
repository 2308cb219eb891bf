"""The rewrite engine: patterns as data, rules that say why they refuse, passes with contracts, and a trace."""

from mxq.rewrite.driver import Contract, Event, Pass, Trace, apply_rules, run_pass
from mxq.rewrite.pattern import Any_, Match, Op, Pattern, match
from mxq.rewrite.rule import NOT_MEANT, Reject, Rewrite, Rule

__all__ = [
    "NOT_MEANT",
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
    "Trace",
    "apply_rules",
    "match",
    "run_pass",
]
