"""Certificates for tests: roots, issuing CAs and leaves with every flaw a peer may show.

Everything is made in memory with the real clock as default, because OpenSSL checks validity against the real
clock. Keys are P-256. Nothing here is meant for use outside tests.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class TestAuthority:
    """A signing certificate. `pem` is its own; `chain_pem` what a leaf carries besides itself (no root)."""

    __test__ = False  # pytest: not a test class

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain_pem: bytes = b""

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _ca_builder(
    name: str, key: ec.EllipticCurvePrivateKey, path_length: int | None
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _DAY)
        .not_valid_after(_now() + 3650 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def make_root(name: str = "test root") -> TestAuthority:
    """A fresh self-signed root."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _ca_builder(name, key, None)
    return TestAuthority(builder.issuer_name(_common_name(name)).sign(key, hashes.SHA256()), key)


def make_intermediate(parent: TestAuthority, name: str = "test issuing CA") -> TestAuthority:
    """An issuing CA below `parent`; leaves issued from it carry it in their chain."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _ca_builder(name, key, 0)
        .issuer_name(parent.certificate.subject)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key()), critical=False
        )
        .sign(parent.key, hashes.SHA256())
    )
    return TestAuthority(
        certificate, key, certificate.public_bytes(serialization.Encoding.PEM) + parent.chain_pem
    )


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def issue(
    authority: TestAuthority,
    spiffe_id: str | Sequence[str] | None,
    *,
    not_before: dt.datetime | None = None,
    not_after: dt.datetime | None = None,
    ekus: Sequence[x509.ObjectIdentifier] = SERVER_AND_CLIENT,
    dns_names: Sequence[str] = (),
    extra_names: Sequence[x509.GeneralName] = (),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> tuple[bytes, bytes]:
    """Issue a leaf: `(chain_pem, key_pem)`; the chain is the leaf and any issuing CAs, without the root.

    `spiffe_id` is the URI SAN (several, or None for none). Defaults: valid from an hour ago for one day, both
    EKUs, a fresh P-256 key. `ekus=()` leaves the extension out.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    uris = [spiffe_id] if isinstance(spiffe_id, str) else list(spiffe_id or ())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns_names]
    names += extra_names
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or _now() - _DAY / 24)
        .not_valid_after(not_after or _now() + _DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if ekus:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(ekus)), critical=False)
    leaf = builder.sign(authority.key, hashes.SHA256())
    return leaf.public_bytes(serialization.Encoding.PEM) + authority.chain_pem, key_to_pem(key)


@functools.cache
def shared_root() -> TestAuthority:
    """One root per test process, for tests that do not care which (key generation is the slow part)."""
    return make_root("shared test root")


def revocations(*revoked: bytes, by: TestAuthority | None = None, until: dt.datetime | None = None) -> str:
    """The revocation list of an authority with the leaves of these chains, by default in force for a day."""
    authority = by or shared_root()
    until = until or _now() + _DAY
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(min(_now() - _DAY, until - _DAY))
        .next_update(until)
    )
    for chain in revoked:
        serial = x509.load_pem_x509_certificates(chain)[0].serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_now() - _DAY)
        builder = builder.add_revoked_certificate(entry.build())
    made = builder.sign(authority.key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()
