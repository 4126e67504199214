"""JoinService: hosts become nodes with a join token, and nodes renew what proves it (join.proto).

A caller that is refused learns only that; the log says why. A use of a join token is on disk before the node
token leaves, so a crash can cost a use but never gives one away twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from google.protobuf.message import DecodeError

from ca.errors import CaError, InvalidNodeName, NodeTokenRejected
from ca.join_token import UseLedger, admit
from ca.node_token import NodeTokens, require_node_name
from config.access import calling_node, wall_clock
from proto.mycelia import join_pb2 as pb
from telemetry.logging import get_logger
from transport.grpc.server import CallContext, UnaryHandler
from transport.grpc.status import GrpcError, GrpcStatus

JOIN: Final = "/mycelia.join.JoinService/Join"
RENEW: Final = "/mycelia.join.JoinService/Renew"
MAX_REQUEST_BYTES: Final = 16 * 1024
NODE_TOKEN_LIFETIME: Final = dt.timedelta(days=7)

log = get_logger("joining")


class JoinService:
    """`roots` gives the trust bundle as it is now."""

    def __init__(
        self,
        tokens: NodeTokens,
        ledger: Path,
        roots: Callable[[], str],
        *,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        self._tokens = tokens
        self._ledger = UseLedger(ledger)
        self._roots = roots
        self._now = now
        self._turn = trio.Lock()

    @property
    def handlers(self) -> dict[str, UnaryHandler]:
        """For GrpcServer's `unary`."""
        return {JOIN: self.join, RENEW: self.renew}

    @property
    def request_limits(self) -> dict[str, int]:
        """For GrpcServer's `request_limits`."""
        return {JOIN: MAX_REQUEST_BYTES, RENEW: MAX_REQUEST_BYTES}

    async def join(self, request: bytes, context: CallContext) -> bytes:
        try:
            message = pb.JoinRequest.FromString(request)
        except DecodeError as error:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "the request cannot be parsed") from error
        peer = context.peer_address[0]
        try:
            node = require_node_name(message.node)
            admission = admit(self._tokens, message.credential, node, self._now())
            async with self._turn:
                await trio.to_thread.run_sync(self._ledger.take, admission, self._now())
        except (NodeTokenRejected, InvalidNodeName) as error:
            log.warning("join_refused", peer=peer, node=message.node[:253], reason=error.text)
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "the join token is not accepted") from error
        except CaError as error:
            log.error("join_not_recorded", peer=peer, node=node, reason=error.text)  # noqa: TRY400
            raise GrpcError(GrpcStatus.INTERNAL, "the control plane cannot record the join now") from error
        log.info("node_joined", peer=peer, node=node, join_token=admission.token_id)
        return self._membership(node)

    async def renew(self, request: bytes, context: CallContext) -> bytes:  # noqa: ARG002 - it says nothing
        await trio.lowlevel.checkpoint()
        node = calling_node(self._tokens, context, self._now)
        log.info("node_token_renewed", node=node)
        return self._membership(node)

    def _membership(self, node: str) -> bytes:
        now = self._now()
        return pb.Membership(
            node=node,
            node_token=self._tokens.mint(node, NODE_TOKEN_LIFETIME, now),
            expires=int((now + NODE_TOKEN_LIFETIME).timestamp()),
            roots_pem=self._roots(),
        ).SerializeToString()
