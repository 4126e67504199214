"""The programs that the lab calls: where they are, and which Debian package brings them."""

from __future__ import annotations

import os
import shutil

from mesh.lab.errors import LabProgramMissingError

PACKAGES = {"ip": "iproute2", "nft": "nftables", "tcpdump": "tcpdump", "setpriv": "util-linux"}
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def find_program(name: str) -> str:
    """Full path of a program; administrators' folders are searched though an ordinary user's PATH lacks
    them.
    """
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        package = PACKAGES.get(name, name)
        raise LabProgramMissingError(
            f"the program `{name}` is not installed", next_step=f"apt-get install {package}"
        )
    return path
