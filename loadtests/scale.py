"""How soon one change reaches a worker in a large mesh, and what it does to the traffic there.

    python -m loadtests.scale [--workloads 10000] [--services 1000] [--changes 40] [--write-results]

Real processes in private namespaces: control plane, node agents, ztunnels. Besides the bulk there is a
client, a server and the service `flip`, whose only endpoint is the server while the server's manifest carries
a label. A change renames one manifest file into place; what is measured is the time from that rename until a
connection through the client's worker behaves by it (refused before, answered after, and the other way
round). So the figure holds the file watch, parsing, compilation, xDS, the ztunnel's control process and the
worker.

Meanwhile another process makes 1-byte echoes over one open tunnel without pause; its longest gap with
changes, beside its longest gap in as much time without any, says what a change costs the traffic.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track

from loadtests.bench import RESULTS, machine
from loadtests.processes import resident_bytes
from loadtests.protocol import Mode, encode
from mesh.lab.errors import LabError
from mesh.lab.network import Place, Workload
from mesh.lab.private import enter_private_namespace
from tests.kit.mesh import Mesh, service_document, workload_documents

BULK_PER_FILE = 500
LOAD_PORT = 9000
FLIP_VIP, STEADY_VIP = "10.78.0.10", "10.78.0.11"
READY_S = 180.0
CHANGE_S = 10.0
TARGET_REACH_S, TARGET_PAUSE_S = 0.050, 0.020
MAX_CHANGES = 1000


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """Times in seconds, sizes in bytes."""

    workloads: int
    services: int
    start_s: float
    reach_p50_s: float
    reach_p90_s: float
    reach_max_s: float
    quiet_gap_s: float
    changing_gap_s: float
    changing_gap_p999_s: float
    gaps_over_target: int
    echoes: int
    ztunnel_rss_bytes: int
    control_plane_rss_bytes: int

    @property
    def is_reach_met(self) -> bool:
        return self.reach_max_s <= TARGET_REACH_S

    @property
    def is_pause_met(self) -> bool:
        return self.changing_gap_s <= TARGET_PAUSE_S


def bulk_documents(workloads: int, services: int) -> list[list[dict[str, Any]]]:
    """Files of WorkloadEntries on nodes that do not exist, ten to a service."""
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bulk"}},
    ]
    for number in range(services):
        vip = f"10.79.{number // 250}.{number % 250 + 1}"
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": f"bulk-{number}", "namespace": "bulk"},
                "spec": {
                    "clusterIP": vip,
                    "clusterIPs": [vip],
                    "selector": {"app": f"bulk-{number}"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            }
        )
    for number in range(workloads):
        labels = {"app": f"bulk-{number % max(services, 1)}"}
        documents.append(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "WorkloadEntry",
                "metadata": {
                    "name": f"bulk-{number}",
                    "namespace": "bulk",
                    "labels": {
                        **labels,
                        "mycelia.io/node": f"elsewhere-{number % 100}",
                        "networking.istio.io/tunnel": "http",
                    },
                },
                "spec": {
                    "address": f"10.{100 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}",
                    "serviceAccount": f"account-{number % 200}",
                    "labels": labels,
                },
            }
        )
    return [documents[start : start + BULK_PER_FILE] for start in range(0, len(documents), BULK_PER_FILE)]


class EchoProbe:
    """A process that makes echoes over one connection and notes when each answer came."""

    def __init__(self, sock: socket.socket) -> None:
        self._wanted, child_wanted = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_echo_forever, args=(sock, child_wanted), daemon=True
        )
        self._process.start()

    def gaps(self) -> array.array[float]:
        """Seconds between answers since the last call."""
        self._wanted.send(True)
        collected: array.array[float] = self._wanted.recv()
        return collected

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._wanted.close()


def _echo_forever(sock: socket.socket, wanted: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gaps = array.array("d")
    last = time.monotonic()
    with contextlib.suppress(EOFError):
        while True:
            sock.sendall(b"x")
            sock.recv(1)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            if wanted.poll():
                wanted.recv()
                wanted.send(gaps)
                gaps = array.array("d")
                last = time.monotonic()


def is_served(mesh: Mesh, client: Place) -> bool:
    """Whether a fresh connection to the service `flip` is answered."""
    try:
        with mesh.connect(client, (FLIP_VIP, LOAD_PORT), timeout_s=CHANGE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(encode(Mode.ECHO) + b"?")
            return sock.recv(1) == b"?"
    except ConnectionError:
        return False


class Flipper:
    """Changes the server's manifest: with the label of the service `flip`, or without."""

    def __init__(self, mesh: Mesh, client: Workload, server: Workload) -> None:
        self._mesh = mesh
        self._client = client
        self._texts = {
            is_on: _text(server, {"steady": "yes"} | ({"flip": "yes"} if is_on else {}))
            for is_on in (False, True)
        }
        self._path = mesh.manifests / f"{server.name}.yaml"

    def flip(self, *, is_on: bool) -> float:
        """Seconds from the rename until the client's worker goes by it."""
        fresh = self._path.with_name(".flip.new")
        fresh.write_text(self._texts[is_on])
        start = time.monotonic()
        fresh.rename(self._path)
        while is_served(self._mesh, self._client) is not is_on:
            if time.monotonic() - start > CHANGE_S:
                raise LabError(f"a change did not reach the worker within {CHANGE_S:g} s")
        return time.monotonic() - start


def _text(server: Workload, labels: dict[str, str]) -> str:
    documents = workload_documents(server, "default", server.name, labels)
    return "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)


