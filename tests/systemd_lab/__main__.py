"""`python -m tests.systemd_lab`: boots systemd in namespaces and tells the story of story.py.

Needs root and the programs unshare, nft and ip. Exit code 0: everything held; the folder with all output is
named otherwise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
INIT: Final = Path("/lib/systemd/systemd")
TIMEOUT_S: Final = 240
PASSED: Final = "passed: "


def main() -> int:
    if os.geteuid() != 0 or not INIT.exists() or not all(map(shutil.which, ("unshare", "nft", "ip"))):
        print("the lab needs root, systemd, unshare, nftables and iproute2", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="mycelia-systemd-"))
    for name in ("out", "layer"):
        (folder / name).mkdir()
    command = [
        *("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"),
        *("bash", str(ROOT / "tests/systemd_lab/boot.sh"), str(ROOT), sys.prefix, str(folder)),
    ]
    with (folder / "console").open("wb") as console:
        try:
            subprocess.run(command, stdout=console, stderr=console, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            print(f"it took longer than {TIMEOUT_S} s")
    story = folder / "out" / "story"
    text = story.read_text() if story.exists() else ""
    print(text, end="")
    if text.splitlines()[-1:] and text.splitlines()[-1].startswith(PASSED):
        shutil.rmtree(folder)
        return 0
    print(f"failed; console and output are in {folder}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
