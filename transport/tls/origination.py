"""TLS to servers that are not of the mesh's own: contexts, and which certificates are the wanted server's.

TLS 1.2 and 1.3, forward secrecy and authenticated encryption only, no resumption, no renegotiation. OpenSSL
checks the chain, its dates and that it is a server's; whose it is is checked here (RFC 9525: names in the
subject alternative name only, a wildcard for one whole leftmost label).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from OpenSSL import SSL, crypto

from transport.tls.context import certificates, set_credential, set_trust
from transport.tls.errors import PeerRejected, TlsSettingsInvalid

_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_SSL_MODE_ENABLE_PARTIAL_WRITE = 0x1
_SSL_MODE_RELEASE_BUFFERS = 0x10
_SSL_MODE_NO_AUTO_CHAIN = 0x8
_CRL = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----")
_MAX_NAMED = 5  # of a certificate's names in an error


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client trusts and shows. `roots_pem` empty: the operating system's; chain and key: both or
    neither. With `crl_pem` each certificate of a server's chain needs its issuer's list, in force."""

    roots_pem: str = ""
    is_unverified: bool = False
    chain_pem: str = ""
    key_pem: str = ""
    crl_pem: str = ""


def make_origination_context(credentials: Credentials) -> SSL.Context:
    """Raises TlsSettingsInvalid. System roots that are not there make every handshake fail."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    try:
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(_TLS12_CIPHERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.clear_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)
        context.set_mode(_SSL_MODE_NO_AUTO_CHAIN | _SSL_MODE_RELEASE_BUFFERS)
        _set_verification(context, credentials)
        if credentials.chain_pem or credentials.key_pem:
            chain = certificates(credentials.chain_pem, "client certificate")
            if not chain:
                raise TlsSettingsInvalid("the client certificate is empty")
            set_credential(context, chain, credentials.key_pem.encode())
    except (SSL.Error, crypto.Error) as error:
        raise TlsSettingsInvalid(f"OpenSSL refuses the TLS settings: {error}") from error
    return context


def _set_verification(context: SSL.Context, credentials: Credentials) -> None:
    if credentials.is_unverified:
        context.set_verify(SSL.VERIFY_NONE)
    elif credentials.roots_pem:
        roots = certificates(credentials.roots_pem, "CA bundle")
        if not roots:
            raise TlsSettingsInvalid("the CA bundle holds no certificate")
        set_trust(context, roots)
        if credentials.crl_pem:
            _set_revocations(context, credentials.crl_pem)
    else:
        context.set_default_verify_paths()
        context.set_verify(SSL.VERIFY_PEER)


def _set_revocations(context: SSL.Context, pem: str) -> None:
    store = context.get_cert_store()
    if store is None:
        raise TlsSettingsInvalid("OpenSSL gave the context no certificate store")
    for revocations in revocation_lists(pem):
        store.add_crl(revocations)
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)


def revocation_lists(pem: str) -> list[x509.CertificateRevocationList]:
    """All of a PEM text, at least one. Raises TlsSettingsInvalid."""
    blocks = _CRL.findall(pem.encode())
    if not blocks or pem.count("-----BEGIN") != len(blocks):
        raise TlsSettingsInvalid("the revocation lists are not a list of PEM CRLs")
    try:
        return [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError as error:
        raise TlsSettingsInvalid(f"the revocation lists are not a list of PEM CRLs: {error}") from error


@functools.lru_cache(maxsize=1024)  # the same servers come back all the time
def check_server(der: bytes, names: Sequence[str]) -> None:
    """Raises PeerRejected unless the certificate has one of `names` (not empty)."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        found = _names_of(certificate)
    except ValueError as error:
        raise PeerRejected(f"the peer's certificate cannot be read: {error}") from error
    if any(_is_named(wanted, found) for wanted in names):
        return
    own = [*found.dns, *found.uris, *found.addresses]
    shown = ", ".join(name[:100] for name in own[:_MAX_NAMED]) or "no name"
    more = " and others" if len(own) > _MAX_NAMED else ""
    raise PeerRejected(
        f"the peer's certificate is for {shown}{more}, not for {' or '.join(names[:_MAX_NAMED])}"
    )


@dataclass(frozen=True, slots=True)
class _Names:
    dns: list[str]
    uris: list[str]
    addresses: list[str]


def _names_of(certificate: x509.Certificate) -> _Names:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return _Names([], [], [])
    return _Names(
        names.get_values_for_type(x509.DNSName),
        names.get_values_for_type(x509.UniformResourceIdentifier),
        [str(address) for address in names.get_values_for_type(x509.IPAddress)],
    )


def _is_named(wanted: str, found: _Names) -> bool:
    if "://" in wanted:
        return wanted in found.uris
    address = as_address(wanted)
    if address:
        return address in found.addresses
    return any(is_host_matched(pattern, wanted) for pattern in found.dns)


def as_address(name: str) -> str:
    """An IP address in its one spelling; empty for what is none."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return ""


def is_host_matched(pattern: str, host: str) -> bool:
    """Whether a certificate's DNS name covers a host. `*` stands for one whole label, the first, and never
    right above the root."""
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    if not pattern or "\0" in pattern:
        return False
    if not pattern.startswith("*."):
        return pattern == host
    label, _, rest = host.partition(".")
    parent = pattern[2:]
    return bool(label) and label != "*" and rest == parent and "." in parent and "*" not in parent
