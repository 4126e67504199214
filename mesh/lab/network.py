"""A network of namespaces: nodes that route, workloads behind them, a management network beside them.

    lab = Lab()                          # inside a private namespace only (mesh.lab.private)
    alpha, beta = lab.add_nodes("alpha", "beta")
    web = lab.add_workload("web", alpha)
    lab.run(web, ["curl", ...])

Shape, for node n (1, 2, ...) and its k-th workload:

| what | device | IPv4 | IPv6 |
|---|---|---|---|
| workload | eth0 | 10.77.n.(10+k)/24 | fd77:n::(10+k)/64 |
| its gateway, the node | pods (bridge) | 10.77.n.1 | fd77:n::1 |
| node to node | nodes0 | 10.77.0.n/24 | fd77::n/64 |
| node, management | mgmt0 | 10.77.255.(10+n)/24 | fd77:255::(10+n)/64 |
| management namespace | mgmt (bridge) | 10.77.255.1 | fd77:255::1 |

Numbers are written with decimal digits in both families. `nodes0` of all nodes meet in a bridge of the
namespace `fabric`. The control plane runs in the management namespace and talks to nodes over a network of
its own, so that a capture on the link between nodes holds the mesh's data traffic alone.

Invariants: names of namespaces and nothing else live outside the lab's own namespaces, and carry the lab's
number, so labs do not meet. `close()` ends processes, then namespaces, and may be called twice; a lab that
is never closed goes with the private namespace. A lab is used from one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mesh.lab import recorder
from mesh.lab.capture import ETHERTYPE_EXPERIMENT, Capture
from mesh.lab.errors import LabCommandError, LabError, NamespacesForbiddenError
from mesh.lab.private import is_private
from mesh.lab.programs import Children, Output
from mesh.lab.tools import find_program
from transport.netns import NetworkNamespace

NAMES = Path("/run/netns")
MAX_NODES = 200
MAX_WORKLOADS = 200  # on one node
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace of the lab, and its main addresses."""

    name: str
    namespace: str
    ipv4: str
    ipv6: str

    @property
    def path(self) -> Path:
        return NAMES / self.namespace

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


@dataclass(frozen=True, slots=True)
class Node(Place):
    """A "host": its namespace routes for its workloads. `ipv4` and `ipv6` are those other nodes reach it
    at.
    """

    number: int
    management_ipv4: str
    management_ipv6: str
    gateway_ipv4: str
    gateway_ipv6: str


@dataclass(frozen=True, slots=True)
class Workload(Place):
    node: Node


