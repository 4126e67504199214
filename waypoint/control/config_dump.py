"""The answer of the waypoint's `/config_dump`. Keys are never in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import json_format

from ca.credentials import Credential
from proto.mycelia import waypoint_pb2 as pb
from transport.spiffe import SpiffeId
from waypoint.settings import Settings

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class DumpInput:
    """What is dumped, as taken at one moment: building the text may then run in a thread."""

    settings: Settings
    version: str
    routes: Mapping[str, tuple[str, bytes]]
    destinations: Mapping[str, tuple[str, bytes]]
    workloads: int
    services: int
    certificates: tuple[Credential, ...]
    certificate_states: Mapping[SpiffeId, str]
    worker_dumps: Mapping[int, str]


def config_dump(dump: DumpInput) -> str:
    settings = dump.settings
    return json.dumps(
        {
            "version": {"version": dump.version},
            "waypoint": {
                "gateway": f"{settings.namespace}/{settings.gateway}",
                "identity": str(settings.spiffe_id),
                "addresses": list(settings.addresses),
                "node": settings.identity.node,
            },
            "routes": [_message(pb.ServiceRoutes(), each) for each in sorted(dump.routes.items())],
            "destinations": [_message(pb.Destination(), each) for each in sorted(dump.destinations.items())],
            "mesh": {"workloads": dump.workloads, "services": dump.services},
            "certificates": [
                {
                    "identity": str(each.identity),
                    "state": dump.certificate_states.get(each.identity, ""),
                    "notBefore": each.not_before.isoformat(),
                    "notAfter": each.not_after.isoformat(),
                }
                for each in dump.certificates
            ],
            "workers": [_parsed(text) for _, text in sorted(dump.worker_dumps.items())],
        },
        indent=2,
    )


def _message(message: pb.ServiceRoutes | pb.Destination, held: tuple[str, tuple[str, bytes]]) -> Json:
    _, (version, content) = held
    message.ParseFromString(content)
    return {"resourceVersion": version, **without_keys_of(message)}


def without_keys_of(message: pb.ServiceRoutes | pb.Destination) -> Json:
    """The message without private keys, wherever they are."""
    return _without_keys(json_format.MessageToDict(message))


def _without_keys(value: Json) -> Json:
    return {name: _redacted(name, each) for name, each in value.items()}


def _redacted(name: str, value: object) -> object:
    if name == "keyPem":
        return "[redacted]"
    if isinstance(value, dict):
        return _without_keys(value)
    return [_redacted("", each) for each in value] if isinstance(value, list) else value


def _parsed(text: str) -> Json:
    try:
        parsed = json.loads(text)
    except ValueError:
        return {"error": "the worker's dump is not JSON"}
    return parsed if isinstance(parsed, dict) else {"dump": parsed}
