"""Who the peer is, by its leaf certificate. OpenSSL has verified the chain before this is asked."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from transport.spiffe import SpiffeId
from transport.tls.errors import PeerRejected


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The verified leaf of the peer. It carries one SPIFFE identity, or it would have been rejected."""

    spiffe_ids: tuple[SpiffeId, ...]
    serial: int
    not_after: dt.datetime
    der: bytes

    @property
    def identity(self) -> SpiffeId:
        return self.spiffe_ids[0]


@functools.lru_cache(maxsize=1024)  # the same few peers come back all the time, and parsing costs 50 us
def read_peer_certificate(der: bytes) -> PeerCertificate:
    """Take the identity out of a leaf; raises PeerRejected unless there is exactly one URI name, a SPIFFE id.

    Istio would take the first of several; we accept no certificate that two readers could read differently
    (authz-cases 12).
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = list(_subject_names(certificate))
    except ValueError as error:
        raise PeerRejected(f"the peer's certificate cannot be read: {error}") from error
    for name in names:
        if isinstance(name.value, str) and "\0" in name.value:
            raise PeerRejected("a name in the peer's certificate contains a NUL byte")
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise PeerRejected(f"the peer's certificate has {len(uris)} URI names; exactly one is allowed")
    identity = SpiffeId.try_parse(uris[0])
    if identity is None:
        raise PeerRejected(f"the peer's certificate names {uris[0][:200]!r}, which is not a SPIFFE identity")
    return PeerCertificate((identity,), certificate.serial_number, certificate.not_valid_after_utc, der)


def _subject_names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return iter(())
    return iter(extension.value)