class Lab:
    """See the module. `directory` (made and removed by the lab unless given) holds process logs and
    captures.
    """

    def __init__(self, *, directory: Path | None = None, congestion_control: str = "cubic") -> None:
        if not is_private():
            raise NamespacesForbiddenError(
                "a lab is built inside a private namespace only",
                next_step="call mesh.lab.private.enter_private_namespace() first",
            )
        self._ip = find_program("ip")
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="mycelia-lab-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prefix = f"lab{os.getpid()}-{next(_numbers)}"
        self._congestion_control = congestion_control
        self._places: dict[str, Place] = {}
        self._workloads_made: dict[str, int] = {}
        self._files = itertools.count(1)
        self._children = Children()
        self._captures: list[Capture] = []
        self._is_closed = False
        try:
            self.management = Place("management", f"{self._prefix}-mgmt", "10.77.255.1", "fd77:255::1")
            self._fabric = Place("fabric", f"{self._prefix}-fabric", "", "")
            for place in (self.management, self._fabric):
                self._places[place.name] = place
            self._batch(None, [f"netns add {place.namespace}" for place in self._places.values()])
            self._prepare(self.management, is_router=False)
            self._prepare(self._fabric, is_router=False)
            self._batch(self._fabric, ["link set lo up", "link add nodes type bridge", "link set nodes up"])
            self._batch(
                self.management,
                [
                    "link set lo up",
                    "link add mgmt address 02:77:00:00:ff:01 type bridge",
                    "link set mgmt up",
                    "addr add 10.77.255.1/24 dev mgmt",
                    "addr add fd77:255::1/64 dev mgmt nodad",
                ],
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- shape ---

    @property
    def nodes(self) -> list[Node]:
        return [place for place in self._places.values() if isinstance(place, Node)]

    @property
    def workloads(self) -> list[Workload]:
        return [place for place in self._places.values() if isinstance(place, Workload)]

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def add_nodes(self, *names: str) -> list[Node]:
        """Nodes that reach each other, each other's workloads and the management namespace."""
        older = self.nodes
        fresh: list[Node] = []
        for name in names:
            n = len(older) + len(fresh) + 1
            if n > MAX_NODES or name in self._places:
                raise LabError(f"cannot add node {name}: the name is taken or the lab has {MAX_NODES} nodes")
            node = Node(
                name=name,
                namespace=f"{self._prefix}-{name}",
                ipv4=f"10.77.0.{n}",
                ipv6=f"fd77::{n}",
                number=n,
                management_ipv4=f"10.77.255.{10 + n}",
                management_ipv6=f"fd77:255::{10 + n}",
                gateway_ipv4=f"10.77.{n}.1",
                gateway_ipv6=f"fd77:{n}::1",
            )
            fresh.append(node)
        fabric, management = self._fabric.namespace, self.management.namespace
        self._batch(None, [f"netns add {node.namespace}" for node in fresh])
        for node in fresh:
            self._places[node.name] = node
            self._prepare(node, is_router=True)
        links: list[str] = []
        for node in fresh:
            port = f"n{node.number}"
            links += [
                f"link add nodes0 netns {node.namespace} type veth peer name {port} netns {fabric}",
                f"link add mgmt0 netns {node.namespace} type veth peer name {port} netns {management}",
            ]
        self._batch(None, links)
        ports = [f"link set n{node.number} master {{}} up" for node in fresh]
        self._batch(self._fabric, [line.format("nodes") for line in ports])
        routes = [
            line
            for node in fresh
            for line in (
                f"route add 10.77.{node.number}.0/24 via {node.management_ipv4}",
                f"route add fd77:{node.number}::/64 via {node.management_ipv6}",
            )
        ]
        self._batch(self.management, [line.format("mgmt") for line in ports] + routes)
        for node in fresh:
            self._batch(node, self._node_lines(node, [other for other in older + fresh if other != node]))
        for node in older:
            self._batch(node, self._route_lines(fresh))
        return fresh

    def add_node(self, name: str) -> Node:
        return self.add_nodes(name)[0]

    def add_workloads(self, where: Mapping[str, Node]) -> list[Workload]:
        """One workload for each name, behind its node."""
        fresh: list[Workload] = []
        for name, node in where.items():
            k = self._workloads_made.get(node.name, 0)
            if k >= MAX_WORKLOADS or name in self._places:
                raise LabError(f"cannot add workload {name}: the name is taken or node {node.name} is full")
            self._workloads_made[node.name] = k + 1
            fresh.append(
                Workload(
                    name=name,
                    namespace=f"{self._prefix}-{name}",
                    ipv4=f"10.77.{node.number}.{10 + k}",
                    ipv6=f"fd77:{node.number}::{10 + k}",
                    node=node,
                )
            )
            self._places[name] = fresh[-1]
        self._batch(None, [f"netns add {workload.namespace}" for workload in fresh])
        for workload in fresh:
            self._prepare(workload, is_router=False)
        self._batch(
            None,
            [
                f"link add eth0 netns {workload.namespace} type veth peer name {self._port(workload)}"
                f" netns {workload.node.namespace}"
                for workload in fresh
            ],
        )
        for node in {workload.node.name: workload.node for workload in fresh}.values():
            mine = [workload for workload in fresh if workload.node == node]
            self._batch(node, [f"link set {self._port(workload)} master pods up" for workload in mine])
        for workload in fresh:
            node = workload.node
            self._batch(
                workload,
                [
                    "link set lo up",
                    "link set eth0 up",
                    f"addr add {workload.ipv4}/24 dev eth0",
                    f"addr add {workload.ipv6}/64 dev eth0 nodad",
                    f"route add default via {node.gateway_ipv4}",
                    f"route add default via {node.gateway_ipv6}",
                ],
            )
        return fresh

    def add_workload(self, name: str, node: Node) -> Workload:
        return self.add_workloads({name: node})[0]

    def remove_workload(self, name: str) -> None:
        """The namespace goes, as a deleted pod's does. Processes in it keep it alive: end them first."""
        place = self._places.pop(name)
        self._batch(None, [f"netns del {place.namespace}"])

    def set_link(self, node: Node, *, is_up: bool) -> None:
        """Cuts the node off from the other nodes, or joins it again; management stays."""
        self._batch(self._fabric, [_cable(node, "nodes", is_up=is_up)])

    def set_management_link(self, node: Node, *, is_up: bool) -> None:
        """Cuts the node off from the control plane, or joins it again."""
        self._batch(self.management, [_cable(node, "mgmt", is_up=is_up)])

    # --- use ---

    @contextlib.contextmanager
    def entered(self, place: Place | str) -> Iterator[None]:
        """The calling thread is in that network namespace inside the `with`; sockets made there stay there.

        No await inside: everything on this thread would be there too.
        """
        with NetworkNamespace.from_path(str(self._at(place).path)) as namespace, namespace.entered():
            yield

    def run(
        self,
        place: Place | str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout_s: float = 20.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there to its end. Raises LabCommandError when it fails (with `check`) or takes too
        long.
        """
        where = self._at(place)
        child = self._children.start(
            argv,
            where.path,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = child.communicate(None if stdin is None else stdin.encode(), timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            told = err.decode(errors="replace").strip()
            raise LabCommandError(
                f"in {where.name}: `{' '.join(argv)}` took longer than {timeout_s:g} s: {told}"
            ) from None
        result = subprocess.CompletedProcess(
            list(argv), child.returncode, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and result.returncode != 0:
            raise LabCommandError(
                f"in {where.name}: `{' '.join(argv)}` ended with {result.returncode}: {result.stderr.strip()}"
            )
        return result

    def popen(
        self,
        place: Place | str,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Output = subprocess.DEVNULL,
        stdout: Output = None,
        stderr: Output = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a process there. What it prints goes to `log` unless given elsewhere; it ends with the
        lab.
        """
        where = self._at(place)
        with contextlib.ExitStack() as stack:
            if log is None:
                log = self.directory / f"{next(self._files):03}-{where.name}-{Path(argv[0]).name}.log"
            if stdout is None or stderr is None:
                file = stack.enter_context(log.open("ab"))
                stdout = file if stdout is None else stdout
                stderr = file if stderr is None else stderr
            return self._children.start(
                argv, where.path, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr
            )

    def stop(self, *processes: subprocess.Popen[bytes], grace_s: float = 3.0) -> None:
        """Ends processes that `popen` started: SIGTERM, and SIGKILL after the grace."""
        self._children.stop(processes, grace_s)

    def capture(self, place: Place | str, interface: str | None = None) -> Capture:
        """Captures on an interface of that place: by default a node's link to the other nodes, a workload's
        eth0.
        """
        where = self._at(place)
        if interface is None:
            interface = "nodes0" if isinstance(where, Node) else "eth0"
        path = self.directory / f"{next(self._files):03}-{where.name}-{interface}.pcap"
        with self.entered(where):
            marker = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            marker.bind((interface, ETHERTYPE_EXPERIMENT))
        argv = ["tcpdump", "-Z", "root", "-n", "-s", "0", "-U", "--immediate-mode", "-i", interface]
        argv += ["-w", str(path)]
        if recorder.is_needed():
            argv = [sys.executable, "-I", "-S", recorder.__file__, interface, str(path)]
        process = self.popen(where, argv)
        try:
            capture = Capture(process, path, marker)
        except BaseException:
            self.stop(process)
            marker.close()
            raise
        self._captures.append(capture)
        return capture

    def close(self) -> None:
        """Ends processes and captures, removes namespaces. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._children.close()
        for capture in self._captures:
            capture.stop()
        there = [place.namespace for place in self._places.values() if place.path.exists()]
        if there:
            with contextlib.suppress(LabCommandError):
                self._batch(None, [f"netns del {namespace}" for namespace in there])
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- inside ---

    def _at(self, place: Place | str) -> Place:
        return self._places[place] if isinstance(place, str) else place

    @staticmethod
    def _port(workload: Workload) -> str:
        """The node's end of a workload's cable: its address says whose it is, in at most 15 characters."""
        return "w" + workload.ipv4.rpartition(".")[2]

    def _batch(self, place: Place | None, lines: Sequence[str]) -> None:
        if not lines:
            return
        where = [] if place is None else ["-n", place.namespace]
        result = subprocess.run(
            [self._ip, *where, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            spot = "" if place is None else f" in {place.name}"
            raise LabCommandError(f"ip -batch{spot}: {result.stderr.strip()}")

    def _prepare(self, place: Place, *, is_router: bool) -> None:
        """Kernel settings of a fresh namespace, before it has devices: no address detection delay, known
        TCP.
        """
        settings = {
            "ipv6/conf/all/accept_dad": "0",
            "ipv6/conf/default/accept_dad": "0",
            "ipv6/conf/default/router_solicitations": "0",
        }
        if is_router:
            settings |= {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
        with self.entered(place):
            for name, value in settings.items():
                Path("/proc/sys/net", name).write_text(value)
            with contextlib.suppress(OSError):  # a host may not offer it to users; then its default stays
                Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(self._congestion_control)

    def _node_lines(self, node: Node, others: Sequence[Node]) -> list[str]:
        return [
            "link set lo up",
            # An address of its own: a bridge otherwise takes that of a port, and another one when ports
            # come and go. Workloads would then send to the old one for seconds.
            f"link add pods address 02:77:00:00:00:{node.number:02x} type bridge",
            "link set pods up",
            "link set nodes0 up",
            "link set mgmt0 up",
            f"addr add {node.gateway_ipv4}/24 dev pods",
            f"addr add {node.gateway_ipv6}/64 dev pods nodad",
            f"addr add {node.ipv4}/24 dev nodes0",
            f"addr add {node.ipv6}/64 dev nodes0 nodad",
            f"addr add {node.management_ipv4}/24 dev mgmt0",
            f"addr add {node.management_ipv6}/64 dev mgmt0 nodad",
            *self._route_lines(others),
        ]

    @staticmethod
    def _route_lines(others: Sequence[Node]) -> list[str]:
        return [
            line
            for other in others
            for line in (
                f"route add 10.77.{other.number}.0/24 via {other.ipv4}",
                f"route add fd77:{other.number}::/64 via {other.ipv6}",
            )
        ]


def _cable(node: Node, bridge: str, *, is_up: bool) -> str:
    """Out of the bridge rather than down: the node's end keeps its carrier, as with a switch that fails."""
    return f"link set n{node.number} " + (f"master {bridge}" if is_up else "nomaster")
