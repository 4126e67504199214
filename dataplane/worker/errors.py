"""What any data worker may lack or give up."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class IdentityUnavailable(MeshError):
    """There is no certificate for the workload's identity."""

    code = "MYC-4516"
    blame = Blame.ENVIRONMENT


class ConnectionDrained(MeshError):
    """The drain deadline passed, or the workload was removed, while the connection was open."""

    code = "MYC-4517"
    blame = Blame.LOCAL


class NameNotResolved(MeshError):
    """The hostname of a workload without addresses does not resolve."""

    code = "MYC-4521"
    blame = Blame.ENVIRONMENT
