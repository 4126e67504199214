"""A whole mesh of real processes in a lab: control plane, and on each node an agent and a ztunnel.

    with Mesh(directory) as mesh:            # nodes alpha and beta
        client = mesh.add("client", "alpha")
        server = mesh.add("server", "beta")
        with mesh.listen(server, 8080) as listener, mesh.connect(client, (server.ipv4, 8080)) as sock: ...

Everything is synchronous: tests use blocking sockets with a deadline, made inside the workloads' namespaces.
What takes time is awaited by looking (`wait`), never slept for. Logs are in `directory/logs`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from ca.node_token import NodeTokens
from config.control_plane import StateDirectory
from config.state_files import make_directory
from mesh.lab.network import Lab, Node, Place, Workload
from node.api_client import AgentClient
from node.errors import AgentUnreachableError

ROOT = Path(__file__).resolve().parents[2]
XDS_PORT = 15012
STATUS_PORT = 8080
DEADLINE_S = 20.0
SOCKET_S = 10.0
LOOK_EVERY_S = 0.01

Found = TypeVar("Found")
Document = Mapping[str, Any]


@dataclass
class NodeProcesses:
    """What runs on one node."""

    node: Node
    folder: Path
    agent: subprocess.Popen[bytes] | None = None
    ztunnel: subprocess.Popen[bytes] | None = None
    generation: int = 0

    @property
    def api(self) -> Path:
        return self.folder / "api.sock"

    @property
    def ztunnel_logs(self) -> list[Path]:
        """Of all ztunnels that ran on the node, oldest first."""
        return sorted(self.folder.glob("ztunnel-*.log"))


@dataclass(slots=True)
class Waypoint:
    """A waypoint of the lab."""

    name: str
    namespace: str
    workload: Workload
    folder: Path
    process: subprocess.Popen[bytes] | None = None


class Mesh:
    """See the module. `ztunnel_settings` are added to the environment of every ztunnel."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: Sequence[str] = ("alpha", "beta"),
        ztunnel_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.manifests = directory / "manifests"
        self.state = directory / "control-plane"
        self.manifests.mkdir(parents=True)
        self.control_plane: subprocess.Popen[bytes] | None = None
        self._ztunnel_settings = dict(ztunnel_settings or {})
        self._names = itertools.count(1)
        self.lab = Lab(directory=directory / "lab")
        self.nodes = {
            node.name: NodeProcesses(node, directory / node.name) for node in self.lab.add_nodes(*nodes)
        }

    def __enter__(self) -> Self:
        try:
            self.apply("ambient", namespace("default", is_ambient=True))
            self._mint_tokens()
            self.start_control_plane()
            for name in self.nodes:
                self._launch_agent(name)
                self.start_ztunnel(name)
            for name in self.nodes:
                self._await_agent(name)
                self.await_ready(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.lab.close()

    # --- processes ---

    def start_control_plane(self) -> None:
        place = self.lab.management
        self.control_plane = self.lab.popen(
            place,
            [
                *(sys.executable, "-m", "config"),
                *("--manifests", str(self.manifests), "--state-dir", str(self.state)),
                *("--listen", f"{place.ipv4}:{XDS_PORT}"),
                *("--status-listen", f"127.0.0.1:{STATUS_PORT}"),
            ],
            log=self.directory / "control-plane.log",
            cwd=ROOT,
        )
        self.wait("the control plane", lambda: self._listens(place, XDS_PORT))

    def start_agent(self, name: str) -> None:
        """Starts the node's agent, and returns once its local API answers."""
        self._launch_agent(name)
        self._await_agent(name)

    def _launch_agent(self, name: str) -> None:
        processes = self.nodes[name]
        processes.agent = self.lab.popen(
            processes.node,
            [
                *(sys.executable, "-m", "node", "--node", name),
                *("--state-dir", str(processes.folder / "agent")),
                *("--control-plane", f"{self.lab.management.ipv4}:{XDS_PORT}"),
                *("--root-cert", str(self.state / "root-cert.pem")),
                *("--token-file", str(processes.folder / "token")),
                *("--zds-socket", str(processes.folder / "zds.sock")),
                *("--api-socket", str(processes.api)),
                *("--release-grace", "0.3", "--check-interval", "1"),
            ],
            log=processes.folder / "agent.log",
            cwd=ROOT,
        )

    def _await_agent(self, name: str) -> None:
        def answers() -> bool:
            try:
                self.agent(name).close()
            except AgentUnreachableError:
                return False
            return True

        self.wait(f"the agent of {name}", answers)

    def await_ready(self, name: str) -> None:
        """Until the node's ztunnel says that it is ready."""
        self.wait(f"the ztunnel of {name}", lambda: self.is_ready(name))

    def start_ztunnel(self, name: str, **settings: str) -> subprocess.Popen[bytes]:
        """Starts a ztunnel on the node, beside one that may be there, and does not wait for it."""
        processes = self.nodes[name]
        processes.generation += 1
        root = str(self.state / "root-cert.pem")
        address = f"{self.lab.management.ipv4}:{XDS_PORT}"
        environment = {
            **os.environ,
            "NODE_NAME": name,
            "XDS_ADDRESS": address,
            "CA_ADDRESS": address,
            "XDS_ROOT_CA": root,
            "CA_ROOT_CA": root,
            "AUTH_TOKEN": str(processes.folder / "token"),
            "INPOD_UDS": str(processes.folder / "zds.sock"),
            "MYCELIA_STATE_DIR": str(processes.folder / "ztunnel-state"),
            "LOG_FORMAT": "json",
            "RUST_LOG": "info",
            **self._ztunnel_settings,
            **settings,
        }
        processes.ztunnel = self.lab.popen(
            processes.node,
            [sys.executable, "-m", "ztunnel"],
            log=processes.folder / f"ztunnel-{processes.generation}.log",
            env=environment,
            cwd=ROOT,
        )
        return processes.ztunnel

    def agent(self, name: str) -> AgentClient:
        return AgentClient(self.nodes[name].api)

    def _mint_tokens(self) -> None:
        """As `python -m config mint-node-token` does, without a process for each."""
        make_directory(self.state)
        tokens = NodeTokens.load_or_create(StateDirectory(self.state).tokens)
        for name, processes in self.nodes.items():
            processes.folder.mkdir()
            path = processes.folder / "token"
            path.touch(mode=0o600)
            path.write_text(tokens.mint(name, dt.timedelta(days=1), dt.datetime.now(dt.UTC)))

    # --- configuration ---

    def apply(self, name: str, *documents: Document) -> None:
        """Puts documents into the manifest file `name`, whole and at once."""
        fresh = self.manifests / f".{name}.new"
        fresh.write_text("---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents))
        fresh.rename(self.manifests / f"{name}.yaml")

    def withdraw(self, name: str) -> None:
        (self.manifests / f"{name}.yaml").unlink()

    def add(
        self,
        name: str,
        node: str,
        *,
        namespace: str = "default",
        is_attached: bool = True,
        labels: Mapping[str, str] | None = None,
        service_account: str = "",
    ) -> Workload:
        """A workload with a manifest, captured unless `is_attached` is off (it is plain then).

        Its name gets a number, so that tests can share a mesh. Returns when every ztunnel knows it.
        """
        unique = f"{name}-{next(self._names)}"
        workload = self.lab.add_workload(unique, self.nodes[node].node)
        account = service_account or unique
        self.apply(unique, *workload_documents(workload, namespace, account, labels or {}))
        if is_attached:
            with self.agent(node) as agent:
                uid = agent.attach(namespace, unique, account, ("path", str(workload.path)))
                agent.wait(uid, timeout_s=DEADLINE_S)
        protocol = "HBONE" if is_attached else "TCP"
        self.wait_everywhere(f"{unique} as {protocol}", lambda dump: _has_workload(dump, unique, protocol))
        return workload

    def add_waypoint(self, name: str, node: str, *, namespace: str = "default", **settings: str) -> Waypoint:
        """A waypoint with one replica, run in a namespace of its own beside the node's workloads.

        Returns when it is ready; nothing is enrolled in it yet. `settings` are further variables for it.
        """
        workload = self.lab.add_workload(name, self.nodes[node].node)
        self.apply(name, *waypoint_documents(workload, namespace))
        waypoint = Waypoint(name, namespace, workload, self.directory / name)
        waypoint.folder.mkdir()
        self.start_waypoint(waypoint, **settings)
        self.wait(f"waypoint {name}", lambda: self.is_ready(waypoint.workload))
        return waypoint

    def order_waypoint(self, name: str, node: str, *, namespace: str = "default") -> Workload:
        """A waypoint with one replica that the node's agent runs, in the namespace of its attached workload.

        Returns when the control plane counts it as ready.
        """
        workload = self.lab.add_workload(name, self.nodes[node].node)
        with self.agent(node) as agent:
            agent.attach(namespace, name, name, ("path", str(workload.path)))
        self.apply(name, *waypoint_documents(workload, namespace, is_run_by_agent=True))
        self.await_waypoint(name, ready=1)
        return workload

    def waypoint_status(self, name: str) -> dict[str, Any]:
        """What the control plane's status port says of a waypoint; empty while it does not know it."""
        status, text = self.get(self.lab.management, ("127.0.0.1", STATUS_PORT), "/waypoints")
        assert status == 200, text
        return next((each for each in json.loads(text) if each["name"] == name), {})

    def await_waypoint(self, name: str, *, ready: int) -> dict[str, Any]:
        """Until so many of its workloads are ready; gives its status."""

        def look() -> dict[str, Any]:
            found = self.waypoint_status(name)
            return found if found.get("ready") == ready else {}

        return self.wait(f"{ready} ready workloads of waypoint {name}", look)

    def start_waypoint(self, waypoint: Waypoint, **settings: str) -> None:
        """Starts its process (again)."""
        root = str(self.state / "root-cert.pem")
        address = f"{self.lab.management.ipv4}:{XDS_PORT}"
        node = waypoint.workload.node.name
        environment = {
            **os.environ,
            "MYCELIA_WAYPOINT": f"{waypoint.namespace}/{waypoint.name}",
            "INSTANCE_IP": f"{waypoint.workload.ipv4},{waypoint.workload.ipv6}",
            "NODE_NAME": node,
            "XDS_ADDRESS": address,
            "CA_ADDRESS": address,
            "XDS_ROOT_CA": root,
            "CA_ROOT_CA": root,
            "AUTH_TOKEN": str(self.nodes[node].folder / "token"),
            "MYCELIA_STATE_DIR": str(waypoint.folder / "state"),
            "LOG_FORMAT": "json",
            **settings,
        }
        waypoint.process = self.lab.popen(
            waypoint.workload,
            [sys.executable, "-m", "waypoint"],
            log=waypoint.folder / "log",
            env=environment,
            cwd=ROOT,
        )

    def remove(self, workload: Workload) -> None:
        """Deletes its namespace, as a pod that is deleted; the manifest stays."""
        self.lab.remove_workload(workload.name)

    def add_service(
        self, name: str, vips: Sequence[str], ports: Mapping[int, int], selector: Mapping[str, str]
    ) -> str:
        """A service; returns its hostname once every ztunnel knows it."""
        unique = f"{name}-{next(self._names)}"
        self.apply(unique, service_document(unique, vips, ports, selector))
        hostname = f"{unique}.default.svc.cluster.local"
        self.wait_everywhere(
            f"service {unique}",
            lambda dump: any(
                service["hostname"] == hostname and service["endpoints"] for service in dump["services"]
            ),
        )
        return hostname

    def apply_policy(self, name: str, spec: Document, *, namespace: str = "default") -> None:
        """An AuthorizationPolicy; returns when every ztunnel has it."""
        metadata = {"name": name, "namespace": namespace}
        document = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata}
        self.apply(name, {**document, "spec": spec})
        self.wait_everywhere(f"policy {name}", lambda dump: name in json.dumps(dump["policies"]))

    def withdraw_policy(self, name: str) -> None:
        """Takes the manifest `name` away; returns when no ztunnel has a policy of that name."""
        self.withdraw(name)
        self.wait_everywhere(f"no policy {name}", lambda dump: name not in json.dumps(dump["policies"]))

    # --- looking ---

    def wait(self, what: str, look: Callable[[], Found], timeout_s: float = DEADLINE_S) -> Found:
        """The first true result of `look`."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            for name, process in self._running():
                if process.poll() is not None:
                    raise AssertionError(f"waiting for {what}: {name} ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s in vain for {what}; logs: {self.directory}")
            time.sleep(LOOK_EVERY_S)
        return found

    def _running(self) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        if self.control_plane is not None:
            yield "control plane", self.control_plane
        for name, processes in self.nodes.items():
            for what, process in (("agent", processes.agent), ("ztunnel", processes.ztunnel)):
                if process is not None:
                    yield f"{what} of {name}", process

    def wait_everywhere(self, what: str, is_true: Callable[[dict[str, Any]], bool]) -> None:
        """Until the configuration of every node's ztunnel fulfils it."""
        for name in self.nodes:

            def look(name: str = name) -> bool:
                dump = self.config_dump(name)
                return dump is not None and is_true(dump)

            self.wait(f"{what} on {name}", look)

    def get(self, place: Place | str, address: tuple[str, int], path: str) -> tuple[int, str]:
        """An HTTP GET from inside a place."""
        connection = http.client.HTTPConnection(*address, timeout=SOCKET_S)
        try:
            with self.lab.entered(place):
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def is_ready(self, node: Place | str) -> bool:
        try:
            return self.get(node, ("127.0.0.1", 15021), "/healthz/ready")[0] == 200
        except OSError:
            return False

    def config_dump(self, node: str) -> dict[str, Any] | None:
        try:
            status, text = self.get(node, ("127.0.0.1", 15000), "/config_dump")
        except OSError:
            return None
        return json.loads(text) if status == 200 else None

    def metrics(self, node: str) -> str:
        return self.get(node, ("127.0.0.1", 15020), "/metrics")[1]

    def access_log(self, node: str, **fields: str) -> list[dict[str, Any]]:
        """Access log records of a node's ztunnels with these fields; `src_workload` stands for
        src.workload.
        """
        wanted = {key.replace("_", ".", 1): value for key, value in fields.items()}
        found = []
        for path in self.nodes[node].ztunnel_logs:
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("scope") == "access":
                        found.append(record)
        return [record for record in found if wanted.items() <= record.items()]

    def wait_access_log(self, node: str, **fields: str) -> dict[str, Any]:
        """The last such record, awaited."""
        records = self.wait(f"access log of {node} with {fields}", lambda: self.access_log(node, **fields))
        return records[-1]

    def _listens(self, place: Place, port: int) -> bool:
        with self.lab.entered(place), socket.socket() as probe:
            return probe.connect_ex((place.ipv4, port)) == 0

    # --- traffic ---

    def listen(self, place: Place, port: int, *, family: str = "ipv4", host: str = "") -> socket.socket:
        """A listening socket in the place, on all its addresses of the family."""
        kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
        with self.lab.entered(place):
            listener = socket.create_server((host, port), family=kind, backlog=64)
        listener.settimeout(SOCKET_S)
        return listener

    def connect(self, place: Place, target: tuple[str, int], *, timeout_s: float = SOCKET_S) -> socket.socket:
        """A connected socket made in the place. Raises what the kernel says."""
        kind = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with self.lab.entered(place):
            sock = socket.socket(kind)
        sock.settimeout(timeout_s)
        try:
            sock.connect(target)
        except BaseException:
            sock.close()
            raise
        return sock


def _has_workload(dump: Mapping[str, Any], name: str, protocol: str) -> bool:
    return any(
        workload["name"] == name and workload["protocol"] == protocol for workload in dump["workloads"]
    )


# --- documents ---


def namespace(name: str, *, is_ambient: bool) -> Document:
    labels = {"istio.io/dataplane-mode": "ambient"} if is_ambient else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def workload_documents(
    workload: Workload, namespace: str, account: str, labels: Mapping[str, str]
) -> list[Document]:
    """A ServiceAccount and a WorkloadEntry with both addresses."""
    labels = {"app": workload.name, **labels}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": namespace},
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": workload.name,
                "namespace": namespace,
                "labels": {**labels, "mycelia.io/node": workload.node.name},
                "annotations": {"mycelia.io/addresses": workload.ipv6},
            },
            "spec": {"address": workload.ipv4, "serviceAccount": account, "labels": labels},
        },
    ]


def waypoint_documents(
    workload: Workload, namespace: str, *, is_run_by_agent: bool = False
) -> list[Document]:
    """A Gateway of class istio-waypoint and its one replica."""
    gateway: Document = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": workload.name,
            "namespace": namespace,
            "labels": {"istio.io/waypoint-for": "all"},
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    label = {"gateway.networking.k8s.io/gateway-name": workload.name}
    account, entry = workload_documents(workload, namespace, workload.name, label)
    if not is_run_by_agent:
        entry["metadata"]["annotations"]["mycelia.io/run-waypoint"] = "false"
    return [gateway, account, entry]


def service_document(
    name: str, vips: Sequence[str], ports: Mapping[int, int], selector: Mapping[str, str]
) -> Document:
    families = ["IPv6" if ":" in vip else "IPv4" for vip in vips]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": vips[0],
            "clusterIPs": list(vips),
            "ipFamilies": families,
            "ipFamilyPolicy": "RequireDualStack" if len(vips) > 1 else "SingleStack",
            "selector": dict(selector),
            "ports": [
                {"name": f"tcp-{port}", "port": port, "targetPort": target} for port, target in ports.items()
            ],
        },
    }
