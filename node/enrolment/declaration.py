"""What a container's labels or a unit's options say about a workload. Pure.

One vocabulary: `workload` (its name; without it there is none), `namespace`, `service-account`, `labels`
(`app=web,version=v1`), `addresses` (commas; without it those of the network namespace) and `network`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Final

from node.attachment import Registration, check_workload_names
from node.errors import BadRequestError

LABEL_PREFIX: Final = "mycelia.io/"
WORKLOAD: Final = "workload"
KNOWN: Final = frozenset({WORKLOAD, "namespace", "service-account", "labels", "addresses", "network"})
MAX_ENTRIES: Final = 64
ORIGIN: Final = "container "


@dataclass(frozen=True, slots=True)
class Declaration:
    namespace: str
    name: str
    service_account: str
    registration: Registration

    @property
    def uid(self) -> str:
        return f"{self.namespace}/{self.name}"


def declared(words: Mapping[str, str]) -> Declaration | None:
    """From the words of the vocabulary; None without `workload`. Raises BadRequestError."""
    name = words.get(WORKLOAD, "")
    if not name:
        return None
    unknown = sorted(set(words) - KNOWN)
    if unknown:
        raise BadRequestError(f"{unknown[0]!r} is none of: {', '.join(sorted(KNOWN))}")
    namespace = words.get("namespace") or "default"
    account = words.get("service-account") or "default"
    check_workload_names(namespace, name, account)
    registration = Registration(
        parse_labels(split(words.get("labels", ""))),
        parse_addresses(split(words.get("addresses", ""))),
        words.get("network", ""),
    )
    return Declaration(namespace, name, account, registration)


def of_container(labels: Mapping[str, str]) -> Declaration | None:
    """Raises BadRequestError."""
    words = {
        key.removeprefix(LABEL_PREFIX): value for key, value in labels.items() if key.startswith(LABEL_PREFIX)
    }
    return declared(words)


def origin_of(identifier: str) -> str:
    """A container's, by its id: that is never used again, by any engine."""
    return f"{ORIGIN}{identifier}"


def split(text: str) -> list[str]:
    return [part for part in text.replace(",", " ").split() if part]


def parse_labels(entries: list[str]) -> tuple[tuple[str, str], ...]:
    """From `key=value`. Raises BadRequestError; whether they are allowed is the control plane's word."""
    found: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise BadRequestError(f"label {entry[:100]!r} is not KEY=VALUE")
        found[key] = value
    _check_number(found, "labels")
    return tuple(sorted(found.items()))


def parse_addresses(entries: list[str]) -> tuple[str, ...]:
    """Raises BadRequestError."""
    try:
        found = [str(ipaddress.ip_address(entry)) for entry in entries]
    except ValueError as error:
        raise BadRequestError(f"{error}: addresses are numeric, without a network's length") from error
    _check_number(found, "addresses")
    return tuple(dict.fromkeys(found))


def _check_number(found: Sized, what: str) -> None:
    if len(found) > MAX_ENTRIES:
        raise BadRequestError(f"more than {MAX_ENTRIES} {what}")
