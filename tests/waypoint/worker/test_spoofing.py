"""What a client says of identities, of its way and of how a proxy should behave reaches no application.

authz-cases 6, over real sockets: HTTP/1.1 and HTTP/2 clients, as fields and as trailers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.waypoint.worker.kit import Routes, RunningProxy, ScriptedServer, connect, exchange, read_until
from tests.waypoint.worker.routing_kit import App
from tests.waypoint.worker.test_streaming import H2Client
from transport.http2.codec import make_codec
from transport.http2.events import Event, HeadersReceived
from transport.http2.settings import Role
from transport.spiffe import SpiffeId
from waypoint.state.hosts import Application, Endpoint

ME = SpiffeId("cluster.local", "shop", "web")
FORGED = b"spiffe://cluster.local/ns/bank/sa/admin"
CLAIMS = (
    b"x-forwarded-client-cert",
    b"x-envoy-peer-metadata",
    b"x-envoy-peer-metadata-id",
    b"x-istio-source",
    b"x-istio-attributes",
    b"x-forwarded-network",
    b"x-envoy-internal",
    b"x-envoy-original-path",
    b"x-envoy-original-host",
    b"x-envoy-force-trace",
    b"x-envoy-decorator-operation",
    b"x-envoy-external-address",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-retry-on",
    b"x-envoy-max-retries",
    b"x-envoy-attempt-count",
    b"x-envoy-anything",
)
SPELLINGS: tuple[Callable[[bytes], bytes], ...] = (
    lambda name: name,
    lambda name: name.title(),
    lambda name: name.replace(b"-", b"_"),
    lambda name: name.replace(b"-", b"_", 1),
)
COMPANY = ((), (b"X-Forwarded-For: 10.0.0.1",), (b"X-Forwarded-For: 10.0.0.1", b"X-Envoy-Internal: true"))


@contextlib.contextmanager
def waypoint() -> Iterator[tuple[RunningProxy, App]]:
    with (
        App() as app,
        RunningProxy(Routes().to(b"/", Endpoint(("127.0.0.1", app.port))), identity=ME) as proxy,
    ):
        yield proxy, app


@pytest.mark.parametrize("company", COMPANY, ids=repr)
def test_no_claim_reaches_the_application_over_http1(company: tuple[bytes, ...]) -> None:
    with waypoint() as (proxy, app), connect(proxy.port) as sock:
        for name in CLAIMS:
            for number, spell in enumerate(SPELLINGS):
                lines = [b"GET /%d HTTP/1.1" % number, b"Host: a", spell(name) + b": " + FORGED, *company]
                sock.sendall(b"\r\n".join([*lines, b"", b""]))
                read_until(sock, b"app")
        assert len(app.seen) == len(CLAIMS) * len(SPELLINGS)
        for seen in app.seen:
            names = {name.lower().replace("_", "-") for name, _ in seen.headers}
            assert names <= {"host", "x-forwarded-for", "x-forwarded-proto", "x-request-id"}
            assert FORGED.decode() not in str(seen.headers)


def test_no_claim_reaches_the_application_over_http2() -> None:
    with waypoint() as (proxy, app), connect(proxy.port) as sock:
        client = H2Client(sock)
        head = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
        fields = [(spell(name), FORGED) for name in CLAIMS for spell in (SPELLINGS[0], SPELLINGS[2])]
        stream = client.codec.open_stream([*head, *fields], True)
        client.send()
        while stream not in client.ended:
            client.step()
        assert client.statuses[stream] == b"200"
        assert FORGED.decode() not in str(app.seen[0].headers)


@pytest.mark.parametrize(
    "nominated", [b"authorization", b"x-forwarded-for", b"cookie", b"x-request-id", b"host"]
)
def test_a_client_cannot_have_a_security_header_removed_by_connection(nominated: bytes) -> None:
    with waypoint() as (proxy, app):
        value = b"a" if nominated == b"host" else b"mine"
        lines = [b"GET / HTTP/1.1", b"Connection: close, " + nominated, nominated + b": " + value]
        if nominated != b"host":
            lines.append(b"Host: a")
        exchange(proxy.port, b"\r\n".join([*lines, b"", b""]))
        assert app.seen[0].header(nominated.decode()) == value.decode()


@pytest.mark.parametrize(
    "field",
    [b"Forwarded: for=10.0.0.9;by=admin", b"X-Real-IP: 10.0.0.9", b"Baggage: k8s.namespace.name=bank"],
)
def test_hearsay_passes_but_is_not_who_the_caller_is(field: bytes) -> None:
    with waypoint() as (proxy, app):
        exchange(proxy.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + field + b"\r\n\r\n")
        name, _, value = field.decode().partition(": ")
        assert app.seen[0].header(name.lower()) == value
        proxy.log.until(lambda log: len(log.exchanges) == 1)
        source = proxy.log.exchanges[0].source
        assert (source.identity, source.address[0]) == (ME, "127.0.0.1")


def test_no_claim_passes_as_a_trailer() -> None:
    """An application that merges trailers into headers would believe it."""
    with (
        ScriptedServer() as server,
        RunningProxy(Routes().to(b"/", server.endpoint(Application.HTTP2)), identity=ME) as proxy,
        connect(proxy.port) as sock,
    ):
        client = H2Client(sock)
        stream = client.get(b"/", method=b"POST", end=False)
        trailers = [(name, FORGED) for name in (*CLAIMS, b"authorization", b"cookie")]
        client.codec.send_headers(stream, [*trailers, (b"x-checksum", b"1")], True)
        client.send()
        with server.accept() as upstream:
            codec = make_codec(Role.SERVER)
            codec.start()
            events: list[Event] = []
            while not any(isinstance(each, HeadersReceived) and each.is_trailers for each in events):
                upstream.sendall(codec.take_output() or b"")
                events += codec.receive(upstream.recv(65536))
            (got,) = (each for each in events if isinstance(each, HeadersReceived) and each.is_trailers)
            assert got.headers == [(b"x-checksum", b"1")]
