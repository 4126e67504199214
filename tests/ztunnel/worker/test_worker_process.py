"""Real worker processes under a scripted control process, on loopback: facts 3, 4, 11.2, 12.3 end to end.

Long, because each scenario is a whole story and all share one set-up of processes.
"""

from __future__ import annotations

import json
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.state.labels import LABEL_NAMES
from proto.istio import workload_pb2
from proto.mycelia import worker_pb2 as pb
from tests.ztunnel.worker.kit import (
    BASE,
    CLIENT_IP,
    PATIENCE_S,
    SERVER_IP,
    EchoApp,
    Pair,
    deny_all,
    free_ports,
    identity,
    is_ended,
    is_refused,
    read_all,
    running_pair,
    running_worker,
    strict,
    workload,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as running:
        yield running


def labels(series: pb.Stats.Series) -> dict[str, str]:
    return dict(zip(LABEL_NAMES, series.labels, strict=True))


def send_all_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


# Tunnels


def test_a_tunnelled_connection_is_carried_logged_and_counted(pair: Pair) -> None:
    near, far = pair.connect(), None
    near.sendall(b"hello world")
    far = pair.app.accept()
    assert far.recv(100) == b"hello world"
    far.sendall(b"x" * 22)
    assert near.recv(100) == b"x" * 22
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.close()
    assert near.recv(1) == b""
    near.close()

    out, into = pair.client.wait_for_flow(), pair.server.wait_for_flow()
    for flow in (out, into):
        assert flow.outcome == pb.Flow.COMPLETE
        assert flow.error == ""
        assert flow.response_flags == "-"
        assert flow.dst_hbone_addr == f"{SERVER_IP}:{pair.app.port}"
        assert flow.dst_addr == f"{SERVER_IP}:{pair.hbone_port}"
        assert (flow.src_identity, flow.dst_identity) == (str(identity("client")), str(identity("server")))
        assert (flow.dst_workload, flow.dst_namespace, flow.dst_cluster) == (
            "server",
            "default",
            "Kubernetes",
        )
        assert abs(flow.time - time.time()) < 60
    assert (out.src_workload, out.is_inbound, into.is_inbound) == ("client", False, True)
    assert (out.bytes_sent, out.bytes_received) == (11, 22)
    assert (into.bytes_sent, into.bytes_received) == (22, 11)

    for control, reporter in ((pair.client, "source"), (pair.server, "destination")):
        series = control.series()
        found = labels(series)
        assert (series.opened, series.closed, series.failed) == (1, 1, 0)
        assert (series.received_bytes, series.sent_bytes) == (11, 22)
        assert found["reporter"] == reporter
        assert found["source_principal"] == str(identity("client"))
        assert found["destination_principal"] == str(identity("server"))
        assert found["connection_security_policy"] == "mutual_tls"
        assert found["destination_workload"] == "server"
        other = control.stats()[1]
        assert other["istio_tcp_sockets_open", "source"] == 0


def test_bytes_of_open_connections_are_counted(pair: Pair) -> None:
    near, far = pair.open()
    with near, far:
        assert pair.server.series().received_bytes == 1
        near.sendall(b"12345")
        assert far.recv(100) == b"12345"
        assert pair.client.series().received_bytes == 6
        assert pair.client.series().closed == 0
        assert pair.client.stats()[1]["istio_tcp_sockets_open", "source"] == 1


def test_bulk_arrives_unchanged_both_ways(pair: Pair) -> None:
    up, down = random.Random(1).randbytes(20_000_000), random.Random(2).randbytes(15_000_000)
    near, far = pair.open()
    got: dict[str, bytes] = {}

    threads = [
        threading.Thread(target=send_all_and_end, args=(near, up)),
        threading.Thread(target=send_all_and_end, args=(far, down)),
        threading.Thread(target=lambda: got.update(down=read_all(near))),
        threading.Thread(target=lambda: got.update(up=read_all(far))),
    ]
    with near, far:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S * 2)
    assert got == {"up": up, "down": down}


