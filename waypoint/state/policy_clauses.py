"""The clauses of policies as tests of facts: one for each key (config-api 8.1, authz-cases 2 to 6). Pure.

A clause holds if one of its values matches (or it has none) and none of its not-values does. What is absent
matches no value: a clause with values fails, one with not-values alone holds.

Of a header with several lines each is looked at by itself. Where a match refuses (DENY, and CUSTOM, which
asks somebody) the lines joined with a comma count too, as an application may read them so (CVE-2026-26308).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network
from typing import Final, Generic, TypeAlias, TypeVar

from dataplane.state.model import ip_number
from proto.mycelia import authorization_l7_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.policy_facts import PolicyFacts
from waypoint.state.regex import Pattern

Test: TypeAlias = Callable[[PolicyFacts], bool]
Text = TypeVar("Text", str, bytes)

SERVER_NAME_KEY: Final = "connection.sni"
_ANY: Final = "*"
_HEADER: Final = re.compile(r"request\.headers\[([^\[\]]+)\]")
_CLAIM: Final = re.compile(r"request\.auth\.claims((?:\[[^\[\]]+\])+)")


class Texts(Generic[Text]):
    """Values: exact, `prefix*`, `*suffix` or `*`, which is anything that is present."""

    __slots__ = ("exact", "is_any", "prefixes", "suffixes")

    def __init__(self, values: Iterable[Text], star: Text) -> None:
        exact: list[Text] = []
        prefixes: list[Text] = []
        suffixes: list[Text] = []
        self.is_any = False
        for value in values:
            if value == star:
                self.is_any = True
            elif value.startswith(star):
                suffixes.append(value[1:])
            elif value.endswith(star):
                prefixes.append(value[:-1])
            else:
                exact.append(value)
        self.exact: frozenset[Text] = frozenset(exact)
        self.prefixes: tuple[Text, ...] = tuple(prefixes)
        self.suffixes: tuple[Text, ...] = tuple(suffixes)

    def holds(self, value: Text) -> bool:
        return (
            value in self.exact
            or self.is_any
            or value.startswith(self.prefixes)
            or value.endswith(self.suffixes)
        )


def texts(values: Iterable[str]) -> Texts[str]:
    return Texts(values, _ANY)


def octets(values: Iterable[str]) -> Texts[bytes]:
    return Texts([value.encode() for value in values], b"*")


def clause_test(clause: pb.Clause, *, is_refusing: bool) -> Test:
    """Raises `RoutesRejected` for a key or a value that means nothing here."""
    key = clause.key
    header = _HEADER.fullmatch(key)
    if header is not None:
        return _header_test(header[1].lower().encode(), clause, is_refusing=is_refusing)
    claim = _CLAIM.fullmatch(key)
    if claim is not None:
        return _claim_test(claim[1][1:-1].split("]["), clause)
    try:
        build = _BUILDERS[key]
    except KeyError:
        raise RoutesRejected(f"a policy's key {key!r} is not known") from None
    return build(clause)


def header_name(key: str) -> bytes:
    """Which header a clause with this key looks at; empty for other clauses."""
    header = _HEADER.fullmatch(key)
    return b"" if header is None else header[1].lower().encode()


def is_about_requests(key: str) -> bool:
    """Whether only HTTP knows it."""
    return key.startswith("request.")


def _both(clause: pb.Clause, build: Callable[[Sequence[str]], Test]) -> Test:
    """`build` makes the test "one of these matches"."""
    wanted = build(clause.values) if clause.values else None
    unwanted = build(clause.not_values) if clause.not_values else None
    if unwanted is None:
        return wanted or _always
    if wanted is None:
        return lambda facts: not unwanted(facts)
    return lambda facts: wanted(facts) and not unwanted(facts)


def _always(facts: PolicyFacts) -> bool:  # noqa: ARG001
    return True


# ---- who ----


def _of_identity(read: Callable[[PolicyFacts], str]) -> Callable[[pb.Clause], Test]:
    """Without a certificate there is nothing that could match."""

    def build(values: Sequence[str]) -> Test:
        holds = texts(values).holds
        return lambda facts: facts.identity is not None and holds(read(facts))

    return lambda clause: _both(clause, build)


def _principal(facts: PolicyFacts) -> str:
    return facts.principal


def _namespace(facts: PolicyFacts) -> str:
    return facts.identity.namespace if facts.identity is not None else ""


def _trust_domain(facts: PolicyFacts) -> str:
    return facts.identity.trust_domain if facts.identity is not None else ""


def _accounts(clause: pb.Clause) -> Test:
    """`namespace/name`, literally: no character of it is a wildcard (CVE-2026-39350)."""

    def build(values: Sequence[str]) -> Test:
        wanted = frozenset(values)

        def test(facts: PolicyFacts) -> bool:
            identity = facts.identity
            return identity is not None and f"{identity.namespace}/{identity.service_account}" in wanted

        return test

    return _both(clause, build)


def _of_address(read: Callable[[PolicyFacts], str]) -> Callable[[pb.Clause], Test]:
    def build(values: Sequence[str]) -> Test:
        networks = [_network(value) for value in values]

        def test(facts: PolicyFacts) -> bool:
            bits, number = ip_number(read(facts))
            return any(bits == family and number & mask == base for family, base, mask in networks)

        return test

    return lambda clause: _both(clause, build)


def _network(text: str) -> tuple[int, int, int]:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise RoutesRejected(f"{text!r} is no address or network") from None
    return network.max_prefixlen, int(network.network_address), int(network.netmask)


# ---- what ----


def _path(clause: pb.Clause) -> Test:
    def build(values: Sequence[str]) -> Test:
        plain = octets(value for value in values if "{" not in value)
        templates = [Pattern(template_expression(value)) for value in values if "{" in value]

        def test(facts: PolicyFacts) -> bool:
            path = facts.path
            return (path != b"" and plain.holds(path)) or any(each.is_full_match(path) for each in templates)

        return test

    return _both(clause, build)


def template_expression(template: str) -> str:
    """`{*}` is one segment that is not empty, `{**}` any characters over segments (config-api 8.1)."""
    pieces = re.split(r"(\{\*\*?\})", template)
    kinds = {"{*}": "[^/]+", "{**}": ".*"}
    return "".join(kinds.get(piece) or re.escape(piece) for piece in pieces)


def _method(clause: pb.Clause) -> Test:
    def build(values: Sequence[str]) -> Test:
        holds = octets(values).holds
        return lambda facts: facts.method != b"" and holds(facts.method)

    return _both(clause, build)


def _host(clause: pb.Clause) -> Test:
    """With the port, if the client wrote one; letter case does not matter (CVE-2021-39155)."""

    def build(values: Sequence[str]) -> Test:
        holds = octets(value.lower() for value in values).holds
        return lambda facts: facts.authority != b"" and holds(facts.authority.lower())

    return _both(clause, build)


def _port(clause: pb.Clause) -> Test:
    def build(values: Sequence[str]) -> Test:
        if not all(value.isascii() and value.isdecimal() for value in values):
            raise RoutesRejected(f"{', '.join(values)}: not all of these are ports")
        ports = frozenset(int(value) for value in values)
        return lambda facts: facts.destination[1] in ports

    return _both(clause, build)


def _server_name(clause: pb.Clause) -> Test:
    def build(values: Sequence[str]) -> Test:
        holds = texts(value.lower() for value in values).holds
        return lambda facts: facts.server_name != "" and holds(facts.server_name.lower())

    return _both(clause, build)


def _header_test(name: bytes, clause: pb.Clause, *, is_refusing: bool) -> Test:
    def build(values: Sequence[str], *, is_joined: bool) -> Test:
        holds = octets(values).holds

        def test(facts: PolicyFacts) -> bool:
            lines = facts.lines(name)
            if any(holds(line) for line in lines):
                return True
            return is_joined and len(lines) > 1 and holds(b",".join(lines))

        return test

    wanted = build(clause.values, is_joined=is_refusing) if clause.values else None
    unwanted = build(clause.not_values, is_joined=not is_refusing) if clause.not_values else None
    if unwanted is None:
        return wanted or _always
    if wanted is None:
        return lambda facts: not unwanted(facts)
    return lambda facts: wanted(facts) and not unwanted(facts)


# ---- credentials ----


def _of_texts(read: Callable[[PolicyFacts], Sequence[str]]) -> Callable[[pb.Clause], Test]:
    def build(values: Sequence[str]) -> Test:
        holds = texts(values).holds
        return lambda facts: any(holds(each) for each in read(facts))

    return lambda clause: _both(clause, build)


def _claim_test(path: Sequence[str], clause: pb.Clause) -> Test:
    return _of_texts(lambda facts: facts.claim(path))(clause)


def _request_principal(facts: PolicyFacts) -> Sequence[str]:
    found = facts.request_principal
    return () if found is None else (found,)


_BUILDERS: Final[dict[str, Callable[[pb.Clause], Test]]] = {
    "source.principal": _of_identity(_principal),
    "source.namespace": _of_identity(_namespace),
    "source.trustDomain": _of_identity(_trust_domain),
    "source.serviceAccount": _accounts,
    "source.ip": _of_address(lambda facts: facts.source_ip),
    # No proxy before this one is trusted to say who called it, so the caller is the connection's other end:
    # X-Forwarded-For is what a client claims (authz-cases 5).
    "remote.ip": _of_address(lambda facts: facts.source_ip),
    "destination.ip": _of_address(lambda facts: facts.destination[0]),
    "destination.port": _port,
    SERVER_NAME_KEY: _server_name,
    "request.host": _host,
    "request.method": _method,
    "request.path": _path,
    "request.auth.principal": _of_texts(_request_principal),
    "request.auth.audiences": _of_texts(lambda facts: facts.claim(("aud",))),
    "request.auth.presenter": _of_texts(lambda facts: facts.claim(("azp",))),
}
