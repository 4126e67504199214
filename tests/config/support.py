"""The words of the config tests: manifests in, decoded resources out."""

from __future__ import annotations

from textwrap import dedent

from config.compile.resource import ADDRESS, AUTHORIZATION, DESTINATION, SERVICE_ROUTES, Delta
from config.findings import Severity
from config.objects import MeshObject, Ref
from config.registry.conditions import conditions
from config.registry.registry import Registry
from config.settings import MeshSettings
from config.source.manifest_set import FileReading, read_file
from proto.istio import authorization_pb2, workload_pb2
from proto.mycelia import waypoint_pb2

CLUSTER = "Kubernetes"


def read(text: str, name: str = "test.yaml", previous: FileReading | None = None) -> FileReading:
    return read_file(name, dedent(text), previous)


def objects_of(*texts: str) -> dict[Ref, MeshObject]:
    """The objects of manifests that must be good."""
    found: dict[Ref, MeshObject] = {}
    for text in texts:
        reading = read(text)
        errors = [str(each) for each in reading.problems if each.severity is Severity.ERROR]
        assert not errors, errors
        found |= {ref: each.value for ref, each in reading.good.items()}
    return found


def errors_of(text: str) -> list[str]:
    return [str(each) for each in read(text).problems if each.severity is Severity.ERROR]


def warnings_of(text: str) -> list[str]:
    return [str(each) for each in read(text).problems if each.severity is Severity.WARNING]


class Mesh:
    """A registry that is told in YAML and asked in protobuf."""

    def __init__(self, *texts: str, settings: MeshSettings | None = None) -> None:
        self.registry = Registry(settings or MeshSettings())
        self.apply(*texts)

    def apply(self, *texts: str) -> Delta:
        return self.registry.apply(objects_of(*texts))

    def remove(self, kind: str, namespace: str, name: str) -> Delta:
        return self.registry.apply({}, [Ref(kind, namespace, name)])

    def workload(self, name: str) -> workload_pb2.Workload:
        """By uid, or by what follows the cluster and kind in it (`shop/web`)."""
        found = [each for each in self.workloads() if each.uid == name or each.uid.endswith(f"/{name}")]
        assert len(found) == 1, (name, self.uids())
        return found[0]

    def workloads(self) -> list[workload_pb2.Workload]:
        return [each.workload for each in self._addresses() if each.HasField("workload")]

    def uids(self) -> list[str]:
        return sorted(each.uid for each in self.workloads())

    def service(self, name: str) -> workload_pb2.Service:
        """By resource name `<namespace>/<hostname>`."""
        message = workload_pb2.Address.FromString(self.registry.resources[ADDRESS][name].payload)
        assert message.HasField("service")
        return message.service

    def services(self) -> list[str]:
        return sorted(
            f"{each.service.namespace}/{each.service.hostname}"
            for each in self._addresses()
            if each.HasField("service")
        )

    def policy(self, key: str) -> authorization_pb2.Authorization:
        return authorization_pb2.Authorization.FromString(self.registry.resources[AUTHORIZATION][key].payload)

    def policies(self) -> list[str]:
        return sorted(self.registry.resources[AUTHORIZATION])

    def routes(self, name: str) -> waypoint_pb2.ServiceRoutes:
        """By resource name `<namespace>/<hostname>`."""
        return waypoint_pb2.ServiceRoutes.FromString(self.registry.resources[SERVICE_ROUTES][name].payload)

    def destination(self, name: str, *, waypoints: str = "shop") -> waypoint_pb2.Destination:
        """By `<namespace>/<hostname>`, as waypoints of a namespace see it."""
        payload = self.registry.resources[DESTINATION][f"{waypoints}/{name}"].payload
        return waypoint_pb2.Destination.FromString(payload)

    def destinations(self) -> list[str]:
        return sorted(self.registry.resources[DESTINATION])

    def http_rules(self, name: str = "shop/web.shop.svc.cluster.local") -> list[waypoint_pb2.HttpRule]:
        """Of the only port."""
        (port,) = self.routes(name).ports
        return list(port.http_rules)

    def conditions(self, kind: str, name: str, type_: str = "") -> list[str]:
        """`<type>=<status> <reason>: <message>` of an object of any namespace."""
        return [
            f"{each.type}={each.is_true} {each.reason.value}: {each.message}"
            for each in conditions(self.registry)
            if (each.ref.kind, each.ref.name) == (kind, name) and type_ in ("", each.type)
        ]

    def notes(self) -> list[str]:
        return [f"{note.ref}: {note.reason.value}: {note.text}" for note in self.registry.notes()]

    def _addresses(self) -> list[workload_pb2.Address]:
        return [
            workload_pb2.Address.FromString(each.payload)
            for each in self.registry.resources[ADDRESS].values()
        ]


