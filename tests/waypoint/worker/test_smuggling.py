"""No client gets a request past the waypoint that the waypoint did not see: attacks through a real nginx.

/admin is forbidden here and answers there. If the answer is ever seen, two parsers disagreed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waypoint.worker.kit import Routes, RunningProxy, connect, exchange, nginx, read_until
from tests.waypoint.worker.test_streaming import H2Client
from waypoint.state.hosts import Endpoint
from waypoint.worker.answers import Answer

ADMIN = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[RunningProxy]:
    locations = 'location / { return 200 "hello"; } location /admin { return 200 "SMUGGLED"; }'
    with nginx(tmp_path, locations) as port:
        routes = Routes().answer(b"/admin", Answer(403, "denied")).to(b"/", Endpoint(("127.0.0.1", port)))
        with RunningProxy(routes) as proxy:
            yield proxy


def post(*fields: bytes, body: bytes = ADMIN) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: a", *fields, b"", b""]) + body


def get(*fields: bytes) -> bytes:
    """A request with the attack behind it."""
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *fields, b"", b""]) + ADMIN


CHUNKED = b"Transfer-Encoding: chunked"
ATTACKS = {
    "length and chunks": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + ADMIN),
    "chunks and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + ADMIN),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: %d" % len(ADMIN)),
    "length list": post(b"Content-Length: 0, %d" % len(ADMIN)),
    "signed length": post(b"Content-Length: +0"),
    "hex length": post(b"Content-Length: 0x0"),
    "space before colon": post(b"Content-Length : %d" % len(ADMIN)),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n" + ADMIN),
    "other coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + ADMIN),
    "coding list": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + ADMIN),
    "two codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n" + ADMIN),
    "tab coding": post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n" + ADMIN),
    "bare line feed": b"GET / HTTP/1.1\nHost: a\n\n" + ADMIN,
    "line feed in chunk": post(b"Transfer-Encoding: chunked", body=b"1\na\r\n0\r\n\r\n" + ADMIN),
    "long chunk": post(b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n" + ADMIN),
    "chunk size overflow": post(b"Transfer-Encoding: chunked", body=b"f" * 17 + b"\r\n" + ADMIN),
    "absolute target": b"GET http://b/admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots": b"GET /x/../admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "escaped letters": b"GET /%61dmin HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /x\\..\\admin HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /admin#/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "refused upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    + ADMIN,
    "connection names length": post(b"Connection: content-length", b"Content-Length: %d" % len(ADMIN)),
    "equal lengths": post(b"Content-Length: 0", b"Content-Length: 0"),
    "equal length list": post(b"Content-Length: 0, 0"),
    "two chunked codings": post(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + ADMIN
    ),
    "gzip coding": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n" + ADMIN),
    "space before coding's colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + ADMIN),
    "coding in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(b"/1.1", b"/1.0")
    + ADMIN,
    "folded field": get(b"X: b\r\n Content-Length: 5"),
    "space before the first field": b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n" + ADMIN,
    "bare carriage return": get(b"X: b\rContent-Length: 5"),
    "NUL in a value": get(b"X: \x00"),
    "control in a value": get(b"X: \x01"),
    "empty name": get(b": b"),
    "no colon": get(b"Content-Length"),
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n" + ADMIN,
    "space in the target": b"GET / /admin HTTP/1.1\r\nHost: a\r\n\r\n" + ADMIN,
    "target beyond ASCII": b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n" + ADMIN,
    "target with userinfo": b"GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n" + ADMIN,
    "HTTP/0.9": b"GET /\r\n\r\n" + ADMIN,
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n" + ADMIN,
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n" + ADMIN,
    "leading line break": b"\r\n" + PLAIN + ADMIN,
    "no host": b"GET / HTTP/1.1\r\n\r\n" + ADMIN,
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n" + ADMIN,
    "two hosts": get(b"Host: b"),
    "line feed in an extension": post(CHUNKED, body=b"1;a\nb\r\nx\r\n0\r\n\r\n" + ADMIN),
    "space before a size": post(CHUNKED, body=b" 0\r\n\r\n" + ADMIN),
    "no break after a chunk": post(CHUNKED, body=b"1\r\nx0\r\n\r\n" + ADMIN),
    "length in a trailer": post(CHUNKED, body=b"0\r\nContent-Length: %d\r\n\r\n" % len(ADMIN)),
    "names beyond the limit": post(*[b"X: y"] * 200),
    "connection names host": get(b"Connection: host"),
    "upgrade to h2c": get(
        b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"
    ),
    "connect with a length": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 34\r\n\r\n" + ADMIN,
    "expect": post(b"Expect: 100-continue", b"Content-Length: %d" % len(ADMIN)),
    "get with body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(ADMIN) + ADMIN,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_smuggled_over_http1(proxy: RunningProxy, name: str) -> None:
    last = b"GET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with connect(proxy.port) as neighbour:
        neighbour.sendall(PLAIN)
        read_until(neighbour, b"hello")
        with contextlib.suppress(BrokenPipeError):
            assert b"SMUGGLED" not in exchange(proxy.port, ATTACKS[name] + last)
        for _ in range(3):  # whatever connection to nginx is next, nothing is left on it
            neighbour.sendall(PLAIN)
            assert read_until(neighbour, b"hello").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "field",
    [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"upgrade"),
        (b"x", b"a\r\n\r\nGET /admin HTTP/1.1\r\nHost: a"),
        (b"x\r\nhost", b"a"),
        (b"content-length", b"0"),
        (b"x ", b"a"),
        (b"host", b"b"),
    ],
)
def test_nothing_is_smuggled_from_http2(proxy: RunningProxy, field: tuple[bytes, bytes]) -> None:
    with connect(proxy.port) as sock:
        client = H2Client(sock)
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/"), field]
        bad = client.codec.open_stream(head, False)
        client.codec.send_data(bad, ADMIN, True)
        good = client.get(b"/")
        while good not in client.ended:
            client.step()
        assert client.statuses[good] == b"200"
        assert client.statuses.get(bad, b"400") in (b"400", b"403")
    assert b"hello" in exchange(proxy.port, PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))


@pytest.mark.parametrize(
    "changed",
    [
        {b":path": b"/ HTTP/1.1\r\nHost: a\r\n\r\nGET /admin"},
        {b":path": b"/a HTTP/1.1"},
        {b":path": b"admin"},
        {b":path": b""},
        {b":path": b"/admin#"},
        {b":method": b"GET /admin HTTP/1.1"},
        {b":method": b"get"},
        {b":scheme": b"gopher"},
        {b":scheme": b"HtTpS", b":path": b"/admin"},
        {b":authority": b"a b"},
        {b":authority": b"b@a"},
        {b":authority": b""},
        {b":authority": b"a" * 256},
    ],
    ids=repr,
)
def test_no_pseudo_header_becomes_a_request_line_of_its_own(
    proxy: RunningProxy, changed: dict[bytes, bytes]
) -> None:
    pseudo = {b":method": b"POST", b":scheme": b"http", b":authority": b"a", b":path": b"/"} | changed
    with connect(proxy.port) as sock:
        client = H2Client(sock)
        bad = client.codec.open_stream(list(pseudo.items()), True)
        good = client.get(b"/")
        while good not in client.ended:
            client.step()
        assert client.statuses[good] == b"200"  # one client's bad stream is not another stream's end
        assert client.statuses.get(bad, b"400")[:1] == b"4"


@pytest.mark.parametrize("length", [b"5", b"0, 0", b"+0", b"x"])
def test_a_length_that_no_body_follows_does_not_make_the_upstream_wait(
    proxy: RunningProxy, length: bytes
) -> None:
    with connect(proxy.port) as sock:
        client = H2Client(sock)
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
        bad = client.codec.open_stream([*head, (b"content-length", length)], True)
        good = client.get(b"/")
        while good not in client.ended:
            client.step()
        assert client.statuses.get(bad, b"400") == b"400"
    assert b"hello" in exchange(proxy.port, PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
