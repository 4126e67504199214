"""Pod (core v1): what the mesh reads of it, and the names of all else that may stand there."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from config import objects
from config.kinds.core import dataplane_remarks
from config.kinds.schema import DnsName, IpAddress, Manifest, Model, PortName, PortNumber, fields


class ContainerPort(Model):
    unread = fields("hostIP hostPort")
    number: PortNumber = Field(alias="containerPort")
    name: PortName = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Container(Model):
    unread = fields(
        "args command env envFrom image imagePullPolicy lifecycle livenessProbe readinessProbe resizePolicy "
        "resources restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath "
        "terminationMessagePolicy tty volumeDevices volumeMounts workingDir"
    )
    name: str = ""
    ports: list[ContainerPort] = Field(default_factory=list)
    restart_policy: str = Field(default="", alias="restartPolicy")


class PodSpec(Model):
    unread = fields(
        "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
        "ephemeralContainers hostAliases hostIPC hostPID hostUsers hostname hostnameOverride "
        "imagePullSecrets nodeSelector os overhead preemptionPolicy priority priorityClassName "
        "readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName "
        "schedulingGates schedulingGroup securityContext setHostnameAsFQDN shareProcessNamespace "
        "subdomain terminationGracePeriodSeconds "
        "tolerations topologySpreadConstraints volumes workloadRef"
    )
    service_account_name: DnsName = Field(default="", alias="serviceAccountName")
    service_account: DnsName = Field(default="", alias="serviceAccount")
    node_name: DnsName = Field(default="", alias="nodeName")
    host_network: bool = Field(default=False, alias="hostNetwork")
    containers: list[Container] = Field(default_factory=list)
    init_containers: list[Container] = Field(default_factory=list, alias="initContainers")

    def named_ports(self) -> dict[str, int]:
        """TCP ports by name, of containers that run beside each other; the first of a name counts."""
        sidecars = [each for each in self.init_containers if each.restart_policy == "Always"]
        named: dict[str, int] = {}
        for container in (*self.containers, *sidecars):
            for port in container.ports:
                if port.name and port.protocol == "TCP":
                    named.setdefault(port.name, port.number)
        return named


class PodIp(Model):
    ip: IpAddress


class PodCondition(Model):
    unread = fields("lastProbeTime lastTransitionTime message observedGeneration reason")
    type: str
    status: Literal["True", "False", "Unknown"]


class PodStatus(Model):
    unread = fields(
        "allocatedResources containerStatuses ephemeralContainerStatuses extendedResourceClaimStatus hostIP "
        "hostIPs initContainerStatuses message nodeAllocatableResourceClaimStatuses nominatedNodeName "
        "observedGeneration qosClass reason resize resourceClaimStatuses resources startTime"
    )
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown", ""] = ""
    pod_ip: IpAddress = Field(default="", alias="podIP")
    pod_ips: list[PodIp] = Field(default_factory=list, alias="podIPs")
    conditions: list[PodCondition] = Field(default_factory=list)

    def addresses(self) -> tuple[str, ...]:
        first = [self.pod_ip] if self.pod_ip else []
        return tuple(dict.fromkeys([*first, *(each.ip for each in self.pod_ips if each.ip)]))

    def is_ready(self) -> bool:
        """A pod written by hand has no kubelet's opinion on it: without the condition it counts as ready."""
        return all(each.status == "True" for each in self.conditions if each.type == "Ready")


class Pod(Manifest):
    may_require_waypoint: ClassVar[bool] = True
    spec: PodSpec
    status: PodStatus = Field(default_factory=PodStatus)

    def to_object(self) -> objects.Pod:
        meta = self.meta()
        return objects.Pod(
            meta=meta,
            addresses=self.status.addresses(),
            is_finished=self.status.phase in ("Succeeded", "Failed"),
            is_ready=self.status.is_ready() and not meta.is_being_deleted,
            service_account=self.spec.service_account_name or self.spec.service_account or "default",
            node=self.spec.node_name,
            is_host_network=self.spec.host_network,
            named_ports=self.spec.named_ports(),
        )

    def remarks(self) -> list[tuple[str, str]]:
        found = dataplane_remarks(self.metadata.labels)
        if not self.status.addresses() and self.status.phase not in ("Succeeded", "Failed"):
            found.append(
                ("status.podIP", "a Pod without an address is not part of the mesh; found nothing here")
            )
        return found
