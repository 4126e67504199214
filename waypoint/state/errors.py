"""Errors of the waypoint's state: only unusable resources. Answers and missing routes are values."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class RoutesRejected(MeshError):
    """Routes or a destination as the control plane tells them cannot be used; the last good version stays."""

    code: ClassVar[str] = "MYC-7001"
    blame: ClassVar[Blame] = Blame.REMOTE
