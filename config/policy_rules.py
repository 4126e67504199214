"""What policies are made of: who may do what, whose tokens count, how much of it. Values only, checked by
`config.kinds`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PolicyAction(enum.Enum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


@dataclass(frozen=True, slots=True)
class Source:
    """Who may be meant. Absent lists say nothing; within a list any value may match."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()
    # Names of fields given that only an L7 proxy can judge.
    l7_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()
    l7_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Sources, operations and conditions must all hold; an empty part holds always."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class JwtRule:
    """What is said of one issuer. `jwks_uri` empty and no `jwks`: the issuer says where its keys are."""

    issuer: str
    audiences: tuple[str, ...] = ()
    jwks: str = ""
    jwks_uri: str = ""
    timeout_ms: int = 5000
    headers: tuple[tuple[str, str], ...] = ()  # (name, prefix)
    parameters: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    forwards_token: bool = False
    payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()  # (header, claim)
    space_delimited_claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`keys` are as written: `caller`, `header:x-tenant` ...; `burst` 0 means as many as `requests`."""

    name: str
    requests: int
    per_ms: int
    burst: int = 0
    keys: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionLimit:
    """At node proxies. 0 is no limit; a burst of 0 is as many as in a second."""

    name: str
    new_per_second: int = 0
    burst: int = 0
    open: int = 0
    bytes_per_second: int = 0
    burst_bytes: int = 0
    keys: tuple[str, ...] = ()
