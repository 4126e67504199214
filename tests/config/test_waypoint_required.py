"""`mycelia.io/waypoint-required`: who may connect to what, what stands in the status, and what is refused.

Verdicts come from the node proxy's own decision over the compiled resources.
"""

from __future__ import annotations

import pytest

from config.registry.review import review
from dataplane.state.model import Workload
from dataplane.state.policy import Connection
from dataplane.state.store import MeshState
from tests.config.support import Mesh, entry, errors_of, namespace, pod, replica, service, waypoint
from transport.spiffe import SpiffeId
from ztunnel.state.rbac import Verdict, authorize

REQUIRED = "mycelia.io/waypoint-required: 'true'"
EXEMPT = "mycelia.io/waypoint-required: 'false'"
AMBIENT = "istio.io/dataplane-mode: ambient"
USE = "istio.io/use-waypoint: wp"
VIA = "shop/waypoint-required-via-wp-"
UNBOUND = "shop/waypoint-required-but-none-is-bound-"


def web(labels: str = f"{USE}, {REQUIRED}", *, name: str = "web", target: str = "8080") -> str:
    spec = f"selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {target}}}]"
    return service(name, spec, labels=labels)


def backend(name: str = "web-1", *, labels: str = "", ip: str = "10.0.0.1") -> str:
    more = f", {labels}" if labels else ""
    return entry(name, ip=ip, labels=f"app: web, mycelia.io/node: n1{more}", spec="serviceAccount: web")


def shop(labels: str = "") -> str:
    return namespace("shop", f"{AMBIENT}, {labels}" if labels else AMBIENT)


def verdict(mesh: Mesh, account: str = "", port: int = 8080, workload: str = "web-1") -> Verdict:
    """On a connection to the workload by `namespace/account`, without identity if that is empty."""
    state = MeshState()
    for type_url, held in mesh.registry.resources.items():
        state.apply(type_url, [(name, each.payload) for name, each in held.items()], ())
    (found,) = (each for each in state.workloads.values() if each.name == workload)
    assert isinstance(found, Workload)
    space, _, own = account.partition("/")
    identity = SpiffeId("cluster.local", space, own) if account else None
    return authorize(Connection("10.5.5.5", identity, found.addresses[0], port), found, state)


def passing(mesh: Mesh, *accounts: str, port: int = 8080, workload: str = "web-1") -> list[str]:
    """Those that may connect; the empty one stands for plaintext."""
    return [each for each in accounts if verdict(mesh, each, port, workload).is_allowed]


EVERYBODY = ("", "shop/client", "shop/wp", "other/wp", "shop/next", "shop/web")


