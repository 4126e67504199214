"""One GET over HTTP/1.1 for a document of bounded size, to guarded addresses. On trio and h11."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import ClassVar, Final
from urllib.parse import urljoin, urlsplit

import h11
import trio

from config.jwks.guard import Guard
from transport.errors import Blame, MeshError

MAX_BYTES: Final = 256 * 1024
MAX_REDIRECTS: Final = 3
_CHUNK: Final = 16 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class FetchFailed(MeshError):
    """A document could not be had: the text says what went wrong at which address."""

    code: ClassVar[str] = "MYC-3050"
    blame: ClassVar[Blame] = Blame.REMOTE


@dataclass(frozen=True, slots=True)
class Fetcher:
    """`tls` judges servers' certificates."""

    guard: Guard
    tls: ssl.SSLContext

    async def get(self, uri: str, timeout_s: float) -> bytes:
        """The document. Raises FetchFailed. Nothing stays open, also when cancelled."""
        try:
            with trio.fail_after(timeout_s):
                return await self._follow(uri)
        except trio.TooSlowError:
            raise FetchFailed(f"{uri}: no answer within {timeout_s:g} s") from None
        except (ValueError, h11.LocalProtocolError) as error:
            # A host or target that cannot be written, here or where a redirect leads.
            raise FetchFailed(f"{uri}: it, or where it leads, cannot be called: {error}") from error

    async def _follow(self, uri: str) -> bytes:
        begun = urlsplit(uri).scheme
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._once(uri)
            if isinstance(found, bytes):
                return found
            uri = urljoin(uri, found)
            scheme = urlsplit(uri).scheme
            if scheme not in ("http", "https") or (begun == "https" and scheme != "https"):
                raise FetchFailed(f"{uri}: a redirect from {begun} to {scheme or 'nowhere'} is not followed")
        raise FetchFailed(f"{uri}: more than {MAX_REDIRECTS} redirects")

    async def _once(self, uri: str) -> bytes | str:
        """The document, or where else it is."""
        parts = urlsplit(uri)
        host = parts.hostname
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise FetchFailed(f"{uri}: the port is none") from None
        if not host:
            raise FetchFailed(f"{uri}: there is no host")
        stream: trio.abc.Stream = await self._connect(uri, host, port)
        if parts.scheme == "https":
            stream = trio.SSLStream(stream, self.tls, server_hostname=host, https_compatible=True)
        async with stream:
            try:
                return await _exchange(stream, uri)
            except (OSError, trio.BrokenResourceError, ssl.SSLError, h11.RemoteProtocolError) as error:
                cause = error.__cause__ or error
                raise FetchFailed(f"{uri}: {cause}") from error

    async def _connect(self, uri: str, host: str, port: int) -> trio.SocketStream:
        """To the first address that answers; each is judged after the name is resolved."""
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise FetchFailed(f"{uri}: {host} cannot be resolved: {error.strerror or error}") from error
        problem = "no address"
        for family, _, _, _, address in found:
            ip = str(address[0])
            if not self.guard.is_allowed(ip):
                problem = f"{ip} is an address that must not be called (link-local or metadata)"
                continue
            sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
            try:
                await sock.connect((ip, port))
            except OSError as error:
                sock.close()
                problem = f"{ip} port {port}: {error.strerror or error}"
                continue
            except BaseException:
                sock.close()
                raise
            return trio.SocketStream(sock)
        raise FetchFailed(f"{uri}: {problem}")


async def _exchange(stream: trio.abc.Stream, uri: str) -> bytes | str:
    parts = urlsplit(uri)
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_CHUNK * 4)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    head = h11.Request(
        method="GET",
        target=target,
        headers=[("host", host), ("accept", "application/json"), ("connection", "close")],
    )
    await stream.send_all((connection.send(head) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    body, response = bytearray(), None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BYTES:
                raise FetchFailed(f"{uri}: more than {MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    if response is None:
        raise FetchFailed(f"{uri}: the connection ended without an answer")
    if response.status_code in _REDIRECTS:
        where = dict(response.headers).get(b"location", b"").decode("latin-1")
        if not where:
            raise FetchFailed(f"{uri}: {response.status_code} without a location")
        return where
    if response.status_code != 200:
        raise FetchFailed(f"{uri}: status {response.status_code}")
    return bytes(body)
