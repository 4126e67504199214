"""Errors of the lab, MYC-6500 to MYC-6599."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class LabError(MeshError):
    """A step of building or using a lab network failed."""

    code = "MYC-6500"


class NamespacesForbiddenError(LabError):
    """The system does not let this user make namespaces, or a lab was to be built outside a private one."""

    code = "MYC-6501"
    blame = Blame.ENVIRONMENT


class LabProgramMissingError(LabError):
    """A program that the lab needs (ip, nft, tcpdump) is not installed."""

    code = "MYC-6502"
    blame = Blame.ENVIRONMENT


class LabCommandError(LabError):
    """A command that the lab ran in a namespace failed."""

    code = "MYC-6503"


class BadCaptureError(LabError):
    """A packet capture cannot be read."""

    code = "MYC-6504"
