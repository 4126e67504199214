"""Makes the files of an external CA, right or wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from ca.certificate import PrivateKey, key_to_pem, new_key, to_pem
from ca.external import CERTIFICATE, CHAIN, KEY, ROOTS
from tests.ca.harness import DAY, NOW

YEAR = 365 * DAY


@dataclass(frozen=True)
class Made:
    key: PrivateKey
    certificate: x509.Certificate


def make_ca(
    name: str,
    parent: Made | None = None,
    *,
    path_length: int | None = None,
    is_ca: bool = True,
    may_sign: bool = True,
    begin: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + YEAR,
    uri: str = "",
    key: PrivateKey | None = None,
) -> Made:
    """With a subject key identifier of its own making, as some CAs do."""
    key = key or new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    usage = x509.KeyUsage(
        digital_signature=True, key_encipherment=False, key_cert_sign=may_sign, crl_sign=True, **usages
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(is_ca, path_length if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(name.encode()), critical=False)
    )
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return Made(key, builder.sign(parent.key if parent else key, hashes.SHA256()))


def write(
    folder: Path, issuing: Made, *chain: Made, roots: tuple[Made, ...], key: PrivateKey | None = None
) -> None:
    """`chain` is what follows the issuing CA in cert-chain.pem."""
    folder.mkdir(exist_ok=True)
    (folder / CERTIFICATE).write_text(to_pem(issuing.certificate))
    (folder / KEY).touch(mode=0o600)
    (folder / KEY).write_bytes(key_to_pem(key or issuing.key))
    (folder / CHAIN).write_text("".join(to_pem(made.certificate) for made in (issuing, *chain)))
    (folder / ROOTS).write_text("".join(to_pem(made.certificate) for made in roots))
