"""An issuing CA that somebody else keeps: its files are read, checked and followed, never written.

    <folder>/
      ca-cert.pem          the issuing CA's certificate
      ca-key.pem     0600  its key: ECDSA, or RSA of 2048 bits or more
      cert-chain.pem       that certificate, then what is between it and the root; may be missing
      root-cert.pem        the trust bundle handed to every workload

The names are those of Istio's `cacerts`. Invariants: what is in force was checked as a whole (key, chain, CA
flags, path lengths, dates, trust domain); a change that does not pass leaves the last good one in force, so a
set of files may be replaced one by one.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography import x509

from ca import private_files
from ca.certificate import PARSE_ERRORS, Signer, read_key, uri_names
from ca.chain import is_issued_by
from ca.errors import (
    AuthorityExpired,
    CaError,
    KeyMismatch,
    StateNotReadable,
    TrustNotUsable,
    WrongTrustDomain,
)
from ca.trust_bundle import parse_roots

CERTIFICATE, KEY, CHAIN, ROOTS = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"
MAX_CHAIN = 8

log = structlog.get_logger("ca.external")


@dataclass(frozen=True, slots=True)
class ExternalFiles:
    """A set that passed every check."""

    signer: Signer
    roots_pem: str


class ExternalCa:
    """`open` it; `current` follows the files. Not for more than one thread."""

    def __init__(self, folder: Path, trust_domain: str, files: ExternalFiles) -> None:
        self._folder = folder
        self._trust_domain = trust_domain
        self.files = files  # in force
        self._seen: object = None
        self.problem = ""  # why the files as they are now are not in force

    @classmethod
    def open(cls, folder: Path, trust_domain: str, now: dt.datetime) -> ExternalCa:
        """Raises a CaError that names file and fault: there is no last good set yet."""
        return cls(folder, trust_domain, read_files(folder, trust_domain, now))

    def current(self, now: dt.datetime) -> ExternalFiles:
        """The files in force. A set that was refused is tried again each time: it may become valid."""
        seen = self._signature()
        if seen != self._seen or self.problem:
            try:
                self.files = read_files(self._folder, self._trust_domain, now)
                self._note("")
            except CaError as error:
                self._note(str(error))
            self._seen = seen
        return self.files

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error(
                "external_ca_refused", folder=str(self._folder), reason=problem, action="last good kept"
            )
        elif self.problem and not problem:
            log.info("external_ca_accepted", folder=str(self._folder))
        self.problem = problem

    def _signature(self) -> object:
        found = []
        for name in (CERTIFICATE, KEY, CHAIN, ROOTS):
            try:
                status = (self._folder / name).stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError as error:
                found.append((error.errno or 0, 0, 0))
        return tuple(found)


def read_files(folder: Path, trust_domain: str, now: dt.datetime) -> ExternalFiles:
    """Reads and checks the set as it is now. Raises CaError."""
    key = read_key(_read(folder / KEY, is_private=True), str(folder / KEY))
    (own,) = _certificates(folder / CERTIFICATE, most=1)
    chain = _read_chain(folder, own)
    if own.public_key() != key.public_key():
        raise KeyMismatch(f"{folder / KEY} is not the key of {folder / CERTIFICATE}")
    roots_pem = _read_roots(folder / ROOTS)
    roots = [x509.load_pem_x509_certificate(block.encode()) for block in parse_roots(roots_pem).blocks]
    root = _anchor(chain, roots, folder, now)
    for below, certificate in enumerate((*chain, root)):
        _check_is_ca(certificate, below, folder)
        _check_dates(certificate, folder, now)
    _check_trust_domain(own, trust_domain, folder)
    return ExternalFiles(Signer(key, chain, limit=root.not_valid_after_utc), roots_pem)


def _read(path: Path, *, is_private: bool = False) -> bytes:
    try:
        return private_files.read_private(path) if is_private else private_files.read_public(path)
    except FileNotFoundError as error:
        raise StateNotReadable(
            f"{path} is missing", next_step=f"an external CA needs {CERTIFICATE}, {KEY} and {ROOTS}"
        ) from error


def _certificates(path: Path, *, most: int) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(_read(path)))
    except PARSE_ERRORS as error:
        raise StateNotReadable(f"{path} does not hold certificates in PEM") from error
    if not 1 <= len(found) <= most:
        raise StateNotReadable(f"{path} holds {len(found)} certificates, expected are 1 to {most}")
    return found


def _read_chain(folder: Path, own: x509.Certificate) -> tuple[x509.Certificate, ...]:
    """What is sent with each leaf: from the issuing CA up to below the root."""
    path = folder / CHAIN
    chain = _certificates(path, most=MAX_CHAIN) if path.exists() else (own,)
    if chain[0] != own:
        raise KeyMismatch(f"{path} does not begin with the certificate in {folder / CERTIFICATE}")
    for child, parent in itertools.pairwise(chain):
        if not is_issued_by(child, parent):
            raise KeyMismatch(f"the chain in {path} is out of order or broken at {_name(child)}")
    is_root_last = len(chain) > 1 and is_issued_by(chain[-1], chain[-1])
    return chain[:-1] if is_root_last else chain


def _read_roots(path: Path) -> str:
    text = _read(path).decode("ascii", "replace")
    try:
        roots = parse_roots(text)
    except TrustNotUsable as error:
        raise TrustNotUsable(f"{path}: {error.text}") from error
    if roots.skipped:
        raise TrustNotUsable(f"{path} holds {roots.skipped} unreadable certificates")
    return roots.pem


def _anchor(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], folder: Path, now: dt.datetime
) -> x509.Certificate:
    """The root above the chain; of several one that is valid now."""
    found = [root for root in roots if is_issued_by(chain[-1], root)]
    if not found:
        raise KeyMismatch(
            f"no root in {folder / ROOTS} has signed {_name(chain[-1])}",
            next_step=f"put its root into {ROOTS}, or the missing intermediates into {CHAIN}",
        )
    return max(found, key=lambda root: (root.not_valid_before_utc <= now, root.not_valid_after_utc))


def _check_is_ca(certificate: x509.Certificate, below: int, folder: Path) -> None:
    """`below`: how many CA certificates stand under this one in the chain."""
    name = _name(certificate)
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *PARSE_ERRORS) as error:
        raise KeyMismatch(f"{name} in {folder} is not a CA's: it has no basic constraints") from error
    if not constraints.ca:
        raise KeyMismatch(f"{name} in {folder} is not a CA's")
    if constraints.path_length is not None and constraints.path_length < below:
        raise KeyMismatch(
            f"{name} in {folder} allows {constraints.path_length} CAs below it, the chain has {below}"
        )
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise KeyMismatch(f"{name} in {folder} may not sign certificates (key usage)")


def _check_dates(certificate: x509.Certificate, folder: Path, now: dt.datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now < end:
        raise AuthorityExpired(
            f"{_name(certificate)} in {folder} is valid from {begin.isoformat()} to {end.isoformat()}, "
            f"now is {now.isoformat()}",
            next_step="check the clock; if it is right, renew the certificate",
        )


def _check_trust_domain(own: x509.Certificate, trust_domain: str, folder: Path) -> None:
    try:
        names = [name for name in uri_names(own) if name.startswith("spiffe://")]
    except PARSE_ERRORS as error:
        raise StateNotReadable(f"the names in {folder / CERTIFICATE} cannot be read") from error
    if names and f"spiffe://{trust_domain}" not in names:
        raise WrongTrustDomain(
            f"{folder / CERTIFICATE} is of {', '.join(names)}, configured is trust domain {trust_domain}"
        )


def _name(certificate: x509.Certificate) -> str:
    return f"{certificate.subject.rfc4514_string()!r}"
