"""Calibration and evaluation of data in partitions, on Dask's workers or in this process, with the same result.

Dask is an extra (``pip install 'mxq[distributed]'``) and imported when a cluster is asked for, no sooner.
"""

from __future__ import annotations

from mxq.distributed.calibrating import calibrate
from mxq.distributed.cluster import connect, local_client
from mxq.distributed.evaluating import evaluate
from mxq.distributed.partitions import Partitions

__all__ = ["Partitions", "calibrate", "connect", "evaluate", "local_client"]
