"""TLS to collectors: real servers, good ones and those that must get nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.waypoint_pb2 import ClientTls
from tests.kit.certificates import TestAuthority, issue, make_root, revocations, shared_root
from tests.telemetry.test_span_exporter import PATIENCE_S, Collector, collecting_http
from tests.waypoint.control.test_spans import EXCHANGE, empty_state
from tests.waypoint.resources import put
from waypoint.control.spans import SpanSink, Teller
from waypoint.state.store import WaypointState

NAME = "otel.example"


@contextlib.contextmanager
def collecting_in_tls(clients: TestAuthority | None = None) -> Iterator[tuple[Collector, int]]:
    """For a certificate of that name; with `clients` they need one too."""
    collector = Collector()
    chain, key = issue(shared_root(), None, dns_names=[NAME])
    roots = clients.pem.encode() if clients is not None else None
    credentials = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=roots is not None)
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[collector])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield collector, port
    server.stop(None).wait()


def provider(port: int, tls: ClientTls | None = None, refusal: str = "", **fields: Any) -> pb.Telemetry:
    found = pb.Telemetry.SpanProvider(
        name="zip", host="127.0.0.1", port=port, tls=tls, refusal=refusal, **fields
    )
    return pb.Telemetry(namespace="istio-system", name="traces", span_providers=[found])


def trusting(authority: TestAuthority | None = None, **fields: object) -> ClientTls:
    values: dict[str, object] = {
        "server_name": NAME,
        "names": [NAME],
        "roots_pem": (authority or shared_root()).pem,
    }
    return ClientTls(**{**values, **fields})  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def sinking(state: WaypointState) -> AsyncIterator[SpanSink]:
    sink = SpanSink(state.telemetry, state.mesh, Teller("wp.default", "node", "1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE_S):
            sink.take(EXCHANGE)
            yield sink
        nursery.cancel_scope.cancel()


async def outcome(telemetry: pb.Telemetry) -> tuple[int, int]:
    """Spans sent and lost, of one."""
    state = empty_state()
    assert put(state, telemetry) == {}
    async with sinking(state) as sink:
        await sink.drain()
        return sink.sent, sink.dropped


async def test_a_collector_with_the_right_certificate_gets_the_spans() -> None:
    with collecting_in_tls() as (collector, port):
        assert await outcome(provider(port, trusting())) == (1, 0)
        assert len(collector.spans()) == 1


async def test_the_client_s_certificate_is_shown() -> None:
    clients = make_root("clients")
    chain, key = (each.decode() for each in issue(clients, None, dns_names=["wp"]))
    with collecting_in_tls(clients) as (collector, port):
        assert await outcome(provider(port, trusting(chain_pem=chain, key_pem=key))) == (1, 0)
        assert len(collector.spans()) == 1


@pytest.mark.parametrize("flaw", ["root", "name", "unverified", "revocations", "identity", "refused"])
async def test_a_collector_that_is_not_the_wanted_one_gets_nothing(flaw: str) -> None:
    tls = {
        "root": trusting(make_root("another")),
        "name": trusting(server_name="other.example", names=["other.example"]),
        "unverified": ClientTls(server_name=NAME, is_unverified=True),
        "revocations": trusting(crl_pem=revocations()),
        "identity": trusting(names=["spiffe://a/b"]),
        "refused": trusting(),
    }[flaw]
    with collecting_in_tls() as (collector, port):
        refusal = "there is no Secret a/b" if flaw == "refused" else ""
        assert await outcome(provider(port, tls, refusal)) == (0, 1)
        assert collector.calls == 0


@pytest.mark.parametrize("wire", [pb.Telemetry.SpanProvider.OTLP_HTTP, pb.Telemetry.SpanProvider.ZIPKIN])
async def test_nothing_goes_in_plaintext_where_tls_is_wanted_over_http(wire: int) -> None:
    with collecting_http() as collector:
        assert await outcome(provider(collector.port, trusting(), wire=wire)) == (0, 1)
        assert collector.seen == []
