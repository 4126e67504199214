"""IstioCertificateService: signs for the identities that run on the calling node, and for no others.

Source: ztunnel-facts 6.1, 6.5, 6.6. The caller is its bearer token and nothing else; a wrong caller learns
only that it was refused, the log says why.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Protocol

import structlog
import trio
from google.protobuf.message import DecodeError

from ca.authority import Authority
from ca.credentials import wall_clock
from ca.errors import CaError, CsrRejected, LifetimeTooLong, NodeTokenRejected
from ca.protocol import IMPERSONATED_IDENTITY, MAX_REQUEST_BYTES, METHOD
from proto.istio.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from transport.grpc.metadata import Metadata
from transport.grpc.server import CallContext, UnaryHandler
from transport.grpc.status import GrpcError, GrpcStatus
from transport.spiffe import SpiffeId

log = structlog.get_logger("ca.service")


class NodeAuthenticator(Protocol):
    def authenticate(self, metadata: Metadata, now: dt.datetime) -> str:
        """The calling node's name; raises NodeTokenRejected."""
        ...


class CertificateService:
    """`is_running_on(identity, node)` is the registry's word; it is asked for every request."""

    def __init__(
        self,
        authority: Authority,
        nodes: NodeAuthenticator,
        is_running_on: Callable[[SpiffeId, str], bool],
        *,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        self._authority = authority
        self._nodes = nodes
        self._is_running_on = is_running_on
        self._now = now

    @property
    def handlers(self) -> dict[str, UnaryHandler]:
        """For GrpcServer's `unary`."""
        return {METHOD: self.create_certificate}

    @property
    def request_limits(self) -> dict[str, int]:
        """For GrpcServer's `request_limits`: nobody sends megabytes before authentication."""
        return {METHOD: MAX_REQUEST_BYTES}

    async def create_certificate(self, request: bytes, context: CallContext) -> bytes:
        await trio.lowlevel.checkpoint()
        now = self._now()
        node = self._authenticate(context, now)
        message = _parse(request)
        identity = self._authorise(node, message)
        lifetime = dt.timedelta(seconds=min(max(message.validity_duration, 0), 10**9))
        try:
            issued = self._authority.sign(message.csr, identity, lifetime, now)
        except (CsrRejected, LifetimeTooLong) as error:
            log.warning("certificate_refused", node=node, identity=str(identity), reason=str(error))
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, error.text) from error
        except CaError as error:
            log.exception("certificate_not_issued", node=node, identity=str(identity))
            raise GrpcError(GrpcStatus.INTERNAL, "the CA cannot sign now") from error
        log.info(
            "certificate_issued", node=node, identity=str(identity), not_after=issued.not_after.isoformat()
        )
        chain = [issued.leaf, *issued.intermediates, issued.roots_pem]
        return IstioCertificateResponse(cert_chain=chain).SerializeToString()

    def _authenticate(self, context: CallContext, now: dt.datetime) -> str:
        try:
            return self._nodes.authenticate(context.metadata, now)
        except NodeTokenRejected as error:
            log.warning("caller_refused", peer=context.peer_address[0], reason=error.text)
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "request authenticate failure") from error

    def _authorise(self, node: str, message: IstioCertificateRequest) -> SpiffeId:
        """A node has no identity of its own, so every request must name the one it is for."""
        value = message.metadata.fields.get(IMPERSONATED_IDENTITY)
        asked = value.string_value if value is not None else ""
        identity = SpiffeId.try_parse(asked)
        if identity is None:
            reason = f"{asked[:200]!r} is not an identity"
        elif identity.trust_domain != self._authority.trust_domain:
            reason = f"{identity} is of another trust domain"
        elif not self._is_running_on(identity, node):
            reason = f"no workload of {identity} runs on this node"
        else:
            return identity
        log.warning("impersonation_refused", node=node, reason=reason)
        raise GrpcError(GrpcStatus.UNAUTHENTICATED, "request impersonation authentication failure")


def _parse(request: bytes) -> IstioCertificateRequest:
    if len(request) > MAX_REQUEST_BYTES:
        raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "the request is too large")
    try:
        return IstioCertificateRequest.FromString(request)
    except DecodeError as error:
        raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "the request cannot be parsed") from error
