"""Errors of the telemetry shell."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class ListenFailed(MeshError):
    """An administration port cannot be opened: it is in use, not allowed, or its address is not local."""

    code: ClassVar[str] = "MYC-1901"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class InvalidLogLevel(MeshError):
    """A log level setting names no level."""

    code: ClassVar[str] = "MYC-1902"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT
