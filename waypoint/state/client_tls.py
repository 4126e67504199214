"""The TLS that is spoken to a destination's endpoints: waypoint.proto's ClientTls, checked. Pure.

Whether certificates and keys are any good is seen when they are used; whom to expect must be said here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from proto.mycelia import waypoint_pb2 as pb
from waypoint.state.errors import RoutesRejected

_MAX_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Verified means: a chain to `roots_pem` (empty: the operating system's roots), nothing of it revoked by
    `crl_pem` (empty: nobody asks), and one of `names`.
    """

    server_name: str = ""
    names: tuple[str, ...] = ()
    roots_pem: str = ""
    is_unverified: bool = False
    chain_pem: str = ""
    key_pem: str = field(default="", repr=False)
    crl_pem: str = ""


def client_tls(message: pb.ClientTls) -> ClientTls:
    """Raises `RoutesRejected` for what would verify nobody in particular."""
    if not message.is_unverified and not message.names:
        raise RoutesRejected("TLS whose certificates are to be verified, without a name to expect")
    if not message.server_name.isascii() or len(message.server_name) > _MAX_NAME:
        raise RoutesRejected("TLS with a server name that cannot be sent")
    if message.crl_pem and (message.is_unverified or not message.roots_pem):
        raise RoutesRejected("TLS with a revocation list and nothing that it is about")
    if bool(message.chain_pem) != bool(message.key_pem):
        raise RoutesRejected("TLS with half a client certificate: the chain or the key is missing")
    return ClientTls(
        message.server_name,
        tuple(message.names),
        message.roots_pem,
        message.is_unverified,
        message.chain_pem,
        message.key_pem,
        message.crl_pem,
    )
