"""The mesh's certificate authority: a root and an issuing CA, kept in one private folder.

    <folder>/           0700
      roots/*.pem       the trust bundle handed to every workload (public; more than one during a rotation)
      root.pem    0600  key and certificate of our root; may be moved offline once issuing.pem exists
      issuing.pem 0600  key and certificate of the issuing CA, then what is between it and the root

Invariants: key and certificate of a CA are one file, so no crash can separate them; an authority that is
loaded has an issuing CA that is valid now, belongs to its key, is signed (through its chain) by a root of the
bundle, and is of the configured trust domain.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from cryptography import x509

from ca import private_files
from ca.certificate import (
    PARSE_ERRORS,
    Signer,
    key_to_pem,
    make_issuing,
    make_leaf,
    make_root,
    make_server_leaf,
    new_key,
    read_signer,
    to_pem,
    uri_names,
    write_signer,
)
from ca.certificate_life import Dates
from ca.chain import fingerprint, is_issued_by
from ca.csr import check_csr
from ca.errors import (
    AuthorityExpired,
    KeyMismatch,
    LifetimeTooLong,
    StateNotReadable,
    StateNotWritten,
    WrongTrustDomain,
)
from ca.external import ExternalCa
from ca.trust_bundle import RootFolder, parse_roots
from transport.grpc.tls import KeyPair
from transport.spiffe import SpiffeId

DEFAULT_LIFETIME = dt.timedelta(hours=24)
MAX_LIFETIME = dt.timedelta(days=90)
SERVER_LIFETIME = dt.timedelta(days=30)

log = structlog.get_logger("ca.authority")


@dataclass(frozen=True, slots=True)
class IssuedChain:
    """All PEM. `intermediates` one by one; `roots_pem` is the whole bundle."""

    leaf: str
    intermediates: tuple[str, ...]
    roots_pem: str
    not_after: dt.datetime


class Authority:
    """Get one with `load_or_create`. Not for more than one thread."""

    def __init__(
        self, folder: Path, trust_domain: str, issuing: Signer, roots: RootFolder | ExternalCa
    ) -> None:
        self._folder = folder
        self._issuing = issuing
        self._roots = roots
        self.trust_domain = trust_domain

    @classmethod
    def from_files(cls, folder: Path, *, trust_domain: str, now: dt.datetime) -> Self:
        """The authority whose files (ca/external.py) somebody else keeps in `folder`; they are followed.

        Raises a CaError that names file and fault.
        """
        SpiffeId(trust_domain, "default", "default")
        external = ExternalCa.open(folder, trust_domain, now)
        return cls(folder, trust_domain, external.current(now).signer, external)

    @classmethod
    def load_or_create(cls, directory: Path, *, trust_domain: str, now: dt.datetime) -> Self:
        """Loads the authority of `directory`, or makes root and issuing CA there if it holds none.

        An issuing CA past half of its life is replaced if the root's key is here. Raises a CaError that says
        what is wrong and what to do; it never repairs by overwriting keys.
        """
        SpiffeId(trust_domain, "default", "default")  # a trust domain that cannot form identities fails here
        private_files.make_folder(directory)
        with private_files.locked(directory):
            root = _load_signer(directory / "root.pem")
            issuing = _load_signer(directory / "issuing.pem")
            roots = RootFolder(directory / "roots")
            if root is None and issuing is None:
                root = _create_root(directory, trust_domain, now)
            if root is not None:
                _check_signer(root, directory / "root.pem", trust_domain, now)
                _publish_root(directory, root)
            if root is not None and (issuing is None or _is_due(issuing, now)):
                issuing = _renew(directory, root, issuing, trust_domain, now)
            assert issuing is not None
            _check_signer(issuing, directory / "issuing.pem", trust_domain, now)
            _check_anchored(issuing, roots.current(), directory)
        return cls(directory, trust_domain, issuing, roots)

    @property
    def roots_pem(self) -> str:
        """The trust bundle as of now; follows changes of the `roots` folder, an external CA's by `follow`."""
        if isinstance(self._roots, ExternalCa):
            return self._roots.files.roots_pem
        return self._roots.current()

    def follow(self, now: dt.datetime) -> None:
        """Takes over what has changed in an external CA's files; without one nothing happens.

        Done before each signature too; in between, the caller calls it now and then for the trust bundle.
        """
        if isinstance(self._roots, ExternalCa):
            self._issuing = self._roots.current(now).signer

    def renew_if_due(self, now: dt.datetime) -> None:
        """Replaces an own issuing CA past half of its life, if the root's key is here.

        Raises a CaError; what signs now goes on doing so.
        """
        if self.is_external or not _is_due(self._issuing, now):
            return
        self._issuing = self.load_or_create(self._folder, trust_domain=self.trust_domain, now=now)._issuing

    @property
    def problem(self) -> str:
        """Why the files of an external CA, as they are now, are not in force; else empty."""
        return self._roots.problem if isinstance(self._roots, ExternalCa) else ""

    @property
    def is_external(self) -> bool:
        return isinstance(self._roots, ExternalCa)

    @property
    def dates(self) -> Dates:
        """The life of what signs now; it ends with the first certificate above the leaves."""
        begin = self._issuing.certificate.not_valid_before_utc
        return Dates(begin, begin, self._issuing.not_after)

    @property
    def issuer_fingerprint(self) -> str:
        """Of the certificate that signs now."""
        return fingerprint(self._issuing.certificate)

    def sign(
        self, csr_pem: str | bytes, identity: SpiffeId, ttl: dt.timedelta, now: dt.datetime
    ) -> IssuedChain:
        """A certificate for `identity` with the request's key; the caller has authorised it.

        `ttl` of zero or less means 24 hours. Raises CsrRejected, LifetimeTooLong, WrongTrustDomain,
        AuthorityExpired.
        """
        if identity.trust_domain != self.trust_domain:
            raise WrongTrustDomain(f"{identity} is not of trust domain {self.trust_domain}")
        if ttl > MAX_LIFETIME:
            raise LifetimeTooLong(f"a lifetime of {ttl} is above the maximum of {MAX_LIFETIME}")
        key = check_csr(csr_pem, identity)
        self.follow(now)
        self._require_valid(now)
        leaf = make_leaf(self._issuing, key, identity, now, ttl if ttl > dt.timedelta() else DEFAULT_LIFETIME)
        return IssuedChain(to_pem(leaf), self._intermediates(), self.roots_pem, leaf.not_valid_after_utc)

    def server_credential(
        self,
        dns_names: Sequence[str],
        ips: Sequence[str],
        *,
        now: dt.datetime,
        lifetime: dt.timedelta = SERVER_LIFETIME,
    ) -> KeyPair:
        """A fresh TLS server certificate for the control plane's port; clients trust it by the root."""
        self.follow(now)
        self._require_valid(now)
        key = new_key()
        leaf = make_server_leaf(self._issuing, key.public_key(), [*dns_names, *ips], now, lifetime)
        return KeyPair(to_pem(leaf) + "".join(self._intermediates()), key_to_pem(key))

    def _intermediates(self) -> tuple[str, ...]:
        return tuple(to_pem(certificate) for certificate in self._issuing.chain)

    def _require_valid(self, now: dt.datetime) -> None:
        _check_dates(self._issuing, self._folder / "issuing.pem", now)


