"""What the authority accepts of a certificate signing request."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from ca.csr import MAX_CSR_BYTES, check_csr
from ca.errors import CsrRejected
from transport.spiffe import SpiffeId

from .harness import WEB, request_for

OTHER = SpiffeId("cluster.local", "shop", "db")


def uri(value: object) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(str(value))


def build(
    key: CertificateIssuerPrivateKeyTypes,
    names: Sequence[x509.GeneralName] | None = (uri(WEB),),
    subject: str = "",
) -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    algorithm = (
        None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    )
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(p256()),
        lambda: build(p256(), None),
        lambda: build(p256(), subject="ignored"),
        lambda: build(ec.generate_private_key(ec.SECP384R1())),
        lambda: build(rsa.generate_private_key(65537, 2048)),
        lambda: b"some text before\n" + build(p256()),
    ],
    ids=["P-256", "no names", "subject", "P-384", "RSA 2048", "text around"],
)
def test_sound_requests_are_accepted(make: Callable[[], bytes]) -> None:
    check_csr(make(), WEB)


def forged() -> bytes:
    """A request whose names were changed after signing."""
    csr = x509.load_pem_x509_csr(build(p256(), [uri(OTHER)]))
    der = csr.public_bytes(Encoding.DER).replace(b"/sa/db", b"/sa/dx")
    changed = x509.load_der_x509_csr(der)
    return changed.public_bytes(Encoding.PEM)


REJECTED: list[tuple[str, Callable[[], bytes], str]] = [
    ("other identity", lambda: build(p256(), [uri(OTHER)]), "not the identity"),
    ("prefix of it", lambda: build(p256(), [uri(str(WEB)[:-1])]), "not the identity"),
    ("more than it", lambda: build(p256(), [uri(f"{WEB}/x")]), "not the identity"),
    ("other case", lambda: build(p256(), [uri(str(WEB).upper())]), "not the identity"),
    ("nul inside", lambda: build(p256(), [uri(f"{WEB}\0")]), "not the identity|parsed"),
    ("twice", lambda: build(p256(), [uri(WEB), uri(WEB)]), "exactly one"),
    ("and another", lambda: build(p256(), [uri(WEB), uri(OTHER)]), "exactly one"),
    ("and a DNS name", lambda: build(p256(), [uri(WEB), x509.DNSName("shop.test")]), "exactly one"),
    ("a DNS name only", lambda: build(p256(), [x509.DNSName("shop.test")]), "exactly one"),
    ("a mail address", lambda: build(p256(), [x509.RFC822Name("a@b.test")]), "exactly one"),
    ("P-521", lambda: build(ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
    ("secp256k1", lambda: build(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
    ("RSA 1024", lambda: build(rsa.generate_private_key(65537, 1024)), "1024"),
    ("RSA 4608", lambda: build(rsa.generate_private_key(65537, 4608)), "4608"),
    ("RSA exponent 3", lambda: build(rsa.generate_private_key(3, 2048)), "exponent"),
    ("Ed25519", lambda: build(ed25519.Ed25519PrivateKey.generate()), "key type"),
    ("Ed448", lambda: build(ed448.Ed448PrivateKey.generate()), "key type"),
    ("empty", lambda: b"", "parsed"),
    ("no PEM", lambda: b"hello", "parsed"),
    (
        "a certificate's label",
        lambda: build(p256()).replace(b"CERTIFICATE REQUEST", b"CERTIFICATE"),
        "parsed",
    ),
    ("cut", lambda: build(p256())[:-60], "parsed"),
    ("too large", lambda: b"x" * MAX_CSR_BYTES + build(p256()), "bytes"),
    ("forged signature", forged, "own key"),
]


@pytest.mark.parametrize(("name", "make", "reason"), REJECTED, ids=[name for name, _, _ in REJECTED])
def test_unsound_requests_are_rejected(name: str, make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(CsrRejected, match=reason):
        check_csr(make(), WEB)


@given(st.binary(max_size=400))
def test_garbage_is_rejected_and_nothing_else_escapes(raw: bytes) -> None:
    with pytest.raises(CsrRejected):
        check_csr(raw, WEB)


SOUND_DER = x509.load_pem_x509_csr(request_for(WEB).encode()).public_bytes(Encoding.DER)


@given(st.integers(0, 600), st.integers(1, 255))
def test_a_damaged_request_never_gets_another_key_certified(position: int, flip: int) -> None:
    """One byte is free in DER as OpenSSL reads it: the count of unused bits before the signature."""
    der = bytearray(SOUND_DER)
    der[position % len(der)] ^= flip
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n%s-----END CERTIFICATE REQUEST-----\n" % base64.encodebytes(
        der
    )
    with suppress(CsrRejected):
        assert check_csr(pem, WEB) == x509.load_der_x509_csr(SOUND_DER).public_key()


pieces = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/\\?#%@\"'<>"), min_size=1
)


@given(pieces, pieces, pieces)
def test_every_identity_survives_csr_and_certificate(domain: str, namespace: str, account: str) -> None:
    who = SpiffeId(domain, namespace, account)
    check_csr(request_for(who), who)


@given(pieces, pieces)
def test_no_request_for_one_identity_passes_for_another(one: str, other: str) -> None:
    asked, granted = SpiffeId("td", "ns", one), SpiffeId("td", "ns", other)
    if asked != granted:
        with pytest.raises(CsrRejected):
            check_csr(request_for(asked), granted)
