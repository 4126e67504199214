"""Where the contestants meet: pairs of network namespaces, a veth link, one congestion control.

    client namespace (generator, outbound proxy) ==== veth ==== server namespace (inbound proxy, load server)

All of it lies inside a private namespace (mesh.lab.private), so ending the process removes it. Each pair has
addresses of its own; contestants that need redirection rules get a pair to themselves.

Congestion control decides bulk figures by a factor of two (BBR against cubic). It is set by route, not by
sysctl: a namespace may name any algorithm that the kernel has in a route's `congctl`, whereas
net.ipv4.tcp_congestion_control of a namespace takes only those that the host allows to everybody.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PREFERRED = ("cubic", "reno")
SETTINGS = {
    "net.ipv4.ip_local_port_range": "20000 60999",  # above every port that a contestant listens on
    # Else the search for a port that is not in TIME_WAIT grows with each connection and is what is measured.
    "net.ipv4.tcp_max_tw_buckets": "4096",
    "net.core.somaxconn": "4096",
}


class TopologyError(Exception):
    """A namespace, link or route could not be made; the text holds the command and its error."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two linked namespaces. `client_ip` and `server_ip` are IPv4 text."""

    name: str
    client_ip: str
    server_ip: str

    @property
    def client_namespace(self) -> str:
        return f"{self.name}-client"

    @property
    def server_namespace(self) -> str:
        return f"{self.name}-server"

    def in_client(self, command: list[str]) -> list[str]:
        return inside(self.client_namespace, command)

    def in_server(self, command: list[str]) -> list[str]:
        return inside(self.server_namespace, command)


def namespace_path(namespace: str) -> Path:
    return Path("/run/netns") / namespace


def inside(namespace: str, command: list[str]) -> list[str]:
    """The command line that runs `command` in a named namespace, with the same pid (nsenter execs)."""
    return ["nsenter", f"--net={namespace_path(namespace)}", "--", *command]


def build_pair(name: str, number: int) -> Pair:
    """Makes both namespaces and the link; `number` (0-255) picks the addresses."""
    pair = Pair(name, f"10.99.{number}.1", f"10.99.{number}.2")
    client, server = pair.client_namespace, pair.server_namespace
    run(["ip", "netns", "add", client])
    run(["ip", "netns", "add", server])
    run(
        [
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            client,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            server,
        ]
    )
    for namespace, address in ((client, pair.client_ip), (server, pair.server_ip)):
        run(["ip", "-n", namespace, "link", "set", "lo", "up"])
        run(["ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0"])
        run(["ip", "-n", namespace, "link", "set", "eth0", "up"])
        for key, value in SETTINGS.items():
            subprocess.run(  # best effort: an older kernel or a read-only /proc/sys changes no ratio
                inside(namespace, ["sysctl", "-q", "-w", f"{key}={value}"]), check=False, capture_output=True
            )
    return pair


def set_congestion_control(pairs: list[Pair]) -> str:
    """Sets the first of PREFERRED that this kernel takes, for all pairs alike; returns what is in force."""
    namespaces = [name for pair in pairs for name in (pair.client_namespace, pair.server_namespace)]
    for algorithm in PREFERRED:
        try:
            for namespace in namespaces:
                fix_routes(namespace, algorithm)
        except TopologyError:
            continue
        return f"{algorithm} (by route)"
    return f"{Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()} (host default)"


def fix_routes(namespace: str, algorithm: str) -> None:
    """Names the algorithm in each route over which connections of the namespace begin or are accepted."""
    for table in ("local", "main", "100"):  # 100: back to a spoofed source, where redirection rules are
        try:
            listed = run(["ip", "-j", "-4", "-n", namespace, "route", "show", "table", table])
        except TopologyError:
            continue  # the kernel makes a table with its first route
        routes = json.loads(listed or "[]")
        for route in routes:
            kind = [] if route.get("type", "unicast") == "unicast" else [route["type"]]
            if kind not in ([], ["local"]):
                continue
            source = ["src", route["prefsrc"]] if "prefsrc" in route else []
            marks = [
                (key, route[name])
                for key, name in (("proto", "protocol"), ("scope", "scope"))
                if name in route
            ]
            target = [*kind, route["dst"], "dev", route["dev"], "table", table]
            target += [word for mark in marks for word in mark] + source
            run(["ip", "-n", namespace, "route", "replace", *target, "congctl", algorithm])


def check_congestion_control(pair: Pair) -> str:
    """What a real connection between the pair's ends uses, as the kernel tells it at both ends."""
    script = (
        "import socket; s = socket.create_server(('', 9999)); print(flush=True); c = s.accept()[0];"
        "print(c.getsockopt(6, 13, 16).rstrip(bytes(1)).decode()); c.recv(1)"
    )
    connect = (
        f"import socket; c = socket.create_connection(('{pair.server_ip}', 9999));"
        "print(c.getsockopt(6, 13, 16).rstrip(bytes(1)).decode())"
    )
    with subprocess.Popen(
        pair.in_server([sys.executable, "-c", script]), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        client_side = run(pair.in_client([sys.executable, "-c", connect])).strip()
        server_side = server.stdout.read().strip()
    return client_side if client_side == server_side else f"{client_side}/{server_side}"


def run(command: list[str]) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise TopologyError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
