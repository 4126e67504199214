"""The answer of `/config_dump` in the shape that Istio's tools read (facts 12.1). Keys are never in it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from ca.credentials import Credential
from dataplane.state.model import GatewayRef, Service, Workload
from dataplane.state.store import MeshState
from proto.istio import authorization_pb2
from transport.spiffe import SpiffeId
from ztunnel.settings import Settings

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)

_CAMEL = re.compile("_([a-z])")

Json = dict[str, object]


@dataclasses.dataclass(frozen=True, slots=True)
class DumpInput:
    """What is dumped, as taken at one moment: building the text may then run in a thread."""

    workloads: tuple[Workload, ...]
    services: tuple[tuple[Service, tuple[Workload, ...]], ...]
    staged: tuple[tuple[str, tuple[Workload, ...]], ...]
    policies: tuple[tuple[str, bytes], ...]
    certificates: tuple[Credential, ...]
    certificate_states: Mapping[SpiffeId, str]
    proxies: Mapping[str, Json]
    worker_dumps: Mapping[int, str]
    settings: Settings
    version: str


def endpoints_of(state: MeshState, service: Service) -> tuple[Workload, ...]:
    endpoints = state.endpoints(service)
    return () if endpoints is None else tuple(endpoints.workloads.values())


def config_dump(dump: DumpInput) -> str:
    workers = [_parsed(text) for _, text in sorted(dump.worker_dumps.items())]
    return json.dumps(
        {
            "workloads": [_workload(w) for w in sorted(dump.workloads, key=lambda w: w.uid)],
            "services": [
                _service(service, endpoints)
                for service, endpoints in sorted(dump.services, key=lambda item: item[0].key)
            ],
            "policies": [_policy(key, value) for key, value in sorted(dump.policies)],
            "stagedServices": {
                key: [workload.uid for workload in endpoints] for key, endpoints in sorted(dump.staged)
            },
            "staticConfig": {},
            "version": {"version": dump.version},
            "config": _settings(dump.settings),
            "certificates": _certificates(dump),
            "workloadState": _workload_states(dump.proxies, workers),
            "workers": workers,
        },
        indent=2,
    )


def _parsed(text: str) -> Json:
    try:
        parsed = json.loads(text)
    except ValueError:
        return {"error": "the worker's dump is not JSON"}
    return parsed if isinstance(parsed, dict) else {"dump": parsed}


def _workload(workload: Workload) -> Json:
    locality = workload.locality
    return {
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "serviceAccount": workload.identity.service_account,
        "trustDomain": workload.identity.trust_domain,
        "workloadIps": list(workload.addresses),
        "hostname": workload.hostname,
        "network": workload.network,
        "networkMode": "HostNetwork" if workload.is_host_network else "Standard",
        "protocol": "HBONE" if workload.is_hbone else "TCP",
        "nativeTunnel": workload.native_tunnel,
        "node": workload.node,
        "clusterId": workload.cluster_id,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type.name.lower(),
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "status": "Healthy" if workload.is_healthy else "Unhealthy",
        "capacity": workload.capacity,
        "locality": {"region": locality.region, "zone": locality.zone, "subzone": locality.subzone},
        "authorizationPolicies": list(workload.authorization_policies),
        "services": sorted(workload.services),
        **_optional("waypoint", _gateway(workload.waypoint)),
        **_optional("networkGateway", _gateway(workload.network_gateway)),
        **_optional("applicationTunnel", _tunnel(workload)),
    }


def _service(service: Service, endpoints: Iterable[Workload]) -> Json:
    balancing = service.balancing
    return {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [
            f"{vip.network}/{vip.address}" + ("" if vip.length is None else f"/{vip.length}")
            for vip in service.vips
        ],
        "ports": {str(port): target for port, target in service.ports.items()},
        "subjectAltNames": [str(identity) for identity in service.identities],
        "ipFamilies": service.ip_families.name,
        "canonical": service.is_canonical,
        "visibility": "Namespace" if service.is_namespace_private else "Public",
        "loadBalancer": {
            "mode": balancing.mode.name,
            "routingPreferences": [scope.name for scope in balancing.preferences],
            "healthPolicy": "AllowAll" if balancing.is_unhealthy_allowed else "OnlyHealthy",
        },
        "endpoints": {
            workload.uid: {
                "workloadUid": workload.uid,
                "status": "Healthy" if workload.is_healthy else "Unhealthy",
                "port": {str(port): target for port, target in workload.services[service.key].items()},
            }
            for workload in endpoints
        },
        **_optional("waypoint", _gateway(service.waypoint)),
    }


def _policy(key: str, value: bytes) -> Json:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - memory that only a dump needs

    message = authorization_pb2.Authorization.FromString(value)
    return {"key": key, **MessageToDict(message, always_print_fields_with_no_presence=False)}


def _gateway(gateway: GatewayRef | None) -> Json | None:
    if gateway is None:
        return None
    if gateway.address:
        destination = f"{gateway.network}/{gateway.address}"
    else:
        destination = f"{gateway.namespace}/{gateway.hostname}"
    return {"destination": destination, "hboneMtlsPort": gateway.hbone_port}


def _tunnel(workload: Workload) -> Json | None:
    tunnel = workload.application_tunnel
    if tunnel is None:
        return None
    return {"protocol": "PROXY" if tunnel.is_proxy else "NONE", "port": tunnel.port}


def _optional(key: str, value: Json | None) -> Json:
    return {} if value is None else {key: value}


def _settings(settings: Settings) -> Json:
    """The settings without secrets: tokens and headers may be credentials."""
    values = dataclasses.asdict(settings)
    values["auth_token"] = "set" if settings.auth_token else ""
    for name in ("xds", "ca"):
        if values[name] is not None:
            values[name]["headers"] = [key for key, _ in values[name]["headers"]]
            if "-----BEGIN" in values[name]["roots"]:
                values[name]["roots"] = "given inline"
    return _camel(values)


def _camel(values: Mapping[str, object]) -> Json:
    """The keys of our own values in the style of the rest of the dump."""
    return {
        _CAMEL.sub(lambda match: match.group(1).upper(), key): _camel(value)
        if isinstance(value, dict)
        else value
        for key, value in values.items()
    }


def _certificates(dump: DumpInput) -> list[Json]:
    held = {credential.identity: credential for credential in dump.certificates}
    entries: list[Json] = []
    for identity, state in sorted(dump.certificate_states.items(), key=lambda item: str(item[0])):
        credential = held.get(identity)
        chain = [] if credential is None else [_certificate(pem) for pem in credential.chain_pem]
        roots = (
            []
            if credential is None
            else [_certificate(pem) for pem in _CERTIFICATE.findall(credential.roots_pem)]
        )
        entries.append({"identity": str(identity), "state": state, "certChain": chain, "rootCerts": roots})
    return entries


def _certificate(pem: str) -> Json:
    from cryptography import x509  # noqa: PLC0415 - memory that only a dump needs

    parsed = x509.load_pem_x509_certificate(pem.encode())
    return {
        "pem": base64.b64encode(pem.encode()).decode(),
        "serialNumber": str(parsed.serial_number),
        "validFrom": _seconds(parsed.not_valid_before_utc),
        "expirationTime": _seconds(parsed.not_valid_after_utc),
    }


def _seconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _workload_states(proxies: Mapping[str, Json], workers: Iterable[Json]) -> Json:
    """By uid: what the control process knows and the connections that the workers have open."""
    states: dict[str, Json] = {
        uid: {**state, "connections": {"inbound": [], "outbound": []}} for uid, state in proxies.items()
    }
    for worker in workers:
        by_uid = worker.get("workloadState")
        if not isinstance(by_uid, dict):
            continue
        for uid, found in by_uid.items():
            if uid in states and isinstance(found, dict) and isinstance(found.get("connections"), dict):
                _merge(states[uid]["connections"], found["connections"])
    return dict(states)


def _merge(into: object, found: Mapping[str, object]) -> None:
    assert isinstance(into, dict)
    for direction in ("inbound", "outbound"):
        connections = found.get(direction)
        if isinstance(connections, list):
            into[direction].extend(connections)
