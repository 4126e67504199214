"""The stage of the demo: a lab of two nodes, the mesh's own processes, the applications.

Owns every process and file of a demo. Built inside a private namespace; `close()` ends all of it, and so does
the end of this process, because the namespace's first process goes with it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from mesh.demo import layout, programs
from mesh.demo.layout import ACTORS, NODES, RUN, STATUS_PORT, XDS_PORT
from mesh.errors import NotInTimeError, ProcessFailedError
from mesh.lab.network import Lab, Place, Workload
from node.api_client import AgentClient

PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
LOOK_EVERY_S: Final = 0.05
READY_S: Final = 20.0
HTTP_S: Final = 3.0
PORTS: Final = {
    "web": 80,
    "cache": 6379,
    "mail": 25,
    "store-v1": 80,
    "store-v2": 80,
    "shadow": 80,
    "greeter-1": 50051,
    "greeter-2": 50051,
}
ACCESS_LOG: Final = {"MYCELIA_ACCESS_LOG": "json"}  # of waypoints, which inherit it from their agent
AMBIENT: Final = "istio.io/dataplane-mode: ambient"
USE_WAYPOINT: Final = "istio.io/use-waypoint: waypoint"
Found = TypeVar("Found")
Flow = dict[str, object]


class Stage:
    """See the module. Methods are in the order in which the story calls them."""

    def __init__(self) -> None:
        shutil.rmtree(RUN, ignore_errors=True)
        for folder in (RUN / "logs", *(RUN / node for node in NODES)):
            folder.mkdir(parents=True)
        shutil.copytree(layout.examples() / "mesh", layout.manifests())
        self.lab = Lab(directory=RUN / "lab")
        self.watched: dict[str, subprocess.Popen[bytes]] = {}

    def close(self) -> None:
        self.lab.close()
        shutil.rmtree(RUN, ignore_errors=True)

    # --- building ---

    def build_network(self) -> None:
        nodes = {node.name: node for node in self.lab.add_nodes(*NODES)}
        self.lab.add_workloads({actor.name: nodes[actor.node] for actor in ACTORS})

    def start_applications(self) -> None:
        site = layout.examples() / "site"
        self._start("nginx", "web", programs.nginx(RUN / "nginx", site))
        self._start("redis", "cache", programs.redis(RUN / "redis"))
        self._start("mail", "mail", programs.mail())
        for name, is_flaky in (("store-v1", False), ("store-v2", True), ("shadow", False)):
            version = name.rpartition("-")[2]
            self._start(f"nginx-{name}", name, programs.store(RUN / name, version, is_flaky=is_flaky))
        for name in ("greeter-1", "greeter-2"):
            self._start(name, name, programs.greeter(name))
        for actor, port in PORTS.items():
            self.wait_for(f"{actor} on port {port}", partial(self._listens, actor, port))

    def start_control_plane(self) -> None:
        place, state = self.lab.management, RUN / "control-plane"
        self._start(
            "control-plane",
            place,
            [
                *(sys.executable, "-m", "config"),
                *("--manifests", str(layout.manifests())),
                *("--state-dir", str(state)),
                *("--listen", f"{place.ipv4}:{XDS_PORT}"),
                *("--status-listen", f"127.0.0.1:{STATUS_PORT}"),
            ],
        )
        self.wait_for("the control plane", partial(self._listens, place, XDS_PORT))

    def start_nodes(self) -> None:
        for name in NODES:
            self._mint_token(name)
            self._start(f"agent-{name}", name, self._agent_command(name), ACCESS_LOG)
        for name in NODES:
            socket_path = layout.agent_socket(name)
            self.wait_for(f"the agent of node {name}", partial(_there, socket_path))
            self._start(
                f"ztunnel-{name}", name, [sys.executable, "-m", "ztunnel"], self._ztunnel_environment(name)
            )
        for actor in ACTORS:
            workload = self.workload(actor.name)
            with self.agent(actor.node) as agent:
                agent.attach(actor.namespace, actor.name, actor.name, ("path", str(workload.path)))
        for name in NODES:
            self.wait_for(f"the ztunnel of node {name}", partial(self._is_ready, name))

    def _mint_token(self, node: str) -> None:
        state = RUN / "control-plane"
        command = [
            sys.executable,
            "-m",
            "config",
            "mint-node-token",
            "--state-dir",
            str(state),
            "--node",
            node,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE_ROOT)
        if done.returncode != 0:
            raise ProcessFailedError(f"no token for node {node}: {done.stderr.strip()}")
        token = RUN / node / "token"
        token.touch(mode=0o600)
        token.write_text(done.stdout.strip())

    def _agent_command(self, node: str) -> list[str]:
        folder = RUN / node
        return [
            *(sys.executable, "-m", "node"),
            *("--node", node),
            *("--state-dir", str(folder / "agent")),
            *("--control-plane", f"{self.lab.management.ipv4}:{XDS_PORT}"),
            *("--root-cert", str(RUN / "control-plane" / "root-cert.pem")),
            *("--token-file", str(folder / "token")),
            *("--zds-socket", str(folder / "zds.sock")),
            *("--api-socket", str(layout.agent_socket(node))),
        ]

    def _ztunnel_environment(self, node: str) -> dict[str, str]:
        root = str(RUN / "control-plane" / "root-cert.pem")
        address = f"{self.lab.management.ipv4}:{XDS_PORT}"
        return {
            "NODE_NAME": node,
            "XDS_ADDRESS": address,
            "CA_ADDRESS": address,
            "XDS_ROOT_CA": root,
            "CA_ROOT_CA": root,
            "AUTH_TOKEN": str(RUN / node / "token"),
            "INPOD_UDS": str(RUN / node / "zds.sock"),
            "MYCELIA_STATE_DIR": str(RUN / node / "ztunnel"),
            "LOG_FORMAT": "json",
            "RUST_LOG": "info",
        }

    def _start(
        self, name: str, place: Place | str, command: list[str], environment: dict[str, str] | None = None
    ) -> None:
        self.watched[name] = self.lab.popen(
            place,
            command,
            log=RUN / "logs" / f"{name}.log",
            cwd=PACKAGE_ROOT,
            env=None if environment is None else {**os.environ, **environment},
        )

    # --- looking ---

    def workload(self, name: str) -> Workload:
        place = self.lab[name]
        assert isinstance(place, Workload)
        return place

    def agent(self, node: str) -> AgentClient:
        return AgentClient(layout.agent_socket(node))

    def wait_for(self, what: str, look: Callable[[], Found | None], timeout_s: float = READY_S) -> Found:
        """The first result of `look` that is not None. Raises when a process ends, or at the timeout."""
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            for name, process in self.watched.items():
                if process.poll() is not None:
                    raise ProcessFailedError(
                        f"{name} ended with status {process.returncode}: {self.tail(name)}"
                    )
            if time.monotonic() > deadline:
                raise NotInTimeError(
                    f"waited {timeout_s:.0f} s in vain for {what}", next_step=f"logs: {RUN}/logs"
                )
            time.sleep(LOOK_EVERY_S)
        return found

    def tail(self, name: str) -> str:
        lines = (RUN / "logs" / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"

    def get(self, place: Place | str, host: str, port: int, path: str) -> tuple[int, str]:
        """An HTTP GET from inside a place."""
        connection = http.client.HTTPConnection(host, port, timeout=HTTP_S)
        try:
            with self.lab.entered(place):
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def _is_ready(self, node: str) -> bool | None:
        try:
            return self.get(node, "127.0.0.1", 15021, "/healthz/ready")[0] == http.HTTPStatus.OK or None
        except OSError:
            return None

    def _listens(self, place: Place | str, port: int) -> bool | None:
        listing = self.lab.run(place, ["ss", "-Hltn", f"sport = :{port}"], check=False)
        return bool(listing.stdout.strip()) or None

    def certificates(self, node: str) -> list[dict[str, object]]:
        """What the ztunnel of a node holds, from its config dump."""
        return list(self._dump(node).get("certificates", []))

    def callers(self, node: str) -> set[str]:
        """The identities whose connections the ztunnel of a node takes in now."""
        states = self._dump(node).get("workloadState", {}).values()
        inbound = (one for state in states for one in state["connections"]["inbound"])
        return {one["srcIdentity"] for one in inbound if one.get("srcIdentity")}

    def _dump(self, node: str) -> dict[str, Any]:
        status, text = self.get(node, "127.0.0.1", 15000, "/config_dump")
        if status != http.HTTPStatus.OK:
            raise ProcessFailedError(f"the ztunnel of {node} answers {status} to /config_dump")
        document: dict[str, Any] = json.loads(text)
        return document

    def flows(self, node: str, since: int = 0) -> Iterator[Flow]:
        """Access log records of a node's ztunnel after the first `since` bytes of its log."""
        data = layout.ztunnel_log(node).read_bytes()[since:]
        for line in data.decode(errors="replace").splitlines():
            if line.startswith("{") and '"access"' in line:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line is still being written

    def log_size(self, node: str) -> int:
        return layout.ztunnel_log(node).stat().st_size

    # --- changing ---

    def enrol(self) -> None:
        """Labels the namespace, in the demo's copy of its manifest."""
        path = layout.manifests() / "namespace-shop.yaml"
        self._replace(path, path.read_text().rstrip() + f"\n  labels:\n    {AMBIENT}\n")

    def opt_in(self) -> None:
        """Gives the namespace its waypoint, in the same place."""
        path = layout.manifests() / "namespace-shop.yaml"
        self._replace(path, path.read_text().rstrip() + f"\n    {USE_WAYPOINT}\n")

    def apply(self, name: str, *, target: str = "") -> None:
        """Drops one of examples/demo/later into the manifests, as `target` if it replaces another."""
        self.write(target or name, self.manifest(name))

    def manifest(self, name: str) -> str:
        """The text of one of examples/demo/later."""
        return (layout.examples() / "later" / name).read_text()

    def write(self, name: str, text: str) -> None:
        """Puts a file into the manifests."""
        self._replace(layout.manifests() / name, text)

    def remove(self, name: str) -> None:
        (layout.manifests() / name).unlink()

    def _replace(self, path: Path, text: str) -> None:
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.rename(path)


def _there(path: Path) -> bool | None:
    return path.exists() or None
