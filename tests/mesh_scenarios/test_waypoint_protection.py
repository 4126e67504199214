"""Manifests in, refusals out: policies about requests and tokens, through a real waypoint and tunnels."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh, Waypoint, service_document
from tests.kit.shop import ask
from tests.mesh_scenarios.test_waypoint import Shop
from tests.mesh_scenarios.test_waypoint_routing import applied, passes
from tests.waypoint.state.token_builders import key_set, token

pytestmark = pytest.mark.namespaces

Document = dict[str, Any]
ON_SHOP = {"targetRefs": [{"kind": "Service", "name": "shop"}]}


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


@pytest.fixture(name="shop", scope="module")
def _shop(mesh: Mesh, gate: Waypoint, client: Workload) -> Shop:
    shop = Shop(mesh, gate.name)
    mesh.wait("requests through the waypoint", lambda: passes(shop, client))
    return shop


def security(kind: str, name: str, **spec: Any) -> Document:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**ON_SHOP, **spec},
    }


def records(gate: Waypoint) -> list[Document]:
    """The waypoint's access log."""
    lines = (gate.folder / "log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if '"response_code"' in line]


def test_a_method_is_denied_by_identity_and_the_reason_is_in_the_log(
    mesh: Mesh, client: Workload, gate: Waypoint, shop: Shop
) -> None:
    other = mesh.add("other", "beta")
    rule = {
        "from": [{"source": {"serviceAccounts": [client.name]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/admin/*"]}}],
    }
    deny = security("AuthorizationPolicy", "no-admin", action="DENY", rules=[rule])
    with applied(mesh, deny=deny):
        mesh.wait("the denial", lambda: shop.ask(client, "/admin/x").status == 403)
        answer = shop.ask(client, "/a/../admin/y")
        assert (answer.status, answer.text) == (403, "RBAC: access denied")
        assert shop.ask(client, "/public").status == 200
        assert shop.ask(other, "/admin/x").status == 200
        record = mesh.wait(
            "its record",
            lambda: next((each for each in records(gate) if each["path"] == "/admin/y"), None),
        )
        assert record is not None
        assert record["policy"] == "AuthorizationPolicy/default/no-admin rules[0] from[0] to[0]"
        matched = "ns[default]-policy[no-admin]-rule[0]"
        assert record["response_code_details"] == f"rbac_access_denied_matched_policy[{matched}]"
        assert record["source_principal"].endswith(f"/sa/{client.name}")
    mesh.wait("its end", lambda: shop.ask(client, "/admin/x").status == 200)


@pytest.fixture(name="issuer")
def _issuer(mesh: Mesh) -> Iterator[str]:
    """The address of a server of keys, where the control plane runs."""
    keys = key_set().encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(keys)

        def log_message(self, *_: object) -> None: ...

    with mesh.lab.entered(mesh.lab.management):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/keys"
    server.shutdown()
    server.server_close()


def test_a_token_is_required_and_its_claims_decide(
    mesh: Mesh, client: Workload, shop: Shop, issuer: str
) -> None:
    rules = [{"when": [{"key": "request.auth.claims[groups]", "values": ["staff"]}]}]
    claims = [{"header": "x-user", "claim": "sub"}]
    jwt = {"issuer": "https://issuer.example", "jwksUri": issuer, "outputClaimToHeaders": claims}
    documents = {
        "tokens": security("RequestAuthentication", "tokens", jwtRules=[jwt]),
        "staff": security("AuthorizationPolicy", "staff", rules=rules),
    }

    def get(text: str = "", **headers: str) -> Any:
        bearer = {"authorization": f"Bearer {text}"} if text else {}
        return ask(mesh, client, shop.vip, "/", **bearer, **headers)

    good, guest = token(groups=["staff"]), token(groups=["guest"])
    with applied(mesh, **documents):
        mesh.wait("the demand", lambda: get().status == 403)
        mesh.wait("the keys", lambda: get(good).status == 200)
        assert get(guest).status == 403
        assert get(token(groups=["staff"], exp=1)).text == "Jwt is expired"
        assert get(token(groups=["staff"], serial=1)).status == 401
        told = get(good, **{"x-user": "root"}).told
        assert told["headers"]["x-user"] == "me"
        assert "authorization" not in told["headers"]


JUDGE_PORT = 9000
MESH_CONFIG = f"""
extensionProviders:
- name: judge
  envoyExtAuthzHttp:
    service: judge.default.svc.cluster.local
    port: {JUDGE_PORT}
    timeout: 5s
    includeRequestHeadersInCheck: [x-team]
    headersToUpstreamOnAllow: [x-who]
"""


class Judge(BaseHTTPRequestHandler):
    """Lets the staff pass and says who asked; each question has a connection of its own."""

    peers: list[str]

    def do_GET(self) -> None:
        self.peers.append(self.client_address[0])
        is_staff = self.headers.get("x-team") == "staff"
        content = b"" if is_staff else b"not of the staff"
        self.send_response(200 if is_staff else 403)
        self.send_header("x-who", "somebody of the staff")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def test_a_provider_outside_is_asked_through_a_tunnel_and_its_silence_refuses(
    mesh: Mesh, client: Workload, gate: Waypoint, shop: Shop
) -> None:
    judge = mesh.add("judge", "beta")
    Judge.peers = []
    with mesh.lab.entered(judge):
        server = ThreadingHTTPServer(("", JUDGE_PORT), Judge)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    vip, ports = ("10.78.0.90",), {JUDGE_PORT: JUDGE_PORT}
    service = dict(service_document("judge", vip, ports, {"app": judge.name}))
    service["spec"]["ports"][0]["name"] = "http"
    documents: dict[str, Document] = {
        "judge": service,
        "mesh-config": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": MESH_CONFIG},
        },
        "ask": security(
            "AuthorizationPolicy",
            "ask",
            action="CUSTOM",
            provider={"name": "judge"},
            rules=[{"to": [{"operation": {"paths": ["/inner*"]}}]}],
        ),
    }
    with applied(mesh, **documents):
        mesh.wait("the question", lambda: shop.ask(client, "/inner").text == "not of the staff")
        answer = shop.ask(client, "/inner", **{"x-team": "staff", "x-who": "root"})
        assert answer.status == 200
        assert answer.told["headers"]["x-who"] == "somebody of the staff"
        assert shop.ask(client, "/").status == 200
        assert set(Judge.peers) == {gate.workload.ipv4}
        tunnel = mesh.wait_access_log("beta", dst_workload=judge.name, direction="inbound")
        assert tunnel["src.identity"].endswith(f"/sa/{gate.name}")

        server.shutdown()
        server.server_close()
        mesh.wait("the refusal", lambda: shop.ask(client, "/inner", **{"x-team": "staff"}).status == 403)
        assert shop.ask(client, "/").status == 200

        def are_told() -> bool:
            details = {each["response_code_details"] for each in records(gate)}
            return {"ext_authz_denied", "ext_authz_error"} <= details

        mesh.wait("the records", are_told)