def test_a_reset_reaches_the_other_application(pair: Pair) -> None:
    near, far = pair.open()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.close()
    assert not is_ended(far)
    far.close()
    assert pair.client.wait_for_flow().response_flags == "-"


def test_an_application_that_is_not_there_is_a_503_to_the_peer(pair: Pair) -> None:
    pair.app.close()
    with pair.connect() as near:
        is_ended(near)
    out, into = pair.client.wait_for_flow(), pair.server.wait_for_flow()
    assert out.error == "http status: 503 Service Unavailable"
    assert out.response_flags == into.response_flags == "CONNECT"
    assert out.outcome == into.outcome == pb.Flow.FAILED
    assert pair.client.series("CONNECT").failed == 1


def test_the_reference_codec_carries_the_same() -> None:
    settings = replace(BASE, codec="reference")
    with running_pair(settings, settings) as pair:
        near, far = pair.open()
        with near, far:
            far.sendall(b"y" * 100_000)
            far.shutdown(socket.SHUT_WR)
            assert read_all(near) == b"y" * 100_000


def test_many_connections_leave_nothing_behind(pair: Pair) -> None:
    near, far = pair.open()  # the pool's connection is there from now on
    near.close()
    far.close()
    pair.client.wait_for_flow()
    pair.server.wait_for_flow()
    before = pair.client.open_descriptors(), pair.server.open_descriptors()
    for _ in range(3):
        opened = [pair.open() for _ in range(150)]
        for near, far in opened:
            near.close()
            far.close()
        for _ in opened:
            pair.client.wait_for_flow()
            pair.server.wait_for_flow()
    # Two more HBONE connections at most: 150 tunnels do not fit into one. Sockets that were made in advance
    # go after a second.
    end = time.monotonic() + PATIENCE_S
    for control, old in zip((pair.client, pair.server), before, strict=True):
        while control.open_descriptors() > old + 2:
            assert time.monotonic() < end, control.open_descriptors()
            control.stats()
    pair.client.send(dump_request=pb.DumpRequest(id=1))
    dump = json.loads(pair.client.wait_for("dump").dump.json)
    assert dump["openConnections"] == 0
    assert dump["workloadState"]["client"]["connections"] == {"inbound": [], "outbound": []}


# Refusals


def test_policy_denies_with_401_and_its_name(pair: Pair) -> None:
    pair.server.policies(deny_all())
    pair.server.stats()  # in order behind the policy
    with pair.connect() as near:
        is_ended(near)
    into = pair.server.wait_for_flow()
    assert into.error == "connection closed due to policy rejection: explicitly denied by: default/deny"
    assert (into.response_flags, into.policy) == ("DENY", "default/deny")
    assert pair.client.wait_for_flow().error == "http status: 401 Unauthorized"
    series = pair.server.series("DENY")
    assert (series.closed, series.failed) == (1, 1)
    pair.server.policies(removed=["default/deny"])
    pair.server.stats()
    near, far = pair.open()
    near.close()
    far.close()


def test_a_change_of_policy_cuts_an_open_connection(pair: Pair) -> None:
    near, far = pair.open()
    with near, far:
        pair.server.policies(deny_all())
        is_ended(near)
        is_ended(far)
    into = pair.server.wait_for_flow()
    assert into.error == "connection closed due to policy change: explicitly denied by: default/deny"
    assert (into.response_flags, into.policy) == ("DENY", "default/deny")
    assert pair.server.stats()[1]["mycelia_worker_policy_closed_connections_total",] == 1


def test_a_policy_that_does_not_concern_it_leaves_a_connection_alone(pair: Pair) -> None:
    near, far = pair.open()
    with near, far:
        pair.server.policies(strict())
        pair.server.stats()
        near.sendall(b"still")
        assert far.recv(10) == b"still"


