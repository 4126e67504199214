"""The certificates of the mesh as X.509: how each kind is built, and how PEM text is read.

The `cryptography` library's x509 builder is met here, in csr.py and in client.py. No files, no clock.
Leaf form: ztunnel-facts 6.6. Roots and issuing CAs are dated back by two days, so that a host whose clock is
a day behind still accepts what they sign.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.errors import StateNotReadable
from transport.spiffe import SpiffeId

LEAF_BACKDATE = dt.timedelta(minutes=2)
SIGNER_BACKDATE = dt.timedelta(days=2)
ROOT_LIFETIME = dt.timedelta(days=10 * 365)
ISSUING_LIFETIME = dt.timedelta(days=5 * 365)

# All that `cryptography` raises for X.509 it cannot read: not every one of them is a ValueError.
PARSE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
MIN_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Signer:
    """A CA certificate with its key; `chain` is the certificate and whatever is between it and the root.

    `limit`: the end of the root's life, where it may come before that of the chain.
    """

    key: PrivateKey
    chain: tuple[x509.Certificate, ...]
    limit: dt.datetime | None = None

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def not_after(self) -> dt.datetime:
        """When the first of the chain ends: nothing that is signed may live longer."""
        ends = [certificate.not_valid_after_utc for certificate in self.chain]
        return min(ends if self.limit is None else [*ends, self.limit])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_root(trust_domain: str, now: dt.datetime) -> Signer:
    key = new_key()
    name = _name(trust_domain, "root CA")
    builder = _ca_builder(name, key.public_key(), trust_domain, path_length=1)
    builder = _dated(builder.issuer_name(name), now - SIGNER_BACKDATE, now + ROOT_LIFETIME)
    return Signer(key, (builder.sign(key, hashes.SHA256()),))


def make_issuing(root: Signer, trust_domain: str, now: dt.datetime) -> Signer:
    key = new_key()
    name = _name(trust_domain, "issuing CA")
    builder = _ca_builder(name, key.public_key(), trust_domain, path_length=0)
    builder = _dated(builder, now - SIGNER_BACKDATE, min(now + ISSUING_LIFETIME, root.not_after))
    return Signer(key, (_signed_by(root, builder),))


def make_leaf(
    signer: Signer, public_key: PublicKey, identity: SpiffeId, now: dt.datetime, lifetime: dt.timedelta
) -> x509.Certificate:
    """A workload's certificate: one critical URI SAN, empty subject, never longer than its signer."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    builder = _leaf_builder(public_key, names, is_client=True)
    return _signed_by(signer, _dated(builder, now - LEAF_BACKDATE, min(now + lifetime, signer.not_after)))


def make_server_leaf(
    signer: Signer, public_key: PublicKey, names: Sequence[str], now: dt.datetime, lifetime: dt.timedelta
) -> x509.Certificate:
    """For a control-plane port: DNS names and IP addresses, serverAuth only, no SPIFFE identity."""
    builder = _leaf_builder(public_key, [_general_name(name) for name in names], is_client=False)
    return _signed_by(signer, _dated(builder, now - LEAF_BACKDATE, min(now + lifetime, signer.not_after)))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(trust_domain: str, role: str) -> x509.Name:
    # X.520 bounds both attributes at 64 characters; the trust domain in full is in the SAN.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Mycelia {role}"),
        ]
    )


def _dated(
    builder: x509.CertificateBuilder, not_before: dt.datetime, not_after: dt.datetime
) -> x509.CertificateBuilder:
    # X.509 has whole seconds; rounding down keeps the end within the signer's.
    return builder.not_valid_before(not_before.replace(microsecond=0)).not_valid_after(
        not_after.replace(microsecond=0)
    )


def _ca_builder(
    subject: x509.Name, public_key: PublicKey, trust_domain: str, *, path_length: int
) -> x509.CertificateBuilder:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(san, critical=False)
    )


def _leaf_builder(
    public_key: PublicKey, names: list[x509.GeneralName], *, is_client: bool
) -> x509.CertificateBuilder:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] + ([ExtendedKeyUsageOID.CLIENT_AUTH] if is_client else [])
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed_by(signer: Signer, builder: x509.CertificateBuilder) -> x509.Certificate:
    key_id = _authority_key_id(signer)
    return (
        builder.issuer_name(signer.certificate.subject)
        .add_extension(key_id, critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def _authority_key_id(signer: Signer) -> x509.AuthorityKeyIdentifier:
    """As the signer's certificate says it: verifiers compare, and CAs compute it in several ways."""
    try:
        own = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_encipherment=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- PEM ---


def to_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS#8, unencrypted: its protection is the file's or the process's."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_signer(pem: bytes, source: str) -> Signer:
    """Key and chain from one text; raises StateNotReadable naming `source`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except PARSE_ERRORS as error:
        raise StateNotReadable(f"{source} does not hold a private key and certificates in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateNotReadable(f"{source} holds a key that is not ECDSA")
    return Signer(key, chain)


def read_key(pem: bytes, source: str) -> PrivateKey:
    """ECDSA, or RSA that is long enough; raises StateNotReadable naming `source`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except PARSE_ERRORS as error:
        raise StateNotReadable(f"{source} does not hold an unencrypted private key in PEM") from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return key
    raise StateNotReadable(
        f"{source} holds a key that is neither ECDSA nor RSA of {MIN_RSA_BITS} bits or more"
    )


def write_signer(signer: Signer) -> bytes:
    return key_to_pem(signer.key) + "".join(to_pem(certificate) for certificate in signer.chain).encode()


def uri_names(certificate: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, ...]:
    """The URI SANs in order; empty without the extension. Raises one of PARSE_ERRORS."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
