"""Who gets through the handshake and who does not."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import socket
import threading
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from tests.kit.certificates import TestAuthority, issue, make_intermediate, make_root, shared_root
from tests.transport.tls.harness import (
    CLIENT_ID,
    SERVER_ID,
    Bench,
    Recorder,
    accept_any,
    client_context,
    issued_context,
    server_context,
)
from transport.socket_errors import ConnectionRefused, ConnectTimedOut
from transport.sockets import start_connect
from transport.spiffe import SpiffeId
from transport.tls.context import make_context
from transport.tls.errors import (
    HandshakeFailed,
    HandshakeTimedOut,
    PeerRejected,
    ProtocolNotAgreed,
    TlsBroken,
    TlsSettingsInvalid,
    TlsTruncated,
)
from transport.tls.peer import PeerCertificate

pytestmark = pytest.mark.timeout(60)

_NOW = dt.datetime.now(dt.UTC)
_HOUR = dt.timedelta(hours=1)


def test_both_sides_learn_the_others_identity_and_addresses(bench: Bench) -> None:
    server, client = bench.opened()
    assert client.pump.peer is not None
    assert server.pump.peer is not None
    assert client.pump.peer.identity == SpiffeId.parse(SERVER_ID)
    assert server.pump.peer.spiffe_ids == (SpiffeId.parse(CLIENT_ID),)
    assert server.pump.peer.not_after > _NOW
    assert x509.load_der_x509_certificate(server.pump.peer.der).serial_number == server.pump.peer.serial
    assert client.pump.local_address == server.pump.peer_address
    assert server.pump.local_address == client.pump.peer_address
    assert client.pump.peer_address[0] == "127.0.0.1"


def test_connection_is_tls_13_with_aes_gcm_and_h2_and_without_tickets(bench: Bench) -> None:
    server, client = bench.opened()
    connection = client.pump._engine._connection
    assert connection.get_protocol_version_name() == "TLSv1.3"
    assert connection.get_cipher_name() == "TLS_AES_256_GCM_SHA384"
    assert client.pump._engine.alpn == server.pump._engine.alpn == b"h2"
    assert connection.get_servername() is None


def test_chain_with_an_issuing_ca_is_accepted_and_the_root_is_not_sent(bench: Bench) -> None:
    issuing = make_intermediate(shared_root())
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=issued_context(issuing, SERVER_ID, is_server=True))
    client = bench.client(client_sock)
    bench.until(lambda: "handshake" in client.events and "handshake" in server.events)
    chain = client.pump._engine._connection.get_peer_cert_chain(as_cryptography=True)
    assert chain is not None
    assert chain[1:] == [issuing.certificate]


def test_root_is_not_added_to_a_chain_without_issuing_ca(bench: Bench) -> None:
    _, client = bench.opened()
    chain = client.pump._engine._connection.get_peer_cert_chain(as_cryptography=True)
    assert chain is not None
    assert len(chain) == 1


def test_several_roots_are_trusted_at_once(bench: Bench) -> None:
    """As while a root is being replaced: each side still has a certificate of another root."""
    old, new = make_root("old"), make_root("new")
    both = old.pem + new.pem
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=issued_context(old, SERVER_ID, is_server=True, roots=both))
    client = bench.client(client_sock, context=issued_context(new, CLIENT_ID, is_server=False, roots=both))
    bench.until(lambda: "handshake" in client.events and "handshake" in server.events)


def test_issuing_ca_alone_may_be_the_trust_anchor(bench: Bench) -> None:
    issuing = make_intermediate(shared_root())
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=issued_context(issuing, SERVER_ID, is_server=True))
    client = bench.client(
        client_sock, context=issued_context(shared_root(), CLIENT_ID, is_server=False, roots=issuing.pem)
    )
    bench.until(lambda: "handshake" in client.events and "handshake" in server.events)


_FLAWS: dict[str, dict[str, Any]] = {
    "wrong root": {"authority": make_root("somebody else's")},
    "expired": {"not_before": _NOW - 2 * _HOUR, "not_after": _NOW - _HOUR},
    "not yet valid": {"not_before": _NOW + _HOUR, "not_after": _NOW + 2 * _HOUR},
    "no usage for TLS": {"ekus": [ExtendedKeyUsageOID.CODE_SIGNING]},
    "signed by a leaf": {"authority": None},
}


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _flawed_context(flaw: str, identity: str, *, is_server: bool) -> SSL.Context:
    flaws: dict[str, Any] = {"authority": shared_root(), **_FLAWS[flaw]}
    if flaws["authority"] is None:
        chain, key_pem = issue(shared_root(), "spiffe://mesh.test/ns/shop/sa/evil")
        key = _private_key(key_pem)
        flaws["authority"] = TestAuthority(x509.load_pem_x509_certificate(chain), key, chain)
    return issued_context(flaws.pop("authority"), identity, is_server=is_server, **flaws)


@pytest.mark.parametrize("flaw", _FLAWS)
def test_server_refuses_a_client_certificate(bench: Bench, flaw: str) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client = bench.client(client_sock, context=_flawed_context(flaw, CLIENT_ID, is_server=False))
    bench.until_lost(server, client)
    assert server.events == ["lost"]
    assert isinstance(server.error, HandshakeFailed)
    assert "certificate is not accepted" in server.error.text
    # With TLS 1.3 the client may be done before it is refused; then it sees the alert at its first read.
    assert isinstance(client.error, TlsBroken | HandshakeFailed)
    assert not client.received


@pytest.mark.parametrize("flaw", _FLAWS)
def test_client_refuses_a_server_certificate(bench: Bench, flaw: str) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=_flawed_context(flaw, SERVER_ID, is_server=True))
    client = bench.client(client_sock)
    bench.until_lost(server, client)
    assert client.events == server.events == ["lost"]
    assert isinstance(client.error, HandshakeFailed)
    assert isinstance(server.error, HandshakeFailed)


def test_certificate_is_good_only_for_its_role(bench: Bench) -> None:
    only_client = issued_context(
        shared_root(), SERVER_ID, is_server=True, ekus=[ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=only_client)
    client = bench.client(client_sock)
    bench.until_lost(server, client)
    assert isinstance(client.error, HandshakeFailed)
    only_server = issued_context(
        shared_root(), CLIENT_ID, is_server=False, ekus=[ExtendedKeyUsageOID.SERVER_AUTH]
    )
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client = bench.client(client_sock, context=only_server)
    bench.until_lost(server, client)
    assert isinstance(server.error, HandshakeFailed)


_BAD_NAMES: dict[str, dict[str, Any]] = {
    "no name": {"identity": None},
    "only a DNS name": {"identity": None, "dns_names": ["server.shop.svc"]},
    "no SPIFFE identity": {"identity": "https://mesh.test/ns/shop/sa/server"},
    "malformed identity": {"identity": "spiffe://mesh.test/ns/shop"},
    "two identities": {"identity": [CLIENT_ID, "spiffe://mesh.test/ns/shop/sa/admin"]},
    "the same identity twice": {"identity": [CLIENT_ID, CLIENT_ID]},
    "identity and another URI": {"identity": [CLIENT_ID, "https://mesh.test"]},
    "NUL in the identity": {"identity": CLIENT_ID + "\0.evil"},
    "NUL in another name": {"identity": CLIENT_ID, "extra_names": [x509.DNSName("a\0b")]},
}


@pytest.mark.parametrize("name", _BAD_NAMES)
@pytest.mark.parametrize("is_server", [True, False])
def test_peer_without_exactly_one_identity_is_refused(bench: Bench, name: str, is_server: bool) -> None:
    settings = dict(_BAD_NAMES[name])
    context = issued_context(shared_root(), settings.pop("identity"), is_server=is_server, **settings)
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=context if is_server else server_context())
    client = bench.client(client_sock, context=client_context() if is_server else context)
    bench.until_lost(server, client)
    refusing, refused = (client, server) if is_server else (server, client)
    assert refusing.events == ["lost"]
    assert isinstance(refusing.error, PeerRejected)
    assert refused.error is not None
    assert not refused.received


@pytest.mark.parametrize("refusing_side", ["server", "client"])
def test_identity_refused_by_verify_gets_nothing(bench: Bench, refusing_side: str) -> None:
    """For example a peer of another trust domain."""

    def verify(peer: PeerCertificate) -> None:
        if peer.identity.trust_domain != "elsewhere.test":
            raise PeerRejected(f"{peer.identity} is not of this trust domain")

    def greet(recorder: Recorder) -> None:
        recorder.pump.write(b"secret")

    client_sock, server_sock = bench.pair()
    verify_of = {"server": accept_any, "client": accept_any, refusing_side: verify}
    server = bench.server(server_sock, {"handshake": greet}, verify=verify_of["server"])
    client = bench.client(client_sock, {"handshake": greet}, verify=verify_of["client"])
    bench.until_lost(server, client)
    refusing, refused = (server, client) if refusing_side == "server" else (client, server)
    assert refusing.events == ["lost"]
    assert isinstance(refusing.error, PeerRejected)
    assert not refused.received
    assert not refusing.received


def test_refused_server_does_not_even_see_a_finished_handshake(bench: Bench) -> None:
    def refuse(peer: PeerCertificate) -> None:
        raise PeerRejected("no")

    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client = bench.client(client_sock, verify=refuse)
    bench.until_lost(server, client)
    assert server.events == ["lost"]


def test_failure_inside_verify_ends_the_connection_and_is_reported(bench: Bench) -> None:
    def broken(peer: PeerCertificate) -> None:
        raise KeyError("defect")

    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, verify=broken)
    client = bench.client(client_sock)
    bench.until_lost(server, client)
    assert server.events == ["lost"]
    assert [type(error) for error in bench.errors] == [KeyError]
    bench.errors.clear()


# Odd peers: contexts that make_context would not make


def _plain_context(
    *, alpn: list[bytes] | None, with_certificate: bool = True, tls12: bool = False
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if tls12:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    if with_certificate:
        chain, key = issue(shared_root(), CLIENT_ID)
        context.use_certificate(x509.load_pem_x509_certificate(chain))
        context.use_privatekey(_private_key(key))
    if alpn:
        context.set_alpn_protos(alpn)
    return context


def _refused_by_server(bench: Bench, context: SSL.Context) -> Recorder:
    """Let a client that has no opinion of its own go through the handshake as far as it can."""
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client_sock.settimeout(10)

    def shake_hands() -> None:
        connection = SSL.Connection(context)
        connection.set_connect_state()
        with contextlib.suppress(SSL.Error, OSError):
            while True:
                try:
                    connection.do_handshake()
                except SSL.WantReadError:
                    client_sock.sendall(connection.bio_read(65536))
                    connection.bio_write(client_sock.recv(65536))
                else:
                    break
            client_sock.sendall(connection.bio_read(65536))
            while client_sock.recv(65536):
                pass
        client_sock.close()

    thread = threading.Thread(target=shake_hands)
    thread.start()
    bench.until_lost(server)
    thread.join()
    assert server.events == ["lost"]
    return server


def test_client_without_a_certificate_is_refused(bench: Bench) -> None:
    server = _refused_by_server(bench, _plain_context(alpn=[b"h2"], with_certificate=False))
    assert isinstance(server.error, HandshakeFailed)


@pytest.mark.parametrize("alpn", [None, [b"http/1.1"], [b"h2c", b"http/1.1"], [b"H2"]])
def test_client_that_does_not_offer_h2_is_refused(bench: Bench, alpn: list[bytes] | None) -> None:
    server = _refused_by_server(bench, _plain_context(alpn=alpn))
    assert isinstance(server.error, ProtocolNotAgreed)


def test_client_that_offers_h2_among_others_is_accepted(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    bench.client(client_sock, context=_plain_context(alpn=[b"http/1.1", b"h2"]))
    bench.until(lambda: "handshake" in server.events)


def test_server_that_does_not_choose_h2_is_refused(bench: Bench) -> None:
    chain, key = issue(shared_root(), SERVER_ID)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(x509.load_pem_x509_certificate(chain))
    context.use_privatekey(_private_key(key))
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, context=context)
    client = bench.client(client_sock)
    bench.until_lost(server, client)
    assert client.events == ["lost"]
    assert isinstance(client.error, ProtocolNotAgreed)


def test_tls_12_client_is_refused(bench: Bench) -> None:
    server = _refused_by_server(bench, _plain_context(alpn=[b"h2"], tls12=True))
    assert isinstance(server.error, HandshakeFailed)


def test_tls_12_server_is_refused(bench: Bench) -> None:
    chain, key = issue(shared_root(), SERVER_ID)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate(x509.load_pem_x509_certificate(chain))
    context.use_privatekey(_private_key(key))
    client_sock, server_sock = bench.pair()
    bench.server(server_sock, context=context)
    client = bench.client(client_sock)
    bench.until_lost(client)
    assert isinstance(client.error, HandshakeFailed)


@pytest.mark.parametrize(
    "garbage",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 70000,
        b"\x16\x03\x01\x00\x05hello",
        b"\x17\x03\x03\x00\x10" + b"x" * 16,
        b"\0",
        bytes(random.Random(1).randbytes(300_000)),
    ],
    ids=["h2c preface", "http/1", "oversized record", "short hello", "data record", "zero", "random"],
)
def test_garbage_to_the_server_ends_that_connection_only(bench: Bench, garbage: bytes) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client_sock.setblocking(True)
    client_sock.settimeout(10)
    client_sock.sendall(garbage)
    client_sock.shutdown(socket.SHUT_WR)
    bench.until_lost(server)
    assert isinstance(server.error, HandshakeFailed)
    bench.opened()


def test_garbage_from_the_server_fails_the_client(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    client = bench.client(client_sock)
    server_sock.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    bench.until(lambda: client.pump.peer_address[0] != "")
    server_sock.shutdown(socket.SHUT_WR)
    bench.until_lost(client)
    assert isinstance(client.error, HandshakeFailed)


# Peers that do nothing, or go away


@pytest.mark.parametrize("side", ["server", "client"])
def test_half_open_peer_is_dropped_when_the_handshake_takes_too_long(bench: Bench, side: str) -> None:
    client_sock, server_sock = bench.pair()
    handler = bench.server(server_sock) if side == "server" else bench.client(client_sock)
    bench.settle()
    assert handler.events == []
    bench.skip(10.1)
    bench.until_lost(handler)
    assert isinstance(handler.error, HandshakeTimedOut)


def test_the_handshake_time_limit_can_be_chosen_and_ends_with_the_handshake(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock, handshake_timeout_s=1.0)
    client = bench.client(client_sock)
    bench.until(lambda: "handshake" in client.events and "handshake" in server.events)
    bench.skip(1000)
    bench.settle()
    assert server.events == client.events == ["handshake"]
    _, lonely = bench.pair()
    late = bench.server(lonely, handshake_timeout_s=1.0)
    bench.settle()
    bench.skip(1.1)
    bench.until_lost(late)


def test_peer_that_leaves_during_the_handshake(bench: Bench) -> None:
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client_sock.send(b"\x16\x03\x01")
    client_sock.close()
    bench.until_lost(server)
    assert isinstance(server.error, HandshakeFailed)


def test_connecting_pump_connects_and_shakes_hands(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock, _ = start_connect(listener.getsockname())
        client = bench.client(sock, is_connecting=True)
        server_sock, _ = listener.accept()
        server_sock.setblocking(False)
        server = bench.server(server_sock)
        bench.until(lambda: "handshake" in client.events and "handshake" in server.events)
        assert client.pump.peer_address == listener.getsockname()


def test_connecting_pump_reports_a_refused_connection(bench: Bench) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        sock, _ = start_connect(unheard.getsockname())
        client = bench.client(sock, is_connecting=True)
        bench.until_lost(client)
    assert client.events == ["lost"]
    assert isinstance(client.error, ConnectionRefused)


def test_connecting_pump_gives_up_after_the_time_limit(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [start_connect(listener.getsockname())[0] for _ in range(4)]  # the queue is full
        sock, _ = start_connect(listener.getsockname())
        client = bench.client(sock, is_connecting=True)
        bench.settle()
        bench.skip(10.1)
        bench.until_lost(client)
        for filler in fillers:
            filler.close()
    assert isinstance(client.error, ConnectTimedOut)


def test_many_handshakes_at_once_all_succeed_and_use_the_threads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    threaded = 0
    run_in_thread = bench.reactor.run_in_thread

    def counting(*arguments: Any) -> None:
        nonlocal threaded
        threaded += 1
        run_in_thread(*arguments)

    monkeypatch.setattr(bench.reactor, "run_in_thread", counting)
    handlers = []
    for _ in range(20):
        client_sock, server_sock = bench.pair()
        handlers += [bench.server(server_sock), bench.client(client_sock)]
    bench.until(lambda: all("handshake" in handler.events for handler in handlers))
    assert threaded > 10
    assert all(handler.events == ["handshake"] for handler in handlers)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_pump_ended_while_its_handshake_is_in_a_thread(bench: Bench, how: str) -> None:
    pairs = [bench.pair() for _ in range(5)]
    handlers = [bench.server(server) for _, server in pairs] + [bench.client(client) for client, _ in pairs]

    def end_all() -> None:
        if not bench.reactor.threaded_work:
            bench.reactor.call_soon_threadsafe(end_all)
            return
        for handler in handlers:
            getattr(handler.pump, how)()

    bench.reactor.call_soon(end_all)
    bench.until_lost(*handlers)
    bench.settle()
    assert all(handler.events.count("lost") == 1 for handler in handlers)


# Settings


def test_settings_that_cannot_work_are_refused_with_a_reason() -> None:
    chain, key = issue(shared_root(), SERVER_ID)
    _, other_key = issue(shared_root(), SERVER_ID)
    root = shared_root().pem
    for bad in (
        ([b""], key, root),
        ([chain], key, ""),
        ([b"junk"], key, root),
        ([chain], key, "junk"),
        ([chain], b"junk", root),
        ([chain], other_key, root),
    ):
        for is_server in (True, False):
            with pytest.raises(TlsSettingsInvalid):
                make_context(*bad, is_server=is_server)


def test_sessions_are_not_resumed(bench: Bench) -> None:
    """A resumed session would skip the certificates, and with them expiry and a root that was taken away."""
    _, first = bench.opened()
    bench.settle()
    session = first.pump._engine._connection.get_session()
    assert session is not None
    client_sock, server_sock = bench.pair()
    server = bench.server(server_sock)
    client = bench.client(client_sock)
    client.pump._engine._connection.set_session(session)
    bench.until(lambda: "handshake" in server.events or "lost" in server.events)
    assert not SSL._lib.SSL_session_reused(server.pump._engine._ssl)  # type: ignore[attr-defined]
    assert server.events == ["handshake"]


def test_truncated_connection_is_told_from_an_orderly_end(bench: Bench) -> None:
    server, client = bench.opened()
    client.pump._sock.shutdown(socket.SHUT_WR)
    bench.until_lost(server)
    assert server.events == ["handshake", "lost"]
    assert isinstance(server.error, TlsTruncated)


def test_contexts_are_shared_by_connections(bench: Bench) -> None:
    assert server_context() is server_context()
    assert client_context() is client_context()
    for _ in range(3):
        bench.opened()
