"""The passes, one page each: simplify, fold_bn, fuse, partition, quantize, and what goes between and after."""
