"""Client of IstioCertificateService: makes the key and the request, checks the answer.

Source: ztunnel-facts 6.1 to 6.3. Each request opens its own channel, so that a changed root file, token or
server address is taken up by the next request; certificates are rare (two a day and identity).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from ca.certificate import PARSE_ERRORS, key_to_pem, new_key, uri_names
from ca.credentials import Credential
from ca.errors import ResponseInvalid, TokenNotReadable, TrustNotUsable
from ca.protocol import IMPERSONATED_IDENTITY, METHOD
from ca.trust_bundle import RootSource, parse_roots
from proto.istio.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from transport.grpc.channel import Channel, ChannelSettings, open_channel
from transport.grpc.tls import TlsTrust
from transport.spiffe import SpiffeId

DEFAULT_LIFETIME = dt.timedelta(hours=24)
REQUEST_TIMEOUT_S = 10.0

TokenSource: TypeAlias = Callable[[], str]
ChannelFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[Channel]]

log = structlog.get_logger("ca.client")


@dataclass(frozen=True, slots=True)
class CaClientSettings:
    cluster_id: str = "Kubernetes"
    lifetime: dt.timedelta = DEFAULT_LIFETIME
    is_impersonating: bool = True  # one node proxy asks for many identities; False: it is the identity itself
    extra_metadata: tuple[tuple[str, str], ...] = ()


def token_source(value: str) -> TokenSource:
    """A path is read for every request (tokens are rotated in place), anything else is the token."""
    path = Path(value)
    if not value.startswith(("/", "./", "../")) and not (len(value) < 256 and path.exists()):
        return lambda: value

    def read() -> str:
        try:
            return path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise TokenNotReadable(
                f"cannot read the node token {path}: {error}",
                next_step="mint one with `mycelia` and put it there",
            ) from error

    return read


def channel_factory(settings: ChannelSettings, roots: RootSource | None) -> ChannelFactory:
    """Channels that check the server against `roots` as they are when the channel is opened."""

    def open_now() -> AbstractAsyncContextManager[Channel]:
        if roots is None:
            return open_channel(settings)
        trust = settings.tls or TlsTrust("")
        return open_channel(replace(settings, tls=replace(trust, roots_pem=roots.read())))

    return open_now


class CaClient:
    """`fetch` is what CredentialManager wants."""

    def __init__(
        self, channels: ChannelFactory, token: TokenSource | None, settings: CaClientSettings | None = None
    ) -> None:
        self._channels = channels
        self._token = token
        self._settings = settings or CaClientSettings()

    async def fetch(self, identity: SpiffeId) -> Credential:
        """Raises MeshError: GrpcError of the call, ResponseInvalid, TokenNotReadable, TrustNotUsable."""
        key = new_key()
        request = self._make_request(key, identity)
        async with self._channels() as channel:
            answer = await channel.unary(
                METHOD,
                request.SerializeToString(),
                metadata=self._make_metadata(),
                timeout_s=REQUEST_TIMEOUT_S,
            )
        try:
            chain = list(IstioCertificateResponse.FromString(answer).cert_chain)
        except DecodeError as error:
            raise ResponseInvalid("the CA's answer cannot be parsed") from error
        return read_response(chain, key, identity, is_impersonating=self._settings.is_impersonating)

    def _make_request(self, key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> IstioCertificateRequest:
        request = IstioCertificateRequest(
            csr=make_csr(key, identity), validity_duration=math.ceil(self._settings.lifetime.total_seconds())
        )
        if self._settings.is_impersonating:
            request.metadata.fields[IMPERSONATED_IDENTITY].string_value = str(identity)
        return request

    def _make_metadata(self) -> list[tuple[str, str]]:
        metadata = [("clusterid", self._settings.cluster_id), *self._settings.extra_metadata]
        if self._token is not None:
            metadata.append(("authorization", f"Bearer {self._token()}"))
        return metadata


def make_csr(key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> str:
    """PEM; empty subject, one critical URI SAN."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    return csr.public_bytes(Encoding.PEM).decode()


def read_response(
    chain: list[str], key: ec.EllipticCurvePrivateKey, identity: SpiffeId, *, is_impersonating: bool
) -> Credential:
    """Checks the answer (6.3): leaf first, intermediates, all roots in the last element.

    Stricter than ztunnel in one point: the leaf must hold our key. Raises ResponseInvalid.
    """
    if not chain:
        raise ResponseInvalid("the CA's answer is empty")
    if len(chain) < 2:
        raise ResponseInvalid("the CA's answer has no root certificates")
    try:
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        for element in chain[1:-1]:
            x509.load_pem_x509_certificates(element.encode())
        names = uri_names(leaf)
        is_our_key = leaf.public_key() == key.public_key()
        roots = parse_roots(chain[-1])
    except PARSE_ERRORS as error:
        raise ResponseInvalid("the CA's answer holds something that is no certificate") from error
    except TrustNotUsable as error:
        raise ResponseInvalid(f"the CA's answer has no usable root: {error.text}") from error
    if not is_our_key:
        raise ResponseInvalid("the certificate is for another key")
    if is_impersonating and names[:1] != (str(identity),):
        raise ResponseInvalid(
            f"asked for {identity}, the certificate is for {', '.join(names)[:300] or 'nobody'}"
        )
    if roots.skipped:
        log.warning("unreadable_roots_skipped", identity=str(identity), count=roots.skipped)
    return Credential(
        identity=identity,
        chain_pem=tuple(chain[:-1]),
        key_pem=key_to_pem(key),
        roots_pem=roots.pem,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )
