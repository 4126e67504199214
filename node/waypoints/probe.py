"""Asks a waypoint whether it is ready, from inside its network namespace."""

from __future__ import annotations

import trio

from transport.netns import NetworkNamespace

PROBE_S = 2.0
MAX_ANSWER_BYTES = 4096
REQUEST = b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def why_not_ready(namespace: NetworkNamespace, address: str, port: int) -> str:
    """Empty when it is ready; else what it says, or that it says nothing."""
    with namespace.entered():
        sock = trio.socket.socket(trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET)
    answer = b""
    with sock, trio.move_on_after(PROBE_S) as deadline:
        try:
            await sock.connect((address, port))
            await trio.SocketStream(sock).send_all(REQUEST)
            while len(answer) < MAX_ANSWER_BYTES and (received := await sock.recv(MAX_ANSWER_BYTES)):
                answer += received
        except (OSError, trio.BrokenResourceError):
            return "it does not answer yet"
    if deadline.cancelled_caught:
        return f"it does not answer within {PROBE_S:g} s"
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] == [b"200"]:
        return ""
    return body.decode(errors="replace").strip()[:200] or "its answer makes no sense"
