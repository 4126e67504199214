"""Manifests in, TLS out: an nginx that speaks nothing else, behind a real waypoint and its tunnels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.lab.network import Workload
from tests.kit.certificates import issue, make_root
from tests.kit.mesh import Mesh, Waypoint
from tests.kit.shop import PORT, USE_WAYPOINT, Answer, ask, listens, service_document
from tests.mesh_scenarios.test_waypoint_protection import records
from tests.mesh_scenarios.test_waypoint_routing import applied
from tests.waypoint.worker.kit import program

pytestmark = pytest.mark.namespaces

Document = dict[str, Any]
VIP = "10.78.0.70"
NAME = "vault.example"
SERVERS, CLIENTS = make_root("servers"), make_root("clients")


@pytest.fixture(name="mesh", scope="module")
def _mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(name="client", scope="module")
def _client(mesh: Mesh) -> Workload:
    return mesh.add("client", "alpha")


@pytest.fixture(name="gate", scope="module")
def _gate(mesh: Mesh) -> Waypoint:
    return mesh.add_waypoint("gate", "beta", MYCELIA_ACCESS_LOG="json")


@pytest.fixture(name="vault", scope="module", autouse=True)
def _vault(mesh: Mesh, gate: Waypoint) -> Workload:
    """nginx with a certificate of the servers' root; it tells what it saw of the client's TLS."""
    vault = mesh.add("vault", "beta", labels={"vault": "yes"})
    folder: Path = mesh.directory / "nginx"
    folder.mkdir()
    chain, key = issue(SERVERS, None, dns_names=[NAME])
    (folder / "server.pem").write_bytes(key + chain)
    (folder / "clients.pem").write_text(CLIENTS.pem)
    (folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; user root; pid {folder}/pid; error_log stderr crit;
events {{ }}
http {{ access_log off;
  server {{ listen {PORT} ssl;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
    ssl_client_certificate {folder}/clients.pem; ssl_verify_client optional;
    location / {{ return 200 "$ssl_server_name $ssl_alpn_protocol $ssl_client_verify"; }} }} }}"""
    )
    binary = program("nginx")
    command = [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"]
    mesh.lab.popen(vault, command, cwd=folder, log=folder / "log")
    mesh.wait("nginx", lambda: listens(mesh, vault))
    mesh.apply(
        "vault",
        service_document("vault", (VIP,), {"vault": "yes"}, labels={USE_WAYPOINT: gate.name}),
    )
    return vault


def material(kind: str, name: str, **entries: str) -> Document:
    field = "data" if kind == "ConfigMap" else "stringData"
    data = {key.replace("_", "."): text for key, text in entries.items()}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        field: data,
    }


def policy(hostname: str = NAME) -> Document:
    validation = {
        "hostname": hostname,
        "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "servers"}],
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "BackendTLSPolicy",
        "metadata": {"name": "vault", "namespace": "default"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "vault"}],
            "validation": validation,
        },
    }


def get(mesh: Mesh, client: Workload) -> Answer:
    try:
        return ask(mesh, client, VIP)
    except OSError:
        return Answer(0, {})


def test_a_policy_makes_the_waypoint_speak_tls_to_whom_it_can_verify(
    mesh: Mesh, client: Workload, gate: Waypoint
) -> None:
    mesh.wait("nginx's word about plaintext", lambda: get(mesh, client).status == 400)
    with applied(mesh, policy=policy()):
        mesh.wait("the refusal without roots", lambda: get(mesh, client).status == 503)
        with applied(mesh, servers=material("ConfigMap", "servers", ca_crt=SERVERS.pem)):
            mesh.wait("TLS", lambda: get(mesh, client).text == f"{NAME} http/1.1 NONE")
            mesh.apply("policy", policy("other.example"))
            mesh.wait("the refusal of another name", lambda: get(mesh, client).status == 503)
            mesh.wait("its reason", lambda: any(_is_misnamed(each) for each in records(gate)))
        with applied(mesh, servers=material("ConfigMap", "servers", ca_crt=CLIENTS.pem)):
            mesh.apply("policy", policy())
            mesh.wait("the refusal of another root", lambda: _is_asked_in_vain(mesh, client, gate))


def _is_asked_in_vain(mesh: Mesh, client: Workload, gate: Waypoint) -> bool:
    reasons = [_reason(each) for each in records(gate)]
    return get(mesh, client).status == 503 and any("unable to get local issuer" in each for each in reasons)


def _reason(record: Document) -> str:
    return str(record["upstream_transport_failure_reason"])


def _is_misnamed(record: Document) -> bool:
    return (
        "UF" in record["response_flags"]
        and "|TLS_error:" in record["response_code_details"]
        and "is for vault.example, not for other.example" in _reason(record)
    )


def test_a_rule_gives_the_waypoint_a_client_certificate(mesh: Mesh, client: Workload) -> None:
    chain, key = (each.decode() for each in issue(CLIENTS, None, dns_names=["gate.example"]))
    secret = material("Secret", "gate", ca_crt=SERVERS.pem, tls_crt=chain, tls_key=key)
    rule = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "vault", "namespace": "default"},
        "spec": {
            "host": "vault",
            "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "gate", "sni": NAME}},
        },
    }
    with applied(mesh, secret=secret, rule=rule):
        mesh.wait("mutual TLS", lambda: get(mesh, client).text == f"{NAME} http/1.1 SUCCESS")
