"""Sockets over real loopback, and the privileged options in a network namespace of their own."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from transport import sockets
from transport.errors import MeshError
from transport.netns import NamespaceEntryRefused, NamespaceNotFound, NetworkNamespace, NotNetworkNamespace
from transport.socket_errors import (
    AddressUnavailable,
    ConnectionLost,
    ConnectionRefused,
    ConnectTimedOut,
    FamilyUnsupported,
    InvalidAddress,
    NoBufferSpace,
    PortInUse,
    PrivilegeMissing,
    SocketError,
    TooManyDescriptors,
    Unreachable,
    translate,
)
from transport.sockets import (
    SpoofResult,
    accept,
    canonical,
    canonical_ip,
    finish_connect,
    open_listener,
    original_destination,
    raise_nofile_limit,
    set_accepted_options,
    start_connect,
)

pytestmark = pytest.mark.timeout(30)

# Addresses


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::", "::"),
    ],
)
def test_an_address_has_one_spelling(given: str, expected: str) -> None:
    assert canonical_ip(given) == expected


@pytest.mark.parametrize(
    "given", ["", "10.0.0", "10.0.0.256", "010.0.0.1", "fe80::1%eth0", "host", "1.2.3.4 "]
)
def test_anything_else_is_not_an_address(given: str) -> None:
    with pytest.raises(InvalidAddress):
        canonical_ip(given)


def test_kernel_addresses_lose_their_mapping_and_zone() -> None:
    assert canonical(("::ffff:10.0.0.1", 80, 0, 0)) == ("10.0.0.1", 80)
    assert canonical(("10.0.0.1", 80)) == ("10.0.0.1", 80)
    assert canonical(("fe80::1%lo", 80, 0, 1)) == ("fe80::1", 80)
    assert canonical(("::1", 80, 0, 0)) == ("::1", 80)


# Listening and connecting


def connect(address: sockets.Address, **options: object) -> tuple[socket.socket, SpoofResult]:
    """A finished connection."""
    sock, spoof = start_connect(address, **options)  # type: ignore[arg-type]
    try:
        assert select.select([], [sock], [], 10)[1]
        finish_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock, spoof


def accepted(listener: socket.socket) -> tuple[socket.socket, sockets.Address]:
    assert select.select([listener], [], [], 10)[0]
    result = accept(listener)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("listen", "target"), [("::", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "127.0.0.1")]
)
def test_listener_takes_connections_of_its_families(listen: str, target: str) -> None:
    listener, is_transparent = open_listener(listen, 0)
    with listener:
        assert not is_transparent
        assert accept(listener) is None
        port = listener.getsockname()[1]
        client, spoof = connect((target, port))
        server, peer = accepted(listener)
        with client, server:
            assert spoof is SpoofResult.NOT_ASKED
            assert peer == canonical(client.getsockname())
            assert peer[0] == target
            assert original_destination(server) == (target, port)
            for sock in (client, server):
                assert not sock.getblocking()
                assert not os.get_inheritable(sock.fileno())


def test_ipv6_listener_on_one_address_is_not_dual_stack() -> None:
    listener, _ = open_listener("::1", 0)
    with listener, pytest.raises(ConnectionRefused):
        connect(("127.0.0.1", listener.getsockname()[1]))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_dual_stack_listener_falls_back_to_ipv4_without_ipv6(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, os.strerror(number))
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    listener, _ = open_listener("::", 0)
    with listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "0.0.0.0"


def test_shared_port_can_be_opened_twice_and_an_unshared_one_not() -> None:
    first, _ = open_listener("127.0.0.1", 0)
    with first:
        port = first.getsockname()[1]
        second, _ = open_listener("127.0.0.1", port)
        second.close()
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}") as caught:
            open_listener("127.0.0.1", port, reuse_port=False)
        assert caught.value.number == errno.EADDRINUSE


def test_connections_of_a_closed_listener_keep_nobody_from_its_port() -> None:
    listener, _ = open_listener("127.0.0.1", 0)
    address = listener.getsockname()
    with socket.create_connection(address):
        accepted, _ = listener.accept()
        listener.close()
        open_listener(*address, reuse_port=False).sock.close()
        accepted.close()
    # The side that closed first keeps the connection in TIME_WAIT.
    open_listener(*address, reuse_port=False).sock.close()


def test_address_of_another_host_cannot_be_listened_on() -> None:
    with pytest.raises(AddressUnavailable):
        open_listener("192.0.2.1", 0)


def test_refused_connection_is_reported_with_its_address() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = unheard.getsockname()
        with pytest.raises(ConnectionRefused, match=f"127.0.0.1:{address[1]}"):
            connect(address)


def test_failing_calls_leave_no_descriptor_open() -> None:
    before = sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
    for _ in range(20):
        with pytest.raises(MeshError):
            open_listener("192.0.2.1", 0)
        with pytest.raises(SocketError):
            start_connect(("255.255.255.255", 1))
    assert sorted(entry.name for entry in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("keepalive", [True, False])
def test_options_of_dialled_and_accepted_sockets(keepalive: bool) -> None:
    listener, _ = open_listener("127.0.0.1", 0)
    with listener:
        client, _ = connect(listener.getsockname(), keepalive=keepalive)
        server, _ = accepted(listener)
        with client, server:
            set_accepted_options(server, keepalive=keepalive)
            for sock in (client, server):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == int(keepalive)
                if keepalive:
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 180
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 180
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 9


def test_options_of_a_socket_that_is_gone_are_no_error() -> None:
    sock = socket.socket()
    sock.close()
    set_accepted_options(sock, keepalive=True)


def test_connection_reset_before_it_was_accepted_is_not_an_error_of_the_listener() -> None:
    listener, _ = open_listener("127.0.0.1", 0)
    with listener:
        client, _ = connect(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        result = accept(listener)
        if result is not None:
            result[0].close()
        assert accept(listener) is None


def test_accept_says_when_descriptors_run_out_and_goes_on_afterwards() -> None:
    listener, _ = open_listener("127.0.0.1", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listener:
        client, _ = connect(listener.getsockname())
        with client:
            assert select.select([listener], [], [], 10)[0]
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                with pytest.raises(TooManyDescriptors):
                    accept(listener)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            accepted(listener)[0].close()


def test_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert raise_nofile_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ECONNREFUSED, ConnectionRefused),
        (errno.ETIMEDOUT, ConnectTimedOut),
        (errno.EHOSTUNREACH, Unreachable),
        (errno.ENETUNREACH, Unreachable),
        (errno.ECONNRESET, ConnectionLost),
        (errno.EPIPE, ConnectionLost),
        (errno.EADDRINUSE, PortInUse),
        (errno.EPERM, PrivilegeMissing),
        (errno.EACCES, PrivilegeMissing),
        (errno.EMFILE, TooManyDescriptors),
        (errno.ENOBUFS, NoBufferSpace),
        (errno.EAFNOSUPPORT, FamilyUnsupported),
        (errno.EIO, SocketError),
    ],
)
def test_each_errno_becomes_one_clear_error(number: int, expected: type[SocketError]) -> None:
    error = translate(OSError(number, os.strerror(number)), "trying")
    assert type(error) is expected
    assert str(error).startswith(f"trying: {os.strerror(number)} ({errno.errorcode[number]})")
    assert error.number == number
    assert expected is SocketError or error.next_step or expected is ConnectionLost


def test_an_error_without_a_number_keeps_its_text() -> None:
    assert translate(OSError("something odd"), "trying").text == "trying: something odd"


# Namespaces

_SETUP = """
set -e
ip link set lo up
ip addr add 10.77.9.1/32 dev lo
ip addr add fd77:9::1/128 dev lo
nft -f - <<END
table inet capture {
  chain output {
    type nat hook output priority -100
    meta mark & 0xfff != 0x539 meta l4proto tcp th dport 8080 redirect to :15001
  }
}
END
echo ready
exec sleep 600
"""


@pytest.fixture
def workload() -> Iterator[NetworkNamespace]:
    """A namespace in which connections to port 8080 are redirected to 15001, unless marked 1337."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", _SETUP], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != b"ready\n":
                pytest.fail(process.stderr.read().decode())
            with NetworkNamespace.from_pid(process.pid) as namespace:
                yield namespace
        finally:
            process.kill()


