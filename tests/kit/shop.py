"""Services of HTTP servers for scenarios with waypoints: who answered, and who asked the one who answered."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.lab.network import Place, Workload
from tests.kit.mesh import ROOT, SOCKET_S, Mesh

PORT = 80
USE_WAYPOINT = "istio.io/use-waypoint"


@dataclass(frozen=True, slots=True)
class Answer:
    """`told` is what the server saw (tests/kit/echo_http.py), `text` the body of one made on the way."""

    status: int
    headers: Mapping[str, str]
    told: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    @property
    def peer(self) -> str:
        """The address from which the server was asked: a waypoint's, or the client's own."""
        return str(self.told.get("peer", ""))


def serve(mesh: Mesh, workload: Workload, name: str) -> None:
    """An HTTP server that answers with what it saw, until the lab ends."""
    mesh.lab.popen(
        workload,
        [sys.executable, "-m", "tests.kit.echo_http", str(PORT), name],
        cwd=ROOT,
        log=mesh.directory / f"{workload.name}-http.log",
    )
    mesh.wait(f"the server {name}", lambda: listens(mesh, workload))


def listens(mesh: Mesh, place: Place) -> bool:
    listing = mesh.lab.run(place, ["ss", "-Hltn", f"sport = :{PORT}"], check=False)
    return bool(listing.stdout.strip())


def service_document(
    name: str,
    vips: tuple[str, ...],
    selector: Mapping[str, str],
    *,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    port_name: str = "http",
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {
            "clusterIP": vips[0],
            "clusterIPs": list(vips),
            "ipFamilies": ["IPv6" if ":" in vip else "IPv4" for vip in vips],
            "ipFamilyPolicy": "RequireDualStack" if len(vips) > 1 else "SingleStack",
            "selector": dict(selector),
            "ports": [{"name": port_name, "port": PORT, "targetPort": PORT}],
        },
    }


def ask(mesh: Mesh, client: Place, host: str, path: str = "/", **headers: str) -> Answer:
    """One request on a connection of its own. Raises OSError and http.client's errors."""
    connection = http.client.HTTPConnection(host, PORT, timeout=SOCKET_S)
    try:
        with mesh.lab.entered(client):
            connection.connect()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        headers = {key.lower(): value for key, value in answer.getheaders()}
        if body.startswith(b"{"):
            return Answer(answer.status, headers, json.loads(body))
        return Answer(answer.status, headers, text=body.decode())
    finally:
        connection.close()


def peers(mesh: Mesh, client: Place, host: str, count: int = 1) -> set[str]:
    """The addresses from which so many requests reached the server; empty where one failed."""
    found = set()
    for _ in range(count):
        try:
            found.add(ask(mesh, client, host).peer)
        except (OSError, http.client.HTTPException):
            return set()
    return found