def namespace(name: str, labels: str = "", annotations: str = "") -> str:
    return (
        f"apiVersion: v1\nkind: Namespace\n"
        f"metadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}\n"
    )


def pod(
    name: str,
    *,
    ip: str = "10.0.0.1",
    labels: str = "",
    annotations: str = "",
    spec: str = "",
    status: str = "",
    space: str = "shop",
    metadata: str = "",
) -> str:
    more = f", {metadata}" if metadata else ""
    return (
        "apiVersion: v1\nkind: Pod\n"
        f"metadata: {{name: {name}, namespace: {space}, labels: {{{labels}}}, "
        f"annotations: {{{annotations}}}{more}}}\n"
        f"spec: {{{spec}}}\n"
        f"status: {{podIP: {ip!r}{', ' + status if status else ''}}}\n"
    )


def entry(name: str, *, ip: str = "10.0.0.1", labels: str = "", spec: str = "", space: str = "shop") -> str:
    return (
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{name: {name}, namespace: {space}, labels: {{{labels}}}}}\n"
        f"spec: {{address: {ip!r}{', ' + spec if spec else ''}}}\n"
    )


def service(name: str, spec: str, *, labels: str = "", annotations: str = "", space: str = "shop") -> str:
    return (
        "apiVersion: v1\nkind: Service\n"
        f"metadata: {{name: {name}, namespace: {space}, labels: {{{labels}}}, "
        f"annotations: {{{annotations}}}}}\n"
        f"spec: {{{spec}}}\n"
    )


def istio(
    kind: str, name: str, spec: str, *, space: str = "shop", group: str = "", metadata: str = ""
) -> str:
    """`spec` in flow style."""
    group = group or {
        "AuthorizationPolicy": "security.istio.io",
        "PeerAuthentication": "security.istio.io",
        "RequestAuthentication": "security.istio.io",
        "ServiceEntry": "networking.istio.io",
        "WorkloadEntry": "networking.istio.io",
        **dict.fromkeys(
            ["Gateway", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"], "gateway.networking.k8s.io"
        ),
    }.get(kind, "networking.istio.io")
    more = f", {metadata}" if metadata else ""
    return (
        f"apiVersion: {group}/v1\nkind: {kind}\n"
        f"metadata: {{name: {name}, namespace: {space}{more}}}\nspec: {spec}\n"
    )


def waypoint(name: str = "wp", *, space: str = "shop", labels: str = "", allowed: str = "") -> str:
    """A Gateway as it is written by hand, without status."""
    routes = f", allowedRoutes: {{namespaces: {{{allowed}}}}}" if allowed else ""
    listener = f"{{name: mesh, port: 15008, protocol: HBONE{routes}}}"
    spec = f"{{gatewayClassName: istio-waypoint, listeners: [{listener}]}}"
    return istio("Gateway", name, spec, space=space, metadata=f"labels: {{{labels}}}")


def replica(
    name: str = "wp-0", of: str = "wp", *, ip: str = "10.9.0.1", space: str = "shop", is_ready: bool = True
) -> str:
    """A workload of a waypoint."""
    labels = f"gateway.networking.k8s.io/gateway-name: {of}, mycelia.io/node: n1"
    text = entry(name, ip=ip, labels=labels, space=space)
    return text if is_ready else f"{text}status: {{conditions: [{{type: Healthy, status: 'False'}}]}}\n"


def parent(name: str = "web", more: str = "") -> str:
    return f"parentRefs: [{{group: '', kind: Service, name: {name}{', ' + more if more else ''}}}]"