def test_only_the_waypoint_may_connect_to_the_ports_of_a_service_that_requires_it() -> None:
    mesh = Mesh(shop(), waypoint(), replica(), web(), backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    assert passing(mesh, *EVERYBODY, port=9090) == list(EVERYBODY)
    refused = verdict(mesh)
    assert refused.reason == f"explicitly denied by: {refused.policy}"
    assert refused.policy.startswith(VIA)


def test_nothing_is_asked_for_without_the_label_or_with_false() -> None:
    for labels in (USE, f"{USE}, {EXEMPT}"):
        mesh = Mesh(shop(), waypoint(), replica(), web(labels), backend())
        assert passing(mesh, *EVERYBODY) == list(EVERYBODY)
        assert mesh.policies() == []


def test_nobody_may_connect_while_no_waypoint_is_bound() -> None:
    mesh = Mesh(shop(), web(), backend())
    assert passing(mesh, *EVERYBODY) == []
    assert verdict(mesh).policy.startswith(UNBOUND)
    (text,) = mesh.conditions("Service", "web", "mycelia.io/WaypointRequired")
    assert text.startswith(
        "mycelia.io/WaypointRequired=False WaypointIsNotReady: no waypoint is bound (label"
    )
    mesh.apply(waypoint(), replica())
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    mesh.remove("Gateway", "shop", "wp")
    assert passing(mesh, *EVERYBODY) == []
    assert [name.rpartition("-")[0] + "-" for name in mesh.policies()] == [UNBOUND]


def test_a_waypoint_of_the_wrong_type_counts_as_none() -> None:
    mesh = Mesh(shop(), waypoint(labels="istio.io/waypoint-for: workload"), replica(), web(), backend())
    assert passing(mesh, *EVERYBODY) == []


def test_a_namespace_that_requires_it_closes_every_port_of_every_workload() -> None:
    mesh = Mesh(shop(f"{USE}, {REQUIRED}"), waypoint(), replica(), web(""), backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    # The waypoint is for services: nothing leads through it to a port that none targets.
    assert passing(mesh, *EVERYBODY, port=9090) == []
    lonely = entry("lonely", ip="10.0.0.9", labels="mycelia.io/node: n1")
    mesh.apply(lonely)
    assert passing(mesh, *EVERYBODY, workload="lonely") == []


def test_a_waypoint_for_workloads_may_connect_to_any_port() -> None:
    mesh = Mesh(
        shop(f"{USE}, {REQUIRED}"),
        waypoint(labels="istio.io/waypoint-for: all"),
        replica(),
        web(""),
        backend(),
    )
    assert passing(mesh, *EVERYBODY, port=9090) == ["shop/wp"]
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]


def test_a_workload_that_requires_it_is_closed_like_one_of_such_a_namespace() -> None:
    mesh = Mesh(shop(USE), waypoint(), replica(), web(""), backend(labels=REQUIRED))
    mesh.apply(backend("web-2", ip="10.0.0.2"))
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    assert passing(mesh, *EVERYBODY, port=9090) == []
    assert passing(mesh, *EVERYBODY, workload="web-2") == list(EVERYBODY)


def test_a_workloads_own_false_takes_it_out_of_its_namespace_but_not_of_a_service() -> None:
    mesh = Mesh(shop(f"{USE}, {REQUIRED}"), waypoint(), replica(), web(""), backend(labels=EXEMPT))
    assert passing(mesh, *EVERYBODY) == list(EVERYBODY)
    mesh.apply(web(REQUIRED))
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    assert passing(mesh, *EVERYBODY, port=9090) == list(EVERYBODY)


def test_a_services_false_does_not_open_what_its_namespace_closes() -> None:
    mesh = Mesh(shop(f"{USE}, {REQUIRED}"), waypoint(), replica(), web(EXEMPT), backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]


def test_a_canary_may_connect_as_well() -> None:
    labels = f"{USE}, {REQUIRED}, istio.io/use-waypoint-canary: next"
    canary = service(
        "web",
        "selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]",
        labels=labels,
        annotations="istio.io/use-waypoint-canary-weight: '10'",
    )
    mesh = Mesh(shop(), waypoint(), replica(), canary, backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]
    mesh.apply(waypoint("next"), replica("next-0", "next", ip="10.9.0.2"))
    assert passing(mesh, *EVERYBODY) == ["shop/wp", "shop/next"]
    assert verdict(mesh).policy.startswith("shop/waypoint-required-via-next-wp-")


def test_a_waypoint_of_another_namespace_passes_with_its_own_identity() -> None:
    labels = f"istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: other, {REQUIRED}"
    mesh = Mesh(
        shop(), waypoint(space="other", allowed="from: All"), replica(space="other"), web(labels), backend()
    )
    assert passing(mesh, *EVERYBODY) == ["other/wp"]


def test_replicas_pass_with_the_service_accounts_they_have() -> None:
    labels = "gateway.networking.k8s.io/gateway-name: wp, mycelia.io/node: n1"
    own = entry("wp-9", ip="10.9.0.9", labels=labels, spec="serviceAccount: edge")
    mesh = Mesh(shop(), waypoint(), own, web(), backend())
    assert passing(mesh, *EVERYBODY, "shop/edge") == ["shop/edge"]
    mesh.apply(replica())  # without an account: named as its Gateway
    assert passing(mesh, *EVERYBODY, "shop/edge") == ["shop/wp", "shop/edge"]


def test_services_that_share_a_port_and_both_require_let_both_waypoints_pass() -> None:
    other = waypoint("next"), replica("next-0", "next", ip="10.9.0.2")
    alias = web(f"istio.io/use-waypoint: next, {REQUIRED}", name="alias")
    mesh = Mesh(shop(), waypoint(), replica(), *other, web(), alias, backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp", "shop/next"]
    mesh.apply(web("istio.io/use-waypoint: next", name="alias"))
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]


def test_a_service_that_requires_it_narrows_what_its_namespace_lets_pass() -> None:
    other = waypoint("next"), replica("next-0", "next", ip="10.9.0.2")
    alias = web("istio.io/use-waypoint: next", name="alias")
    mesh = Mesh(shop(f"{USE}, {REQUIRED}"), waypoint(), replica(), *other, web(""), alias, backend())
    assert passing(mesh, *EVERYBODY) == ["shop/wp", "shop/next"]
    mesh.apply(web(REQUIRED))
    assert passing(mesh, *EVERYBODY) == ["shop/wp"]


def test_named_target_ports_are_each_workloads_own() -> None:
    named = "app: web, mycelia.io/node: n1"
    mesh = Mesh(
        shop(),
        waypoint(),
        replica(),
        web(target="web-port"),
        entry("web-1", labels=named, spec="ports: {web-port: 8080}"),
        entry("web-2", ip="10.0.0.2", labels=named, spec="ports: {web-port: 9090}"),
    )
    assert passing(mesh, *EVERYBODY, port=8080, workload="web-1") == ["shop/wp"]
    assert passing(mesh, *EVERYBODY, port=8080, workload="web-2") == list(EVERYBODY)
    assert passing(mesh, *EVERYBODY, port=9090, workload="web-2") == ["shop/wp"]


def test_a_port_that_is_plain_tcp_is_closed_as_well() -> None:
    spec = "selector: {app: web}, ports: [{name: tcp-db, port: 5432, targetPort: 5432}]"
    mesh = Mesh(shop(), waypoint(), replica(), service("web", spec, labels=f"{USE}, {REQUIRED}"), backend())
    assert passing(mesh, *EVERYBODY, port=5432) == ["shop/wp"]


def test_the_waypoints_own_workloads_are_exempt() -> None:
    mesh = Mesh(shop(f"{USE}, {REQUIRED}"), waypoint(), replica())
    assert passing(mesh, *EVERYBODY, port=15008, workload="wp-0") == list(EVERYBODY)


def test_workloads_with_the_same_gates_share_a_policy_that_goes_with_the_last_of_them() -> None:
    mesh = Mesh(shop(), waypoint(), replica(), web(), backend(), backend("web-2", ip="10.0.0.2"))
    (name,) = mesh.policies()
    assert [name] == list(mesh.workload("shop/web-1").authorization_policies)
    assert [name] == list(mesh.workload("shop/web-2").authorization_policies)
    mesh.remove("WorkloadEntry", "shop", "web-1")
    assert mesh.policies() == [name]
    mesh.remove("WorkloadEntry", "shop", "web-2")
    assert mesh.policies() == []


def test_allow_policies_are_asked_beside_it() -> None:
    allow = (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: only-web, namespace: shop}\n"
        "spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n"
    )
    mesh = Mesh(shop(), waypoint(), replica(), web(), backend(), allow)
    assert passing(mesh, *EVERYBODY) == []


