"""Our outbound as HBONE client, Envoy as server: tunnels in both codecs, refusals, identities."""

from __future__ import annotations

import json
import re
import socket

import pytest

from proto.mycelia import worker_pb2 as pb
from telemetry.access_log import format_flow
from tests.interop.sides import CODECS, GROUPS, UsToEnvoy, connect, flow_with, is_refused, name_of
from tests.interop.traffic import MIB, digest, exchange, reset, stalled_transfer
from tests.ztunnel.worker.kit import ScriptedControl, identity, is_ended, read_all

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]
both_codecs = pytest.mark.parametrize("codec", CODECS)

OUR_TUNNELS = 100  # that one connection of ours carries at most
NARROW_LIMIT = 5  # of the Envoy that is called so


def flow_of(worker: ScriptedControl, near: str, error: str = "") -> pb.Flow:
    """The record of the connection that the application made from `near`."""
    return flow_with(worker, src_addr=near, error=error)


def pool_of(worker: ScriptedControl, ip: str) -> list[int]:
    """How many tunnels each connection to that address carries."""
    worker.send(dump_request=pb.DumpRequest(id=1))
    dump = json.loads(worker.wait_for("dump").dump.json)
    entries = dump["workloadState"]["client"]["pool"]
    (found,) = [entry for entry in entries if entry["address"].rpartition(":")[0] == ip]
    return [connection["tunnels"] for connection in found["connections"]]


# Tunnels


@both_codecs
def test_a_request_and_its_response_pass(outbound: UsToEnvoy, codec: str) -> None:
    with connect(outbound.address("usual", codec)) as near:
        name = name_of(near)
        near.sendall(b"request")
        with outbound.app.accept() as far:
            assert far.recv(100) == b"request"
            far.sendall(b"the response")
            assert near.recv(100) == b"the response"
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
        assert near.recv(1) == b""
    flow = flow_of(outbound.workers[codec], name)
    assert (flow.src_workload, flow.dst_workload) == ("client", "usual")
    assert flow.dst_identity == str(identity("usual"))
    assert (flow.bytes_sent, flow.bytes_received) == (7, 12)
    line = outbound.envoy.wait_for_line("usual", lambda line: line["forwarded"] == f'for="{name}"')
    assert (line["protocol"], line["method"], line["code"]) == ("HTTP/2", "CONNECT", 200)
    assert line["authority"] == flow.dst_hbone_addr
    assert line["path"] is None
    assert line["peer"] == str(identity("client"))
    assert line["tls"] == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert line["baggage"] == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
        "service.name=client,service.version=v1"
    )
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", str(line["traceparent"]))


@both_codecs
def test_the_servers_first_bytes_need_nothing_from_the_client(outbound: UsToEnvoy, codec: str) -> None:
    with connect(outbound.address("usual", codec)) as near, outbound.app.accept() as far:
        far.sendall(b"220 ready\r\n")
        assert near.recv(100) == b"220 ready\r\n"


@both_codecs
def test_the_client_ends_first_and_the_server_goes_on(outbound: UsToEnvoy, codec: str) -> None:
    near, far = outbound.open("usual", codec)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.sendall(b"x" * MIB)
        far.shutdown(socket.SHUT_WR)
        assert len(read_all(near)) == MIB
        name = name_of(near)
    assert flow_of(outbound.workers[codec], name).bytes_received == MIB


@both_codecs
def test_envoy_ends_both_directions_with_the_servers_and_we_do_so_in_order(
    outbound: UsToEnvoy, codec: str
) -> None:
    """Envoy's CONNECT termination has no half-close of the server's side: it ends the stream and resets it
    (NO_ERROR). All that was sent before arrives, and both applications see the end.
    """
    near, far = outbound.open("usual", codec)
    with near, far:
        far.sendall(b"x" * MIB)
        far.shutdown(socket.SHUT_WR)
        assert len(read_all(near)) == MIB
        assert far.recv(1) == b""
        name = name_of(near)
    assert flow_of(outbound.workers[codec], name).bytes_received == MIB


@both_codecs
def test_64_mib_each_way_at_once_arrive_unchanged(outbound: UsToEnvoy, codec: str) -> None:
    """The server's direction ends last, see above."""
    near, far = outbound.open("usual", codec)
    with near, far:
        exchange(near, far, blocks=64)
        name = name_of(near)
    flow = flow_of(outbound.workers[codec], name)
    assert (flow.bytes_sent, flow.bytes_received) == (64 * MIB + 1, 64 * MIB)


@both_codecs
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_slow_reader_bounds_our_memory_and_loses_nothing(
    outbound: UsToEnvoy, codec: str, direction: str
) -> None:
    near, far = outbound.open("usual", codec)
    sender, reader = (near, far) if direction == "up" else (far, near)
    with near, far:
        transfer = stalled_transfer(sender, reader, blocks=64, pid=outbound.workers[codec].process.pid)
    assert transfer.is_stalled
    assert transfer.grown_bytes < 16 * MIB  # a stream's window and the TLS backlog, with room
    assert transfer.received == digest(64)


