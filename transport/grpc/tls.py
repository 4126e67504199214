"""TLS of the control channels: standard-library contexts, TLS 1.2 or newer, ALPN h2.

Not the mesh's mTLS (that is transport/tls). A server shows a certificate for its DNS names or addresses, a
client checks it against given roots; client certificates are possible.
Invariants: there is no way to switch verification off; private keys reach OpenSSL through a memory file,
never through the disk; a peer that does not choose ALPN h2 is refused.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import trio

from transport.errors import Blame, MeshError

SYSTEM_ROOTS = "SYSTEM"


class TlsMaterialError(MeshError):
    """A certificate, key or root bundle for a control channel cannot be used."""

    code: ClassVar[str] = "MYC-1303"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class TlsHandshakeError(MeshError):
    """The TLS handshake of a control channel failed or the peer's name does not match."""

    code: ClassVar[str] = "MYC-1304"
    blame: ClassVar[Blame] = Blame.REMOTE


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain (leaf first) and its unencrypted private key, both PEM."""

    chain_pem: str
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class TlsTrust:
    """How a client checks its server.

    `roots_pem` is PEM text (several roots are fine) or `SYSTEM_ROOTS`. `server_name` is a DNS name or an IP
    address; empty means the host that is dialled. `alternative_names` are accepted as well.
    """

    roots_pem: str
    server_name: str = ""
    alternative_names: tuple[str, ...] = ()
    client: KeyPair | None = None


def client_context(trust: TlsTrust) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if trust.roots_pem == SYSTEM_ROOTS:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_roots(context, trust.roots_pem)
    if trust.client is not None:
        _load_key_pair(context, trust.client)
    # OpenSSL checks one name only; with alternatives the check is ours, after the chain was verified.
    context.check_hostname = not trust.alternative_names
    return context


def server_context(key_pair: KeyPair, *, client_roots_pem: str | None = None) -> ssl.SSLContext:
    """With `client_roots_pem`, a client may show a certificate of those roots (a wrong one is refused)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.num_tickets = 0
    _load_key_pair(context, key_pair)
    if client_roots_pem is not None:
        _load_roots(context, client_roots_pem)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2"])


def _load_roots(context: ssl.SSLContext, roots_pem: str) -> None:
    try:
        context.load_verify_locations(cadata=roots_pem)
    except (ssl.SSLError, ValueError) as error:
        raise TlsMaterialError(
            f"the root certificates cannot be read: {error}",
            next_step="give a PEM file of CERTIFICATE blocks",
        ) from error
    if context.cert_store_stats()["x509_ca"] == 0:
        raise TlsMaterialError("the root bundle holds no CA certificate")


def _load_key_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    # ssl reads key pairs from paths only.
    fd = os.memfd_create("key-pair", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(pair.key_pem.rstrip() + b"\n" + pair.chain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise TlsMaterialError(f"the certificate and key cannot be used: {error}") from error
    finally:
        os.close(fd)


async def connect_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext, trust: TlsTrust, host: str
) -> trio.abc.Stream:
    """Handshakes as client; raises TlsHandshakeError. The caller closes `stream` on failure."""
    name = trust.server_name or host
    wrapped = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    try:
        await wrapped.do_handshake()
    except trio.BrokenResourceError as error:
        raise TlsHandshakeError(
            f"TLS handshake with {name} failed: {_reason(error)}",
            next_step="check the server's certificate, its names and the root bundle",
        ) from error
    if trust.alternative_names:
        _require_name(wrapped.getpeercert(), (name, *trust.alternative_names))
    _require_h2(wrapped)
    return wrapped


async def accept_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext
) -> tuple[trio.abc.Stream, bytes | None]:
    """Handshakes as server; gives the stream and the client's verified certificate (DER), if it sent one."""
    wrapped = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    try:
        await wrapped.do_handshake()
    except trio.BrokenResourceError as error:
        raise TlsHandshakeError(f"TLS handshake failed: {_reason(error)}") from error
    _require_h2(wrapped)
    return wrapped, wrapped.getpeercert(binary_form=True)


def _require_h2(stream: trio.SSLStream[trio.abc.Stream]) -> None:
    if stream.selected_alpn_protocol() != "h2":
        raise TlsHandshakeError("the peer does not speak HTTP/2 here (no ALPN h2)")


def _require_name(certificate: dict[str, object] | None, accepted: Sequence[str]) -> None:
    sans = (certificate or {}).get("subjectAltName", ())
    assert isinstance(sans, tuple)
    if not any(_matches(kind, value, name) for kind, value in sans for name in accepted):
        raise TlsHandshakeError(f"the server's certificate is for none of {', '.join(accepted)}")


def _matches(kind: str, value: str, name: str) -> bool:
    """RFC 6125: exact, or `*` as the whole left-most label; addresses match as addresses only."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if kind != "DNS":
            return False
        pattern, wanted = value.lower(), name.lower().rstrip(".")
        if pattern.startswith("*."):
            _, dot, rest = wanted.partition(".")
            return bool(dot) and rest == pattern[2:] and "." in rest
        return pattern == wanted
    if kind != "IP Address":
        return False
    try:
        return ipaddress.ip_address(value) == address
    except ValueError:
        return False


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError):
        return cause.reason or str(cause)
    return str(cause) if cause is not None else "the peer closed the connection"
