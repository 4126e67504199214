"""XBackendTrafficPolicy and BackendTLSPolicy: config-api 17, 18."""

from __future__ import annotations

import json

import pytest

from config.compile.resource import DESTINATION
from config.status import decoded
from proto.mycelia import waypoint_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, replica, service, warnings_of, waypoint
from tests.kit.certificates import issue, revocations, shared_root

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


# ---- TLS ----

ROOTS = shared_root().pem
IN_MAP = "validation: {hostname: web.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}"


def material(kind: str, name: str, **data: str) -> str:
    metadata = {"name": name, "namespace": "shop"}
    field = "data" if kind == "ConfigMap" else "stringData"
    entries = {key.replace("_", "."): text for key, text in data.items()}
    return json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, field: entries})


def hosts(*texts: str) -> dict[int, str]:
    """The name that servers are asked for, by port; 0 for all others."""
    found = Mesh(*BASE, *texts).destination(WEB)
    return {0: found.policy.tls.server_name} | {
        port: policy.tls.server_name for port, policy in sorted(found.port_policies.items())
    }


ASKED = "web.example"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([tls()], {0: ASKED}),
        ([tls(targets=AT_WEB.replace("web", "other"))], {0: ""}),
        ([tls(targets=f"{AT_WEB[:-1]}, sectionName: b}}")], {0: "", 81: ASKED}),
        ([tls(targets=f"{AT_WEB[:-1]}, sectionName: c}}")], {0: ""}),
        ([tls(), rule("tls: {mode: DISABLE}")], {0: ""}),
        ([tls(), rule("tls: {mode: SIMPLE, sni: other.example}")], {0: "other.example"}),
        ([tls(), rule("portLevelSettings: [{port: {number: 80}}]")], {0: ASKED, 80: ASKED}),
        (
            [tls(), rule("portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]")],
            {0: ASKED, 80: ""},
        ),
        (
            [
                tls(created=OLD),
                tls(
                    name="own",
                    created=NEW,
                    targets=f"{AT_WEB[:-1]}, sectionName: b}}",
                    more=TRUST.replace("web.", "own."),
                ),
            ],
            {0: ASKED, 81: "own.example"},
        ),
    ],
)
def test_a_policy_holds_where_no_rule_says_anything(texts: list[str], expected: dict[int, str]) -> None:
    assert hosts(*texts) == expected


def test_a_subset_is_secured_like_its_service() -> None:
    subset = istio("DestinationRule", "dr", "{host: web, subsets: [{name: a, trafficPolicy: {}}]}")
    assert Mesh(*BASE, tls(), subset).destination(WEB).subsets[0].policy.tls.server_name == ASKED


def test_a_bundle_comes_changes_and_goes() -> None:
    mesh = Mesh(*BASE, tls(more=IN_MAP))
    assert mesh.destination(WEB).policy.refusal == "there is no ConfigMap shop/ca"
    assert not mesh.destination(WEB).policy.HasField("tls")
    assert mesh.conditions("BackendTLSPolicy", "p") == [
        "Accepted=False NoValidCACertificate: there is no ConfigMap shop/ca: requests get 503 rather than go "
        "to whom nobody has verified",
        "ResolvedRefs=False InvalidCACertificateRef: there is no ConfigMap shop/ca",
    ]
    mesh.apply(material("ConfigMap", "ca", ca_crt=ROOTS))
    assert mesh.destination(WEB).policy.refusal == ""
    found = mesh.destination(WEB).policy.tls
    assert (found.roots_pem, list(found.names)) == (ROOTS, [ASKED])
    assert mesh.conditions("BackendTLSPolicy", "p") == [
        "Accepted=True Accepted: holds where no DestinationRule has tls",
        "ResolvedRefs=True ResolvedRefs: all are there",
    ]
    mesh.apply(material("ConfigMap", "ca", ca_crt="nonsense"))
    assert mesh.destination(WEB).policy.refusal == "ConfigMap shop/ca: ca.crt is not PEM that can be used"
    mesh.remove("ConfigMap", "shop", "ca")
    assert mesh.destination(WEB).policy.refusal == "there is no ConfigMap shop/ca"


def test_a_reference_of_another_kind_is_named() -> None:
    mesh = Mesh(*BASE, tls(more=IN_MAP.replace("ConfigMap", "Secret")))
    text = "kind Secret is no place for a CA certificate: a ConfigMap is"
    assert mesh.destination(WEB).policy.refusal == text
    assert mesh.conditions("BackendTLSPolicy", "p")[1] == f"ResolvedRefs=False InvalidKind: {text}"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[{type: Hostname, hostname: a.example}]", ["a.example"]),
        ("[{type: URI, uri: 'spiffe://b/c'}]", ["spiffe://b/c"]),
    ],
)
def test_other_names_replace_the_hostname(names: str, expected: list[str]) -> None:
    text = TRUST.replace("}", f", subjectAltNames: {names}}}")
    found = policy_of(tls(more=text)).tls
    assert (found.server_name, list(found.names), found.roots_pem) == (ASKED, expected, "")


def test_a_secret_gives_the_client_certificate_and_is_not_shown() -> None:
    chain, key = (each.decode() for each in issue(shared_root(), None))
    secret = material("Secret", "c", ca_crt=ROOTS, tls_crt=chain, tls_key=key)
    mutual = rule("tls: {mode: MUTUAL, credentialName: c}")
    mesh = Mesh(*BASE, secret, mutual)
    found = mesh.destination(WEB).policy.tls
    assert (found.chain_pem, found.key_pem, found.roots_pem) == (chain, key, ROOTS)
    assert key not in repr(mesh.registry.index.objects)
    shown = json.dumps([decoded(each) for each in mesh.registry.resources[DESTINATION].values()])
    assert "[redacted]" in shown
    assert "PRIVATE KEY" not in shown
    mesh.apply(material("Secret", "c", ca_crt=ROOTS))
    assert mesh.destination(WEB).policy.refusal == "Secret shop/c has no tls.crt or no tls.key"


def test_a_secret_s_revocation_list_is_told_and_one_that_is_none_refuses() -> None:
    simple = rule("tls: {mode: SIMPLE, credentialName: c}")
    mesh = Mesh(*BASE, material("Secret", "c", ca_crt=ROOTS, ca_crl=revocations()), simple)
    assert mesh.destination(WEB).policy.tls.crl_pem.startswith("-----BEGIN X509 CRL-----")
    mesh.apply(material("Secret", "c", ca_crt=ROOTS, ca_crl="nonsense"))
    assert mesh.destination(WEB).policy.refusal == "Secret shop/c: ca.crl is not PEM that can be used"
    mesh.apply(material("Secret", "c", ca_crl=revocations()))
    assert mesh.destination(WEB).policy.refusal == "Secret shop/c has no ca.crt"
    mesh.apply(material("ConfigMap", "ca", ca_crt=ROOTS, ca_crl=revocations()), tls(more=IN_MAP))
    mesh.remove("DestinationRule", "shop", "dr")
    assert mesh.destination(WEB).policy.tls.crl_pem


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
        "Accepted=True Accepted: holds where no DestinationRule has tls",
        "ResolvedRefs=True ResolvedRefs: all are there",
        "Accepted=False TargetNotFound: Service shop/web has no port named c",
        "ResolvedRefs=True ResolvedRefs: all are there",
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
