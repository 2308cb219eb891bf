"""``python -m mxq`` is the command ``mxq``."""

from __future__ import annotations

from mxq.cli import main

if __name__ == "__main__":
    main()
