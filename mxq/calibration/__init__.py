"""Calibration: a network runs over data, and what is seen of its tensors is kept for `mxq.observers`."""
