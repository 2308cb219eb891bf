"""Builds the environment of the peers: OpenVINO with NNCF, and ONNX Runtime.

    python benchmarks/peers/make_env.py [DIRECTORY] [--python PYTHON]

The directory is ``benchmarks/peers/.venv`` unless given (then tell `compare.py` with ``--env``). About 900 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = HERE / ".venv"


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--python", default=sys.executable, help="interpreter, 3.11 to 3.13 (default: this one)")
    args = parser.parse_args()
    requirements = ["-r", str(HERE / "requirements.txt")]
    for command in (
        [args.python, "-m", "venv", str(args.directory)],
        [str(args.directory / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements],
    ):
        code = subprocess.run(command, check=False).returncode  # noqa: S603
        if code:
            sys.exit(code)
    sys.stdout.write(f"built {args.directory}\n")


if __name__ == "__main__":
    main()
