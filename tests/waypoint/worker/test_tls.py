"""TLS to endpoints: real servers over sockets, good ones and every kind that must get nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from tests.kit.certificates import TestAuthority, issue, make_intermediate, make_root, shared_root
from tests.waypoint.worker.kit import (
    PATIENCE_S,
    Routes,
    RunningProxy,
    ScriptedServer,
    connect,
    exchange,
    free_port,
    nginx,
    read_all,
    read_until,
)
from tests.waypoint.worker.test_combinations import curl
from tests.waypoint.worker.test_hbone import SERVER, WAYPOINT, Mesh
from waypoint.state.circuit import Circuit
from waypoint.state.client_tls import ClientTls
from waypoint.state.destinations import ConnectionPool
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.plan import Declared

NAME = "app.example"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


def trusting(authority: TestAuthority | None = None, **fields: object) -> ClientTls:
    values: dict[str, object] = {
        "server_name": NAME,
        "names": (NAME,),
        "roots_pem": (authority or shared_root()).pem,
    }
    return ClientTls(**{**values, **fields})  # type: ignore[arg-type]


@contextlib.contextmanager
def proxy_to(endpoint: Endpoint) -> Iterator[RunningProxy]:
    with RunningProxy(Routes(tcp=endpoint).to(b"/", endpoint)) as proxy:
        yield proxy


@dataclass
class TlsServer:
    """One thread, connections one after the other; each is played by `play` once its handshake is over."""

    play: Callable[[ssl.SSLSocket], None]
    folder: Path
    certificate: tuple[bytes, bytes] = field(
        default_factory=lambda: issue(shared_root(), None, dns_names=[NAME])
    )
    alpn: Sequence[str] = ()
    version: ssl.TLSVersion | None = None
    clients: TestAuthority | None = None
    seen_names: list[str | None] = field(default_factory=list)
    clients_seen: list[object] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        chain, key = self.certificate
        path = self.folder / "server.pem"
        path.write_bytes(key + chain)
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        if self.version is not None:
            context.minimum_version = context.maximum_version = self.version
        if self.clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.clients.pem)
        context.sni_callback = lambda _sock, name, _context: self.seen_names.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE_S)
            try:
                with sock, self._secured(sock) as secured:
                    secured.do_handshake()
                    self.clients_seen.append(secured.getpeercert())
                    self.play(secured)
            except OSError as error:
                self.errors.append(str(error))

    def _secured(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE_S)

    def endpoint(
        self, tls: ClientTls | None = None, application: Application | None = Application.HTTP1
    ) -> Endpoint:
        return Endpoint(("127.0.0.1", self.port), application, tls=tls or trusting())


def answering(sock: ssl.SSLSocket) -> None:
    read_until(sock, b"\r\n\r\n")
    sock.sendall(ANSWER)
    sock.unwrap()


def failure_of(proxy: RunningProxy) -> tuple[str, str, str]:
    proxy.log.until(lambda log: len(log.exchanges) == 1)
    outcome = proxy.log.exchanges[0].outcome
    return outcome.flag, outcome.details, outcome.failure_text


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_go_to_a_server_with_the_right_certificate(tmp_path: Path, version: ssl.TLSVersion) -> None:
    with TlsServer(answering, tmp_path, version=version) as server, proxy_to(server.endpoint()) as proxy:
        answer = exchange(proxy.port, GET)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"hello")
    assert server.seen_names == [NAME]


@pytest.mark.parametrize(
    ("names", "dns", "uris"),
    [
        (("other.example", NAME), [NAME], ()),
        (("a.b.example",), ["*.b.example"], ()),
        (("spiffe://mesh/app",), [], ["spiffe://mesh/app"]),
    ],
)
def test_one_of_the_names_is_enough(
    tmp_path: Path, names: tuple[str, ...], dns: list[str], uris: Sequence[str]
) -> None:
    certificate = issue(make_intermediate(shared_root()), uris, dns_names=dns)
    with (
        TlsServer(answering, tmp_path, certificate) as server,
        proxy_to(server.endpoint(trusting(names=names))) as proxy,
    ):
        assert exchange(proxy.port, GET).endswith(b"hello")


_PAST = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
FLAWS: dict[str, tuple[Callable[[], tuple[bytes, bytes]], str]] = {
    "another CA": (lambda: issue(make_root("another"), None, dns_names=[NAME]), "unable_to_get_local_issuer"),
    "another name": (
        lambda: issue(shared_root(), None, dns_names=["evil.example"]),
        "is_for_evil.example,_not_for_app.example",
    ),
    "no name": (lambda: issue(shared_root(), None), "is_for_no_name"),
    "expired": (
        lambda: issue(
            shared_root(), None, dns_names=[NAME], not_before=_PAST - dt.timedelta(1), not_after=_PAST
        ),
        "has_expired",
    ),
    "for clients only": (
        lambda: issue(shared_root(), None, dns_names=[NAME], ekus=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "unsuitable_certificate_purpose",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_wrong_certificate_gets_nothing(tmp_path: Path, flaw: str, version: ssl.TLSVersion) -> None:
    make, reason = FLAWS[flaw]
    got: list[bytes] = []
    with (
        TlsServer(lambda sock: got.append(read_all(sock)), tmp_path, make(), version=version) as server,
        proxy_to(server.endpoint()) as proxy,
    ):
        assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
        flag, details, text = failure_of(proxy)
        assert flag == "UF"
        assert details.startswith("upstream_reset_before_response_started{connection_failure|TLS_error:")
        assert reason in details
        assert "MYC-7059" in text
    assert not any(got)


def test_nobody_is_asked_for_a_certificate_that_need_not_be_right(tmp_path: Path) -> None:
    stranger = issue(make_root("another"), None, dns_names=["evil.example"])
    tls = ClientTls(server_name=NAME, is_unverified=True)
    with TlsServer(answering, tmp_path, stranger) as server, proxy_to(server.endpoint(tls)) as proxy:
        assert exchange(proxy.port, GET).endswith(b"hello")


def test_without_a_bundle_the_systems_roots_are_asked(tmp_path: Path) -> None:
    with (
        TlsServer(answering, tmp_path) as server,
        proxy_to(server.endpoint(trusting(roots_pem=""))) as proxy,
    ):
        assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
        assert "certificate is not accepted" in failure_of(proxy)[2]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_is_shown_and_missed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    clients = make_root("clients")
    chain, key = issue(clients, None, dns_names=["waypoint.example"])
    tls = trusting(chain_pem=chain.decode(), key_pem=key.decode())
    with TlsServer(answering, tmp_path, version=version, clients=clients) as server:
        with proxy_to(server.endpoint(tls)) as proxy:
            assert exchange(proxy.port, GET).endswith(b"hello")
        assert "waypoint.example" in str(server.clients_seen[0])
        with proxy_to(server.endpoint()) as proxy:
            assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
            _, _, text = failure_of(proxy)
            assert "alert" in text
        assert len(server.clients_seen) == 1


def test_a_key_of_somebody_elses_fails_the_connect() -> None:
    chain, key = issue(shared_root(), None)[0].decode(), issue(shared_root(), None)[1].decode()
    with ScriptedServer() as server:
        endpoint = Endpoint(("127.0.0.1", server.port), tls=trusting(chain_pem=chain, key_pem=key))
        with proxy_to(endpoint) as proxy:
            assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
            assert "OpenSSL refuses the TLS settings" in failure_of(proxy)[2]


def test_a_plaintext_server_gets_no_request() -> None:
    with ScriptedServer() as server:
        endpoint = Endpoint(("127.0.0.1", server.port), tls=trusting())
        with proxy_to(endpoint) as proxy, connect(proxy.port) as client:
            client.sendall(GET)
            for _ in range(3):  # the connect-failure rules repeat it twice
                with server.accept() as sock:
                    assert sock.recv(1) == b"\x16"  # a TLS handshake
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    assert b"GET" not in read_all(sock)
            assert read_all(client).startswith(b"HTTP/1.1 503")
            assert "wrong version number" in failure_of(proxy)[2]


def test_a_handshake_that_never_ends_is_given_up() -> None:
    with ScriptedServer() as server:
        circuit = Circuit(ConnectionPool(connect_timeout_s=0.3))
        endpoint = Endpoint(("127.0.0.1", server.port), circuit=circuit, tls=trusting())
        with proxy_to(endpoint) as proxy, connect(proxy.port) as client:
            client.sendall(GET)
            assert read_all(client).startswith(b"HTTP/1.1 503")
            flag, details, text = failure_of(proxy)
            assert (flag, details) == ("UF", "upstream_reset_before_response_started{connection_timeout}")
            assert "the TLS handshake did not end" in text


def test_a_response_that_is_cut_off_without_a_closing_message_is_not_whole(tmp_path: Path) -> None:
    def cutting(sock: ssl.SSLSocket) -> None:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\npart")
        sock.shutdown(socket.SHUT_WR)

    with TlsServer(cutting, tmp_path) as server, proxy_to(server.endpoint()) as proxy:
        answer = exchange(proxy.port, GET)
        assert answer.endswith(b"part\r\n") or not answer.endswith(b"0\r\n\r\n")
        proxy.log.until(lambda log: len(log.exchanges) == 1)
        assert "without the TLS closing message" in proxy.log.exchanges[0].outcome.failure_text


def test_a_response_that_ends_with_the_closing_message_is_whole(tmp_path: Path) -> None:
    def ending(sock: ssl.SSLSocket) -> None:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall")
        sock.unwrap()

    with TlsServer(ending, tmp_path) as server, proxy_to(server.endpoint()) as proxy:
        assert exchange(proxy.port, GET).endswith(b"3\r\nall\r\n0\r\n\r\n")


def test_a_renegotiation_is_refused(tmp_path: Path) -> None:
    chain, key = issue(shared_root(), None, dns_names=[NAME])
    path = tmp_path / "server.pem"
    path.write_bytes(key + chain)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(str(path))
    context.use_privatekey_file(str(path))
    with ScriptedServer() as server:
        endpoint = Endpoint(("127.0.0.1", server.port), tls=trusting())
        with proxy_to(endpoint) as proxy, connect(proxy.port) as client:
            client.sendall(GET)
            with server.accept() as sock:
                sock.settimeout(None)
                secured = SSL.Connection(context, sock)
                secured.set_accept_state()
                secured.do_handshake()
                assert b"GET /x" in secured.recv(65536)
                secured.renegotiate()
                secured.do_handshake()
                with pytest.raises(SSL.Error, match="no renegotiation"):
                    secured.recv(1)
                assert secured.total_renegotiations() <= 1
            read_all(client)


def test_http2_is_agreed_upon_or_nothing_is_sent(tmp_path: Path) -> None:
    with TlsServer(answering, tmp_path, alpn=["http/1.1"]) as server:
        with proxy_to(server.endpoint(application=Application.HTTP2)) as proxy:
            assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
            assert failure_of(proxy)[0] == "UF"
        with proxy_to(server.endpoint()) as proxy:
            assert exchange(proxy.port, GET).endswith(b"hello")


def test_a_grpc_call_goes_over_tls() -> None:
    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    handler = grpc.method_handlers_generic_handler("s", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    chain, key = issue(shared_root(), None, dns_names=[NAME])
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    endpoint = Endpoint(("127.0.0.1", port), Application.HTTP2, tls=trusting())
    try:
        with proxy_to(endpoint) as proxy, grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
            message = b"m" * 1_000_000
            assert channel.unary_unary("/s/Echo")(message, timeout=PATIENCE_S) == message
    finally:
        server.stop(None).wait()


def test_an_upgraded_connection_goes_over_tls(tmp_path: Path) -> None:
    def echoing(sock: ssl.SSLSocket) -> None:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while data := sock.recv(65536):
            sock.sendall(data)

    with (
        TlsServer(echoing, tmp_path) as server,
        proxy_to(server.endpoint()) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        read_until(client, b"\r\n\r\n")
        client.sendall(b"frame")
        assert read_until(client, b"frame") == b"frame"


def test_what_is_no_http_is_relayed_in_tls_with_its_ends(tmp_path: Path) -> None:
    def echoing(sock: ssl.SSLSocket) -> None:
        got = read_all(sock)
        sock.sendall(got)
        sock.unwrap()

    payload = bytes(range(256)) * 8000
    with TlsServer(echoing, tmp_path) as server, proxy_to(server.endpoint(application=None)) as proxy:
        with connect(proxy.ports[Declared.TCP]) as client:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == payload
        proxy.log.until(lambda log: len(log.tcp) == 1)
        assert proxy.log.tcp[0].error is None


def test_a_relayed_connection_that_cannot_be_secured_is_reset(tmp_path: Path) -> None:
    with (
        TlsServer(answering, tmp_path) as server,
        proxy_to(server.endpoint(trusting(make_root("another")), None)) as proxy,
    ):
        with connect(proxy.ports[Declared.TCP]) as client, contextlib.suppress(ConnectionResetError):
            client.sendall(b"secret")
            assert client.recv(1) == b""
        proxy.log.until(lambda log: len(log.tcp) == 1)
        assert proxy.log.tcp[0].flag == "UF,URX"
        assert "unable to get local issuer" in str(proxy.log.tcp[0].error)


_WHO = [b"app.example TLSv1.%d http/1.1 HTTP/1.1" % version for version in (2, 3)]  # as nginx was built


@pytest.fixture(name="secure_nginx")
def _secure_nginx(tmp_path: Path) -> Iterator[int]:
    chain, key = issue(shared_root(), None, dns_names=[NAME])
    (tmp_path / "tls.pem").write_bytes(key + chain)
    (tmp_path / "file").write_bytes(b"0123456789" * 300_000)
    settings = f"ssl_certificate {tmp_path}/tls.pem; ssl_certificate_key {tmp_path}/tls.pem;"
    port = free_port()
    locations = (
        f"listen 127.0.0.1:{port} ssl; {settings}"
        f"location / {{ root {tmp_path}; }}"
        'location /who { return 200 "$ssl_server_name $ssl_protocol $ssl_alpn_protocol $server_protocol"; }'
    )
    with nginx(tmp_path, locations):
        yield port


def test_tls_goes_through_the_tunnel(secure_nginx: int) -> None:
    with contextlib.ExitStack() as stack:
        destination = Mesh(SERVER, Routes(tcp=Endpoint(("127.0.0.1", secure_nginx))), Declared.TCP)
        stack.enter_context(destination.running())
        endpoint = Endpoint(
            ("127.0.0.1", secure_nginx),
            identities=(SERVER,),
            hbone_address=("127.0.0.1", destination.port),
            tls=trusting(),
        )
        waypoint = Mesh(WAYPOINT, Routes(tcp=endpoint).to(b"/", endpoint), Declared.DETECT)
        stack.enter_context(waypoint.running())
        port = waypoint.proxy.port
        assert curl(port, "/who", "--http1.1") in _WHO
        files = [threading.Thread(target=lambda: found.append(curl(port, "/file"))) for _ in range(4)]
        found: list[bytes] = []
        for each in files:
            each.start()
        for each in files:
            each.join()
        assert found == [b"0123456789" * 300_000] * 4


def test_many_handshakes_at_once(secure_nginx: int) -> None:
    endpoint = Endpoint(("127.0.0.1", secure_nginx), tls=trusting())
    with proxy_to(endpoint) as proxy:
        clients = [connect(proxy.port) for _ in range(50)]
        for client in clients:
            client.sendall(b"GET /who HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        for client in clients:
            assert b"app.example" in read_all(client)
            client.close()
