"""Errors of the mesh state. Denials and missing routes are values; only unusable resources are errors."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class ResourceRejected(MeshError):
    """A resource from the control plane cannot be used; its last good version stays."""

    code: ClassVar[str] = "MYC-4001"
    blame: ClassVar[Blame] = Blame.REMOTE
