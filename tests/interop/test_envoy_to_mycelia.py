"""Envoy as HBONE client, our inbound as server: tunnels in both codecs, refusals, identities."""

from __future__ import annotations

import contextlib
import signal
import socket

import pytest

from proto.mycelia import worker_pb2 as pb
from telemetry.access_log import format_flow
from tests.interop.envoy_process import LogLine
from tests.interop.sides import (
    CODECS,
    GROUPS,
    HOSTNAME,
    SERVICE_PORT,
    EnvoyToUs,
    connect,
    flow_with,
    is_refused,
)
from tests.interop.traffic import MIB, Background, digest, exchange, reset, stalled_transfer
from tests.ztunnel.worker.kit import SERVER_IP, deny_all, identity, is_ended, read_all

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]
both_codecs = pytest.mark.parametrize("codec", CODECS)

OUR_LIMIT = 200  # of streams of one connection, in our SETTINGS


def answer(line: LogLine) -> dict[str, str]:
    """The headers of our answer to CONNECT, as Envoy's log has them."""
    found = line["answer"]
    assert isinstance(found, dict), line
    return {header["key"]: header["value"] for header in found["headers"]}


# Tunnels


@both_codecs
def test_a_request_and_its_response_pass(inbound: EnvoyToUs, codec: str) -> None:
    with connect(inbound.address(codec)) as near:
        near.sendall(b"request")
        with inbound.app.accept() as far:
            assert far.recv(100) == b"request"
            far.sendall(b"the response")
            assert near.recv(100) == b"the response"
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
        assert near.recv(1) == b""
    headers = answer(inbound.envoy.wait_for_line(codec, lambda line: line["received"] == 7))
    assert headers[":status"] == "200"
    assert "k8s.namespace.name=default" in headers["baggage"]
    flow = flow_with(inbound.workers[codec], bytes_received=7, bytes_sent=12, error="")
    assert (flow.src_workload, flow.dst_workload) == ("client", "server")
    assert (flow.src_identity, flow.dst_identity) == (str(identity("client")), str(identity("server")))
    assert flow.dst_hbone_addr == f"{SERVER_IP}:{inbound.app.port}"
    assert inbound.envoy.stat(f"cluster.{codec}.ssl.versions.TLSv1.3") >= 1


@both_codecs
def test_the_servers_first_bytes_need_nothing_from_the_client(inbound: EnvoyToUs, codec: str) -> None:
    with connect(inbound.address(codec)) as near, inbound.app.accept() as far:
        far.sendall(b"220 ready\r\n")
        assert near.recv(100) == b"220 ready\r\n"


@both_codecs
def test_the_client_ends_first_and_the_server_goes_on(inbound: EnvoyToUs, codec: str) -> None:
    near, far = inbound.open(codec)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.sendall(b"x" * MIB)
        far.shutdown(socket.SHUT_WR)
        assert len(read_all(near)) == MIB
    flow_with(inbound.workers[codec], bytes_sent=MIB, bytes_received=1, error="")


@both_codecs
def test_the_server_ends_first_and_the_client_goes_on(inbound: EnvoyToUs, codec: str) -> None:
    near, far = inbound.open(codec)
    with near, far:
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        near.sendall(b"x" * MIB)
        near.shutdown(socket.SHUT_WR)
        assert len(read_all(far)) == MIB
    flow_with(inbound.workers[codec], bytes_sent=0, bytes_received=MIB + 1, error="")


@both_codecs
def test_64_mib_each_way_at_once_arrive_unchanged(inbound: EnvoyToUs, codec: str) -> None:
    near, far = inbound.open(codec)
    with near, far:
        exchange(near, far, blocks=64)
    flow_with(inbound.workers[codec], bytes_received=64 * MIB + 1, bytes_sent=64 * MIB, error="")


@both_codecs
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_slow_reader_bounds_our_memory_and_loses_nothing(
    inbound: EnvoyToUs, codec: str, direction: str
) -> None:
    near, far = inbound.open(codec)
    sender, reader = (near, far) if direction == "up" else (far, near)
    with near, far:
        transfer = stalled_transfer(sender, reader, blocks=64, pid=inbound.workers[codec].process.pid)
    assert transfer.is_stalled
    assert transfer.grown_bytes < 16 * MIB  # a stream's window and the TLS backlog, with room
    assert transfer.received == digest(64)


@both_codecs
def test_a_stalled_tunnel_does_not_hold_up_its_neighbours(inbound: EnvoyToUs, codec: str) -> None:
    stalled_near, stalled_far = inbound.open(codec)
    with stalled_near, stalled_far:
        stalled_near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stalled_near.send(b"x" * MIB)
        near, far = inbound.open(codec)
        with near, far:
            exchange(near, far, blocks=8)
        reset(stalled_near)


