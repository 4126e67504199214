"""Certificates of this node's identities, between the CA client and the workers.

An identity is wanted when its first workload arrives on the node (prefetch) or when a worker has a
connection that waits for it; it is dropped with its last workload. Every new certificate goes to all
workers unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ca.credentials import Credential, CredentialFailed, CredentialManager, CredentialReady, Priority, Update
from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger
from transport.spiffe import SpiffeId


class Certificates:
    """Tells workers through `send`. The manager is made later, with `on_update` of this object."""

    def __init__(self, send: Callable[[pb.ToWorker], None]) -> None:
        self._send = send
        self._manager: CredentialManager | None = None
        self._log = get_logger("certificates")

    def attach(self, manager: CredentialManager) -> None:
        """The manager and this object know each other; this closes the circle."""
        self._manager = manager

    @property
    def manager(self) -> CredentialManager:
        assert self._manager is not None
        return self._manager

    def want(self, identity: SpiffeId) -> None:
        """A workload of `identity` has arrived on this node."""
        self.manager.request(identity, Priority.WARMUP)

    def forget(self, identity: SpiffeId) -> None:
        """The last workload of `identity` has left this node."""
        self.manager.forget(identity)
        self._send(pb.ToWorker(forget_credential=pb.ForgetCredential(spiffe_id=str(identity))))

    def answer(self, spiffe_id: str) -> pb.ToWorker | None:
        """What a worker gets that asks for an identity now; None: the outcome will be sent to all."""
        identity = SpiffeId.try_parse(spiffe_id)
        if identity is None:
            failed = pb.CredentialFailed(spiffe_id=spiffe_id, error="not a SPIFFE identity")
            return pb.ToWorker(credential_failed=failed)
        outcome = self.manager.request(identity, Priority.REAL_TIME)
        return None if outcome is None else _message(outcome)

    def on_update(self, update: Update) -> None:
        self._send(_message(update))

    def replay(self) -> Iterator[pb.ToWorker]:
        """All valid certificates for a new worker."""
        return (_message(CredentialReady(credential)) for credential in self.manager.credentials())


def _message(update: Update) -> pb.ToWorker:
    match update:
        case CredentialReady(credential=credential):
            return pb.ToWorker(credential=_credential(credential))
        case CredentialFailed(identity=identity, error=error):
            return pb.ToWorker(
                credential_failed=pb.CredentialFailed(spiffe_id=str(identity), error=error.text)
            )


def _credential(credential: Credential) -> pb.Credential:
    return pb.Credential(
        spiffe_id=str(credential.identity),
        chain_pem=credential.chain_pem,
        key_pem=credential.key_pem,
        roots_pem=credential.roots_pem,
        not_after=int(credential.not_after.timestamp()),
    )
