"""Certificate signing requests: what the authority accepts of one. Pure.

Only the public key of an accepted request enters a certificate; everything else is fixed by us. The names
are still checked, because a client that asks for another name than it will get is wrong or hostile
(authz-cases 13).
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.certificate import PARSE_ERRORS, PublicKey
from ca.errors import CsrRejected
from transport.spiffe import SpiffeId

MAX_CSR_BYTES = 16 * 1024
_CURVES = ("secp256r1", "secp384r1")
_RSA_BITS = range(2048, 4097)


def check_csr(pem: str | bytes, identity: SpiffeId) -> PublicKey:
    """The key to certify for `identity`; raises CsrRejected with the reason.

    Accepted: PEM up to 16 KiB, signed by its own key; ECDSA P-256 or P-384, RSA 2048 to 4096; no names at
    all, or exactly one URI SAN that equals `identity`.
    """
    raw = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    if len(raw) > MAX_CSR_BYTES:
        raise CsrRejected(f"the request has {len(raw)} bytes, at most {MAX_CSR_BYTES} are allowed")
    try:
        csr = x509.load_pem_x509_csr(raw)
        key = _check_key(csr)
        if not csr.is_signature_valid:
            raise CsrRejected("the request is not signed by its own key")
        _check_names(csr, identity)
    except PARSE_ERRORS as error:
        raise CsrRejected("the request cannot be parsed") from error
    return key


def _check_key(csr: x509.CertificateSigningRequest) -> PublicKey:
    key = csr.public_key()
    match key:
        case ec.EllipticCurvePublicKey():
            if key.curve.name not in _CURVES:
                raise CsrRejected(f"curve {key.curve.name} is not allowed: use P-256 or P-384")
            return key
        case rsa.RSAPublicKey():
            if key.key_size not in _RSA_BITS:
                raise CsrRejected(f"RSA of {key.key_size} bits is not allowed: use 2048 to 4096")
            if key.public_numbers().e != 65537:
                raise CsrRejected("RSA with an exponent other than 65537 is not allowed")
            return key
        case _:
            raise CsrRejected("the key type is not allowed: use ECDSA P-256 or P-384, or RSA")


def _check_names(csr: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    try:
        names = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return
    match names:
        case [x509.UniformResourceIdentifier(value=value)] if value == str(identity):
            return
        case [x509.UniformResourceIdentifier()]:
            raise CsrRejected("the request's URI is not the identity that is asked for")
        case []:
            return
        case _:
            raise CsrRejected("the request must hold exactly one URI name and no others")