@both_codecs
def test_more_tunnels_than_our_limit_take_a_second_connection(inbound: EnvoyToUs, codec: str) -> None:
    first = inbound.open(codec)  # Envoy has our SETTINGS from here on
    pairs = [first, *(inbound.open(codec) for _ in range(OUR_LIMIT + 49))]
    assert inbound.envoy.stat(f"cluster.{codec}.upstream_cx_active") == 2
    assert inbound.envoy.stat(f"cluster.{codec}.http2.streams_active") == OUR_LIMIT + 50
    for number, (near, far) in enumerate(pairs):
        near.sendall(b"%03d" % number)
        assert far.recv(10) == b"%03d" % number
        near.close()
        far.close()
    for _ in pairs:
        flow_with(inbound.workers[codec], bytes_received=4, error="")


def burst(inbound: EnvoyToUs, tunnel: str, codec: str, count: int) -> list[socket.socket]:
    """Connections whose requests all leave Envoy before it can know our limit."""
    worker = inbound.workers[codec].process
    worker.send_signal(signal.SIGSTOP)
    try:
        nears = [connect(inbound.address(tunnel)) for _ in range(count)]
        inbound.envoy.wait_for_stat(
            f"cluster.{tunnel}.upstream_rq_pending_active", lambda value: value == count
        )
    finally:
        worker.send_signal(signal.SIGCONT)
    return nears


@both_codecs
def test_a_burst_beyond_our_limit_is_refused_so_that_it_can_be_repeated(
    inbound: EnvoyToUs, codec: str
) -> None:
    tunnel = f"burst-{codec}"
    nears = burst(inbound, tunnel, codec, OUR_LIMIT + 50)
    fars = [inbound.app.accept() for _ in nears]
    assert inbound.envoy.stat(f"cluster.{tunnel}.http2.rx_reset") == 50
    assert inbound.envoy.stat(f"cluster.{tunnel}.upstream_cx_active") == 2
    for sock in (*nears, *fars):
        sock.close()


@both_codecs
def test_a_reset_of_the_client_reaches_the_server(inbound: EnvoyToUs, codec: str) -> None:
    near, far = inbound.open(codec)
    reset(near)
    assert not is_ended(far)
    far.close()
    # Envoy has one code for every local end of a stream, so it does not say that the application reset.
    flow_with(inbound.workers[codec], error="stream reset by the peer: INTERNAL_ERROR")


@both_codecs
def test_a_reset_of_the_server_ends_the_client(inbound: EnvoyToUs, codec: str) -> None:
    resets = inbound.envoy.stat(f"cluster.{codec}.http2.rx_reset")
    near, far = inbound.open(codec)
    with near:
        near.sendall(b"to be reset")
        assert far.recv(100) == b"to be reset"
        reset(far)
        is_ended(near)  # Envoy makes an orderly end of our RST_STREAM
    flow_with(inbound.workers[codec], bytes_received=12, error="")
    assert inbound.envoy.stat(f"cluster.{codec}.http2.rx_reset") == resets + 1


@both_codecs
def test_an_ipv6_authority_leads_to_the_ipv6_address(inbound: EnvoyToUs, codec: str) -> None:
    near, far = inbound.open(f"ipv6-{codec}")
    with near, far:
        assert far.getsockname()[0] == "::1"
        exchange(near, far, blocks=1)
    flow_with(inbound.workers[codec], dst_hbone_addr=f"[::1]:{inbound.app.port}", error="")


def test_a_hostname_authority_leads_to_the_services_target_port(inbound: EnvoyToUs) -> None:
    near, far = inbound.open("hostname")
    with near, far:
        exchange(near, far, blocks=1)
    flow = flow_with(inbound.workers["lean"], dst_hbone_addr=f"{HOSTNAME}:{SERVICE_PORT}", error="")
    assert flow.dst_service == HOSTNAME


def test_an_unknown_address_is_named_by_its_baggage(inbound: EnvoyToUs) -> None:
    near, far = inbound.open("stranger")
    near.close()
    far.close()
    flow = flow_with(inbound.workers["lean"], src_cluster="east", error="")
    assert (flow.src_workload, flow.src_namespace, flow.src_cluster) == ("till", "shop", "east")
    assert flow.src_identity == str(identity("client"))  # what it proved, whatever it says


# Refusals


def refused(inbound: EnvoyToUs, tunnel: str, reason: str) -> tuple[LogLine, pb.Flow]:
    """What both sides say about a connection that got nowhere; `reason` is ours."""
    assert is_refused(inbound.address(tunnel))
    return inbound.envoy.wait_for_line(tunnel), flow_with(inbound.workers["lean"], error=reason)


