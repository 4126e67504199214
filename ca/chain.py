"""Which root a chain leads to. Reading only: nothing here decides whom to trust."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256

from ca.certificate import PARSE_ERRORS
from ca.trust_bundle import parse_roots

FINGERPRINT_LENGTH = 16  # as roots/*.pem are named


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """`serial` in hexadecimal; `root_fingerprint` empty where no root of the bundle has signed the chain."""

    serial: str
    issuer: str
    root_subject: str
    root_fingerprint: str
    roots: int


def describe_chain(chain_pem: Sequence[str], roots_pem: str) -> ChainFacts:
    """`chain_pem` is the leaf, then the intermediates; raises one of PARSE_ERRORS, TrustNotUsable."""
    chain = list(
        itertools.chain.from_iterable(x509.load_pem_x509_certificates(pem.encode()) for pem in chain_pem)
    )
    roots = [x509.load_pem_x509_certificate(pem.encode()) for pem in parse_roots(roots_pem).blocks]
    is_whole = all(is_issued_by(child, parent) for child, parent in itertools.pairwise(chain))
    root = next((root for root in roots if _leads_to(chain[-1], root)), None) if is_whole else None
    return ChainFacts(
        serial=f"{chain[0].serial_number:x}",
        issuer=chain[0].issuer.rfc4514_string(),
        root_subject="" if root is None else root.subject.rfc4514_string(),
        root_fingerprint="" if root is None else fingerprint(root),
        roots=len(roots),
    )


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(SHA256()).hex()[:FINGERPRINT_LENGTH]


def is_issued_by(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (*PARSE_ERRORS, InvalidSignature):
        return False
    return True


def _leads_to(last: x509.Certificate, root: x509.Certificate) -> bool:
    return last == root or is_issued_by(last, root)
