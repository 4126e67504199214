"""Errors of a control process with its workers and its disk."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class SavedStateUnusable(MeshError):
    """The resources saved on disk cannot be read, or the file is damaged."""

    code: ClassVar[str] = "MYC-4113"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class WorkerUnanswering(MeshError):
    """A data worker did not answer in time or does not take what it is sent."""

    code: ClassVar[str] = "MYC-4114"
    blame: ClassVar[Blame] = Blame.LOCAL


class WorkerLost(MeshError):
    """A data worker ended or its channel broke; it is started again."""

    code: ClassVar[str] = "MYC-4115"
    blame: ClassVar[Blame] = Blame.LOCAL
