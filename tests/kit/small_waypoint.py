"""A small program in a waypoint's place: for tests of its supervision. Standard library only.

Serves /healthz/ready at MYCELIA_READINESS_PORT, has a worker beside it, drains on SIGTERM. The file `mood`
beside its state folder changes its ways: `unready` (answers 500), `stubborn` (does not end by SIGTERM),
`broken` (ends with 3 at once).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def mood() -> str:
    try:
        return (Path(os.environ["MYCELIA_STATE_DIR"]).parent / "mood").read_text()
    except FileNotFoundError:
        return ""


def main() -> None:
    if mood() == "broken":
        sys.exit(3)
    worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])

    def drain(*_: object) -> None:
        if mood() != "stubborn":
            worker.kill()
            worker.wait()
            sys.exit(0)

    signal.signal(signal.SIGTERM, drain)
    host = os.environ.get("MYCELIA_BIND_ADDRESS", "")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port = int(os.environ["MYCELIA_READINESS_PORT"])
    with socket.create_server((host, port), family=family) as listener:
        while True:
            with listener.accept()[0] as client:
                client.recv(4096)
                status, text = "200 OK", "ready"
                if mood() == "unready":
                    status, text = "500 No", "not ready, pending: mood"
                client.sendall(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{text}".encode())


if __name__ == "__main__":
    main()
