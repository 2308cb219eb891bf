"""Hostile input: structure-aware mutations of every format that mxq reads, each used as mxq would.

Whatever the input, the outcome has to be success or one `MxqError`. `seeds` makes valid files with mxq itself,
`trees`, `binary`, `texts` and `graphs` mutate them, `formats` says how each format is mutated, written and used, and
`runner` runs cases in forked processes with limits. A case is a number: the same seed, format and number are the same
input anywhere.
"""
