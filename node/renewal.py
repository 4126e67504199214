"""Keeps the node's token alive: at half of its life it is exchanged, and the root certificates are renewed.

The files are replaced whole, so whoever reads them (this agent, the ztunnel, waypoints) sees the old token or
the new one. While the control plane is away the old token stays, and renewal is tried again with a bounded
backoff until it works, also after the token has expired: the log then says what to do. The token is read here
without its signature being checked; the control plane does that.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from google.protobuf.message import DecodeError

from node.control_plane import LinkSettings
from node.errors import RenewalFailedError
from proto.mycelia import join_pb2 as pb
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.tls import TlsTrust

RENEW: Final = "/mycelia.join.JoinService/Renew"
CALL_S: Final = 15.0
BACKOFF_FIRST_S: Final = 5.0
BACKOFF_LAST_S: Final = 300.0
MAX_SLEEP_S: Final = 3600.0  # the clock may be set meanwhile

log = get_logger("node.renewal")


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """Seconds since the epoch."""

    issued: float
    expires: float

    @property
    def due(self) -> float:
        return (self.issued + self.expires) / 2


def token_times(token: str) -> TokenTimes | None:
    """When a token was issued and when it ends; None for what is no JWT with both."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return TokenTimes(float(claims["iat"]), float(claims["exp"]))
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None


def replace_file(path: Path, content: str, mode: int) -> None:
    """Whole and durable. Raises OSError; the old content is then still there."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


class Renewal:
    """`problem` says why the token is not as young as it should be; empty while all is well."""

    def __init__(self, settings: LinkSettings, *, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self.problem = ""

    async def run(self) -> None:
        """Until cancelled. A token that cannot be renewed stops nothing."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            wait_s = self._wait_s()
            if wait_s > 0:
                await trio.sleep(min(wait_s, MAX_SLEEP_S))
                continue
            try:
                await self._renew()
            except* (MeshError, OSError) as group:
                self._failed(group)
                await trio.sleep(backoff_s * random.uniform(0.8, 1.2))
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)
            else:
                backoff_s = BACKOFF_FIRST_S
                self.problem = ""

    def _wait_s(self) -> float:
        """Until renewal is due. A file that is not there yet or holds no token of ours is looked at again."""
        try:
            times = token_times(self._settings.token_file.read_text().strip())
        except (OSError, UnicodeDecodeError):
            return MAX_SLEEP_S / 60
        return MAX_SLEEP_S if times is None else times.due - self._now()

    async def _renew(self) -> None:
        settings = self._settings
        token = settings.token_file.read_text().strip()
        trust = TlsTrust(roots_pem=settings.root_cert.read_text())
        channel_settings = ChannelSettings(settings.host, settings.port, tls=trust)
        async with open_channel(channel_settings) as channel:
            answer = await channel.unary(
                RENEW,
                pb.RenewRequest().SerializeToString(),
                metadata=[("authorization", f"Bearer {token}")],
                timeout_s=CALL_S,
            )
        membership = read_membership(answer)
        await trio.to_thread.run_sync(self._keep, membership)
        log.info("node_token_renewed", node=membership.node, expires=membership.expires)

    def _keep(self, membership: pb.Membership) -> None:
        settings = self._settings
        if membership.roots_pem and membership.roots_pem != settings.root_cert.read_text():
            replace_file(settings.root_cert, membership.roots_pem, 0o644)
        replace_file(settings.token_file, membership.node_token + "\n", 0o600)

    def _failed(self, group: BaseExceptionGroup[MeshError | OSError]) -> None:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        times = token_times(self._settings.token_file.read_text().strip())
        is_over = times is not None and self._now() >= times.expires
        problem = f"the node token cannot be renewed: {error}"
        if is_over:
            problem += "; it has expired: make a join token and run `mycelia join` again"
        if problem != self.problem:
            log.error("node_token_not_renewed", problem=problem)
        self.problem = problem


def read_membership(answer: bytes) -> pb.Membership:
    """Raises RenewalFailedError."""
    try:
        membership = pb.Membership.FromString(answer)
    except DecodeError as error:
        raise RenewalFailedError("the control plane's answer cannot be parsed") from error
    if token_times(membership.node_token) is None:
        raise RenewalFailedError("the control plane's answer holds no node token")
    return membership
