"""Trust bundles: the set of roots that peers accept, more than one during a rotation.

`parse_roots` is lenient as ztunnel is (an unreadable block is left out and counted); `RootFolder` is the
authority's `roots/*.pem`; `RootSource` is where a client finds the roots of its control plane.
Invariant: none of them ever yields an empty bundle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ca.errors import CaError, StateNotReadable, TrustNotUsable
from ca.private_files import read_public

SYSTEM = "SYSTEM"  # the operating system's roots
MAX_ROOTS = 64
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

log = structlog.get_logger("ca.trust")


@dataclass(frozen=True, slots=True)
class Roots:
    """Usable roots as PEM blocks, and how many blocks were left out."""

    blocks: tuple[str, ...]
    skipped: int

    @property
    def pem(self) -> str:
        return "".join(self.blocks)


def parse_roots(text: str) -> Roots:
    """Duplicates and unreadable blocks are dropped; raises TrustNotUsable if nothing is left."""
    from cryptography import x509  # noqa: PLC0415 - keeps importers of this module light

    from ca.certificate import PARSE_ERRORS  # noqa: PLC0415 - same

    blocks: dict[str, None] = {}
    skipped = 0
    for block in _BLOCK.findall(text):
        try:
            x509.load_pem_x509_certificate(block.encode())
        except PARSE_ERRORS:
            skipped += 1
            continue
        blocks[block.strip() + "\n"] = None
    if not blocks:
        raise TrustNotUsable("the trust bundle holds no readable certificate")
    if len(blocks) > MAX_ROOTS:
        raise TrustNotUsable(f"the trust bundle holds {len(blocks)} roots, at most {MAX_ROOTS} are allowed")
    return Roots(tuple(blocks), skipped)


class RootFolder:
    """All roots below one folder; re-read when a file was added, removed or changed.

    To rotate: add the new root's file, wait until every workload has renewed (half a certificate lifetime),
    then let the new root sign, and remove the old file after the last old certificate has expired.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._pem = ""

    def current(self) -> str:
        """The bundle as PEM. A change that makes it unusable is logged and the last good bundle stays."""
        try:
            seen = self._signature()
            if seen != self._seen:
                self._pem = self._read(seen)
                self._seen = seen
        except (OSError, CaError) as error:
            if not self._pem:
                raise TrustNotUsable(f"no usable roots in {self._folder}: {error}") from error
            log.warning("trust_bundle_change_refused", folder=str(self._folder), reason=str(error))
        return self._pem

    def _signature(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        for path in sorted(self._folder.glob("*.pem")):
            status = path.stat()
            found.append((path.name, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _read(self, seen: Sequence[tuple[str, int, int]]) -> str:
        texts = []
        for name, _, _ in seen:
            try:
                text = read_public(self._folder / name).decode("ascii", "replace")
            except FileNotFoundError as error:
                raise StateNotReadable(f"{name} vanished while it was read") from error
            roots = parse_roots(text)
            if roots.skipped:
                raise TrustNotUsable(f"{name} holds {roots.skipped} unreadable certificates")
            texts.append(roots.pem)
        return parse_roots("".join(texts)).pem


class RootSource:
    """Roots of a control plane as a client is told them: a path, inline PEM, or `SYSTEM`.

    `read` looks at the file each time and keeps the last good content while the file is unusable, so that a
    half-written file does not cut a running node off.
    """

    def __init__(self, value: str) -> None:
        self._value = value
        self._last: str | None = value if value == SYSTEM or "-----BEGIN" in value else None
        self._path = Path(value) if self._last is None else None
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> str:
        """PEM text or `SYSTEM`; raises TrustNotUsable if there never was a good one."""
        problem = self._refresh(self._path) if self._path is not None else ""
        if self._last is None:
            raise TrustNotUsable(
                f"cannot use the root certificates in {self._path}: {problem}",
                next_step="copy root-cert.pem of the control plane to this path",
            )
        if problem:
            log.warning("root_file_change_refused", path=str(self._path), reason=problem)
        return self._last

    def _refresh(self, path: Path) -> str:
        """Takes over a changed file; the reason if it cannot be used, else empty."""
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._last = parse_roots(path.read_text("ascii", "replace")).pem
                self._seen = seen
        except OSError as error:
            return error.strerror or str(error)
        except TrustNotUsable as error:
            return error.text
        return ""
