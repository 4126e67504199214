"""Client of the node agent's local API: what the `mycelia` command and tests use. Standard library only.

The protocol: a unix stream socket; one JSON object in a line, one answer in a line; any number of requests
on a connection, one after the other. Requests have `op` (attach, detach, list, wait, status); answers have
`ok`, and with false an `error` of {code, text, next_step}.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from node.errors import AgentUnreachableError, NodeError

MAX_LINE_BYTES = 4 * 1024 * 1024  # an answer lists up to 1000 workloads
CONNECT_TIMEOUT_S = 5
ANSWER_MARGIN_S = 10.0


class RequestFailedError(NodeError):
    """The agent answered a request with an error; `remote_code` is the code it gave."""

    code = "MYC-5017"

    def __init__(self, text: str, *, next_step: str, remote_code: str) -> None:
        super().__init__(text, next_step=next_step)
        self.remote_code = remote_code

    def __str__(self) -> str:
        return super().__str__().replace(self.code, self.remote_code)


@dataclass(frozen=True, slots=True)
class ListedWorkload:
    """`state`: captured, capturing, releasing, not captured, or undecided (no order yet)."""

    uid: str
    namespace: str
    name: str
    service_account: str
    netns: str
    addresses: tuple[str, ...]
    state: str
    is_captured: bool
    is_wanted: bool | None
    reason: str
    problem: str
    origin: str = ""  # who enrolled it: empty by hand, else a container or a unit
    is_registering: bool = False
    registration: str = ""  # registered, refused, shadowed; empty: not known yet
    registration_problem: str = ""
    unhealthy: str = ""


class AgentClient:
    """One connection. Methods raise AgentUnreachableError, or RequestFailedError with the agent's reason."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A full queue is waited for only by a blocking connect; its bound is the send timeout.
        timeout = struct.pack("@ll", CONNECT_TIMEOUT_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise AgentUnreachableError(
                f"cannot reach the node agent at {path}: {error.strerror or error}",
                next_step="is it running, and may this user open its socket?",
            ) from error
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def attach(
        self,
        namespace: str,
        name: str,
        service_account: str,
        netns: tuple[str, str],
        *,
        uid: str = "",
        registration: Mapping[str, object] | None = None,
        container: str = "",
    ) -> str:
        """Attaches the workload whose network namespace is `netns`: ("name" | "path" | "pid" | "container" |
        "unit", value). Gives its uid. Capture follows when the control plane orders it; see `wait`.

        `registration` makes it known to the mesh without a manifest: {labels, addresses, network}. With the
        id of a `container` it is that one's, and ends with it.
        """
        kind, value = netns
        answer = self._request(
            {
                "op": "attach",
                "namespace": namespace,
                "name": name,
                "service_account": service_account,
                "netns": {"kind": kind, "value": value},
                "uid": uid,
                "registration": registration,
                "container": container,
            }
        )
        return str(answer["uid"])

    def detach(self, uid: str, *, grace_s: float | None = None) -> None:
        """Releases and forgets a workload; returns when its rules are gone. Uid: namespace/name by
        default.
        """
        self._request({"op": "detach", "uid": uid, "grace_s": grace_s}, (grace_s or 0.0) + 60.0)

    def wait(self, uid: str, *, is_captured: bool = True, timeout_s: float = 30.0) -> None:
        """Returns when the workload is captured (or is not); RequestFailedError with the reason otherwise."""
        self._request({"op": "wait", "uid": uid, "captured": is_captured, "timeout_s": timeout_s}, timeout_s)

    def list(self) -> list[ListedWorkload]:
        answer = self._request({"op": "list"})
        return [
            ListedWorkload(**{**entry, "addresses": tuple(entry["addresses"])})
            for entry in answer["workloads"]
        ]

    def status(self) -> dict[str, Any]:
        """node, control_plane ("connected" or the problem), ztunnels, workloads, state_problem."""
        return self._request({"op": "status"})

    def _request(self, request: dict[str, Any], timeout_s: float = 0.0) -> dict[str, Any]:
        self._socket.settimeout(timeout_s + ANSWER_MARGIN_S)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._reader.readline(MAX_LINE_BYTES)
        except OSError as error:
            raise AgentUnreachableError(f"the node agent at {self._path} does not answer: {error}") from error
        if not line.endswith(b"\n"):
            raise AgentUnreachableError(f"the node agent at {self._path} closed the connection")
        try:
            answer = json.loads(line)
            if answer["ok"]:
                return dict(answer)
            told = answer["error"]
            failure = RequestFailedError(
                str(told["text"]), next_step=str(told["next_step"]), remote_code=str(told["code"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise AgentUnreachableError(f"what listens at {self._path} is no node agent") from error
        raise failure
