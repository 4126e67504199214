"""Where the contestants meet: three network namespaces on a bridge, one set for each contestant.

    client (generator, client-side tunnel) === waypoint (L7 proxy) === server (server-side tunnel, backends)

The client dials a virtual address, as it would a service's; the node agent's rules redirect it. The
waypoint's namespace has no rules.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from loadtests import topology
from loadtests.redirect import redirect_in
from loadtests.topology import SETTINGS, inside, run
from loadtests.waypoint.protection import FILTERED, GUARDED, TOKENS

HTTP_BACKEND = 8080
GRPC_BACKEND = 8081
HTTP2_BACKEND = 8082  # of the direct way only: behind waypoints HTTP goes on as HTTP/1.1
SERVICES = ("shop", GUARDED, TOKENS, FILTERED)


@dataclass(frozen=True, slots=True)
class Site:
    """Namespaces and addresses of one contestant; all IPv4 text."""

    name: str
    number: int

    @property
    def client(self) -> str:
        return f"{self.name}-client"

    @property
    def waypoint(self) -> str:
        return f"{self.name}-waypoint"

    @property
    def server(self) -> str:
        return f"{self.name}-server"

    @property
    def namespaces(self) -> tuple[str, str, str]:
        return self.client, self.waypoint, self.server

    @property
    def client_ip(self) -> str:
        return f"10.98.{self.number}.1"

    @property
    def waypoint_ip(self) -> str:
        return f"10.98.{self.number}.2"

    @property
    def server_ip(self) -> str:
        return f"10.98.{self.number}.3"

    @property
    def vip(self) -> str:
        return self.vip_of("shop")

    def vip_of(self, service: str) -> str:
        return f"10.97.{self.number}.{1 + SERVICES.index(service)}"


def build(site: Site, *, is_redirected: bool) -> None:
    """Makes it, inside private namespaces. Raises TopologyError."""
    bridge = f"br{site.number}"
    run(["ip", "link", "add", bridge, "type", "bridge"])
    run(["ip", "link", "set", bridge, "up"])
    for index, (namespace, address) in enumerate(
        zip(site.namespaces, (site.client_ip, site.waypoint_ip, site.server_ip), strict=True)
    ):
        run(["ip", "netns", "add", namespace])
        port = f"p{site.number}{index}"
        run(["ip", "link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", port])
        run(["ip", "link", "set", port, "master", bridge, "up"])
        run(["ip", "-n", namespace, "link", "set", "lo", "up"])
        run(["ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0"])
        run(["ip", "-n", namespace, "link", "set", "eth0", "up"])
        run(
            [
                "ip",
                "-n",
                namespace,
                "route",
                "add",
                "default",
                "via",
                site.server_ip if index < 2 else site.client_ip,
            ]
        )
        for key, value in SETTINGS.items():
            os.spawnvp(os.P_WAIT, "nsenter", inside(namespace, ["sysctl", "-q", "-w", f"{key}={value}"]))
    if is_redirected:
        redirect_in(site.client, site.server)
    for namespace in site.namespaces:
        for algorithm in topology.PREFERRED:
            try:
                topology.fix_routes(namespace, algorithm)
            except topology.TopologyError:
                continue
            break
