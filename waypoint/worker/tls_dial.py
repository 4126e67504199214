"""Byte streams in TLS to the endpoints that want it, over whatever leads there. Nothing goes out in plaintext
where TLS cannot be had: the connect fails.

The connect timeout spans the connect and the handshake. Bounds: `_MAX_CONTEXTS` remembered settings.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from transport.errors import MeshError
from transport.hbone.connect import socket_text
from transport.reactor import Reactor, Timer
from transport.tls.buffers import inner_buffers_of
from transport.tls.engine import TlsEngine
from transport.tls.errors import PeerRejected, ProtocolNotAgreed
from transport.tls.origination import Credentials, as_address, check_server, make_origination_context
from waypoint.state.client_tls import ClientTls
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.byte_stream import ByteStream
from waypoint.worker.dial import Carrier, Dial, DialDone
from waypoint.worker.errors import ConnectTimeout, EndpointTlsFailed
from waypoint.worker.tls_stream import TlsStream

_MAX_CONTEXTS: Final = 256
_CONNECT_TIMEOUT_S: Final = 10.0


class TlsDialler:
    """Hands endpoints without TLS through to `inner`, and speaks TLS over its streams to the others."""

    def __init__(self, inner: Carrier, reactor: Reactor) -> None:
        self.inner = inner
        self.reactor = reactor
        self._contexts: dict[Credentials, SSL.Context] = {}

    def dial(self, endpoint: Endpoint, done: DialDone, application: Application | None = None) -> Dial:
        if endpoint.tls is None:
            return self.inner.dial(endpoint, done, application)
        return _TlsDial(self, endpoint, endpoint.tls, done, application)

    def context(self, tls: ClientTls) -> SSL.Context:
        """Raises TlsSettingsInvalid."""
        key = Credentials(tls.roots_pem, tls.is_unverified, tls.chain_pem, tls.key_pem, tls.crl_pem)
        found = self._contexts.get(key)
        if found is None:
            if len(self._contexts) >= _MAX_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            found = self._contexts[key] = make_origination_context(key)
        return found


class _TlsDial:
    __slots__ = ("_application", "_dial", "_dialler", "_done", "_endpoint", "_stream", "_timer", "_tls")

    def __init__(
        self,
        dialler: TlsDialler,
        endpoint: Endpoint,
        tls: ClientTls,
        done: DialDone,
        application: Application | None,
    ) -> None:
        self._dialler = dialler
        self._endpoint = endpoint
        self._tls = tls
        self._done: DialDone | None = done
        self._application = application
        self._stream: TlsStream | None = None
        circuit = endpoint.circuit
        timeout_s = _CONNECT_TIMEOUT_S if circuit is None else circuit.pool.connect_timeout_s
        self._timer: Timer = dialler.reactor.call_later(timeout_s, self._on_timeout)
        self._dial: Dial | None = dialler.inner.carry(endpoint, self._on_dialled, application)

    def _on_dialled(self, result: ByteStream | MeshError) -> None:
        self._dial = None
        if isinstance(result, MeshError):
            self._tell(result)
            return
        dialler, tls = self._dialler, self._tls
        try:
            context = dialler.context(tls)
        except MeshError as error:
            result.abort()
            self._tell(_failed(error))
            return
        name = "" if as_address(tls.server_name) else tls.server_name
        alpn = () if self._application is None else (self._application.value.encode(),)
        engine = TlsEngine(
            context, inner_buffers_of(dialler.reactor), is_server=False, server_name=name.encode(), alpn=alpn
        )
        self._stream = TlsStream(dialler.reactor, result, engine, verify=self._check, done=self._on_secured)

    def _check(self, engine: TlsEngine) -> None:
        if not self._tls.is_unverified:
            der = engine.peer_der()
            if der is None:
                raise PeerRejected("the peer sent no certificate")
            check_server(der, self._tls.names)
        if self._application is Application.HTTP2 and engine.alpn != b"h2":
            raise ProtocolNotAgreed("the peer does not agree to HTTP/2 (no ALPN h2)")

    def _on_secured(self, result: TlsStream | MeshError) -> None:
        self._stream = None
        self._tell(_failed(result) if isinstance(result, MeshError) else result)

    def _on_timeout(self) -> None:
        where = socket_text(*self._endpoint.address)
        what = "no connection to" if self._stream is None else "the TLS handshake did not end with"
        done = self._done
        self.cancel()
        if done is not None:
            done(ConnectTimeout(f"{what} {where} in time"))

    def _tell(self, result: ByteStream | MeshError) -> None:
        self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def cancel(self) -> None:
        self._done = None
        self._timer.cancel()
        dial, self._dial = self._dial, None
        stream, self._stream = self._stream, None
        if dial is not None:
            dial.cancel()
        if stream is not None:
            stream.abort()


def _failed(error: MeshError) -> EndpointTlsFailed:
    failure = EndpointTlsFailed(error.text)
    failure.__cause__ = error
    return failure
