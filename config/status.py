"""The control plane's state as JSON, for the operator and for `mycelia`. Read only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Final

import trio
from google.protobuf import json_format
from google.protobuf.message import Message

from config import keys
from config.access import wall_clock
from config.ca_watch import ca_json
from config.compile.resource import ADDRESS, AUTHORIZATION, DESTINATION, SERVICE_ROUTES, Resource, TypeUrl
from config.control_plane import ControlPlane
from config.findings import Problem, Severity
from config.kinds.gateway import WAYPOINT_CLASS
from config.nodes.registrations import State, Verdict
from config.notes import Condition, Note
from config.objects import Gateway, Ref
from config.registry.capture import Attached
from config.registry.waypoints import traffic_type
from config.registry.workload_source import WorkloadSource
from config.xds.server import Client
from config.xds.server_state import Watch
from proto.istio import authorization_pb2, workload_pb2
from proto.mycelia import waypoint_pb2
from telemetry.admin_http import Handler, Request, Response
from telemetry.metrics import MetricSet, negotiate

Json = dict[str, object] | list[object]

_MESSAGES: Final[Mapping[TypeUrl, type[Message]]] = {
    ADDRESS: workload_pb2.Address,
    AUTHORIZATION: authorization_pb2.Authorization,
    SERVICE_ROUTES: waypoint_pb2.ServiceRoutes,
    DESTINATION: waypoint_pb2.Destination,
}


def objects_json(plane: ControlPlane) -> Json:
    """Every object that is in force or should be, with what is to be said about it."""
    problems: dict[Ref, list[Problem]] = {}
    for problem in plane.problems():
        if problem.ref is not None:
            problems.setdefault(problem.ref, []).append(problem)
    notes: dict[Ref, list[Note]] = {}
    for note in plane.notes():
        notes.setdefault(note.ref, []).append(note)
    conditions: dict[Ref, list[Condition]] = {}
    for condition in plane.conditions():
        conditions.setdefault(condition.ref, []).append(condition)
    registered = {
        claim.ref: claim.node
        for claim in plane.nodes.registrations.claims()
        if claim.verdict.state is State.REGISTERED
    }
    refs = {*plane.sourced, *problems, *notes, *registered}
    return [
        _object(plane, ref, problems.get(ref, []), notes.get(ref, []))
        | ({"state": "registered", "registered_by": registered[ref]} if ref in registered else {})
        | {
            "conditions": [
                *(_condition(each) for each in conditions.get(ref, ())),
                *(
                    {"reason": each.reason.value, "message": each.text}
                    for each in notes.get(ref, ())
                    if not _is_repeated(each, conditions.get(ref, ()))
                ),
            ]
        }
        for ref in sorted(refs)
    ]


def _is_repeated(note: Note, conditions: Iterable[Condition]) -> bool:
    """Whether a condition says it already."""
    return any(each.reason is note.reason and note.text.endswith(each.message) for each in conditions)


def _condition(condition: Condition) -> Json:
    shown: dict[str, object] = {"type": condition.type, "status": str(condition.is_true)}
    if condition.parent:
        shown["parent"] = condition.parent
    return shown | {"reason": condition.reason.value, "message": condition.message}


def _object(
    plane: ControlPlane, ref: Ref, problems: Sequence[Problem], notes: Sequence[Note]
) -> dict[str, object]:
    sourced = plane.sourced.get(ref)
    shown: dict[str, object] = {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name}
    shown["state"] = _state(sourced is not None, sourced is not None and sourced.is_kept, problems, notes)
    if sourced is not None:
        shown |= {"file": sourced.file, "document": sourced.document, "line": sourced.line}
    shown["problems"] = [problem_json(each) for each in problems]
    return shown


def _state(is_there: bool, is_kept: bool, problems: Sequence[Problem], notes: Sequence[Note]) -> str:
    severities = {each.severity for each in problems}
    if is_kept:
        return "last good version in force"
    if not is_there:
        if severities == {Severity.IGNORED}:
            return "ignored"
        return "rejected" if problems else "missing"
    return "accepted with warnings" if problems or notes else "accepted"


def problem_json(problem: Problem) -> Json:
    return {
        "severity": problem.severity.value,
        "file": problem.file,
        "document": problem.document,
        "line": problem.line,
        "object": str(problem.ref) if problem.ref is not None else "",
        "path": problem.path,
        "text": problem.text,
    }


def problems_json(plane: ControlPlane) -> Json:
    return [problem_json(each) for each in plane.problems()]


def clients_json(plane: ControlPlane) -> Json:
    return {
        "version": plane.xds.system_version,
        "clients": [_client(client) for client in plane.xds.clients],
    }


def _client(client: Client) -> Json:
    return {
        "node": client.node,
        "id": client.identifier,
        "address": client.peer,
        "since": client.since.isoformat(),
        "types": {type_url: _watch(watch) for type_url, watch in client.state.watches.items()},
    }


def _watch(watch: Watch) -> Json:
    return {
        "subscription": "all" if watch.is_wildcard else f"{len(watch.keys)} single",
        "acked_version": watch.acked_version,
        "responses": watch.sent,
        "acks": watch.acked,
        "nacks": watch.nacked,
        "last_nack": watch.last_nack,
        "is_waiting_for_answer": bool(watch.in_flight),
        "pending": len(watch.upserts) + len(watch.removed),
    }


def nodes_json(plane: ControlPlane) -> Json:
    attending = {each.node: each for each in plane.nodes.attending.values()}
    book = plane.nodes.book
    registered = {(each["node"], each["uid"]): each for each in _registrations(plane)}
    nodes: list[object] = []
    for node in sorted({*book.nodes(), *attending}):
        attendance = attending.get(node)
        workloads = [
            {
                "uid": attached.uid,
                "namespace": attached.namespace,
                "name": attached.name,
                "service_account": attached.service_account,
                "addresses": list(attached.addresses),
                "is_captured": attached.is_captured,
                "is_to_be_captured": decision.capture,
                "reason": decision.reason,
                "problems": [
                    *decision.problems,
                    *_troubles(attached, plane.nodes.registrations.verdict(node, attached.uid)),
                ],
                "registration": registered.get((node, attached.uid)),
            }
            for attached, decision in book.decisions(node, plane.registry)
        ]
        nodes.append(
            {
                "node": node,
                "is_connected": attendance is not None,
                "address": attendance.peer if attendance is not None else "",
                "workloads": workloads,
                "waypoints": [asdict(each) for each in book.waypoints(node)],
            }
        )
    return {"nodes": nodes, "save_problem": plane.nodes.save_problem}


def _troubles(attached: Attached, verdict: Verdict) -> list[str]:
    found = [attached.problem] if attached.problem else []
    if verdict.problem:
        found.append(f"registration {verdict.state.name.lower()}: {verdict.problem}")
    return found


def registrations_json(plane: ControlPlane) -> Json:
    """Every workload that a node registers, with its state, its health and the age of its lease."""
    return list[object](_registrations(plane))


def _registrations(plane: ControlPlane) -> list[dict[str, object]]:
    registrations, now = plane.nodes.registrations, trio.current_time()
    index, places = plane.registry.index, plane.registry.places
    found: list[dict[str, object]] = []
    for claim in registrations.claims():
        source = next((each for each in index.sources_at(*claim.place) if each.owner == claim.ref), None)
        is_expired = registrations.is_expired(claim.node)
        shown = {
            "namespace": claim.ref.namespace,
            "name": claim.ref.name,
            "node": claim.node,
            "uid": claim.attached.uid,
            "service_account": claim.attached.service_account,
            "addresses": list(claim.addresses),
            "labels": dict(claim.registration.labels),
            "state": claim.verdict.state.name.lower(),
            "problem": claim.verdict.problem,
            "health": "lease expired" if is_expired else claim.registration.unhealthy or "healthy",
            "lease_age_s": round(registrations.lease_age_s(claim.node, now), 1),
            "lease_s": registrations.lease_s,
        }
        if claim.verdict.state is State.REGISTERED and source is not None:
            place = places.locality(source)
            shown["network"] = places.network(source)
            shown["locality"] = "/".join(part for part in (place.region, place.zone, place.subzone) if part)
        found.append(shown)
    return found


def resources_json(plane: ControlPlane, type_url: str, name: str = "") -> Json:
    """Compiled resources of one type, decoded; of one name or alias if one is given."""
    held: Mapping[str, Resource] = next(
        (each for url, each in plane.registry.resources.items() if url == type_url), {}
    )
    chosen = [each for each in held.values() if not name or name in (each.name, *each.aliases)]
    return [
        {"name": each.name, "version": each.version, "resource": decoded(each)}
        for each in sorted(chosen, key=lambda each: each.name)
    ]


def decoded(resource: Resource) -> object:
    """The message as JSON says it, without private keys."""
    message = _MESSAGES[resource.type_url]()
    message.ParseFromString(resource.payload)
    return _redacted(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _redacted(value: object) -> object:
    """The same without private keys, wherever they are."""
    if isinstance(value, dict):
        return {k: "[redacted]" if k == "key_pem" else _redacted(each) for k, each in value.items()}
    return [_redacted(each) for each in value] if isinstance(value, list) else value


def waypoints_json(plane: ControlPlane) -> Json:
    """Every waypoint: what it is for, its workloads and what their nodes say, the services through it."""
    serving: dict[str, list[str]] = {}
    for resource in plane.registry.resources[SERVICE_ROUTES].values():
        for name in resource.waypoints:
            serving.setdefault(name, []).append(resource.name)
    found: dict[Ref, list[Condition]] = {}
    for condition in plane.conditions():
        found.setdefault(condition.ref, []).append(condition)
    index = plane.registry.index
    return [
        _waypoint(plane, gateway, found.get(ref, ()), serving.get(f"{ref.namespace}/{ref.name}", ()))
        for ref in sorted(index.objects)
        if (gateway := index.gateway(ref)) is not None and gateway.class_name == WAYPOINT_CLASS
    ]


def _waypoint(
    plane: ControlPlane, gateway: Gateway, conditions: Sequence[Condition], services: Sequence[str]
) -> Json:
    index, ref = plane.registry.index, gateway.meta.ref
    sourced = plane.sourced.get(ref)
    return {
        "namespace": ref.namespace,
        "name": ref.name,
        "revision": gateway.meta.labels.get(keys.REVISION, ""),
        "traffic": traffic_type(index, gateway),
        "file": sourced.file if sourced is not None else "",
        "ready": index.replicas(ref).ready,
        "workloads": [_replica(plane, source) for source in index.replica_sources(ref)],
        "services": sorted(services),
        "conditions": [_condition(each) for each in conditions],
    }


def _replica(plane: ControlPlane, source: WorkloadSource) -> Json:
    index = plane.registry.index
    word = index.word_of(source)
    running = {each.place: each for each in plane.nodes.book.waypoints(source.node)}
    process = running.get((source.namespace, source.name))
    return {
        "name": source.name,
        "node": source.node,
        "addresses": list(source.addresses),
        "service_account": source.service_account,
        "is_ready": index.is_ready(source),
        # Empty: no node agent has a say in it.
        "said": word.text if word is not None else "",
        "pid": process.pid if process is not None else 0,
        "metrics_port": process.metrics_port if process is not None else 0,
    }


def _waypoint_counts(plane: ControlPlane) -> Json:
    serving = Counter(
        name for each in plane.registry.resources[SERVICE_ROUTES].values() for name in each.waypoints
    )
    index = plane.registry.index
    return [
        {
            "namespace": ref.namespace,
            "name": ref.name,
            "workloads": index.replicas(ref).known,
            "ready": index.replicas(ref).ready,
            "services": serving[f"{ref.namespace}/{ref.name}"],
        }
        for ref in sorted(index.objects)
        if (gateway := index.gateway(ref)) is not None and gateway.class_name == WAYPOINT_CLASS
    ]


def summary_json(plane: ControlPlane) -> Json:
    problems = plane.problems()
    return {
        "is_ready": plane.is_ready,
        "trust_domain": plane.settings.trust_domain,
        "cluster_id": plane.settings.cluster_id,
        "ca": ca_json(plane.authority, wall_clock()),
        "objects": len(plane.sourced),
        "errors": sum(each.severity is Severity.ERROR for each in problems),
        "warnings": sum(each.severity is Severity.WARNING for each in problems),
        "xds_clients": sum(1 for _ in plane.xds.clients),
        "nodes_connected": len(plane.nodes.attending),
        "waypoints": _waypoint_counts(plane),
        "resources": {url: len(held) for url, held in plane.registry.resources.items()},
    }


# ---- pages ----


def health_routes(plane: ControlPlane, metrics_set: MetricSet) -> dict[tuple[str, str], Handler]:
    """Fit for anybody's eyes."""

    async def ready(_request: Request) -> Response:
        return Response.text("ready") if plane.is_ready else Response.text("loading manifests", 503)

    async def metrics(request: Request) -> Response:
        page = negotiate(
            metrics_set.render(),
            request.headers.get("accept", ""),
            request.headers.get("accept-encoding", ""),
        )
        headers = (("content-encoding", page.encoding),) if page.encoding else ()
        return Response(200, page.body, page.content_type, headers)

    return {
        ("GET", "/healthz/ready"): ready,
        ("GET", "/metrics"): metrics,
        ("GET", "/stats/prometheus"): metrics,
    }


