"""The worker's certificates: TLS contexts by identity, made from what the control process sends.

A refreshed credential replaces the contexts for new connections; open ones keep theirs. An identity that is
missing is asked for once; connections wait for it, bounded in number and time. After a failure every request
fails at once until a credential arrives, because the control process goes on trying by itself (facts 6.4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from OpenSSL import SSL

from dataplane.worker.errors import IdentityUnavailable
from transport.errors import MeshError
from transport.reactor import Reactor, Timer
from transport.spiffe import SpiffeId
from transport.tls.context import make_context

MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Credential:
    """Both roles' contexts of one identity."""

    identity: SpiffeId
    client: SSL.Context
    server: SSL.Context
    not_after: int  # seconds since the epoch


# Gets the credential or why there is none.
Waiter = Callable[[Credential | MeshError], None]


class CredentialStore:
    """`ask` sends CredentialWanted to the control process."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        ask: Callable[[SpiffeId], None],
        wait_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._ask = ask
        self._wait_s = wait_s
        self._clock = clock
        self._held: dict[SpiffeId, Credential] = {}
        self._failures: dict[SpiffeId, str] = {}
        self._waiting: dict[SpiffeId, list[Waiter]] = {}
        self._timers: dict[SpiffeId, Timer] = {}
        self._waiting_count = 0

    def get(self, identity: SpiffeId) -> Credential | None:
        """The credential if there is one and it has not expired."""
        credential = self._held.get(identity)
        if credential is not None and credential.not_after > self._clock():
            return credential
        return None

    def client_context(self, identity: SpiffeId) -> SSL.Context:
        """Raises IdentityUnavailable."""
        credential = self.get(identity)
        if credential is None:
            raise self._unavailable(identity)
        return credential.client

    def want(self, identity: SpiffeId, waiter: Waiter) -> None:
        """Hand the credential to `waiter`, now or when it has come."""
        credential = self.get(identity)
        if credential is not None:
            waiter(credential)
            return
        if identity in self._failures or self._waiting_count >= MAX_WAITING:
            waiter(self._unavailable(identity))
            return
        waiting = self._waiting.get(identity)
        if waiting is None:
            waiting = self._waiting[identity] = []
            self._timers[identity] = self._reactor.call_later(
                self._wait_s,
                lambda: self.put_failure(identity, "no certificate arrived in time", is_lasting=False),
            )
            self._ask(identity)
        waiting.append(waiter)
        self._waiting_count += 1

    def put(
        self, identity: SpiffeId, chain_pem: Sequence[str], key_pem: bytes, roots_pem: str, not_after: int
    ) -> None:
        """A new or refreshed credential. Raises TlsSettingsInvalid; what was held stays then."""
        credential = Credential(
            identity,
            client=make_context(chain_pem, key_pem, roots_pem, is_server=False),
            server=make_context(chain_pem, key_pem, roots_pem, is_server=True),
            not_after=not_after,
        )
        self._held[identity] = credential
        self._failures.pop(identity, None)
        for waiter in self._take_waiting(identity):
            waiter(credential)

    def put_failure(self, identity: SpiffeId, reason: str, *, is_lasting: bool = True) -> None:
        """There is no (new) certificate; one that is held and valid goes on being used."""
        if is_lasting and self.get(identity) is None:
            self._failures[identity] = reason
        waiting = self._take_waiting(identity)
        if waiting:
            error = self._unavailable(identity, reason)
            for waiter in waiting:
                waiter(error)

    def forget(self, identity: SpiffeId) -> None:
        self._held.pop(identity, None)
        self._failures.pop(identity, None)

    def describe(self) -> list[dict[str, object]]:
        held: list[dict[str, object]] = [
            {"identity": str(credential.identity), "state": "Available", "notAfter": credential.not_after}
            for credential in self._held.values()
        ]
        failed: list[dict[str, object]] = [
            {"identity": str(identity), "state": f"Unavailable: {reason}"}
            for identity, reason in self._failures.items()
        ]
        return [*held, *failed]

    def _take_waiting(self, identity: SpiffeId) -> list[Waiter]:
        timer = self._timers.pop(identity, None)
        if timer is not None:
            timer.cancel()
        waiting = self._waiting.pop(identity, [])
        self._waiting_count -= len(waiting)
        return waiting

    def _unavailable(self, identity: SpiffeId, reason: str = "") -> IdentityUnavailable:
        credential = self._held.get(identity)
        reason = reason or self._failures.get(identity, "")
        if not reason:
            reason = "it has expired" if credential is not None else "none was issued yet"
        return IdentityUnavailable(
            f"no certificate for {identity}: {reason}",
            next_step="see the CA's log and `mycelia doctor`; traffic goes on once the certificate is there",
        )