@pytest.mark.namespaces
@pytest.mark.parametrize("ip", ["10.77.9.1", "fd77:9::1"])
def test_redirected_connection_knows_its_original_destination(workload: NetworkNamespace, ip: str) -> None:
    listener, _ = open_listener("::", 15001, namespace=workload, mark=1337)
    with listener:
        client, _ = connect((ip, 8080), namespace=workload)
        server, _ = accepted(listener)
        with client, server:
            assert original_destination(server) == (ip, 8080)


@pytest.mark.namespaces
def test_marked_connection_is_not_captured_again(workload: NetworkNamespace) -> None:
    listener, _ = open_listener("::", 8080, namespace=workload, mark=1337)
    with listener:
        client, _ = connect(("10.77.9.1", 8080), namespace=workload, mark=1337)
        server, _ = accepted(listener)
        with client, server:
            assert client.getsockopt(socket.SOL_SOCKET, 36) == 1337
            assert original_destination(server) == ("10.77.9.1", 8080)


@pytest.mark.namespaces
@pytest.mark.parametrize("is_transparent", [True, None])
@pytest.mark.parametrize("address", ["::", "0.0.0.0"])
def test_transparent_listener(workload: NetworkNamespace, address: str, is_transparent: bool | None) -> None:
    listener = open_listener(address, 15006, namespace=workload, is_transparent=is_transparent)
    with listener.sock:
        assert listener.is_transparent


