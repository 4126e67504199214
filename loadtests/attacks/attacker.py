"""One attacker, a process of its own: floods connection after connection until its time is over.

`python -m loadtests.attacks.attacker WAY KIND HOST PORT SECONDS [CHAIN KEY]`. WAY is `tunnel` (the HBONE
connection itself, with a certificate), `http2` (a client's own connection) or `http1`. Prints how many
connections it made and how many bytes it sent.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Final

from tests.kit.attacks import FLOODS, HTTP1_ATTACKS, OPENING, connect_block, request_block

MOST_BYTES: Final = 16 << 20  # of one connection that is not cut off
PAUSE_S: Final = 0.01  # between connections
BATCH_BYTES: Final = 16 * 1024
PATIENCE_S: Final = 2.0


def main() -> None:
    way, kind, host, port, seconds, *credential = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    connections = sent = 0
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ssl.SSLError):
            sent += _attack(way, kind, (host, int(port)), credential, end)
        connections += 1
        time.sleep(PAUSE_S)
    print(connections, sent)


def _attack(way: str, kind: str, peer: tuple[str, int], credential: list[str], end: float) -> int:
    with socket.create_connection(peer, timeout=PATIENCE_S) as plain:
        if way == "http1":
            return _pour(plain, HTTP1_ATTACKS[kind](b""), b"", end)
        if way == "http2":
            return _pour(plain, FLOODS[kind](request_block(b"POST")), OPENING, end)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(*credential)
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(plain) as secured:
            return _pour(secured, FLOODS[kind](connect_block(b"10.0.0.1:80")), OPENING, end)


def _pour(sock: socket.socket, pieces: Iterator[bytes], opening: bytes, end: float) -> int:
    """Sends as fast as it is taken, and throws away what comes; returns the bytes sent when it is over."""
    sent = 0
    batch = bytearray(opening)
    try:
        while sent < MOST_BYTES and time.monotonic() < end:
            while len(batch) < BATCH_BYTES:
                batch += next(pieces)
            sock.sendall(batch)
            sent += len(batch)
            batch.clear()
            while select.select([sock], [], [], 0)[0]:
                if not sock.recv(65536):
                    return sent
    except OSError:
        return sent
    return sent


if __name__ == "__main__":
    main()
