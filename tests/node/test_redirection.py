"""Rules in a real namespace: what is captured, what passes by, and that removal leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mesh.lab.network import Lab, Place, Workload
from node.errors import PrivilegeMissingError, ProgramMissingError, RuleCommandError
from node.kernel import Redirection, enter_new_namespace, find_programs, run_command
from node.rules import MANGLE_TABLE, NAT_TABLE, PACKET_MARK, RuleOptions
from transport.netns import NetworkNamespace
from transport.sockets import SpoofResult, finish_connect, open_listener, original_destination, start_connect

pytestmark = pytest.mark.namespaces

FAMILIES = ("ipv4", "ipv6")
EVERYTHING = (
    ("nft", "list", "ruleset"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
)


@pytest.fixture(scope="module")
def redirection() -> Redirection:
    made = Redirection(find_programs(), RuleOptions())
    made.self_test()
    return made


@dataclass
class Bench:
    """A workload `web` with rules, and a peer outside of the mesh on the same node."""

    lab: Lab
    web: Workload
    peer: Workload
    handle: NetworkNamespace

    def address(self, place: Place, family: str) -> str:
        return place.ipv4 if family == "ipv4" else place.ipv6


@pytest.fixture
def bench(lab: Lab, redirection: Redirection) -> Iterator[Bench]:
    node = lab.add_node("alpha")
    web, peer = lab.add_workloads({"web": node, "peer": node})
    with NetworkNamespace.from_path(web.path) as handle:
        redirection.apply(handle)
        yield Bench(lab, web, peer, handle)


@contextlib.contextmanager
def listening(lab: Lab, place: Place, port: int) -> Iterator[socket.socket]:
    with NetworkNamespace.from_path(place.path) as namespace:
        listener, _ = open_listener("::", port, namespace=namespace, mark=PACKET_MARK, is_transparent=True)
    with listener:
        listener.settimeout(5)
        yield listener


def connect(lab: Lab, place: Place, target: tuple[str, int], *, mark: int | None = None) -> socket.socket:
    with lab.entered(place):
        sock = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
    sock.settimeout(5)
    if mark is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    try:
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def unmapped(address: str) -> str:
    return address.removeprefix("::ffff:")


@pytest.mark.parametrize("family", FAMILIES)
class TestCaptured:
    def test_outgoing_connections_arrive_at_15001_with_their_destination(
        self, bench: Bench, family: str
    ) -> None:
        target = bench.address(bench.peer, family), 80
        with listening(bench.lab, bench.web, 15001) as proxy, connect(bench.lab, bench.web, target):
            accepted, source = proxy.accept()
            with accepted:
                assert original_destination(accepted) == target
                assert unmapped(source[0]) == bench.address(bench.web, family)

    def test_incoming_connections_arrive_at_15006_with_their_destination(
        self, bench: Bench, family: str
    ) -> None:
        target = bench.address(bench.web, family), 8080
        with listening(bench.lab, bench.web, 15006) as proxy, connect(bench.lab, bench.peer, target):
            accepted, source = proxy.accept()
            with accepted:
                assert original_destination(accepted) == target
                assert unmapped(source[0]) == bench.address(bench.peer, family)

    def test_refused_while_no_proxy_listens(self, bench: Bench, family: str) -> None:
        with listening(bench.lab, bench.peer, 80), pytest.raises(ConnectionRefusedError):
            connect(bench.lab, bench.web, (bench.address(bench.peer, family), 80))
        with listening(bench.lab, bench.web, 80), pytest.raises(ConnectionRefusedError):
            connect(bench.lab, bench.peer, (bench.address(bench.web, family), 80))

    def test_a_connection_older_than_the_rules_does_not_go_on_in_plaintext(
        self, bench: Bench, family: str, redirection: Redirection
    ) -> None:
        redirection.remove(bench.handle)
        target = bench.address(bench.peer, family), 80
        with listening(bench.lab, bench.peer, 80) as server, connect(bench.lab, bench.web, target) as client:
            accepted, _ = server.accept()
            with accepted:
                redirection.apply(bench.handle)
                client.sendall(b"secret")
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


@pytest.mark.parametrize("family", FAMILIES)
class TestPassesBy:
    def test_outgoing_connections_with_the_proxys_mark(self, bench: Bench, family: str) -> None:
        target = bench.address(bench.peer, family), 80
        with (
            listening(bench.lab, bench.peer, 80) as server,
            connect(bench.lab, bench.web, target, mark=PACKET_MARK) as client,
        ):
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"

    def test_hbone_port(self, bench: Bench, family: str) -> None:
        target = bench.address(bench.web, family), 15008
        with listening(bench.lab, bench.web, 15008) as server, connect(bench.lab, bench.peer, target):
            accepted, _ = server.accept()
            with accepted:
                assert accepted.getsockname()[1] == 15008

    def test_own_address_over_lo(self, bench: Bench, family: str) -> None:
        target = bench.address(bench.web, family), 80
        with listening(bench.lab, bench.web, 80) as server, connect(bench.lab, bench.web, target):
            server.accept()[0].close()

    def test_loopback(self, bench: Bench, family: str) -> None:
        target = "127.0.0.1" if family == "ipv4" else "::1", 80
        with listening(bench.lab, bench.web, 80) as server, connect(bench.lab, bench.web, target):
            server.accept()[0].close()

    def test_udp(self, bench: Bench, family: str) -> None:
        inet = socket.AF_INET if family == "ipv4" else socket.AF_INET6
        with bench.lab.entered(bench.peer):
            server = socket.socket(inet, socket.SOCK_DGRAM)
        with bench.lab.entered(bench.web):
            client = socket.socket(inet, socket.SOCK_DGRAM)
        with server, client:
            server.settimeout(5)
            server.bind((bench.address(bench.peer, family), 53))
            client.sendto(b"question", (bench.address(bench.peer, family), 53))
            assert server.recv(100) == b"question"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rp_filter", [0, 1])
def test_the_application_sees_the_spoofed_client_and_its_answers_come_back(
    bench: Bench, family: str, rp_filter: int
) -> None:
    """The reply path: mark on the connection, restored on answers, table 100, transparent socket."""
    bench.lab.run(bench.web, ["sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}"])
    client_address = bench.address(bench.peer, family)
    target = bench.address(bench.web, family), 8080
    with listening(bench.lab, bench.web, 8080) as application:
        application.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)  # an application has no mark
        dialled, spoof = start_connect(
            target, namespace=bench.handle, mark=PACKET_MARK, source_ip=client_address
        )
        with dialled:
            assert spoof is SpoofResult.SPOOFED
            accepted, source = application.accept()
            with accepted:
                finish_connect(dialled)
                dialled.setblocking(True)
                dialled.settimeout(5)
                assert unmapped(source[0]) == client_address
                accepted.sendall(b"answer")
                assert dialled.recv(10) == b"answer"
                dialled.sendall(b"question")
                assert accepted.recv(10) == b"question"


def everything(lab: Lab, place: Place) -> list[str]:
    return [lab.run(place, command).stdout for command in EVERYTHING]


@pytest.mark.parametrize(
    "options",
    [RuleOptions(), RuleOptions(captures_dns=True, lets_probes_through=True)],
    ids=["plain", "all switches"],
)
def test_removal_leaves_no_residue(lab: Lab, options: RuleOptions) -> None:
    web = lab.add_workload("web", lab.add_node("alpha"))
    lab.run(web, ["nft", "add", "table", "inet", "someone-elses"])
    lab.run(web, ["ip", "route", "add", "local", "192.0.2.1", "dev", "lo", "table", "100"])
    rules = Redirection(find_programs(), options)
    rules.self_test()
    with NetworkNamespace.from_path(web.path) as handle:
        before = everything(lab, web)
        rules.apply(handle)
        rules.apply(handle)
        assert everything(lab, web) != before
        assert rules.is_in_place(handle)
        assert not rules.is_absent(handle)
        rules.remove(handle)
        assert everything(lab, web) == before
        assert rules.is_absent(handle)
        rules.remove(handle)
        assert everything(lab, web) == before


def test_removal_takes_rules_of_a_dns_capturing_version_too(bench: Bench, redirection: Redirection) -> None:
    wider = Redirection(find_programs(), RuleOptions(captures_dns=True))
    wider.self_test()
    wider.apply(bench.handle)
    assert not redirection.is_in_place(bench.handle)
    redirection.remove(bench.handle)
    assert bench.lab.run(bench.web, ["nft", "list", "ruleset"]).stdout == ""


DAMAGES: dict[str, list[str]] = {
    "table deleted": ["nft", "delete", "table", "inet", NAT_TABLE],
    "chain emptied": ["nft", "flush", "chain", "inet", NAT_TABLE, "istio-output"],
    "rule added": ["nft", "insert", "rule", "inet", NAT_TABLE, "istio-output", "accept"],
    "mangle table deleted": ["nft", "delete", "table", "inet", MANGLE_TABLE],
    "all deleted": ["nft", "flush", "ruleset"],
    "ip rule deleted": ["ip", "rule", "del", "pref", "32764"],
    "ipv6 rule deleted": ["ip", "-6", "rule", "del", "pref", "32764"],
    "route deleted": ["ip", "route", "flush", "table", "100"],
    "ipv6 route deleted": ["ip", "-6", "route", "flush", "table", "100"],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_drift_is_noticed_and_mended(bench: Bench, redirection: Redirection, damage: list[str]) -> None:
    whole = everything(bench.lab, bench.web)[1:]
    bench.lab.run(bench.web, damage)
    assert not redirection.is_in_place(bench.handle)
    redirection.apply(bench.handle)
    assert redirection.is_in_place(bench.handle)
    assert everything(bench.lab, bench.web)[1:] == whole


def test_counters_are_no_drift(bench: Bench, redirection: Redirection) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        connect(bench.lab, bench.web, (bench.peer.ipv4, 80)).close()
    assert "packets 1" in bench.lab.run(bench.web, ["nft", "list", "table", "inet", NAT_TABLE]).stdout
    assert redirection.is_in_place(bench.handle)


def test_a_namespace_without_ipv6_gets_ipv4_rules(lab: Lab, redirection: Redirection) -> None:
    web = lab.add_workload("web", lab.add_node("alpha"))
    lab.run(web, ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
    with NetworkNamespace.from_path(web.path) as handle:
        redirection.apply(handle)
        assert redirection.is_in_place(handle)
        redirection.remove(handle)
        assert redirection.is_absent(handle)


def test_addresses_of_a_workload(bench: Bench, redirection: Redirection) -> None:
    assert redirection.addresses(bench.handle) == (bench.web.ipv4, bench.web.ipv6)


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(ProgramMissingError, match=r"nft.*apt-get install nftables"):
        find_programs("/nowhere")


def without_rights(command: Callable[[], None]) -> None:
    """Runs `command` in a thread that gave up its capabilities."""
    failures: list[BaseException] = []

    def body() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        try:
            assert libc.capset(header, nothing) == 0
            command()
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_missing_privilege_says_what_to_do(redirection: Redirection) -> None:
    with pytest.raises(PrivilegeMissingError, match="CAP_SYS_ADMIN"):
        without_rights(lambda: _self_test_here(redirection))


def _self_test_here(redirection: Redirection) -> None:
    enter_new_namespace()
    redirection.self_test()


def test_a_failing_command_is_told_with_its_words(bench: Bench) -> None:
    with pytest.raises(RuleCommandError, match=r"`ip -4 route show nonsense`: .*nonsense"):
        run_command([find_programs().ip, "-4", "route", "show", "nonsense"])