def test_a_newly_attached_selector_policy_cuts_an_open_connection(pair: Pair) -> None:
    pair.server.policies(deny_all("selected", is_selector=True))
    pair.server.stats()
    near, far = pair.open()
    with near, far:
        pair.server.resources(workload("server", SERVER_IP, policies=["default/selected"]))
        is_ended(near)
    assert pair.server.wait_for_flow().policy == "default/selected"


def test_an_unknown_listed_policy_denies(pair: Pair) -> None:
    pair.server.resources(workload("server", SERVER_IP, policies=["default/nowhere"]))
    pair.server.stats()
    with pair.connect() as near:
        is_ended(near)
    assert pair.server.wait_for_flow().policy == "default/nowhere"


def test_an_authority_that_is_not_ours_is_refused_with_400() -> None:
    """The client takes the server for the waypoint of another workload; the server knows nothing of that."""
    with running_pair(replace(BASE, static_destination="127.0.0.9:81")) as pair:
        target = workload("target", "127.0.0.9")
        target.waypoint.address.address = b"\x7f\x00\x00\x01"
        target.waypoint.hbone_mtls_port = pair.hbone_port
        pair.client.resources(target)
        pair.client.stats()
        with pair.connect() as near:
            is_ended(near)
        refused = pair.server.wait_for_flow()
        assert refused.outcome == pb.Flow.REFUSED
        assert refused.error == "ip mismatch: 127.0.0.9 != 127.0.0.1"
        assert refused.dst_hbone_addr == "127.0.0.9:81"
        assert pair.client.wait_for_flow().error == "http status: 400 Bad Request"
        assert pair.server.stats()[0] == []  # an early denial touches no traffic metric


def test_the_proxys_own_ports_are_refused() -> None:
    port = free_ports(1)[0]
    settings = replace(BASE, illegal_ports=(port,), static_destination=f"127.0.0.1:{port}")
    with running_pair(settings) as pair:
        with pair.connect() as near:
            is_ended(near)
        flow = pair.client.wait_for_flow()
        assert flow.outcome == pb.Flow.REFUSED
        assert "own ports" in flow.error


def test_without_a_certificate_there_is_no_traffic() -> None:
    with running_pair(has_credentials=False) as pair:
        near = pair.connect()
        wanted = pair.client.wait_for("credential_wanted").credential_wanted
        assert wanted.spiffe_id == str(identity("client"))
        failed = pb.CredentialFailed(spiffe_id=wanted.spiffe_id, error="the CA is away")
        pair.client.send(credential_failed=failed)
        is_ended(near)
        near.close()
        flow = pair.client.wait_for_flow()
        assert flow.response_flags == "IDENTITY_ERROR"
        assert "the CA is away" in flow.error
        with pair.connect() as near:  # at once: the control process goes on trying by itself
            is_ended(near)
        assert pair.client.wait_for_flow().response_flags == "IDENTITY_ERROR"
        pair.client.credential("client")
        pair.server.credential("server")
        near, far = pair.open()
        near.close()
        far.close()


def test_a_connection_waits_for_its_certificates() -> None:
    with running_pair(has_credentials=False) as pair, pair.connect() as near:
        near.sendall(b"patient")
        pair.client.wait_for("credential_wanted")
        pair.client.credential("client")
        pair.server.wait_for("credential_wanted")
        pair.server.credential("server")
        with pair.app.accept() as far:
            assert far.recv(10) == b"patient"


def test_an_unusable_credential_is_reported_and_the_old_one_stays(pair: Pair) -> None:
    bad = pb.Credential(spiffe_id=str(identity("client")), chain_pem=["no"], key_pem=b"no", roots_pem="no")
    pair.client.send(credential=bad)
    pair.client.wait_for_log("credential_unusable")
    near, far = pair.open()
    near.close()
    far.close()


