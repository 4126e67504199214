"""The control plane's errors (codes 3000 to 3999)."""

from __future__ import annotations

from typing import ClassVar

from transport.errors import Blame, MeshError


class ConfigError(MeshError):
    """Base of the errors of this package."""

    code: ClassVar[str] = "MYC-3000"
    blame: ClassVar[Blame] = Blame.LOCAL


class SourceUnreadable(ConfigError):
    """The manifest directory cannot be listed or watched."""

    code = "MYC-3001"
    blame = Blame.ENVIRONMENT


class StateUnwritable(ConfigError):
    """The state directory cannot be created, read or written."""

    code = "MYC-3002"
    blame = Blame.ENVIRONMENT


class StateDamaged(ConfigError):
    """A file in the state directory is not what the control plane wrote there."""

    code = "MYC-3003"
    blame = Blame.ENVIRONMENT


class StateInUse(ConfigError):
    """Another control plane runs with the same state directory."""

    code = "MYC-3004"
    blame = Blame.ENVIRONMENT


class SettingsInvalid(ConfigError):
    """A command-line setting has no meaning."""

    code = "MYC-3005"
    blame = Blame.LOCAL


class AddressesExhausted(ConfigError):
    """No automatic virtual address is left for another service."""

    code = "MYC-3006"
    blame = Blame.POLICY


class VersionUnknown(ConfigError):
    """There is no such version of the configuration."""

    code = "MYC-3007"
    blame = Blame.ENVIRONMENT


class RestoreRefused(ConfigError):
    """A version of the configuration cannot be written back."""

    code = "MYC-3008"
    blame = Blame.ENVIRONMENT


class XdsProtocolError(ConfigError):
    """The peer of an xDS stream sent a message that cannot be decoded or makes no sense."""

    code = "MYC-3010"
    blame = Blame.REMOTE


class ReportRejected(ConfigError):
    """A node agent's report makes no sense."""

    code = "MYC-3011"
    blame = Blame.REMOTE


class TooManySubscriptions(ConfigError):
    """A client asks for more single resources than the server remembers for it."""

    code = "MYC-3012"
    blame = Blame.REMOTE
