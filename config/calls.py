"""What the control plane's long-lived calls have in common."""

from __future__ import annotations

import trio

from transport.grpc.server import CallContext, ServerStream
from transport.grpc.status import GrpcError


async def next_message(stream: ServerStream) -> bytes | None:
    """The client's next message; None when it is done or gone: nobody is left to hear of a failure."""
    try:
        return await stream.receive()
    except GrpcError:
        return None


async def send_message(stream: ServerStream, message: bytes) -> None:
    """To a client that is gone: nothing. `next_message` ends the call then."""
    try:
        await stream.send(message)
    except GrpcError:
        await trio.sleep_forever()


async def cancel_when_draining(context: CallContext, scope: trio.CancelScope) -> None:
    """Ends a call when the server wants to end: clients come back by themselves."""
    await context.draining.wait()
    scope.cancel()
