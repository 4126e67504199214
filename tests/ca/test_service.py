"""Authority, service, gRPC, TLS and client together on loopback; grpcio speaking as Istio's ztunnel."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from ca.authority import Authority
from ca.certificate import new_key, uri_names
from ca.client import CaClient, CaClientSettings, channel_factory, token_source
from ca.credentials import CredentialManager, wall_clock
from ca.errors import TrustNotUsable
from ca.node_token import NodeTokens
from ca.protocol import METHOD
from ca.server_tls import ServerTls
from ca.service import CertificateService
from ca.trust_bundle import RootSource, parse_roots
from proto.istio.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from transport.grpc.channel import ChannelSettings
from transport.grpc.metadata import Metadata
from transport.grpc.server import CallContext, GrpcServer
from transport.grpc.status import ChannelUnavailable, GrpcError, GrpcStatus
from transport.spiffe import SpiffeId

from .harness import DAY, HOUR, TRUST_DOMAIN, WEB, load, request_for

DB = SpiffeId(TRUST_DOMAIN, "shop", "db")
ELSEWHERE = SpiffeId("elsewhere.test", "shop", "web")


@dataclass
class Control:
    """A control plane of CA only, and what a node has of it."""

    port: int
    authority: Authority
    tokens: NodeTokens
    root_file: Path
    token_file: Path
    placed: dict[SpiffeId, str]

    def client(self, settings: CaClientSettings | None = None) -> CaClient:
        channel = ChannelSettings("127.0.0.1", self.port)
        return CaClient(
            channel_factory(channel, RootSource(str(self.root_file))),
            token_source(str(self.token_file)),
            settings,
        )


@asynccontextmanager
async def control_plane(folder: Path) -> AsyncIterator[Control]:
    now = wall_clock()
    authority = Authority.load_or_create(folder / "ca", trust_domain=TRUST_DOMAIN, now=now)
    tokens = NodeTokens.load_or_create(folder / "tokens")
    placed = {WEB: "node-a", DB: "node-b", ELSEWHERE: "node-a"}
    service = CertificateService(authority, tokens, lambda who, node: placed.get(who) == node)
    root_file, token_file = folder / "root-cert.pem", folder / "token"
    root_file.write_text(authority.roots_pem)
    token_file.write_text(tokens.mint("node-a", DAY, now))
    tls = ServerTls(authority, ["localhost"], ["127.0.0.1"])
    server = GrpcServer(service.handlers, request_limits=service.request_limits)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await nursery.start(server.serve, listeners, tls.context)
        yield Control(port, authority, tokens, root_file, token_file, placed)
        nursery.cancel_scope.cancel()


async def test_a_node_gets_certificates_for_what_runs_on_it(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        credential = await control.client().fetch(WEB)
        leaf = load(credential.chain_pem[0])
        assert uri_names(leaf) == (str(WEB),)
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == DAY + dt.timedelta(minutes=2)
        assert credential.roots_pem == control.authority.roots_pem
        short = await control.client(CaClientSettings(lifetime=HOUR)).fetch(WEB)
        assert short.not_after - short.not_before == HOUR + dt.timedelta(minutes=2)
        assert short.key_pem != credential.key_pem


@pytest.mark.parametrize("who", [DB, SpiffeId(TRUST_DOMAIN, "shop", "nobody"), ELSEWHERE], ids=str)
async def test_a_node_gets_nothing_for_what_does_not_run_on_it(tmp_path: Path, who: SpiffeId) -> None:
    async with control_plane(tmp_path) as control:
        with capture_logs() as logs, pytest.raises(GrpcError) as caught:
            await control.client().fetch(who)
        assert caught.value.status is GrpcStatus.UNAUTHENTICATED
        assert caught.value.message == "request impersonation authentication failure"
        refusal = next(entry for entry in logs if entry["event"] == "impersonation_refused")
        assert (refusal["node"], str(who) in refusal["reason"]) == ("node-a", True)


async def test_placement_is_asked_for_every_request(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        await control.client().fetch(WEB)
        control.placed[WEB] = "node-b"
        with pytest.raises(GrpcError):
            await control.client().fetch(WEB)


async def test_without_impersonation_a_node_gets_nothing(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        with pytest.raises(GrpcError) as caught:
            await control.client(CaClientSettings(is_impersonating=False)).fetch(WEB)
        assert caught.value.status is GrpcStatus.UNAUTHENTICATED


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "expired", "foreign"])
async def test_callers_without_a_good_token_learn_nothing(tmp_path: Path, token: str) -> None:
    async with control_plane(tmp_path) as control:
        if token == "expired":
            token = control.tokens.mint("node-a", HOUR, wall_clock() - DAY)
        elif token == "foreign":
            token = NodeTokens.load_or_create(tmp_path / "foreign").mint("node-a", DAY, wall_clock())
        control.token_file.write_text(token)
        with capture_logs() as logs, pytest.raises(GrpcError) as caught:
            await control.client().fetch(WEB)
        assert caught.value.status is GrpcStatus.UNAUTHENTICATED
        assert caught.value.message == "request authenticate failure"
        refusals = [entry for entry in logs if entry["event"] == "caller_refused"]
        assert len(refusals) == 1
        assert token == "" or token not in str(refusals)


async def test_a_lifetime_above_the_maximum_is_an_invalid_argument(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        with pytest.raises(GrpcError) as caught:
            await control.client(CaClientSettings(lifetime=91 * DAY)).fetch(WEB)
        assert caught.value.status is GrpcStatus.INVALID_ARGUMENT


async def test_a_node_follows_a_changed_token_and_root_file(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        client = control.client()
        token, roots = control.token_file.read_text(), control.root_file.read_text()
        await client.fetch(WEB)
        control.token_file.write_text("revoked")
        with pytest.raises(GrpcError):
            await client.fetch(WEB)
        control.token_file.write_text(token)
        other = Authority.load_or_create(tmp_path / "other", trust_domain=TRUST_DOMAIN, now=wall_clock())
        control.root_file.write_text(other.roots_pem)
        with pytest.raises(ChannelUnavailable):
            await client.fetch(WEB)
        control.root_file.write_text(other.roots_pem + roots)
        await client.fetch(WEB)
        control.root_file.write_text("half a fi")
        await client.fetch(WEB)


async def test_a_node_without_roots_asks_nobody(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        control.root_file.unlink()
        with pytest.raises(TrustNotUsable):
            await control.client().fetch(WEB)


async def test_a_second_root_reaches_the_workloads(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        other = Authority.load_or_create(tmp_path / "other", trust_domain=TRUST_DOMAIN, now=wall_clock())
        (tmp_path / "ca" / "roots" / "next.pem").write_text(other.roots_pem)
        credential = await control.client().fetch(WEB)
        assert len(parse_roots(credential.roots_pem).blocks) == 2


async def test_the_manager_fetches_many_over_real_connections(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control, trio.open_nursery() as nursery:
        many = [SpiffeId(TRUST_DOMAIN, "shop", f"sa-{number}") for number in range(30)]
        control.placed.update(dict.fromkeys(many, "node-a"))
        manager = CredentialManager(control.client().fetch)
        await nursery.start(manager.run)
        credentials = [await manager.get(who) for who in many]
        assert [credential.identity for credential in credentials] == many
        nursery.cancel_scope.cancel()


# --- grpcio with Istio's messages ---


def istio_request(csr: str, impersonated: str | None, *, seconds: int = 86400) -> IstioCertificateRequest:
    request = IstioCertificateRequest(csr=csr, validity_duration=seconds)
    if impersonated is not None:
        request.metadata.fields["ImpersonatedIdentity"].string_value = impersonated
    return request


async def ask_as_istio(
    control: Control, request: bytes, token: str | None = None
) -> IstioCertificateResponse:
    bearer = control.token_file.read_text() if token is None else token

    def run() -> bytes:
        credentials = grpc.ssl_channel_credentials(control.root_file.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{control.port}", credentials) as channel:
            metadata = [("authorization", f"Bearer {bearer}"), ("clusterid", "Kubernetes")]
            answer: bytes = channel.unary_unary(METHOD)(request, metadata=metadata, timeout=10)
            return answer

    return IstioCertificateResponse.FromString(await trio.to_thread.run_sync(run))


async def test_istios_request_gets_istios_answer(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        request = istio_request(request_for(WEB), str(WEB))
        chain = list((await ask_as_istio(control, request.SerializeToString())).cert_chain)
        assert len(chain) == 3
        assert all(element.endswith("\n") for element in chain)
        leaf, intermediate = (load(element) for element in chain[:2])
        roots = x509.load_pem_x509_certificates(chain[2].encode())
        leaf.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(roots[0])


BAD_REQUESTS: dict[str, tuple[Callable[[], IstioCertificateRequest], grpc.StatusCode]] = {
    "other name in the CSR": (
        lambda: istio_request(request_for(DB), str(WEB)),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "no CSR": (lambda: istio_request("", str(WEB)), grpc.StatusCode.INVALID_ARGUMENT),
    "no identity": (lambda: istio_request(request_for(WEB), None), grpc.StatusCode.UNAUTHENTICATED),
    "odd identity": (lambda: istio_request(request_for(WEB), "spiffe://x"), grpc.StatusCode.UNAUTHENTICATED),
    "too long a life": (
        lambda: istio_request(request_for(WEB), str(WEB), seconds=2**62),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_requests_get_istios_codes(tmp_path: Path, name: str) -> None:
    make, code = BAD_REQUESTS[name]
    async with control_plane(tmp_path) as control:
        with pytest.raises(grpc.RpcError) as caught:
            await ask_as_istio(control, make().SerializeToString())
        assert caught.value.code() is code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"x" * 70_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_requests_that_are_none(tmp_path: Path, raw: bytes, code: grpc.StatusCode) -> None:
    async with control_plane(tmp_path) as control:
        with pytest.raises(grpc.RpcError) as caught:
            await ask_as_istio(control, raw)
        assert caught.value.code() is code


async def test_a_negative_lifetime_means_the_default(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as control:
        request = istio_request(request_for(WEB), str(WEB), seconds=-5)
        chain = (await ask_as_istio(control, request.SerializeToString())).cert_chain
        leaf = load(chain[0])
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == DAY + dt.timedelta(minutes=2)


async def test_a_csr_without_names_is_signed_for_the_identity(tmp_path: Path) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    async with control_plane(tmp_path) as control:
        request = istio_request(csr, str(WEB))
        chain = (await ask_as_istio(control, request.SerializeToString())).cert_chain
        assert uri_names(load(chain[0])) == (str(WEB),)


async def test_an_expired_signer_is_internal_and_says_no_more(tmp_path: Path) -> None:
    now = wall_clock()
    authority = Authority.load_or_create(tmp_path / "ca", trust_domain=TRUST_DOMAIN, now=now)
    tokens = NodeTokens.load_or_create(tmp_path / "tokens")
    later = now + 6 * 365 * DAY
    service = CertificateService(authority, tokens, lambda *_: True, now=lambda: later)
    token = tokens.mint("node-a", DAY, later)
    context = _context(token)
    with pytest.raises(GrpcError) as caught:
        await service.create_certificate(
            istio_request(request_for(WEB), str(WEB)).SerializeToString(), context
        )
    assert (caught.value.status, caught.value.message) == (GrpcStatus.INTERNAL, "the CA cannot sign now")


def _context(token: str) -> CallContext:
    metadata = Metadata([("authorization", f"Bearer {token}")])
    return CallContext(METHOD, metadata, ("127.0.0.1", 1), None, 1e9, trio.Event())


async def test_the_server_certificate_is_renewed_at_half_life_and_after_a_step_back(tmp_path: Path) -> None:
    now = wall_clock()
    times = [now]
    authority = Authority.load_or_create(tmp_path / "ca", trust_domain=TRUST_DOMAIN, now=now)
    tls = ServerTls(authority, ["localhost"], [], now=lambda: times[-1])
    first = tls.context()
    times.append(now + 14 * DAY)
    assert tls.context() is first
    times.append(now + 16 * DAY)
    second = tls.context()
    assert second is not first
    times.append(now + 15 * DAY)
    assert tls.context() is not second
    times.append(now + 20 * 365 * DAY)
    kept = tls.context()
    assert tls.context() is kept
    await trio.lowlevel.checkpoint()
