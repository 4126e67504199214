"""One POST over HTTP/1.1 in plaintext, for exporters: h11 on trio. The answer's body is read and dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import h11
import trio

from transport.errors import Blame, MeshError
from transport.grpc.tls import TlsTrust

_CHUNK: Final = 16 * 1024
_MAX_ANSWER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where spans go. `headers` are added to each request. `tls` None: in plaintext. `refusal`: why nothing
    may be sent there.
    """

    host: str
    port: int
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    tls: TlsTrust | None = None
    refusal: str = ""


class PostFailed(MeshError):
    """Spans could not be handed over to a collector; `may_repeat`: another try may do better."""

    code: ClassVar[str] = "MYC-1904"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT

    def __init__(self, text: str, *, may_repeat: bool) -> None:
        super().__init__(text)
        self.may_repeat = may_repeat


async def post(target: Target, content_type: str, body: bytes, timeout_s: float) -> None:
    """Raises PostFailed for every answer but 2xx. Nothing stays open, also when cancelled."""
    refuse(target)
    if target.tls is not None:
        raise PostFailed("TLS is for collectors over gRPC only", may_repeat=False)
    try:
        with trio.fail_after(timeout_s):
            async with await trio.open_tcp_stream(target.host, target.port) as stream:
                status = await _exchange(stream, target, content_type, body)
    except (OSError, trio.BrokenResourceError, h11.ProtocolError) as error:
        raise PostFailed(str(error.__cause__ or error), may_repeat=True) from error
    except trio.TooSlowError as error:
        raise PostFailed(f"no answer within {timeout_s:g} s", may_repeat=True) from error
    if not 200 <= status < 300:
        raise PostFailed(f"status {status}", may_repeat=status in (429, 502, 503, 504))


def refuse(target: Target) -> None:
    """Raises PostFailed where nothing may be sent."""
    if target.refusal:
        raise PostFailed(target.refusal, may_repeat=False)


async def _exchange(stream: trio.abc.Stream, target: Target, content_type: str, body: bytes) -> int:
    connection = h11.Connection(h11.CLIENT)
    name = f"[{target.host}]" if ":" in target.host else target.host
    head = h11.Request(
        method="POST",
        target=target.path,
        headers=[
            ("host", f"{name}:{target.port}"),
            ("content-type", content_type),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *target.headers,
        ],
    )
    pieces = (head, h11.Data(data=body), h11.EndOfMessage())
    await stream.send_all(b"".join(connection.send(piece) or b"" for piece in pieces))
    received = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(_CHUNK))
            received += len(data)
            if received > _MAX_ANSWER_BYTES:
                raise PostFailed("the answer is too long", may_repeat=False)
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            return event.status_code
        elif isinstance(event, h11.ConnectionClosed):
            raise PostFailed("the connection ended without an answer", may_repeat=True)
