"""Processes that a lab runs: started in a namespace, followed by pid, ended with the lab.

A child is forked by the calling thread while that thread is in the wanted network namespace, so no launcher
is needed. The parent-death signal makes it end with us even where there is no pid namespace; it follows the
*thread* that started the child, so it is asked for by the main thread only.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mesh.lab.tools import find_program
from transport.netns import NetworkNamespace

GRACE_S = 3.0

Output = int | IO[bytes] | None


class Children:
    """The processes of one lab. Not thread-safe."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        argv: Sequence[str],
        namespace: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Output = subprocess.DEVNULL,
        stdout: Output = None,
        stderr: Output = None,
    ) -> subprocess.Popen[bytes]:
        """Starts `argv` in the network namespace at that path. It ends, at the latest, with `close()`."""
        command = [find_program(argv[0]), *argv[1:]]
        if threading.current_thread() is threading.main_thread():
            command = [find_program("setpriv"), "--pdeathsig", "KILL", "--", *command]
        with NetworkNamespace.from_path(str(namespace)) as place, place.entered():
            child = subprocess.Popen(command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
        self._running = [other for other in self._running if other.poll() is None]
        self._running.append(child)
        return child

    def stop(self, children: Sequence[subprocess.Popen[bytes]], grace_s: float = GRACE_S) -> None:
        """Ends these: SIGTERM, then SIGKILL to those that are still there after `grace_s` in all."""
        for child in children:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + grace_s
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()

    def close(self) -> None:
        running, self._running = self._running, []
        self.stop(running)
