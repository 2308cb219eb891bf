"""Which number of threads and of processes side by side answers soonest, and which answers most.

`setups` says what to try on a machine, `sweep` tries it, `Job.run` is how: each setup as processes of its own, pinned
to core sets that do not overlap and started together.
"""

from mxq.sweep.processes import Job
from mxq.sweep.result import Reading, Row, Setup, Sweep
from mxq.sweep.trying import setups, sweep

__all__ = ["Job", "Reading", "Row", "Setup", "Sweep", "setups", "sweep"]
