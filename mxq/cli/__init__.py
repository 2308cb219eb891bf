"""The command ``mxq``: one subcommand per arrow of the pipeline.

Results go to stdout as tables, or with ``--json`` as one JSON document and nothing else; messages and progress go
to stderr. MXNet is imported by the commands that run a network, after the number of threads is settled, so that
``mxq --help`` is quick.

Exit codes: 0 all is well; 1 a check failed (``verify`` below a bar, ``inspect`` of files that changed); 2 wrong
usage, or an error that mxq names in one line (``--debug`` shows where it arose).
"""

from __future__ import annotations

from mxq.cli import (  # noqa: F401  (commands register as they are imported)
    bench,
    calibrate,
    choose_bits,
    compare,
    doctor,
    draw,
    evaluate,
    explain,
    export,
    inspect,
    merge_stats,
    pack,
    plot,
    quantize,
    report,
    sensitivity,
    sweep_bits,
    train,
    tune,
    verify,
)
from mxq.cli.app import app, main

__all__ = ["app", "main"]
