"""Traffic that a fault is to disturb, or not, and the faults themselves. See also tests/kit/mesh.py.

`Scene` is a running mesh with a client on alpha and an echoing server on beta, made so that tests of a
module share it: whatever a test kills, `heal` starts again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh

PORT = 8080


class EchoServer:
    """Sends back what it gets, in a thread for each connection, until closed."""

    def __init__(self, mesh: Mesh, workload: Workload, port: int = PORT) -> None:
        self._listener = mesh.listen(workload, port)
        self._listener.settimeout(None)
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(target=_echo, args=(self._listener.accept()[0],), daemon=True)
                self._threads.append(thread)
                thread.start()


def _echo(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.settimeout(30)
        while data := sock.recv(65536):
            sock.sendall(data)


@contextlib.contextmanager
def echoing(mesh: Mesh, workload: Workload, port: int = PORT) -> Iterator[None]:
    server = EchoServer(mesh, workload, port)
    try:
        yield
    finally:
        server.close()


def echoes(sock: socket.socket) -> bool:
    """True when a byte comes back; False when the connection ends instead."""
    try:
        sock.sendall(b"x")
        return sock.recv(1) == b"x"
    except ConnectionError:
        return False


def can_talk(mesh: Mesh, client: Workload, server: Workload, port: int = PORT) -> bool:
    try:
        with mesh.connect(client, (server.ipv4, port)) as sock:
            return echoes(sock)
    except (ConnectionError, TimeoutError):
        return False


def has_ended(sock: socket.socket, timeout_s: float = 10.0) -> bool:
    """True when the connection ends, of whichever end or reset; what still comes is read away."""
    sock.settimeout(timeout_s)
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


class Scene:
    """See the module."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.client, self.server = mesh.add("client", "alpha"), mesh.add("server", "beta")
        self._echo = EchoServer(mesh, self.server)

    def close(self) -> None:
        self._echo.close()

    def connect(self) -> socket.socket:
        """A connection through the mesh that has carried a byte there and back."""
        sock = self.mesh.connect(self.client, (self.server.ipv4, PORT))
        assert echoes(sock)
        return sock

    def can_talk(self) -> bool:
        return can_talk(self.mesh, self.client, self.server)

    def is_refused(self) -> bool:
        """True when nothing comes of a connection attempt; False when it works."""
        return not self.can_talk()

    # --- faults ---

    def kill_control_plane(self) -> None:
        process, self.mesh.control_plane = self.mesh.control_plane, None
        assert process is not None
        _end(process, signal.SIGKILL)

    def kill_agent(self, node: str) -> None:
        processes = self.mesh.nodes[node]
        process, processes.agent = processes.agent, None
        assert process is not None
        _end(process, signal.SIGKILL)
        # A child that was just being started may keep the listening socket for a moment more.
        self.mesh.wait("its socket to be dead", lambda: not self._answers(processes.api))

    @staticmethod
    def _answers(path: Path) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    def end_ztunnel(self, node: str, how: signal.Signals = signal.SIGKILL) -> None:
        processes = self.mesh.nodes[node]
        process, processes.ztunnel = processes.ztunnel, None
        assert process is not None
        _end(process, how)

    def heal(self) -> None:
        """All processes run, all ztunnels are ready and the traffic flows."""
        mesh = self.mesh
        if mesh.control_plane is None:
            mesh.start_control_plane()
        for name, processes in mesh.nodes.items():
            if processes.agent is None:
                mesh.start_agent(name)
            if processes.ztunnel is None:
                mesh.start_ztunnel(name)
        for name in mesh.nodes:
            mesh.await_ready(name)
        mesh.wait("traffic to flow", self.can_talk)

    # --- looking ---

    def workers(self, node: str) -> list[int]:
        ztunnel = self.mesh.nodes[node].ztunnel
        assert ztunnel is not None
        # Children belong to the thread that started them, which is not the main one.
        tasks = Path(f"/proc/{ztunnel.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def descriptors(self, node: str) -> list[int]:
        """How many each worker of the node has open."""
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.workers(node)]

    def proxies(self, node: str) -> set[str]:
        """The workloads that the node's ztunnel serves, by uid."""
        dump = self.mesh.config_dump(node)
        assert dump is not None
        return set(dump["workloadState"])

    def protocols(self, node: str, workload: Workload) -> set[str]:
        """How the node's ztunnel reaches the workload: a set, empty where it does not know it."""
        dump = self.mesh.config_dump(node)
        assert dump is not None
        return {each["protocol"] for each in dump["workloads"] if each["name"] == workload.name}

    def wait_error(self, node: str, text: str) -> dict[str, Any]:
        """The newest access log record of the node whose error holds `text`, awaited."""
        found = self.mesh.wait(
            f"{text!r} in the access log of {node}",
            lambda: [each for each in self.mesh.access_log(node) if text in each.get("error", "")],
        )
        return found[-1]

    def log_events(self, path: Path, event: str) -> list[dict[str, Any]]:
        """The records of a JSON log."""
        found = []
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("message") == event:
                    found.append(record)
        return found


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    process.wait(30)


@contextlib.contextmanager
def ended(pid: int) -> Iterator[select.poll]:
    """A poll object that becomes ready when the process, which runs now, has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        yield poll
    finally:
        os.close(descriptor)