# ---- status ----


def required(mesh: Mesh, kind: str = "Service", name: str = "web") -> str:
    (text,) = mesh.conditions(kind, name, "mycelia.io/WaypointRequired")
    return text.removeprefix("mycelia.io/WaypointRequired=")


def test_status_names_who_may_pass() -> None:
    mesh = Mesh(shop(), waypoint(), replica(), web(), backend())
    wanted = "True WaypointRequired: only waypoint shop/wp may connect (cluster.local/ns/shop/sa/wp)"
    assert required(mesh) == wanted
    mesh.apply(shop(f"{USE}, {REQUIRED}"), backend(labels=f"{REQUIRED}, {USE}"))
    assert required(mesh, "Namespace", "shop") == wanted
    mesh.apply(waypoint(labels="istio.io/waypoint-for: all"))
    assert required(mesh, "WorkloadEntry", "web-1") == wanted
    assert not [note for note in review(mesh.registry) if "equired" in note.reason.value]


def test_status_says_where_no_node_proxy_can_enforce_it() -> None:
    mesh = Mesh(namespace("shop"), waypoint(), replica(), web(), backend())
    assert required(mesh).startswith(
        "False NotCaptured: not enforced on WorkloadEntry shop/web-1: not captured"
    )
    assert any(note.reason.value == "NotCaptured" for note in review(mesh.registry))
    mesh.apply(shop())
    assert required(mesh).startswith("True")
    mesh.apply(pod("bare", ip="10.0.0.3", labels="app: web", spec="hostNetwork: true, nodeName: n1"))
    assert required(mesh).startswith("False NotCaptured: not enforced on Pod shop/bare")


def test_status_names_workloads_that_have_the_waypoints_identity() -> None:
    mesh = Mesh(shop(), waypoint(), replica(), web(), backend())
    mesh.apply(entry("thief", ip="10.0.0.7", labels="mycelia.io/node: n1", spec="serviceAccount: wp"))
    assert required(mesh).startswith("False IdentityShared: WorkloadEntry shop/thief has the waypoint's")


# ---- what is refused ----


@pytest.mark.parametrize("value", ["yes", "True", "1", ""])
def test_another_value_is_an_error(value: str) -> None:
    label = f"mycelia.io/waypoint-required: '{value}'"
    for text in (namespace("shop", label), web(label), backend(labels=label), pod("p", labels=label)):
        (error,) = errors_of(text)
        assert f'found text "{value}"; allowed: "true", "false"' in error
    (error,) = errors_of(entry("w", spec=f"labels: {{{label}}}"))
    assert "spec.labels[mycelia.io/waypoint-required]" in error


def test_an_annotation_is_an_error_because_it_would_protect_nothing() -> None:
    (error,) = errors_of(namespace("shop", annotations=REQUIRED))
    assert "it is a label, write it as one" in error


def test_a_kind_that_it_means_nothing_on_is_an_error() -> None:
    (error,) = errors_of(waypoint(labels=REQUIRED))
    assert "has no meaning on a Gateway; allowed: Namespace, Service" in error


# ---- what changes reach ----


def test_every_change_is_compiled_as_if_all_had_come_at_once() -> None:
    steps = [
        [shop()],
        [web(), backend()],
        [waypoint(), replica()],
        [
            entry(
                "wp-1",
                ip="10.9.0.5",
                labels="gateway.networking.k8s.io/gateway-name: wp",
                spec="serviceAccount: e",
            )
        ],
        [web(USE)],
        [shop(f"{USE}, {REQUIRED}")],
        [backend(labels=EXEMPT)],
        [backend(labels="gateway.networking.k8s.io/gateway-name: ingress")],
    ]
    mesh = Mesh()
    so_far: list[str] = []
    for step in steps:
        mesh.apply(*step)
        so_far += step
        assert mesh.registry.resources == Mesh(*so_far).registry.resources
