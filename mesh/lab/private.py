"""Private namespaces: the way in, and the proof of being inside.

Everything that builds networks (the demo, the namespace tests, the benchmarks) first enters namespaces of
its own: network, mounts, processes and, for an ordinary user, users. The host's network is never touched,
and when the first process inside ends, nothing is left. `mesh/lab/supervise.py` does the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mesh.lab.errors import NamespacesForbiddenError
from mesh.lab.supervise import CLONE_NEWNET, CLONE_NEWNS, EXIT_CANNOT, MARKER, furnish, marker, unshare

SUPERVISOR = Path(__file__).with_name("supervise.py")


def is_private() -> bool:
    """True inside a namespace that `enter_private_namespace` made (and not merely below such a process
    elsewhere).
    """
    return os.environ.get(MARKER) == marker()


def why_forbidden() -> str | None:
    """None when this system lets us make private namespaces; else the reason and what to do, for a person."""
    probe = subprocess.run(
        [sys.executable, "-I", "-S", str(SUPERVISOR), "--probe"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode == 0:
        return None
    return probe.stderr.strip() or f"the probe ended with status {probe.returncode}"


def enter_private_namespace(argv: Sequence[str]) -> None:
    """Replaces this process by a supervisor that runs `argv` in private namespaces; returns at once when
    inside.

    `argv` is the whole command line that brings this program back to this call (`sys.orig_argv` mostly). The
    supervisor keeps this pid, passes signals on and ends with the command's exit code. Raises
    NamespacesForbiddenError, with what to do about it, where the system refuses.
    """
    if is_private():
        return
    if (reason := why_forbidden()) is not None:
        raise NamespacesForbiddenError(reason)
    replace_by_supervisor(argv)


def replace_by_supervisor(argv: Sequence[str]) -> NoReturn:
    """The second half of `enter_private_namespace`, for a caller that has asked `why_forbidden()` itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-I", "-S", str(SUPERVISOR), "--", *argv]
    os.execv(sys.executable, command)  # noqa: S606 - on purpose


def enter_another_network() -> None:
    """Moves the calling thread into network and mount namespaces of its own, once inside.

    For processes that share a private namespace and must not meet each other's ports and names (the workers
    of a test run). Threads started by this one follow.
    """
    if not is_private():
        raise NamespacesForbiddenError("not inside a private namespace")
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    furnish(has_own_pids=False)
    os.environ[MARKER] = f"{(status := Path('/proc/thread-self/ns/net').stat()).st_dev}:{status.st_ino}"


__all__ = [
    "EXIT_CANNOT",
    "enter_another_network",
    "enter_private_namespace",
    "is_private",
    "replace_by_supervisor",
    "why_forbidden",
]
