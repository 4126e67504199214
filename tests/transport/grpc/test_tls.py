"""TLS of control channels on loopback: names, roots, client certificates, rotation, refusals."""

from __future__ import annotations

import datetime as dt
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from ca.authority import Authority
from ca.certificate import key_to_pem, new_key
from ca.client import make_csr
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.server import CallContext, GrpcServer, ServerLimits
from transport.grpc.status import ChannelUnavailable
from transport.grpc.tls import KeyPair, TlsMaterialError, TlsTrust, client_context, server_context
from transport.spiffe import SpiffeId

from .harness import ECHO, echo, echo_server, serving

NAMES = ["control.test", "*.wild.test"]


@pytest.fixture(name="authority")
def _authority(tmp_path: Path) -> Authority:
    return Authority.load_or_create(
        tmp_path / "ca", trust_domain="cluster.local", now=dt.datetime.now(dt.UTC)
    )


@pytest.fixture(name="other")
def _other(tmp_path: Path) -> Authority:
    return Authority.load_or_create(
        tmp_path / "other", trust_domain="cluster.local", now=dt.datetime.now(dt.UTC)
    )


def pair(authority: Authority) -> KeyPair:
    return authority.server_credential(NAMES, ["127.0.0.1"], now=dt.datetime.now(dt.UTC))


async def call(port: int, trust: TlsTrust) -> bytes:
    async with open_channel(ChannelSettings("127.0.0.1", port, trust)) as channel:
        return await channel.unary(ECHO, b"x", timeout_s=5)


@pytest.mark.parametrize(
    ("server_name", "alternatives", "is_accepted"),
    [
        ("", (), True),
        ("control.test", (), True),
        ("a.wild.test", (), True),
        ("a.b.wild.test", (), False),
        ("wild.test", (), False),
        ("other.test", (), False),
        ("127.0.0.2", (), False),
        ("other.test", ("control.test",), True),
        ("other.test", ("127.0.0.1",), True),
        ("other.test", ("x.wild.test",), True),
        ("other.test", ("a.b.wild.test", "wild.test", "127.0.0.3", "trol.test"), False),
    ],
)
async def test_the_server_must_be_who_was_asked_for(
    authority: Authority, server_name: str, alternatives: tuple[str, ...], is_accepted: bool
) -> None:
    trust = TlsTrust(authority.roots_pem, server_name, alternatives)
    async with serving(echo_server(), server_context(pair(authority))) as port:
        if is_accepted:
            assert await call(port, trust) == b"x"
        else:
            with pytest.raises(ChannelUnavailable, match=r"TLS|certificate"):
                await call(port, trust)


async def test_a_server_of_another_root_is_refused(authority: Authority, other: Authority) -> None:
    async with serving(echo_server(), server_context(pair(authority))) as port:
        with pytest.raises(ChannelUnavailable, match=r"unable to get local issuer|self-signed"):
            await call(port, TlsTrust(other.roots_pem))
        assert await call(port, TlsTrust(other.roots_pem + authority.roots_pem)) == b"x"


async def test_an_expired_server_is_refused(authority: Authority) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    credential = authority.server_credential(NAMES, ["127.0.0.1"], now=past, lifetime=dt.timedelta(hours=1))
    async with serving(echo_server(), server_context(credential)) as port:
        with pytest.raises(ChannelUnavailable, match="expired"):
            await call(port, TlsTrust(authority.roots_pem))


async def test_client_certificates_reach_the_handler(authority: Authority, other: Authority) -> None:
    seen: list[bytes | None] = []

    async def handler(request: bytes, context: CallContext) -> bytes:
        seen.append(context.peer_certificate)
        assert context.peer_address[0] == "127.0.0.1"
        return await echo(request, context)

    # serverAuth-only certificates make no client: these two come from a signer of workload certificates.
    mine, foreign = (workload_pair(signer) for signer in (authority, other))
    context = server_context(pair(authority), client_roots_pem=authority.roots_pem)
    async with serving(GrpcServer({ECHO: handler}), context) as port:
        assert await call(port, TlsTrust(authority.roots_pem, client=mine)) == b"x"
        assert await call(port, TlsTrust(authority.roots_pem)) == b"x"
        with pytest.raises(ChannelUnavailable):
            await call(port, TlsTrust(authority.roots_pem, client=foreign))
    leaf = ssl.PEM_cert_to_DER_cert(mine.chain_pem[: mine.chain_pem.index("-----END") + 25])
    assert seen == [leaf, None]


def workload_pair(authority: Authority) -> KeyPair:
    key, identity = new_key(), SpiffeId("cluster.local", "ns", "sa")
    issued = authority.sign(make_csr(key, identity), identity, dt.timedelta(), dt.datetime.now(dt.UTC))
    return KeyPair(issued.leaf + "".join(issued.intermediates), key_to_pem(key))


async def assert_ended(stream: trio.abc.Stream) -> None:
    with suppress(trio.BrokenResourceError):  # a reset will do as well
        assert await stream.receive_some() == b""


async def test_a_plaintext_client_and_one_without_alpn_are_refused(authority: Authority) -> None:
    context = server_context(pair(authority))
    async with serving(echo_server(ServerLimits(handshake_timeout_s=2)), context) as port:
        with pytest.raises(ChannelUnavailable):
            async with open_channel(ChannelSettings("127.0.0.1", port)):
                pass
        bare = ssl.create_default_context(cadata=authority.roots_pem)
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=bare)
        await assert_ended(stream)
        await trio.aclose_forcefully(stream)
        assert await call(port, TlsTrust(authority.roots_pem)) == b"x"


async def test_tls_below_1_2_is_refused(authority: Authority) -> None:
    context = client_context(TlsTrust(authority.roots_pem))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert server_context(pair(authority)).minimum_version is ssl.TLSVersion.TLSv1_2
    await trio.lowlevel.checkpoint()


async def test_a_tls_client_meets_a_plaintext_server(authority: Authority) -> None:
    async with serving(echo_server()) as port:
        with pytest.raises(ChannelUnavailable, match="TLS handshake"):
            await call(port, TlsTrust(authority.roots_pem))


async def test_nobody_listens() -> None:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sock.close()
    with pytest.raises(ChannelUnavailable, match="Connection refused"):
        async with open_channel(ChannelSettings("127.0.0.1", port)):
            pass


async def test_a_server_that_says_nothing_is_given_up(authority: Authority) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    settings = ChannelSettings("127.0.0.1", port, TlsTrust(authority.roots_pem), connect_timeout_s=0.1)
    with pytest.raises(ChannelUnavailable, match=r"within 0.1 s"):
        async with open_channel(settings):
            pass
    await listeners[0].aclose()


@pytest.mark.parametrize(
    "roots", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_unusable_roots_are_a_clear_error(roots: str) -> None:
    with pytest.raises(TlsMaterialError):
        client_context(TlsTrust(roots))


def test_a_key_of_another_certificate_is_a_clear_error(authority: Authority) -> None:
    one, two = pair(authority), pair(authority)
    with pytest.raises(TlsMaterialError):
        server_context(KeyPair(one.chain_pem, two.key_pem))


async def test_a_rotated_server_certificate_serves_the_next_connection(
    authority: Authority, other: Authority
) -> None:
    contexts = [server_context(pair(authority)), server_context(pair(other))]
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        server = echo_server()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await server.serve(listeners, lambda: contexts[0], task_status=task_status)

        await nursery.start(serve)
        assert await call(port, TlsTrust(authority.roots_pem)) == b"x"
        del contexts[0]
        assert await call(port, TlsTrust(other.roots_pem)) == b"x"
        nursery.cancel_scope.cancel()