def test_a_connection_waits_for_its_workload_to_be_announced(pair: Pair) -> None:
    pair.client.resources(removed=["cluster/client"])
    pair.client.stats()
    with pair.connect() as near:
        near.sendall(b"early")
        pair.client.stats()
        pair.client.resources(workload("client", CLIENT_IP))
        with pair.app.accept() as far:
            assert far.recv(10) == b"early"


def test_an_unknown_source_is_refused_after_a_while() -> None:
    with running_pair(replace(BASE, state_wait_s=0.3)) as pair:
        pair.client.resources(removed=["cluster/client"])
        pair.client.stats()
        with pair.connect() as near:
            is_ended(near)
        flow = pair.client.wait_for_flow()
        assert flow.outcome == pb.Flow.REFUSED
        assert "unknown source" in flow.error


def test_a_destination_in_another_network_is_refused_with_a_reason(pair: Pair) -> None:
    service = workload_pb2.Service(name="far", namespace="default", hostname="far.default.svc")
    service.addresses.add(address=b"\x7f\x00\x00\x01")
    service.ports.add(service_port=pair.app.port, target_port=80)
    remote = workload("remote", "10.1.1.1", network="elsewhere")
    remote.services["default/far.default.svc"].ports.add(service_port=pair.app.port, target_port=80)
    remote.network_gateway.address.address = b"\x0a\x00\x00\x01"
    remote.network_gateway.hbone_mtls_port = 15008
    pair.client.resources(service, remote, removed=["cluster/server"])
    pair.client.stats()
    with pair.connect() as near:
        is_ended(near)
    flow = pair.client.wait_for_flow()
    assert flow.outcome == pb.Flow.REFUSED
    assert flow.error


def test_a_rejected_resource_is_logged_and_the_others_apply(pair: Pair) -> None:
    bad = workload("bad", "127.0.0.5")
    bad.addresses.append(b"xyz")
    pair.client.resources(bad, workload("good", "127.0.0.6"))
    assert "bytes" in pair.client.wait_for_log("resource_rejected").fields_json


def test_ipv6_all_the_way() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        listener.settimeout(PATIENCE_S)
        port = listener.getsockname()[1]
        settings = replace(BASE, bind_address="::1", static_destination=f"[::1]:{port}")
        with running_pair(settings, settings) as pair:
            for control in (pair.client, pair.server):
                control.resources(workload("client", "fd00::3"), workload("server", "::1"))
                control.stats()
            near = socket.create_connection(("::1", pair.outbound_port), PATIENCE_S)
            near.sendall(b"x")
            far = listener.accept()[0]
            assert far.recv(1) == b"x"
            near.close()
            far.close()
            flow = pair.server.wait_for_flow()
            assert flow.dst_hbone_addr == f"[::1]:{port}"
            assert flow.dst_addr == f"[::1]:{pair.hbone_port}"
            assert flow.src_addr.startswith("[::1]:")


# Without a tunnel


def test_an_unknown_destination_is_passed_through_unchanged() -> None:
    app = EchoApp()
    with running_pair(replace(BASE, static_destination=f"127.0.0.1:{app.port}")) as pair:
        pair.client.resources(removed=["cluster/server"])
        pair.client.stats()
        near = pair.connect()
        far = app.accept()
        near.sendall(b"plain")
        assert far.recv(10) == b"plain"
        far.sendall(b"answer")
        far.shutdown(socket.SHUT_WR)
        assert read_all(near) == b"answer"
        near.close()
        assert far.recv(1) == b""
        far.close()
        flow = pair.client.wait_for_flow()
        assert (flow.bytes_sent, flow.bytes_received, flow.dst_hbone_addr) == (5, 6, "")
        assert flow.src_identity == ""
        assert labels(pair.client.series())["connection_security_policy"] == "unknown"
    app.close()


