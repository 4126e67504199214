"""Certificates for one benchmark: a fresh root and a SPIFFE leaf for each side, P-256, valid for a day."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "cluster.local"
LIFETIME = dt.timedelta(days=1)
BACKDATED = dt.timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One workload's credential, on disk and as text."""

    spiffe_id: str
    chain_path: Path
    key_path: Path
    not_after: dt.datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    roots_path: Path
    client: Leaf
    server: Leaf
    waypoint: Leaf


def make(directory: Path) -> Credentials:
    """Writes root and leaves for accounts `client`, `server` and `waypoint` of namespace `default`."""
    now = dt.datetime.now(dt.UTC)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRUST_DOMAIN)])
    root = (
        _builder(root_name, root_name, root_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    roots_path = directory / "ca.crt"
    roots_path.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    return Credentials(
        roots_path,
        client=_leaf(directory, "client", root_name, root_key, now),
        server=_leaf(directory, "server", root_name, root_key, now),
        waypoint=_leaf(directory, "waypoint", root_name, root_key, now),
    )


def _leaf(
    directory: Path,
    account: str,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
) -> Leaf:
    key = ec.generate_private_key(ec.SECP256R1())
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}"
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(x509.Name([]), issuer, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True
        )
        .sign(issuer_key, hashes.SHA256())
    )
    chain_path, key_path = directory / f"{account}.crt", directory / f"{account}.key"
    chain_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Leaf(spiffe_id, chain_path, key_path, certificate.not_valid_after_utc)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
