"""The machine that mxq runs on: its CPU, its cores, and MXNet's threads on them. Its public side is `mxq.threads`."""
