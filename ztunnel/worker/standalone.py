"""`python -m ztunnel.worker.standalone --config FILE`: data workers without a control plane, for tests and
benchmarks.

A minimal control process: it starts the workers over the real channel, feeds them what the file says, and
answers their questions from it. The file is JSON:

    {
      "workers": 1,
      "settings": {"outbound_port": 15001, ...},            what differs from WorkerSettings' defaults
      "resources": [{"workload": {...}}, ...],    istio.workload.Address in protobuf's JSON form
      "authorizations": [{"name": ..., ...}],     istio.security.Authorization, likewise
      "credentials": [{"spiffe_id": "spiffe://...", "chain": "a.pem", "key": "b.pem", "roots": "c.pem"}],
      "workloads": [{"uid": ..., "name": ..., "namespace": ..., "service_account": ..., "netns": "/run/..."}]
    }

Addresses may be written as text (`"addresses": ["127.0.0.1"]`) where protobuf's JSON form wants base64. Paths
are relative to the file. Without `netns` a workload's sockets are in this process's namespace. When every
listener is open, the line `ready` goes to stdout. SIGUSR1 prints the workers' counters and dump as one line
of JSON, SIGTERM and SIGINT drain and end. On plain loopback set `listeners`, ports, `bind_address`,
`packet_mark` null, `is_spoofing` false and `static_destination`, because nothing is redirected there.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ipaddress
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from dataplane.ipc import MessageReader, encode
from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE
from proto.istio import authorization_pb2, workload_pb2
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from ztunnel.worker.settings import WorkerSettings

_CHAIN_VALID_S = 10 * 365 * 86400
_BATCH = 200
_DRAIN_S = 5.0

Json = dict[str, Any]


class Plan:
    """What the file says, as messages in the order in which each worker gets them."""

    def __init__(self, path: Path) -> None:
        config: Json = json.loads(path.read_text())
        base = path.parent
        self.worker_count = int(config.get("workers", 1))
        self.settings = WorkerSettings.from_json(json.dumps(config.get("settings", {})))
        self.workloads: list[Json] = config.get("workloads", [])
        self.resources = [_address(entry) for entry in config.get("resources", [])]
        self.authorizations = [_authorization(entry) for entry in config.get("authorizations", [])]
        self.credentials = {
            entry["spiffe_id"]: pb.Credential(
                spiffe_id=entry["spiffe_id"],
                chain_pem=[(base / entry["chain"]).read_text()],
                key_pem=(base / entry["key"]).read_bytes(),
                roots_pem=(base / entry["roots"]).read_text(),
                not_after=int(time.time()) + _CHAIN_VALID_S,
            )
            for entry in config.get("credentials", [])
        }

    def messages(self) -> list[pb.ToWorker]:
        """Everything before the workloads."""
        messages = [pb.ToWorker(configure=pb.Configure(settings_json=self.settings.to_json()))]
        messages += [pb.ToWorker(credential=credential) for credential in self.credentials.values()]
        for type_url, resources in (
            (ADDRESS_TYPE, self.resources),
            (AUTHORIZATION_TYPE, self.authorizations),
        ):
            for start in range(0, len(resources), _BATCH):
                batch = pb.Resources(type_url=type_url, upserts=resources[start : start + _BATCH])
                messages.append(pb.ToWorker(resources=batch))
        return messages


def _with_packed_addresses(value: Any) -> Any:
    """Textual IP addresses under `address` and `addresses` in base64, as protobuf's JSON form has bytes."""
    if isinstance(value, list):
        return [_with_packed_addresses(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: Json = {}
    for key, item in value.items():
        if key == "address" and isinstance(item, str):
            result[key] = _packed(item)
        elif key == "addresses" and isinstance(item, list) and all(isinstance(entry, str) for entry in item):
            result[key] = [_packed(entry) for entry in item]
        else:
            result[key] = _with_packed_addresses(item)
    return result


def _packed(text: str) -> str:
    try:
        return base64.b64encode(ipaddress.ip_address(text).packed).decode()
    except ValueError:
        return text


def _address(entry: Json) -> pb.Resources.Resource:
    message = ParseDict(_with_packed_addresses(entry), workload_pb2.Address())
    name = message.workload.uid or f"{message.service.namespace}/{message.service.hostname}"
    return pb.Resources.Resource(name=name, value=message.SerializeToString())


def _authorization(entry: Json) -> pb.Resources.Resource:
    message = ParseDict(_with_packed_addresses(entry), authorization_pb2.Authorization())
    return pb.Resources.Resource(
        name=f"{message.namespace}/{message.name}", value=message.SerializeToString()
    )


class WorkerProcess:
    """One worker and the channel to it. The channel blocks: a benchmark has nothing else to do."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "ztunnel.worker", "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.reader = MessageReader(pb.ToControl)
        self.ready_workloads = 0
        self.parts: list[pb.Stats] = []

    def send(self, message: pb.ToWorker, descriptor: int | None = None) -> None:
        data = encode(message)
        if descriptor is not None:
            sent = socket.send_fds(self.sock, [data], [descriptor])
            data = data[sent:]
        self.sock.sendall(data)

    def start(self, plan: Plan) -> None:
        for message in plan.messages():
            self.send(message)
        for workload in plan.workloads:
            descriptor = os.open(workload.get("netns") or "/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            order = pb.AddWorkload(**{key: value for key, value in workload.items() if key != "netns"})
            self.send(pb.ToWorker(add_workload=order), descriptor)
            os.close(descriptor)
        self.send(pb.ToWorker(synced=pb.Synced()))


class Standalone:
    """Runs the workers of one plan until a signal."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._workers = [WorkerProcess() for _ in range(plan.worker_count)]
        self._selector = selectors.DefaultSelector()
        self._signals, self._wake = socket.socketpair()
        self._exit_code = 0
        self._is_ready = False
        self._deadline: float | None = None

    def run(self) -> int:
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._signals, selectors.EVENT_READ)
        for worker in self._workers:
            self._selector.register(worker.sock, selectors.EVENT_READ, worker)
            worker.start(self._plan)
        while self._workers:
            for key, _ in self._selector.select(1.0):
                if key.data is None:
                    self._on_signals(self._signals.recv(16))
                else:
                    self._read(key.data)
            if self._deadline is not None and time.monotonic() > self._deadline:
                for worker in self._workers:
                    worker.process.kill()
        return self._exit_code

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGUSR1:
                for worker in self._workers:
                    worker.send(pb.ToWorker(stats_request=pb.StatsRequest(id=1)))
            elif self._deadline is None:
                self._drain()

    def _drain(self) -> None:
        self._deadline = time.monotonic() + _DRAIN_S + 1
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.send(pb.ToWorker(drain=pb.Drain(deadline_s=0.0)))

    def _read(self, worker: WorkerProcess) -> None:
        data = worker.sock.recv(256 * 1024)
        if not data:
            self._selector.unregister(worker.sock)
            worker.sock.close()
            self._workers.remove(worker)
            code = worker.process.wait()
            if self._deadline is None:
                print(f"a worker ended with {code}", file=sys.stderr, flush=True)
                self._exit_code = 1
                self._drain()
            return
        for message, _ in worker.reader.feed(data):
            self._on_message(worker, message)

    def _on_message(self, worker: WorkerProcess, message: pb.ToControl) -> None:
        kind = message.WhichOneof("message")
        if kind == "workload_result":
            self._on_workload_result(worker, message.workload_result)
        elif kind == "credential_wanted":
            wanted = message.credential_wanted.spiffe_id
            failed = pb.CredentialFailed(spiffe_id=wanted, error="not in the configuration file")
            worker.send(pb.ToWorker(credential_failed=failed))
        elif kind == "stats":
            self._on_stats(worker, message.stats)
        elif kind == "dump":
            stats = [MessageToDict(part) for part in worker.parts]
            worker.parts = []
            _print({"dump": json.loads(message.dump.json), "stats": stats})
        elif kind == "flows":
            for flow in message.flows.flows:
                _print({"flow": MessageToDict(flow)})
        elif kind == "log_line":
            line = message.log_line
            print(line.level, line.event, line.fields_json, file=sys.stderr, flush=True)

    def _on_stats(self, worker: WorkerProcess, part: pb.Stats) -> None:
        worker.parts.append(part)
        if not part.has_more:
            worker.send(pb.ToWorker(dump_request=pb.DumpRequest(id=1)))

    def _on_workload_result(self, worker: WorkerProcess, result: pb.WorkloadResult) -> None:
        if result.error:
            print(f"workload {result.uid}: {result.error}", file=sys.stderr, flush=True)
            self._exit_code = 1
            self._drain()
            return
        worker.ready_workloads += 1
        wanted = len(self._plan.workloads)
        if not self._is_ready and all(each.ready_workloads == wanted for each in self._workers):
            self._is_ready = True
            print("ready", flush=True)


def _print(value: Json) -> None:
    print(json.dumps(value), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ztunnel.worker.standalone",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file, see above")
    path: Path = parser.parse_args().config
    try:
        plan = Plan(path)
    except (OSError, ValueError, KeyError, TypeError, MeshError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    return Standalone(plan).run()


if __name__ == "__main__":
    sys.exit(main())