@both_codecs
def test_many_tunnels_share_connections_up_to_our_limit(outbound: UsToEnvoy, codec: str) -> None:
    worker = outbound.workers[codec]
    pairs = [outbound.open("usual", codec) for _ in range(2 * OUR_TUNNELS + 50)]
    assert sorted(pool_of(worker, outbound.addresses["usual"])) == [50, OUR_TUNNELS, OUR_TUNNELS]
    names = [name_of(near) for near, _ in pairs]
    for number, (near, far) in enumerate(pairs):
        near.sendall(b"%d" % number)
        assert far.recv(10) == b"%d" % number
        near.close()
        far.close()
    for name in names:
        flow_of(worker, name)


@both_codecs
def test_a_burst_beyond_the_peers_limit_is_spread_over_connections(outbound: UsToEnvoy, codec: str) -> None:
    """All requests are there before Envoy can say that it takes 5 streams; what it refuses is repeated."""
    worker = outbound.workers[codec]
    count = 8 * NARROW_LIMIT
    outbound.envoy.pause()
    try:
        nears = [connect(outbound.address("narrow", codec)) for _ in range(count)]
        worker.stats()  # in order behind nothing, but a pass later: the dial is under way
    finally:
        outbound.envoy.go_on()
    fars = [outbound.app.accept() for _ in nears]
    assert max(pool_of(worker, outbound.addresses["narrow"])) == NARROW_LIMIT
    assert outbound.envoy.stat("http.narrow.downstream_rq_active") == count
    names = [name_of(near) for near in nears]
    for sock in (*nears, *fars):
        sock.close()
    for name in names:
        flow_of(worker, name)
    outbound.envoy.wait_for_stat("http.narrow.downstream_rq_active", lambda active: active == 0)


@both_codecs
def test_a_reset_of_the_client_reaches_envoy_as_a_reset(outbound: UsToEnvoy, codec: str) -> None:
    near, far = outbound.open("usual", codec)
    name = name_of(near)
    with far:
        reset(near)
        is_ended(far)  # Envoy closes the server's connection in order
    line = outbound.envoy.wait_for_line("usual", lambda line: line["forwarded"] == f'for="{name}"')
    assert line["details"] == "http2.remote_reset"
    flow_of(outbound.workers[codec], name)


@both_codecs
def test_a_reset_of_the_server_reaches_the_client(outbound: UsToEnvoy, codec: str) -> None:
    near, far = outbound.open("usual", codec)
    with near:
        reset(far)
        assert not is_ended(near)
        name = name_of(near)
    flow_of(outbound.workers[codec], name)


@both_codecs
def test_an_ipv6_destination_has_an_ipv6_authority(outbound: UsToEnvoy, codec: str) -> None:
    near, far = outbound.open("ipv6", codec)
    with near, far:
        exchange(near, far, blocks=1)
    assert outbound.envoy.wait_for_line("ipv6")["authority"] == f"[::1]:{outbound.outbound_ports[codec]}"


# Refusals


def refused(outbound: UsToEnvoy, tunnel: str, codec: str = "lean") -> pb.Flow:
    assert is_refused(outbound.address(tunnel, codec))
    return flow_with(outbound.workers[codec], dst_workload=tunnel)


@both_codecs
def test_envoys_rbac_denies_with_403(outbound: UsToEnvoy, codec: str) -> None:
    flow = refused(outbound, "forbidding", codec)
    assert (flow.error, flow.outcome) == ("http status: 403 Forbidden", pb.Flow.FAILED)
    assert 'error="http status: 403 Forbidden"' in format_flow(flow)
    line = outbound.envoy.wait_for_line("forbidding")
    assert (line["code"], line["peer"]) == (403, str(identity("client")))


def test_an_application_that_envoy_cannot_reach_is_a_503(outbound: UsToEnvoy) -> None:
    assert refused(outbound, "unreachable").error == "http status: 503 Service Unavailable"


def test_a_server_with_another_identity_is_refused_with_both_names(outbound: UsToEnvoy) -> None:
    assert refused(outbound, "impostor").error == (
        f"identity verification error: the peer presented [{identity('other')}], "
        f"expected [{identity('impostor')}]"
    )


def test_a_server_of_an_unknown_root_is_refused(outbound: UsToEnvoy) -> None:
    assert refused(outbound, "unknown-root").error == (
        "the TLS handshake failed: the peer's certificate is not accepted: "
        "unable to get local issuer certificate"
    )


def test_envoy_refuses_us_where_it_trusts_another_root(outbound: UsToEnvoy) -> None:
    """With TLS 1.3 that shows only after our handshake is complete (facts 2.1)."""
    assert "tlsv1 alert unknown ca" in refused(outbound, "trusts-other-root").error
    line = outbound.envoy.wait_for_line("trusts-other-root connection")
    assert "unable_to_get_local_issuer" in str(line["downstream_failure"])


def test_envoy_refuses_us_where_it_expects_another_identity(outbound: UsToEnvoy) -> None:
    assert "tls alert certificate unknown" in refused(outbound, "expects-nobody").error
    line = outbound.envoy.wait_for_line("expects-nobody connection")
    assert "SAN" in str(line["downstream_failure"])


# What the reference notes leave open


@pytest.mark.parametrize("group", GROUPS)
def test_each_key_exchange_group_of_a_server_is_spoken(outbound: UsToEnvoy, group: str) -> None:
    ip = outbound.address(group.lower())[0]
    near, far = outbound.open(group.lower())
    near.close()
    far.close()
    names = json.loads(outbound.envoy.ask(f"/stats?format=json&filter={re.escape(ip)}_.*ssl.curves")[1])
    assert [one["name"].rpartition(".")[2] for one in names["stats"]] == [group]