def test_a_refused_destination_closes_the_connection() -> None:
    port = free_ports(1)[0]
    with running_pair(replace(BASE, static_destination=f"127.0.0.1:{port}")) as pair:
        pair.client.resources(removed=["cluster/server"])
        pair.client.stats()
        with pair.connect() as near:
            is_ended(near)
        flow = pair.client.wait_for_flow()
        assert flow.response_flags == "CONNECT"
        assert "refused" in flow.error.lower()


def test_plaintext_to_a_workload_is_authorised_and_carried() -> None:
    app = EchoApp()
    port = free_ports(1)[0]
    settings = replace(
        BASE, listeners=("inbound",), inbound_port=port, static_destination=f"127.0.0.1:{app.port}"
    )
    with running_worker(settings) as control:
        control.resources(workload("server", SERVER_IP))
        assert control.add_workload("server").error == ""
        near = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        far = app.accept()
        data = random.Random(3).randbytes(30_000_000)  # enough to be spliced
        sender = threading.Thread(target=send_all_and_end, args=(near, data))
        sender.start()
        assert read_all(far) == data
        sender.join()
        far.sendall(b"thanks")
        far.close()
        assert read_all(near) == b"thanks"
        near.close()
        flow = control.wait_for_flow()
        assert (flow.bytes_sent, flow.bytes_received) == (6, len(data))
        assert flow.is_inbound
        assert flow.src_identity == ""

        open_one = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        far = app.accept()
        control.policies(strict())
        is_ended(open_one)  # a policy change cuts plaintext as well
        open_one.close()
        far.close()
        assert control.wait_for_flow().error.startswith("connection closed due to policy change")
        is_refused(port)
        assert control.wait_for_flow().policy == "default/strict"
    app.close()


# Life and orders


def test_a_workload_may_be_added_twice_removed_and_added_again(pair: Pair) -> None:
    assert pair.server.add_workload("server").error == ""
    near, far = pair.open()
    pair.server.send(del_workload=pb.DelWorkload(uid="server"))
    is_ended(near)
    is_ended(far)
    near.close()
    far.close()
    assert "removed" in pair.server.wait_for_flow().error
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pair.hbone_port), PATIENCE_S)
    assert pair.server.add_workload("server").error == ""
    near, far = pair.open()
    near.close()
    far.close()


def test_a_port_that_is_taken_is_one_error_of_that_workload() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(BASE, listeners=("hbone",), hbone_port=taken.getsockname()[1])
        with running_worker(settings) as control:
            control.resources(workload("server", SERVER_IP))
            assert "in use" in control.add_workload("server").error
            before = control.open_descriptors()
            control.add_workload("server")
            assert control.open_descriptors() == before


def test_a_descriptor_that_is_no_namespace_is_refused() -> None:
    with running_worker() as control:
        with Path("/dev/null").open("rb") as wrong:
            control.send(wrong.fileno(), add_workload=pb.AddWorkload(uid="x"))
        assert "not a network namespace" in control.wait_for("workload_result").workload_result.error


def test_a_drain_lets_open_connections_finish(pair: Pair) -> None:
    near, far = pair.open()
    pair.client.send(drain=pb.Drain(deadline_s=30))
    pair.client.stats()
    with pytest.raises(ConnectionRefusedError):
        pair.connect()
    near.sendall(b"still open")
    assert far.recv(20) == b"still open"
    near.close()
    far.close()
    pair.client.wait_for("drained")
    assert pair.client.process.wait(PATIENCE_S) == 0


def test_a_drain_ends_what_is_left_at_its_deadline(pair: Pair) -> None:
    near, far = pair.open()
    pair.server.send(drain=pb.Drain(deadline_s=0))
    is_ended(near)
    is_ended(far)
    near.close()
    far.close()
    assert pair.server.wait_for_flow().error == "connection closed due to connection drain"
    pair.server.wait_for("drained")
    assert pair.server.process.wait(PATIENCE_S) == 0


