"""Packaging of mxq. Tool settings are in ``pyproject.toml``.

Every bound below is there because a newer version asks for numpy 2, which MXNet 1.9.1 cannot use. Without the
bounds an installer has to search for the versions that fit, and gluoncv, which has no bounds, lets it pick wrong ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

CORE = [
    "mxnet==1.9.1",
    "numpy>=1.23.5,<1.24; python_version < '3.12'",  # the last with np.bool and its kin, which MXNet uses
    "numpy>=1.26.4,<2; python_version >= '3.12'",  # the last before 2; mxq.compat puts np.bool back
    "scipy>=1.10,<1.16; python_version < '3.12'",
    "scipy>=1.13,<1.18; python_version >= '3.12'",
    "msgspec>=0.19",  # asks for nothing else
    "numba>=0.60,<0.69",  # a newer one may ask for numpy 2
    "pillow>=10.1",
    "pyyaml>=6.0",
    "rich>=13.8",
    "tqdm>=4.64",
    "typer>=0.12",
]

LEARN = [
    "scikit-learn>=1.3,<1.8; python_version < '3.12'",  # 1.8 needs numpy 1.24
    "scikit-learn>=1.5,<1.10; python_version >= '3.12'",
]

PLOT = ["matplotlib>=3.8,<3.11"]

REPORT = [
    *PLOT,  # and its fonts
    "igraph>=0.11",
    "jinja2>=3.1",
    "resvg-py>=0.2",
]

ONNX = ["onnx>=1.16,<1.24"]  # 1.16 is the first that knows opset 17 in full on Python 3.12

RUNTIMES = [  # that run what mxq[onnx] writes; for tests and benchmarks
    "onnxruntime>=1.19,<1.33",
    "openvino>=2024.4,<2027",
]

DISTRIBUTED = ["distributed>=2024.8"]  # Dask's scheduler and workers; its core asks for no numpy

EXAMPLES = [
    *LEARN,
    *PLOT,
    "gluoncv==0.10.5.post0",
    "opencv-python>=4.8,<4.12",  # 4.12 needs numpy 2
    "pandas>=2.1,<3; python_version < '3.12'",
    "pandas>=2.2.3,<3; python_version >= '3.12'",
]

DOCS = [  # the site; it asks for no numpy
    "mkdocs-jupyter>=0.25,<1",
    "mkdocs-material>=9.5,<10",
    "mkdocstrings[python]>=0.26,<2",
]

TEST = [
    *LEARN,
    *REPORT,
    *DISTRIBUTED,
    *ONNX,
    RUNTIMES[0],  # onnxruntime
    "hypothesis>=6.100",
    "mypy>=1.13,<3",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "ruff>=0.17,<0.18",  # a newer one has more rules
    "types-pyyaml>=6.0",
]


def version() -> str:
    """The version that ``mxq/version.py`` states, read without importing mxq (it needs MXNet)."""
    text = (HERE / "mxq" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("mxq/version.py states no __version__")
    return found[1]


def readme() -> str:
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="mxq",
    version=version(),
    description="INT8 quantization of MXNet and Gluon networks that stock MXNet runs",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["mxq", "mxq.*"]),
    package_data={"mxq": ["py.typed"], "mxq.drawing": ["templates/*"], "mxq.reporting": ["templates/*"]},
    python_requires=">=3.10,<3.14",
    install_requires=CORE,
    extras_require={
        "distributed": DISTRIBUTED,
        "docs": DOCS,
        "examples": EXAMPLES,
        "onnx": ONNX,
        "plot": PLOT,
        "report": REPORT,
        "runtimes": [*ONNX, *RUNTIMES],
        "test": TEST,
    },
    entry_points={"console_scripts": ["mxq = mxq.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
