"""XBackendTrafficPolicy and BackendTLSPolicy: config-api 17, 18."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, replica, service, warnings_of, waypoint

WEB = "shop/web.shop.svc.cluster.local"
BASE = (
    waypoint(),
    replica(),
    service(
        "web", "ports: [{name: http, port: 80}, {name: b, port: 81}]", labels="istio.io/use-waypoint: wp"
    ),
)
OLD, NEW = "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
AT_WEB = "{group: '', kind: Service, name: web}"
TRUST = "validation: {hostname: web.example, wellKnownCACertificates: System}"


def traffic(more: str = "", *, name: str = "p", targets: str = AT_WEB, created: str = "") -> str:
    metadata = f"creationTimestamp: {created!r}" if created else ""
    spec = f"{{targetRefs: [{targets}]{', ' + more if more else ''}}}"
    text = istio("XBackendTrafficPolicy", name, spec, group="gateway.networking.x-k8s.io", metadata=metadata)
    return text.replace("/v1\n", "/v1alpha1\n", 1)


def tls(*, name: str = "p", targets: str = AT_WEB, more: str = TRUST, created: str = "") -> str:
    metadata = f"creationTimestamp: {created!r}" if created else ""
    spec = f"{{targetRefs: [{targets}], {more}}}"
    return istio("BackendTLSPolicy", name, spec, group="gateway.networking.k8s.io", metadata=metadata)


def rule(policy: str) -> str:
    return istio("DestinationRule", "dr", f"{{host: web, trafficPolicy: {{{policy}}}}}")


def policy_of(*texts: str) -> pb.TrafficPolicy:
    return Mesh(*BASE, *texts).destination(WEB).policy


# ---- budgets ----


@pytest.mark.parametrize(
    ("texts", "percent", "minimum"),
    [
        ([traffic("retryConstraint: {}")], 20, 10),
        ([traffic("retryConstraint: {budget: {percent: 5}, minRetryRate: {count: 2}}")], 5, 2),
        ([traffic("retryConstraint: {}"), rule("retryBudget: {percent: 50}")], 50, 3),
        ([traffic("retryConstraint: {}"), rule("loadBalancer: {simple: RANDOM}")], 20, 10),
        (
            [
                traffic("retryConstraint: {}", name="z", created=OLD),
                traffic("retryConstraint: {budget: {percent: 1}}", name="a", created=NEW),
            ],
            20,
            10,
        ),
        ([traffic()], 0, 0),
    ],
)
def test_a_budget_holds_where_no_rule_has_one(texts: list[str], percent: int, minimum: int) -> None:
    budget = policy_of(*texts).retry_budget
    assert (budget.percent, budget.minimum_concurrency) == (percent, minimum)


def test_a_budget_comes_and_goes_with_its_policy() -> None:
    mesh = Mesh(*BASE)
    before = mesh.registry.compiled
    delta = mesh.apply(traffic("retryConstraint: {}"))
    assert (mesh.registry.compiled - before, len(delta.upserts)) == (1, 1)
    mesh.remove("XBackendTrafficPolicy", "shop", "p")
    assert not mesh.destination(WEB).HasField("policy")


# ---- TLS: not supported, so nothing may leave in plaintext ----


def refusals(*texts: str) -> dict[int, str]:
    """By port; 0 for all others."""
    found = Mesh(*BASE, *texts).destination(WEB)
    return {0: found.policy.refusal} | {
        port: policy.refusal for port, policy in sorted(found.port_policies.items())
    }


REFUSED = "BackendTLSPolicy shop/p is not supported"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([tls()], {0: REFUSED}),
        ([tls(targets=AT_WEB.replace("web", "other"))], {0: ""}),
        ([tls(targets=f"{AT_WEB[:-1]}, sectionName: b}}")], {0: "", 81: REFUSED}),
        ([tls(targets=f"{AT_WEB[:-1]}, sectionName: c}}")], {0: ""}),
        ([tls(), rule("tls: {mode: DISABLE}")], {0: ""}),
        ([tls(), rule("portLevelSettings: [{port: {number: 80}}]")], {0: REFUSED, 80: REFUSED}),
        (
            [tls(), rule("portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]")],
            {0: REFUSED, 80: ""},
        ),
    ],
)
def test_what_asks_for_tls_lets_nothing_through(texts: list[str], expected: dict[int, str]) -> None:
    assert refusals(*texts) == expected


def test_a_subset_is_refused_like_its_service() -> None:
    subset = istio("DestinationRule", "dr", "{host: web, subsets: [{name: a, trafficPolicy: {}}]}")
    assert Mesh(*BASE, tls(), subset).destination(WEB).subsets[0].policy.refusal == REFUSED


# ---- conditions ----


def test_conditions_name_each_target() -> None:
    mesh = Mesh(
        *BASE,
        traffic("retryConstraint: {}, sessionPersistence: {}", created=OLD),
        traffic("retryConstraint: {}", name="young", created=NEW),
        traffic("retryConstraint: {}", name="lost", targets=AT_WEB.replace("web", "gone")),
        tls(targets=f"{AT_WEB}, {AT_WEB[:-1]}, sectionName: c}}"),
    )
    assert mesh.conditions("XBackendTrafficPolicy", "p") == [
        "Accepted=True Accepted: holds where no DestinationRule has a retryBudget",
        "PartiallyInvalid=True UnsupportedValue: sessionPersistence is not supported: it has no effect",
    ]
    assert mesh.conditions("XBackendTrafficPolicy", "young") == [
        "Accepted=False Conflicted: XBackendTrafficPolicy shop/p is older and counts"
    ]
    assert mesh.conditions("XBackendTrafficPolicy", "lost") == [
        "Accepted=False TargetNotFound: there is no Service shop/gone"
    ]
    assert mesh.conditions("BackendTLSPolicy", "p") == [
        "Accepted=False UnsupportedValue: TLS to backends is not supported: waypoints answer with 503 "
        "rather than send in plaintext",
        "Accepted=False TargetNotFound: Service shop/web has no port named c",
    ]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (traffic(targets=""), "targetRefs"),
        (traffic(targets=f"{AT_WEB}, {AT_WEB}"), "Service web is there twice"),
        (traffic(targets="{group: a, kind: B, name: c}"), 'kind "B" of group "a" takes no such policy'),
        (traffic(targets=f"{AT_WEB[:-1]}, sectionName: a}}"), "sectionName is not a field"),
        (traffic("retryConstraint: {budget: {percent: 101}}"), "100 or less"),
        (traffic("retryConstraint: {minRetryRate: {count: 0}}"), "1 or more"),
        (tls(more="validation: {hostname: a.b}"), "says whom to trust"),
        (tls(more="validation: {hostname: '*.b', wellKnownCACertificates: System}"), "a wildcard is no name"),
        (
            tls(
                more="validation: {hostname: a.b, wellKnownCACertificates: System, "
                "subjectAltNames: [{type: URI, hostname: a}]}"
            ),
            "type URI needs uri alone",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, error: str) -> None:
    found = errors_of(text)
    assert found
    assert error in found[0], found


def test_an_interval_of_a_budget_is_a_warning() -> None:
    (found,) = warnings_of(traffic("retryConstraint: {budget: {interval: 30s}}"))
    assert "spec.retryConstraint.budget.interval" in found