def _load_signer(path: Path) -> Signer | None:
    try:
        return read_signer(private_files.read_private(path), str(path))
    except FileNotFoundError:
        return None


def _create_root(directory: Path, trust_domain: str, now: dt.datetime) -> Signer:
    if any((directory / "roots").glob("*.pem")):
        raise StateNotReadable(
            f"{directory} holds roots but no signing key",
            next_step="restore root.pem or issuing.pem, or use an empty folder for a new authority",
        )
    root = make_root(trust_domain, now)
    private_files.write(directory / "root.pem", write_signer(root))
    log.info("root_created", trust_domain=trust_domain, folder=str(directory))
    return root


def _publish_root(directory: Path, root: Signer) -> None:
    """Writes our root to the bundle unless it is there."""
    folder = directory / "roots"
    private_files.make_folder(folder)
    path = folder / f"{fingerprint(root.certificate)}.pem"
    if not path.exists():
        private_files.write(path, to_pem(root.certificate).encode(), mode=private_files.PUBLIC_MODE)


def _is_due(signer: Signer, now: dt.datetime) -> bool:
    begin = signer.certificate.not_valid_before_utc
    return now >= begin + (signer.not_after - begin) / 2


def _renew(directory: Path, root: Signer, old: Signer | None, trust_domain: str, now: dt.datetime) -> Signer:
    """A failed write keeps an old issuing CA that still works."""
    issuing = make_issuing(root, trust_domain, now)
    try:
        private_files.write(directory / "issuing.pem", write_signer(issuing))
    except StateNotWritten as error:
        if old is None or old.not_after <= now:
            raise
        log.warning("issuing_ca_not_renewed", reason=str(error), valid_until=old.not_after.isoformat())
        return old
    log.info("issuing_ca_created", folder=str(directory), valid_until=issuing.not_after.isoformat())
    return issuing


def _check_signer(signer: Signer, path: Path, trust_domain: str, now: dt.datetime) -> None:
    if not signer.chain:
        raise StateNotReadable(f"{path} holds no certificate")
    if signer.certificate.public_key() != signer.key.public_key():
        raise KeyMismatch(f"the key and the certificate in {path} do not belong together")
    try:
        constraints = signer.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = uri_names(signer.certificate)
    except (x509.ExtensionNotFound, *PARSE_ERRORS) as error:
        raise StateNotReadable(f"the certificate in {path} is not a CA's") from error
    if not constraints.ca:
        raise StateNotReadable(f"the certificate in {path} is not a CA's")
    if names and f"spiffe://{trust_domain}" not in names:
        raise WrongTrustDomain(
            f"{path} is of {', '.join(names)}, configured is trust domain {trust_domain}",
            next_step="use the trust domain of the state, or another state folder",
        )
    _check_dates(signer, path, now)


def _check_dates(signer: Signer, path: Path, now: dt.datetime) -> None:
    if now >= signer.not_after:
        raise AuthorityExpired(
            f"the CA certificate in {path} expired at {signer.not_after.isoformat()}, "
            f"now is {now.isoformat()}",
            next_step="check the clock; if it is right, rotate the authority",
        )
    if now < signer.certificate.not_valid_before_utc:
        raise AuthorityExpired(
            f"the CA certificate in {path} is not valid before "
            f"{signer.certificate.not_valid_before_utc.isoformat()}, now is {now.isoformat()}",
            next_step="check the clock",
        )


def _check_anchored(issuing: Signer, roots_pem: str, directory: Path) -> None:
    """Each certificate of the chain is signed by the next, the last by a root of the bundle."""
    roots = [x509.load_pem_x509_certificate(block.encode()) for block in parse_roots(roots_pem).blocks]
    chain = issuing.chain
    for child, parent in itertools.pairwise(chain):
        if not is_issued_by(child, parent):
            raise KeyMismatch(f"the chain in {directory / 'issuing.pem'} is out of order or broken")
    if not any(chain[-1] == root or is_issued_by(chain[-1], root) for root in roots):
        raise KeyMismatch(
            f"the issuing CA in {directory} is signed by no root in {directory / 'roots'}",
            next_step="put the root's certificate there as a .pem file",
        )
