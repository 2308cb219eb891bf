"""How long networks take: `timing` compares some in one process, `sweep` tries threads and processes on a machine."""