def measure(directory: Path, workloads: int, services: int, changes: int, console: Console) -> ScaleResult:
    mesh = Mesh(directory)
    for number, documents in enumerate(bulk_documents(workloads, services)):
        mesh.apply(f"bulk-{number:03}", *documents)
    start = time.monotonic()
    with mesh:
        client = mesh.add("client", "alpha")
        server = mesh.add("server", "beta", labels={"steady": "yes"})
        mesh.apply(
            "services",
            service_document("flip", [FLIP_VIP], {LOAD_PORT: LOAD_PORT}, {"flip": "yes"}),
            service_document("steady", [STEADY_VIP], {LOAD_PORT: LOAD_PORT}, {"steady": "yes"}),
        )
        mesh.wait_everywhere(
            "the bulk", lambda dump: len(dump["workloads"]) > workloads and len(dump["services"]) > services
        )
        start_s = time.monotonic() - start
        command = [sys.executable, "-m", "loadtests.server", "--listen", f"0.0.0.0:{LOAD_PORT}"]
        mesh.lab.popen(server, command, log=directory / "server.log", cwd=Path(__file__).parents[1])
        flipper = Flipper(mesh, client, server)
        mesh.wait("the service", lambda: _is_steady(mesh, client))
        flipper.flip(is_on=True)
        flipper.flip(is_on=False)  # the first of each pays for dialling the tunnel
        probe = EchoProbe(_steady(mesh, client))
        try:
            probe.gaps()
            reached: list[float] = []
            changing_start = time.monotonic()
            for number in track(range(changes), "changes", console=console, transient=True):
                reached.append(flipper.flip(is_on=number % 2 == 0))
                time.sleep(0.02)
            changing = probe.gaps()
            time.sleep(time.monotonic() - changing_start)
            quiet = probe.gaps()
        finally:
            probe.close()
        alpha = mesh.nodes["alpha"].ztunnel
        assert alpha is not None
        assert mesh.control_plane is not None
        reached.sort()
        ordered = sorted(changing)
        return ScaleResult(
            workloads=workloads,
            services=services,
            start_s=start_s,
            reach_p50_s=median(reached),
            reach_p90_s=reached[int(len(reached) * 0.9)],
            reach_max_s=reached[-1],
            quiet_gap_s=max(quiet),
            changing_gap_s=ordered[-1],
            changing_gap_p999_s=ordered[int(len(ordered) * 0.999)],
            gaps_over_target=sum(gap > TARGET_PAUSE_S for gap in ordered),
            echoes=len(ordered),
            ztunnel_rss_bytes=resident_bytes([alpha.pid]),
            control_plane_rss_bytes=resident_bytes([mesh.control_plane.pid]),
        )


def _steady(mesh: Mesh, client: Place) -> socket.socket:
    sock = mesh.connect(client, (STEADY_VIP, LOAD_PORT))
    sock.sendall(encode(Mode.ECHO))
    return sock


def _is_steady(mesh: Mesh, client: Place) -> bool:
    try:
        with _steady(mesh, client) as sock:
            sock.sendall(b"?")
            return sock.recv(1) == b"?"
    except ConnectionError:
        return False


def figures(result: ScaleResult) -> list[str]:
    """The figures in words, a line each."""
    echoes = f"p99.9 {_ms(result.changing_gap_p999_s)} of {result.echoes} echoes"
    return [
        f"{result.workloads} workloads, {result.services} services; ready {result.start_s:.1f} s after start",
        (
            f"a change reaches the worker: p50 {_ms(result.reach_p50_s)}, p90 {_ms(result.reach_p90_s)}, "
            f"max {_ms(result.reach_max_s)} (target {_ms(TARGET_REACH_S)}): {_mark(result.is_reach_met)}"
        ),
        (
            f"longest gap between echoes: {_ms(result.changing_gap_s)} with changes ({echoes}), "
            f"{_ms(result.quiet_gap_s)} without (target {_ms(TARGET_PAUSE_S)}): {_mark(result.is_pause_met)}"
        ),
        (
            f"resident: ztunnel (control process and worker) {result.ztunnel_rss_bytes / 1e6:.0f} MB, "
            f"control plane {result.control_plane_rss_bytes / 1e6:.0f} MB"
        ),
    ]


def append_section(result: ScaleResult, arguments: Sequence[str]) -> None:
    """Adds a dated section to RESULTS.md."""
    facts = [f"{key}: {value}" for key, value in machine("as the host", 1, None).items()]
    command = " ".join(["python -m loadtests.scale", *arguments])
    lines = [f"## {date.today().isoformat()}: a change in a large mesh", "", f"Command: `{command}`", ""]  # noqa: DTZ011 - the date on the wall
    lines += [f"- {line}" for line in (*facts, *figures(result))]
    with RESULTS.open("a") as file:
        file.write("\n" + "\n".join(lines) + "\n")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _mark(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=40, help=f"2 to {MAX_CHANGES}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write-results", action="store_true", help="append a section to RESULTS.md")
    options = parser.parse_args(arguments)
    if not 2 <= options.changes <= MAX_CHANGES:
        parser.error(f"--changes takes 2 to {MAX_CHANGES}")
    try:
        enter_private_namespace(sys.orig_argv)
    except LabError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    os.environ.setdefault("RUST_LOG", "info")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mycelia-scale-") as folder:
        result = measure(Path(folder), options.workloads, options.services, options.changes, console)
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=2))
    if options.write_results:
        append_section(result, sys.argv[1:] if arguments is None else arguments)
    for line in figures(result):
        console.print(line, soft_wrap=True)
    return 0 if result.is_reach_met and result.is_pause_met else 1


if __name__ == "__main__":
    sys.exit(main())
