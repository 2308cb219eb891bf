"""Put a pair into an archive of multi-model-server: the files, preprocess.json, and the handler.

Usage::

    python examples/resnet/quantize.py
    python examples/serve/archive.py output/resnet_digits output/resnet_digits-int8 --out output/models

Needs ``pip install model-archiver``, which the server brings; nothing of mxq.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
DIGITS = {"resize": [48, 48], "mean": [123.0, 123.0, 123.0], "std": [48.0, 48.0, 48.0]}


def main() -> None:
    """Write an archive for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", type=Path, nargs="+", help="of the pairs")
    parser.add_argument("--out", type=Path, required=True, help="directory for the archives, NAME.mar")
    parser.add_argument("--preprocess", type=Path, help="JSON with resize, mean, std; default: the shipped network's")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = DIGITS if args.preprocess is None else json.loads(args.preprocess.read_text())
    for prefix in args.prefixes:
        archive(prefix, settings, args.out)


def archive(prefix: Path, settings: dict, out: Path) -> None:
    """Write ``out/NAME.mar``, where NAME is the last part of ``prefix`` with no other signs than letters and digits."""
    files = [prefix.with_name(prefix.name + end) for end in ("-symbol.json", "-0000.params")]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"{missing[0]} is missing: run examples/resnet/quantize.py first")
    name = "".join(sign for sign in prefix.name if sign.isalnum())
    with tempfile.TemporaryDirectory() as folder:
        for file in (*files, HERE / "handler.py"):
            shutil.copy(file, folder)
        (Path(folder) / "preprocess.json").write_text(json.dumps(settings))
        archiver = Path(sys.executable).with_name("model-archiver")
        command = [str(archiver), "--model-name", name, "--model-path", folder, "--handler", "handler:handle"]
        subprocess.run([*command, "--export-path", str(out), "--force"], check=True)  # noqa: S603  (the server's own tool)
    print(out / f"{name}.mar")


if __name__ == "__main__":
    main()
