"""Training with quantization (QAT): a network computes in float what its integers would, and learns to live with it.

`mxq.qat.algorithms` has the ways to fake-quantize a tensor, one page each.
"""