def test_new_tunnels_go_elsewhere_while_a_server_drains(pair: Pair) -> None:
    near, far = pair.open()
    pair.server.send(drain=pb.Drain(deadline_s=30))
    pair.server.stats()
    with pair.connect() as late:
        is_ended(late)
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    near.close()
    far.close()
    pair.server.wait_for("drained")


def test_a_lost_control_process_loses_no_connection(pair: Pair) -> None:
    near, far = pair.open()
    pair.client.sock.close()
    near.sendall(b"still open")
    assert far.recv(20) == b"still open"
    assert pair.client.process.poll() is None
    near.close()
    far.close()
    assert pair.client.process.wait(PATIENCE_S) == 0


def test_garbage_from_the_control_process_ends_the_channel_only(pair: Pair) -> None:
    near, far = pair.open()
    pair.client.sock.sendall(b"\xff" * 100)
    near.sendall(b"still open")
    assert far.recv(20) == b"still open"
    near.close()
    far.close()
    assert pair.client.process.wait(PATIENCE_S) == 0


def test_unknown_settings_are_refused_with_a_message() -> None:
    with running_worker() as control:
        control.send(configure=pb.Configure(settings_json='{"no_such": 1}'))
        assert "no_such" in control.wait_for_log("defect").fields_json


def test_too_many_connections_are_refused_cleanly() -> None:
    with running_pair(replace(BASE, max_connections=5)) as pair:
        opened = [pair.open() for _ in range(5)]
        is_refused(pair.outbound_port)
        pair.client.wait_for_log("connections_refused")
        for near, far in opened:
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            near.close()
            far.close()
        for _ in opened:
            pair.client.wait_for_flow()
        near, far = pair.open()
        near.close()
        far.close()


def test_without_descriptors_the_worker_waits_and_recovers(pair: Pair) -> None:
    near, far = pair.open()
    limit = pair.client.open_descriptors() + 2
    old = resource.prlimit(pair.client.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pair.client.process.pid, resource.RLIMIT_NOFILE, (limit, old[1]))
    surplus = [pair.connect() for _ in range(6)]
    pair.client.wait_for_log("accept_paused")
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    resource.prlimit(pair.client.process.pid, resource.RLIMIT_NOFILE, old)
    for sock in surplus:
        sock.sendall(b"late")
        with pair.app.accept() as app:
            assert app.recv(4) == b"late"
        sock.close()
    near.close()
    far.close()


def test_log_levels_are_obeyed(pair: Pair) -> None:
    pair.client.send(set_log_level=pb.SetLogLevel(level="nonsense"))
    pair.client.wait_for_log("unknown_log_level")
    pair.client.send(set_log_level=pb.SetLogLevel(level="error"))
    pair.client.send(set_log_level=pb.SetLogLevel(level="nonsense"))
    pair.client.stats()
    assert not pair.client.logs


def test_at_level_debug_the_opening_is_recorded_too() -> None:
    settings = replace(BASE, log_level="debug")
    with running_pair(settings, settings) as pair:
        near, far = pair.open()
        for control in (pair.client, pair.server):
            assert control.wait_for_flow().outcome == pb.Flow.OPENED
        near.close()
        far.close()
        for control in (pair.client, pair.server):
            assert control.wait_for_flow().outcome == pb.Flow.COMPLETE


def test_a_terminated_worker_finishes_its_connections(pair: Pair) -> None:
    near, far = pair.open()
    pair.client.process.terminate()
    pair.client.stats()
    near.sendall(b"still open")
    assert far.recv(20) == b"still open"
    near.close()
    far.close()
    assert pair.client.process.wait(PATIENCE_S) == 0


def test_a_dry_run_policy_denies_nothing_and_is_noted(pair: Pair) -> None:
    policy = deny_all("maybe")
    policy.dry_run = True
    pair.server.policies(policy)
    pair.server.stats()
    near, far = pair.open()
    near.close()
    far.close()
    assert "default/maybe" in pair.server.wait_for_log("policy_dry_run").fields_json
