"""Generates the Python modules of every `.proto` file below this folder, beside its source.

Run by the wheel's build hook and by `make`; nothing generated is committed.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib import resources
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def generate() -> None:
    """Writes `*_pb2.py` and `*_pb2.pyi`; exits with protoc's status if it refuses a source."""
    from grpc_tools import protoc  # noqa: PLC0415 - a build-time dependency, absent at run time

    well_known = resources.files("grpc_tools") / "_proto"
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    plugin = shutil.which("protoc-gen-mypy", path=beside_python)
    if plugin is None:
        sys.exit("proto/generate.py: protoc-gen-mypy not found; install requirements-dev.txt first")
    sources = sorted(str(path.relative_to(FOLDER.parent)) for path in FOLDER.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--plugin=protoc-gen-mypy={plugin}",
            f"-I{FOLDER.parent}",
            f"-I{well_known}",
            f"--python_out={FOLDER.parent}",
            f"--mypy_out=quiet:{FOLDER.parent}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(status)


if __name__ == "__main__":
    generate()