def status_routes(plane: ControlPlane) -> dict[tuple[str, str], Handler]:
    """The mesh's inside: for local clients only (CVE-2026-31838 is what happens otherwise)."""

    def page(make: Callable[[Request], Json]) -> Handler:
        async def handler(request: Request) -> Response:
            return Response.json(json.dumps(make(request), indent=2) + "\n")

        return handler

    return {
        ("GET", "/status"): page(lambda _: summary_json(plane)),
        ("GET", "/objects"): page(lambda _: objects_json(plane)),
        ("GET", "/problems"): page(lambda _: problems_json(plane)),
        ("GET", "/clients"): page(lambda _: clients_json(plane)),
        ("GET", "/nodes"): page(lambda _: nodes_json(plane)),
        ("GET", "/registrations"): page(lambda _: registrations_json(plane)),
        ("GET", "/waypoints"): page(lambda _: waypoints_json(plane)),
        ("GET", "/addresses"): page(
            lambda request: resources_json(plane, ADDRESS, request.query.get("name", ""))
        ),
        ("GET", "/routes"): page(
            lambda request: resources_json(plane, SERVICE_ROUTES, request.query.get("name", ""))
        ),
        ("GET", "/destinations"): page(
            lambda request: resources_json(plane, DESTINATION, request.query.get("name", ""))
        ),
        ("GET", "/policies"): page(
            lambda request: resources_json(plane, AUTHORIZATION, request.query.get("name", ""))
        ),
    }
