"""The node agent's local API: JSON lines on a unix socket (the protocol is in node/api_client.py).

Invariants: only root and the agent's own user are served (the socket's mode says so, the peer's credentials
are checked too); lines, connections and waiting times are bounded; a bad request gets an answer and costs
nobody else anything.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import trio

from node.agent import Agent, AttachRequest
from node.attachment import CaptureOrder, Registration
from node.enrolment.declaration import origin_of, parse_addresses, parse_labels
from node.enrolment.resolve import Resolver
from node.errors import BadRequestError
from node.keeper import Goal, Keeper
from telemetry.logging import get_logger
from transport.errors import MeshError

MAX_REQUEST_BYTES = 16 * 1024
MAX_CONNECTIONS = 32
MAX_WAIT_S = 600.0
IDLE_S = 60.0
ANSWER_DEADLINE_S = 10.0
KINDS = ("name", "path", "pid", "container", "unit")

log = get_logger("node.api")


class ApiServer:
    """`status` gives what only the composition root knows: the node's name, links and the like."""

    def __init__(self, agent: Agent, status: Callable[[], dict[str, object]], resolver: Resolver) -> None:
        self._agent = agent
        self._status = status
        self._resolver = resolver
        self._slots = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def run(
        self,
        listener: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until cancelled; at the bound of connections the next ones wait in the listener's queue."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await self._slots.acquire_on_behalf_of(token := object())
                try:
                    sock, _ = await listener.accept()
                except OSError as error:
                    self._slots.release_on_behalf_of(token)
                    log.warning("api_accept_failed", error=error.strerror)
                    await trio.sleep(0.2)
                    continue
                nursery.start_soon(self._serve, trio.SocketStream(sock), token)

    async def _serve(self, stream: trio.SocketStream, token: object) -> None:
        try:
            async with stream:
                if not may_use(stream.socket):
                    return
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left
        finally:
            self._slots.release_on_behalf_of(token)

    async def _converse(self, stream: trio.SocketStream) -> None:
        buffered = bytearray()
        while True:
            with trio.move_on_after(IDLE_S) as idle:
                while b"\n" not in buffered:
                    if len(buffered) > MAX_REQUEST_BYTES:
                        await _answer(stream, _failure(BadRequestError("the request is too long")))
                        return
                    received = await stream.receive_some(4096)
                    if not received:
                        return
                    buffered += received
            if idle.cancelled_caught:
                return
            line, _, rest = bytes(buffered).partition(b"\n")
            buffered[:] = rest
            await _answer(stream, await self._handle(line))

    async def _handle(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise BadRequestError("a request is a JSON object")
            return {"ok": True, **await self._perform(request)}
        except MeshError as error:
            return _failure(error)
        except (ValueError, RecursionError) as error:
            return _failure(BadRequestError(f"the request is not JSON: {error}"))

    async def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("op"):
            case "attach":
                attachment = await self._agent.attach(await self._attach_request(request))
                return {"uid": attachment.uid}
            case "detach":
                grace_s = request.get("grace_s")
                bounded = None if grace_s is None else _number(request, "grace_s")
                await self._agent.detach(_text(request, "uid"), grace_s=bounded)
                return {}
            case "wait":
                await self._agent.wait(
                    _text(request, "uid"),
                    is_captured=request.get("captured", True) is True,
                    timeout_s=_number(request, "timeout_s"),
                )
                return {}
            case "list":
                listed = [_listed(keeper, order) for keeper, order in self._agent.keepers()]
                return {"workloads": [*listed, *_fenced(self._agent)]}
            case "status":
                return dict(self._status())
            case other:
                raise BadRequestError(f"op {str(other)[:50]!r} is none of attach, detach, wait, list, status")

    async def _attach_request(self, request: dict[str, Any]) -> AttachRequest:
        netns = request.get("netns")
        if not isinstance(netns, dict):
            kinds = " | ".join(f'"{kind}"' for kind in KINDS)
            raise BadRequestError(f'`netns` must be {{"kind": {kinds}, "value": "..."}}')
        return AttachRequest(
            namespace=_text(request, "namespace"),
            name=_text(request, "name"),
            service_account=_text(request, "service_account"),
            reference=await self._resolver.resolve(_text(netns, "kind"), _text(netns, "value")),
            uid=_text(request, "uid") if "uid" in request else "",
            registration=_registration(request),
            origin=_origin(request),
        )


def may_use(sock: trio.socket.SocketType) -> bool:
    """True for root and for the user the agent runs as."""
    size = struct.calcsize("3i")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    if uid in {0, os.geteuid()}:
        return True
    log.warning("api_refused", uid=uid)
    return False


async def _answer(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    with trio.move_on_after(ANSWER_DEADLINE_S) as deadline:
        await stream.send_all(json.dumps(answer).encode() + b"\n")
    if deadline.cancelled_caught:
        raise trio.BrokenResourceError


def _failure(error: MeshError) -> dict[str, Any]:
    return {"ok": False, "error": {"code": error.code, "text": error.text, "next_step": error.next_step}}


def _text(request: dict[str, Any], field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str):
        raise BadRequestError(f"`{field}` must be a text")
    return value


def _number(request: dict[str, Any], field: str) -> float:
    value = request.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WAIT_S:
        raise BadRequestError(f"`{field}` must be a number of seconds from 0 to {MAX_WAIT_S:g}")
    return float(value)


def _origin(request: dict[str, Any]) -> str:
    """By whom a container's own runtime asks (mesh/oci_hook.py)."""
    identifier = request.get("container", "")
    if (
        not isinstance(identifier, str)
        or not (identifier.isalnum() or not identifier)
        or len(identifier) > 64
    ):
        raise BadRequestError("`container` must be the id of a container")
    return origin_of(identifier) if identifier else ""


def _registration(request: dict[str, Any]) -> Registration | None:
    said = request.get("registration")
    if said is None:
        return None
    labels, addresses = (said.get("labels"), said.get("addresses")) if isinstance(said, dict) else (0, 0)
    if not isinstance(labels, dict) or not isinstance(addresses, list):
        raise BadRequestError(
            '`registration` must be {"labels": {...}, "addresses": [...], "network": "..."}'
        )
    return Registration(
        parse_labels([f"{key}={value}" for key, value in labels.items()]),
        parse_addresses([str(each) for each in addresses]),
        _text(said, "network"),
    )


def _listed(keeper: Keeper, order: CaptureOrder | None) -> dict[str, Any]:
    kept = keeper.attachment
    return {
        "uid": kept.uid,
        "namespace": kept.namespace,
        "name": kept.name,
        "service_account": kept.service_account,
        "netns": str(kept.reference),
        "addresses": list((kept.registration and kept.registration.addresses) or keeper.addresses),
        "state": _state(keeper),
        "is_captured": kept.is_captured,
        "is_wanted": None if order is None else order.is_wanted,
        "reason": "" if order is None else order.reason,
        "problem": keeper.problem,
        "origin": kept.origin,
        "is_registering": kept.registration is not None,
        "registration": "" if order is None else order.registration,
        "registration_problem": "" if order is None else order.registration_problem,
        "unhealthy": keeper.unhealthy,
    }


def _fenced(agent: Agent) -> list[dict[str, Any]]:
    """Workloads that ended, or were there before the last boot: with what is to be done about them."""
    found = []
    for uid, fence in agent.fences.all().items():
        namespace, _, name = uid.partition("/")
        rules = "its traffic is refused" if agent.fences.has_rules(uid) else "its namespace is not there"
        found.append(
            {
                "uid": uid,
                "namespace": namespace,
                "name": name,
                "service_account": "",
                "netns": str(fence.reference),
                "addresses": [],
                "state": "fenced",
                "is_captured": False,
                "is_wanted": None,
                "reason": f"it ended or the host was booted: {rules}; add it again, or remove it",
                "problem": agent.fences.problems.get(uid, ""),
                "is_registering": True,
            }
        )
    return found


def _state(keeper: Keeper) -> str:
    is_captured = keeper.attachment.is_captured
    match keeper.goal:
        case Goal.CAPTURED:
            return "captured" if is_captured else "capturing"
        case Goal.RELEASED:
            return "not captured" if keeper.is_settled else "releasing"
        case Goal.DETACHED | Goal.GONE:
            return "releasing"
        case Goal.UNDECIDED:
            return "captured" if is_captured else "undecided"
