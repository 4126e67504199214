"""Errors of the control process."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class ZdsViolated(MeshError):
    """The node agent broke the workload protocol in a way after which nothing it says can be trusted."""

    code: ClassVar[str] = "MYC-4110"
    blame: ClassVar[Blame] = Blame.REMOTE


class ProxyNotStarted(MeshError):
    """A workload's listeners could not be opened; it stays pending and is tried again."""

    code: ClassVar[str] = "MYC-4111"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT


class MissingPrivilege(MeshError):
    """The process may not do what a node proxy must: enter namespaces or mark sockets."""

    code: ClassVar[str] = "MYC-4112"
    blame: ClassVar[Blame] = Blame.ENVIRONMENT
