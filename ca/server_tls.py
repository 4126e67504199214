"""TLS of the control plane's own port: a certificate from the authority, renewed at half of its life."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable, Sequence

import structlog

from ca.authority import SERVER_LIFETIME, Authority
from ca.credentials import wall_clock
from ca.errors import CaError
from transport.grpc.tls import server_context

log = structlog.get_logger("ca.server_tls")


class ServerTls:
    """Pass `context` (the bound method) as `tls` to GrpcServer.serve: it is asked for each connection.

    A failing renewal keeps the certificate that is there; the first one must succeed.
    """

    def __init__(
        self,
        authority: Authority,
        dns_names: Sequence[str],
        ips: Sequence[str],
        *,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        self._authority = authority
        self._dns_names = tuple(dns_names)
        self._ips = tuple(ips)
        self._now = now
        self._made_at = now()
        self._context = self._make(self._made_at)

    def context(self) -> ssl.SSLContext:
        now = self._now()
        age = now - self._made_at
        if not dt.timedelta() <= age < SERVER_LIFETIME / 2:  # a clock that was set back renews as well
            self._made_at = now
            try:
                self._context = self._make(now)
            except CaError as error:
                log.warning("server_certificate_not_renewed", reason=str(error))
        return self._context

    def _make(self, now: dt.datetime) -> ssl.SSLContext:
        return server_context(self._authority.server_credential(self._dns_names, self._ips, now=now))
