"""A workload's namespace disappears while it is full of traffic."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.mesh_faults.traffic import PORT, Scene, echoes, echoing, has_ended

pytestmark = pytest.mark.namespaces

CONNECTIONS = 8


@contextlib.contextmanager
def flooding(socks: list[socket.socket]) -> Iterator[None]:
    """Sends and receives on all of them until they end, or the block does."""
    is_over = threading.Event()

    def pump(sock: socket.socket) -> None:
        block = bytes(64 * 1024)
        with contextlib.suppress(OSError):
            while not is_over.is_set():
                sock.sendall(block)
                received = 0
                while received < len(block):
                    data = sock.recv(len(block) - received)
                    if not data:
                        return
                    received += len(data)

    threads = [threading.Thread(target=pump, args=(sock,), daemon=True) for sock in socks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(10)


@pytest.mark.parametrize("doomed_node", ["alpha", "beta"], ids=["of the client", "of the server"])
def test_its_connections_end_and_nothing_of_it_stays(scene: Scene, doomed_node: str) -> None:
    mesh = scene.mesh
    with scene.connect():
        before = {node: scene.descriptors(node) for node in mesh.nodes}
        before_doomed = scene.proxies(doomed_node)
    doomed = mesh.add("doomed", doomed_node)
    server = doomed if doomed_node == "beta" else scene.server
    client = doomed if doomed_node == "alpha" else scene.client
    port = PORT + 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(echoing(mesh, server, port))
        bystander = stack.enter_context(scene.connect())
        socks = [stack.enter_context(mesh.connect(client, (server.ipv4, port))) for _ in range(CONNECTIONS)]
        assert all(echoes(sock) for sock in socks)
        assert scene.descriptors(doomed_node) > before[doomed_node]
        with flooding(socks):
            mesh.remove(doomed)
            mesh.wait("the ztunnel to let go of it", lambda: scene.proxies(doomed_node) == before_doomed)
        for sock in socks:
            assert has_ended(sock)
        assert echoes(bystander)
    for node in mesh.nodes:
        mesh.wait(f"the descriptors of {node}", lambda node=node: no_more(scene, node, before[node]))  # type: ignore[misc]
    assert scene.can_talk()
    assert all(mesh.is_ready(node) for node in mesh.nodes)
    with mesh.agent(doomed_node) as agent:
        mesh.wait("the agent to forget it", lambda: doomed.name not in str(agent.list()))
    mesh.withdraw(doomed.name)


def no_more(scene: Scene, node: str, before: list[int]) -> bool:
    now = scene.descriptors(node)
    return len(now) == len(before) and all(each <= old for each, old in zip(now, before, strict=True))
