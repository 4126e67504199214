"""Errors of the `mycelia` command, MYC-6000 to MYC-6499 (the lab's follow from 6500)."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class CommandError(MeshError):
    """The command cannot do what was asked."""

    code = "MYC-6000"


class ProgramsMissingError(CommandError):
    """Programs that the command runs are not installed."""

    code = "MYC-6001"
    blame = Blame.ENVIRONMENT


class ExamplesMissingError(CommandError):
    """The demo's manifests are not beside the program."""

    code = "MYC-6002"
    blame = Blame.ENVIRONMENT


class ProcessFailedError(CommandError):
    """A process of the demo ended or did not become ready."""

    code = "MYC-6003"


class NoDemoError(CommandError):
    """No demo of this user is running."""

    code = "MYC-6004"
    blame = Blame.ENVIRONMENT


class DemoRunningError(CommandError):
    """A demo of this user is running already."""

    code = "MYC-6005"
    blame = Blame.ENVIRONMENT


class UnknownWorkloadError(CommandError):
    """There is no workload of that name."""

    code = "MYC-6006"
    blame = Blame.ENVIRONMENT


class UnreachableError(CommandError):
    """A process of the mesh does not answer on its status port or socket."""

    code = "MYC-6007"
    blame = Blame.ENVIRONMENT


class NotInTimeError(CommandError):
    """What the demo waits for did not happen."""

    code = "MYC-6008"


class BadArgumentError(CommandError):
    """An argument of the command cannot be understood."""

    code = "MYC-6009"
    blame = Blame.ENVIRONMENT


class JoinRefusedError(CommandError):
    """The control plane does not accept a join token."""

    code = "MYC-6010"
    blame = Blame.POLICY


class HostChangeError(CommandError):
    """A change of the host (user, file, service) failed or is not allowed."""

    code = "MYC-6011"
    blame = Blame.ENVIRONMENT


class ForeignFileError(CommandError):
    """A manifest belongs to somebody else: the command neither overwrites nor removes it."""

    code = "MYC-6012"
    blame = Blame.ENVIRONMENT
