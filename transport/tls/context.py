"""OpenSSL contexts for HBONE: one per identity and role, never changed after they are made.

Source: ztunnel-facts 2.1. TLS 1.3 only, the two AES-GCM suites, ALPN exactly `h2`, no SNI, no resumption, no
early data, both sides authenticated. OpenSSL checks the chain, the dates and the extended key usage of the
peer's role (serverAuth for the server, clientAuth for the client); names are the pump's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from transport.tls.errors import TlsSettingsInvalid

ALPN = b"h2"
_CIPHER_SUITES = b"TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
_SSL_MODE_ENABLE_PARTIAL_WRITE = 0x1
_SSL_MODE_RELEASE_BUFFERS = 0x10  # an idle connection needs 18 KiB less, a busy one not measurably more time
_SSL_MODE_NO_AUTO_CHAIN = 0x8  # else OpenSSL adds the root to a chain without intermediates


def make_context(
    chain_pem: Sequence[str | bytes], key_pem: bytes, roots_pem: str, *, is_server: bool
) -> SSL.Context:
    """A context that presents `chain_pem` (leaf first, no root; each item may hold several certificates).

    `roots_pem` may hold any number of trust anchors; an issuing CA in it is an anchor too. Raises
    TlsSettingsInvalid, also when the key is not the leaf's.
    """
    chain = [certificate for pem in chain_pem for certificate in certificates(pem, "certificate chain")]
    roots = certificates(roots_pem, "root bundle")
    if not chain or not roots:
        raise TlsSettingsInvalid(
            "the certificate chain and the root bundle must hold at least one certificate"
        )
    context = SSL.Context(SSL.TLS_SERVER_METHOD if is_server else SSL.TLS_CLIENT_METHOD)
    try:
        _set_protocol(context, is_server=is_server)
        set_credential(context, chain, key_pem)
        set_trust(context, roots)
    except (SSL.Error, crypto.Error) as error:
        raise TlsSettingsInvalid(f"OpenSSL refuses the TLS settings: {error}") from error
    return context


def certificates(pem: str | bytes, what: str) -> list[x509.Certificate]:
    """All of a PEM text; none in a blank one. Raises TlsSettingsInvalid, naming `what`."""
    data = pem.encode() if isinstance(pem, str) else pem
    if not data.strip():
        return []
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise TlsSettingsInvalid(f"the {what} is not a list of PEM certificates: {error}") from error


def _set_protocol(context: SSL.Context, *, is_server: bool) -> None:
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_CIPHER_SUITES)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.clear_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)  # or one SSL_write would make one 16 KiB record
    context.set_mode(_SSL_MODE_NO_AUTO_CHAIN | _SSL_MODE_RELEASE_BUFFERS)
    if is_server:
        # Without h2 among the offers the handshake goes on without ALPN and the pump ends it: raising in
        # this callback would report the error on whichever connection of the context fails next.
        context.set_alpn_select_callback(
            lambda _, offered: ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS
        )
    else:
        context.set_alpn_protos([ALPN])


def set_credential(context: SSL.Context, chain: list[x509.Certificate], key_pem: bytes) -> None:
    """Present `chain`, leaf first; raises TlsSettingsInvalid or SSL.Error."""
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise TlsSettingsInvalid(f"the private key cannot be read: {error}") from error
    allowed = (
        ec.EllipticCurvePrivateKey,
        rsa.RSAPrivateKey,
        ed25519.Ed25519PrivateKey,
        ed448.Ed448PrivateKey,
        dsa.DSAPrivateKey,
    )
    if not isinstance(key, allowed):
        raise TlsSettingsInvalid("the private key is of a kind that TLS does not use")
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    context.check_privatekey()


def set_trust(context: SSL.Context, roots: list[x509.Certificate]) -> None:
    """Demand a peer whose chain leads to one of `roots`, an issuing CA among them too."""
    store = context.get_cert_store()
    if store is None:
        raise TlsSettingsInvalid("OpenSSL gave the context no certificate store")
    for root in roots:
        store.add_cert(crypto.X509.from_cryptography(root))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
