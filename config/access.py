"""Who calls: every gRPC method of the control plane wants a node token, and believes nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Protocol

from ca.errors import NodeTokenRejected
from telemetry.logging import get_logger
from transport.grpc.metadata import Metadata
from transport.grpc.server import CallContext
from transport.grpc.status import GrpcError, GrpcStatus

log = get_logger("access")


class NodeAuthenticator(Protocol):
    def authenticate(self, metadata: Metadata, now: dt.datetime) -> str:
        """The calling node's name; raises NodeTokenRejected."""
        ...


def wall_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def calling_node(
    nodes: NodeAuthenticator, context: CallContext, now: Callable[[], dt.datetime] = wall_clock
) -> str:
    """The node whose token the call carries. The caller learns only that it was refused."""
    try:
        return nodes.authenticate(context.metadata, now())
    except NodeTokenRejected as error:
        log.warning("caller_refused", peer=context.peer_address[0], method=context.method, reason=error.text)
        raise GrpcError(GrpcStatus.UNAUTHENTICATED, "request authenticate failure") from error


def require_node(claimed: str, node: str) -> None:
    """A caller speaks for the node of its token only."""
    if claimed != node:
        log.warning("node_mismatch", claimed=claimed, token=node)
        raise GrpcError(
            GrpcStatus.PERMISSION_DENIED, f'the token is of node {node}, the caller says "{claimed}"'
        )