@pytest.mark.namespaces
@pytest.mark.parametrize(("source", "target"), [("198.51.100.7", "10.77.9.1"), ("2001:db8::7", "fd77:9::1")])
def test_connection_from_a_foreign_address(workload: NetworkNamespace, source: str, target: str) -> None:
    listener, _ = open_listener("::", 9000, namespace=workload)
    with listener:
        sock, spoof = start_connect((target, 9000), namespace=workload, mark=1337, source_ip=source)
        with sock:
            assert spoof is SpoofResult.SPOOFED
            assert canonical(sock.getsockname())[0] == source


@pytest.mark.namespaces
def test_spoofing_with_the_own_address_arrives_from_it(workload: NetworkNamespace) -> None:
    listener, _ = open_listener("::", 9000, namespace=workload)
    with listener:
        client, spoof = connect(("10.77.9.1", 9000), namespace=workload, source_ip="127.0.0.5")
        server, peer = accepted(listener)
        with client, server:
            assert spoof is SpoofResult.SPOOFED
            assert peer[0] == "127.0.0.5"


@pytest.mark.namespaces
def test_source_of_the_other_family_is_not_spoofed_and_the_connection_goes_on(
    workload: NetworkNamespace,
) -> None:
    listener, _ = open_listener("::", 9000, namespace=workload)
    with listener:
        client, spoof = connect(("10.77.9.1", 9000), namespace=workload, source_ip="2001:db8::7")
        with client:
            assert spoof is SpoofResult.FAILED


@pytest.mark.namespaces
def test_unreachable_network_is_reported_at_once(workload: NetworkNamespace) -> None:
    with pytest.raises(Unreachable, match=r"192\.0\.2\.1:80"):
        start_connect(("192.0.2.1", 80), namespace=workload)
    with pytest.raises(Unreachable, match=r"\[2001:db8::1\]:80"):
        start_connect(("2001:db8::1", 80), namespace=workload)


@pytest.mark.namespaces
def test_switch_concerns_the_calling_thread_only_and_always_comes_back(workload: NetworkNamespace) -> None:
    def here() -> tuple[int, int]:
        with NetworkNamespace.current() as current:
            return current.identity

    home = here()
    assert workload.identity != home
    elsewhere: list[tuple[int, int]] = []
    with workload.entered():
        assert here() == workload.identity
        thread = threading.Thread(target=lambda: elsewhere.append(here()))
        thread.start()
        thread.join()
        # A new thread starts where its creator is; our pool's threads are made outside.
        assert elsewhere == [workload.identity]
    assert here() == home
    with pytest.raises(KeyError), workload.entered():
        raise KeyError
    assert here() == home


@pytest.mark.namespaces
def test_two_handles_of_one_namespace_have_one_identity(workload: NetworkNamespace) -> None:
    copy = workload.duplicate()
    with copy:
        assert copy.identity == workload.identity
        assert copy.fd != workload.fd
    assert copy.is_closed
    assert not workload.is_closed


@pytest.mark.namespaces
def test_closed_handle_cannot_be_entered(workload: NetworkNamespace) -> None:
    workload.close()
    workload.close()
    with pytest.raises(NamespaceEntryRefused), workload.entered():
        pass


@pytest.mark.namespaces
def test_named_namespace_is_found() -> None:
    subprocess.run(["ip", "netns", "add", "named"], check=True)
    try:
        with NetworkNamespace.from_name("named") as by_name, NetworkNamespace.current() as current:
            assert by_name.identity != current.identity
    finally:
        subprocess.run(["ip", "netns", "del", "named"], check=True)


def test_entering_the_own_namespace_needs_no_privilege() -> None:
    with NetworkNamespace.current() as current, current.entered():
        pass


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/passwd", "no-such-namespace"])
def test_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(NamespaceNotFound):
        NetworkNamespace.from_name(name)


def test_process_that_is_gone_is_not_found() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(NamespaceNotFound):
        NetworkNamespace.from_pid(process.pid)


def test_other_files_and_other_kinds_of_namespaces_are_refused_and_closed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    before = sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
    for path in (str(file), "/proc/self/ns/mnt", "/dev/null"):
        with pytest.raises(NotNetworkNamespace, match=path):
            NetworkNamespace.from_path(path)
    assert sorted(entry.name for entry in Path("/proc/self/fd").iterdir()) == before
