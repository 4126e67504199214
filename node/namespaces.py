"""Where references to network namespaces lead: opening them, and noticing that they lead elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from node.attachment import Reference, ReferenceKind
from node.processes import start_time
from transport.netns import NamespaceNotFound, NetworkNamespace

NAMED = Path("/run/netns")
MAX_SCANNED_PROCESSES = 100_000
_SO_NETNS_COOKIE = 71

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


def open_bound(reference: Reference) -> tuple[Reference, NetworkNamespace]:
    """The namespace, and the reference with the start time of its process. Raises as `open_reference`, and
    for a process that is no longer the one that was meant.
    """
    if reference.kind is not ReferenceKind.PID:
        return reference, open_reference(reference)
    pid = int(reference.value)
    bound = reference if reference.started else replace(reference, started=start_time(pid))
    handle = open_reference(bound)
    if start_time(pid) != bound.started:
        handle.close()
        raise NamespaceNotFound(f"process {pid} has ended, or its number belongs to another one now")
    return bound, handle


def cookie_of(handle: NetworkNamespace) -> int:
    """A number that no other namespace gets until the next boot; 0 from kernels before 5.14."""
    with handle.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            packed = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(packed, sys.byteorder)


def leads_to(reference: Reference, identity: Identity) -> bool:
    """True while the reference leads to that namespace, a process while it is the same one."""
    if reference.started and start_time(int(reference.value)) != reference.started:
        return False
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
                    bound = replace(reference, started=start_time(int(entry.name)))
                    if bound.started and leads_to(bound, identity):
                        return bound
    return None