@both_codecs
def test_policy_denies_with_401_and_its_name(inbound: EnvoyToUs, codec: str) -> None:
    worker = inbound.workers[codec]
    worker.policies(deny_all())
    worker.stats()  # in order behind the policy
    try:
        assert is_refused(inbound.address(codec))
    finally:
        worker.policies(removed=["default/deny"])
    inbound.envoy.wait_for_line(codec, lambda line: answer(line) == {":status": "401"})
    reason = "connection closed due to policy rejection: explicitly denied by: default/deny"
    flow = flow_with(worker, error=reason)
    assert (flow.response_flags, flow.policy) == ("DENY", "default/deny")
    assert "explicitly denied by: default/deny" in format_flow(flow)
    worker.stats()
    near, far = inbound.open(codec)  # and the connection is good for the next
    near.close()
    far.close()


@both_codecs
def test_a_change_of_policy_cuts_an_open_tunnel(inbound: EnvoyToUs, codec: str) -> None:
    worker = inbound.workers[codec]
    near, far = inbound.open(codec)
    with near, far:
        worker.policies(deny_all())
        try:
            is_ended(near)
            is_ended(far)
        finally:
            worker.policies(removed=["default/deny"])
    reason = "connection closed due to policy change: explicitly denied by: default/deny"
    assert flow_with(worker, error=reason).policy == "default/deny"


def test_an_authority_that_is_not_ours_gets_400(inbound: EnvoyToUs) -> None:
    line, flow = refused(inbound, "elsewhere", "ip mismatch: 127.0.0.99 != 127.0.0.1")
    assert answer(line) == {":status": "400"}
    assert flow.outcome == pb.Flow.REFUSED


def test_an_authority_that_is_no_address_gets_400(inbound: EnvoyToUs) -> None:
    reason = "the authority is neither ip:port nor host:port"
    line, flow = refused(inbound, "not-an-address", reason)
    assert answer(line) == {":status": "400"}
    assert flow.dst_hbone_addr == "nonsense"


def test_a_hostname_that_is_no_service_gets_503(inbound: EnvoyToUs) -> None:
    line, _ = refused(inbound, "unknown-hostname", "unknown service hostname: nowhere.example")
    assert answer(line) == {":status": "503"}


def test_an_application_that_is_not_there_gets_503(inbound: EnvoyToUs) -> None:
    assert is_refused(inbound.address("nobody-listens"))
    assert answer(inbound.envoy.wait_for_line("nobody-listens")) == {":status": "503"}
    flow = flow_with(
        inbound.workers["lean"], outcome=pb.Flow.FAILED, response_flags="CONNECT", bytes_received=0
    )
    assert "refused" in flow.error


def test_envoy_refuses_us_where_it_expects_another_identity(inbound: EnvoyToUs) -> None:
    line, _ = refused(inbound, "expects-other", "the TLS handshake failed: tls alert certificate unknown")
    assert "SAN" in str(line["transport_failure"])


def test_envoy_refuses_us_where_it_trusts_another_root(inbound: EnvoyToUs) -> None:
    line, _ = refused(inbound, "trusts-other-root", "the TLS handshake failed: tlsv1 alert unknown ca")
    assert "unable_to_get_local_issuer" in str(line["transport_failure"])


def test_a_client_of_another_trust_domain_is_refused_with_its_name(inbound: EnvoyToUs) -> None:
    reason = "no identity of the peer is in trust domain cluster.local: spiffe://elsewhere/ns/a/sa/b"
    refused(inbound, "foreign-domain", reason)


def test_a_client_of_an_unknown_root_is_refused(inbound: EnvoyToUs) -> None:
    reason = (
        "the TLS handshake failed: the peer's certificate is not accepted: "
        "unable to get local issuer certificate"
    )
    refused(inbound, "unknown-root", reason)


# What the reference notes leave open


@pytest.mark.parametrize("group", GROUPS)
def test_each_key_exchange_group_of_a_client_is_spoken(inbound: EnvoyToUs, group: str) -> None:
    near, far = inbound.open(group)
    near.close()
    far.close()
    assert inbound.envoy.stat(f"cluster.{group}.ssl.curves.{group}") == 1


def test_several_tunnels_carry_bulk_over_one_connection(inbound: EnvoyToUs) -> None:
    pairs = [inbound.open("lean") for _ in range(8)]
    work = Background()
    for number, (near, far) in enumerate(pairs):
        work.send(near, range(4), is_end=True)
        work.receive(str(number), far)
    received = work.join()
    for near, far in pairs:
        near.close()
        far.close()
    assert received == {str(number): digest(4) for number in range(8)}
