"""`python -m tests.kit.echo_http PORT NAME`: an HTTP/1.1 server that answers with what it saw, as JSON.

`/slow` is announced on standard output when it arrives and answered after SLOW_S. IPv4 and IPv6.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_S = 1.0


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    name = ""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path == "/slow":
            print("/slow", flush=True)
            time.sleep(SLOW_S)
        told = {
            "name": self.name,
            "method": self.command,
            "target": self.path,
            "peer": self.client_address[0].removeprefix("::ffff:"),
            "headers": {key.lower(): value for key, value in self.headers.items()},
            "body": len(body),
        }
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    port, Handler.name = int(sys.argv[1]), sys.argv[2]
    Server(("::", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
