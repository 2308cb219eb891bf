"""Files that mxq writes: whole or not at all, by one process at a time, and checked when they are read again."""
