"""Errors of the node agent, MYC-5000 to MYC-5999."""

from __future__ import annotations

from transport.errors import Blame, MeshError


class NodeError(MeshError):
    """Something in the node agent failed."""

    code = "MYC-5000"


class ProgramMissingError(NodeError):
    """A program that writes redirection rules (nft, ip) is not installed."""

    code = "MYC-5001"
    blame = Blame.ENVIRONMENT


class PrivilegeMissingError(NodeError):
    """The agent may not change network namespaces."""

    code = "MYC-5002"
    blame = Blame.ENVIRONMENT


class KernelFeatureMissingError(NodeError):
    """The kernel refuses a rule or route that redirection needs."""

    code = "MYC-5003"
    blame = Blame.ENVIRONMENT


class RulesNotInPlaceError(NodeError):
    """Rules were written but are not there afterwards: another program changes them."""

    code = "MYC-5004"
    blame = Blame.ENVIRONMENT


class RuleCommandError(NodeError):
    """nft or ip failed in a workload's namespace, or took too long."""

    code = "MYC-5005"
    blame = Blame.ENVIRONMENT


class BadRequestError(NodeError):
    """A request on the local API cannot be understood or carried out as asked."""

    code = "MYC-5010"
    blame = Blame.REMOTE


class NamespaceRefusedError(NodeError):
    """The namespace may not be attached: it is the agent's own, or belongs to another attachment."""

    code = "MYC-5011"
    blame = Blame.REMOTE


class UnknownAttachmentError(NodeError):
    """No workload is attached under this name."""

    code = "MYC-5012"
    blame = Blame.REMOTE


class TooManyAttachmentsError(NodeError):
    """The node's bound on attached workloads is reached."""

    code = "MYC-5013"


class NotReachedError(NodeError):
    """A workload did not reach the awaited state in time."""

    code = "MYC-5014"


class AgentUnreachableError(NodeError):
    """The node agent's local API does not answer."""

    code = "MYC-5015"
    blame = Blame.ENVIRONMENT


class SocketPathError(NodeError):
    """A unix socket of the agent cannot be made at its path."""

    code = "MYC-5016"
    blame = Blame.ENVIRONMENT


class StateFileError(NodeError):
    """The agent's state file cannot be read or written."""

    code = "MYC-5020"
    blame = Blame.ENVIRONMENT


class NoZtunnelError(NodeError):
    """No ztunnel is connected to the agent, so a workload cannot be handed over."""

    code = "MYC-5030"
    blame = Blame.REMOTE


class ZtunnelRefusedError(NodeError):
    """The ztunnel answered a workload with an error."""

    code = "MYC-5031"
    blame = Blame.REMOTE


class ZdsProtocolError(NodeError):
    """A ztunnel broke the ZDS protocol or did not answer in time; its connection is closed."""

    code = "MYC-5032"
    blame = Blame.REMOTE


class BadSettingError(NodeError):
    """A command-line setting of the agent is missing or wrong."""

    code = "MYC-5040"
    blame = Blame.ENVIRONMENT


class ControlPlaneError(NodeError):
    """The control plane sent something that cannot be understood."""

    code = "MYC-5041"
    blame = Blame.REMOTE


class RenewalFailedError(NodeError):
    """The control plane's answer to a join or a renewal makes no sense."""

    code = "MYC-5050"
    blame = Blame.REMOTE


class EngineError(NodeError):
    """A container engine does not answer, or its answer makes no sense."""

    code = "MYC-5070"
    blame = Blame.ENVIRONMENT


class UnitRefusedError(NodeError):
    """A systemd unit cannot be enrolled: it does not run, or has no network namespace of its own."""

    code = "MYC-5071"
    blame = Blame.ENVIRONMENT


class WaypointProcessError(NodeError):
    """A waypoint cannot be run as it is ordered, or its process is gone."""

    code = "MYC-5060"
    blame = Blame.ENVIRONMENT
