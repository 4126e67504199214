"""A visitor of the demo's shop: asks again and again over kept connections, and tells what it saw as JSON.

`python -m mesh.demo.visitor URL --requests N [--header "name: value"]`; run inside the client's workload. It
is an ordinary HTTP/1.1 client that knows nothing of a mesh. One line: counts and latencies by the answer's
`x-version`, and counts by status.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections import Counter, defaultdict
from urllib.parse import urlsplit

UNVERSIONED = "-"
TIMEOUT_S = 10.0


def visit(url: str, requests: int, headers: dict[str, str]) -> dict[str, object]:
    """`requests` one after the other. A connection that ends is made anew; that request counts as failed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    latencies: dict[str, list[float]] = defaultdict(list)
    failed: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for _ in range(requests):
        begun = time.perf_counter()
        try:
            connection.request("GET", parts.path or "/", headers=headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            statuses[type(error).__name__] += 1
            failed[UNVERSIONED] += 1
            continue
        version = answer.getheader("x-version", UNVERSIONED)
        latencies[version].append((time.perf_counter() - begun) * 1000.0)
        statuses[str(answer.status)] += 1
        failed[version] += answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    connection.close()
    return {"latencies_ms": latencies, "failed": failed, "statuses": statuses}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mesh.demo.visitor", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--header", action="append", default=[], help="`name: value`")
    options = parser.parse_args()
    pairs = (text.partition(":") for text in options.header)
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    print(json.dumps(visit(options.url, options.requests, headers)))


if __name__ == "__main__":
    main()
