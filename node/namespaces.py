"""Where references to network namespaces lead: opening them, and noticing that they lead elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import assert_never

from node.attachment import Reference, ReferenceKind
from transport.netns import NetworkNamespace

NAMED = Path("/run/netns")
MAX_SCANNED_PROCESSES = 100_000

Identity = tuple[int, int]


def path_of(reference: Reference) -> Path:
    match reference.kind:
        case ReferenceKind.NAME:
            return NAMED / reference.value
        case ReferenceKind.PATH:
            return Path(reference.value)
        case ReferenceKind.PID:
            return Path("/proc", reference.value, "ns/net")
        case _ as never:
            assert_never(never)


def open_reference(reference: Reference) -> NetworkNamespace:
    """Raises NamespaceNotFound or NotNetworkNamespace."""
    return NetworkNamespace.from_path(path_of(reference))


def leads_to(reference: Reference, identity: Identity) -> bool:
    """True while the reference leads to that namespace."""
    try:
        status = path_of(reference).stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == identity


def another_process_in(identity: Identity) -> Reference | None:
    """Some process that runs in the namespace: containers of one pod share it, and the first may end before
    the others.
    """
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in itertools.islice(entries, MAX_SCANNED_PROCESSES):
            if entry.name.isdigit():
                reference = Reference(ReferenceKind.PID, entry.name)
                if leads_to(reference, identity):
                    return reference
    return None
