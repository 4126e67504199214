"""Matches of routes: each kind, their order, and the index against a walk over the messages themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.state.builders import PORT, needs_re2, path, request, rule, table
from transport import regex as transport_regex
from waypoint.state.errors import RoutesRejected
from waypoint.state.request import RequestFacts
from waypoint.state.routes import parse_routes, service_table
from waypoint.state.rules import DirectResponse, Forward, backend, forward


def header(**match: object) -> pb.HttpMatch:
    return pb.HttpMatch(headers=[pb.ValueMatch(**match)])  # type: ignore[arg-type]


def parameter(**match: object) -> pb.HttpMatch:
    return pb.HttpMatch(query_parameters=[pb.ValueMatch(**match)])  # type: ignore[arg-type]


def without(**match: object) -> pb.HttpMatch:
    return pb.HttpMatch(without_headers=[pb.ValueMatch(**match)])  # type: ignore[arg-type]


X1 = (b"x", b"1")
X2 = (b"x", b"2")


@pytest.mark.parametrize(
    ("match", "facts", "is_match"),
    [
        (pb.HttpMatch(), request("/anything"), True),
        (pb.HttpMatch(), request("*", method="OPTIONS"), True),
        (path(exact="/a"), request("/a"), True),
        (path(exact="/a"), request("/a?q=1"), True),
        (path(exact="/a"), request("/a/"), False),
        (path(exact="/a"), request("/A"), False),
        (path(exact="/a", is_case_ignored=True), request("/A"), True),
        (path(exact="/A", is_case_ignored=True), request("/a"), True),
        (path(prefix="/"), request("/a"), True),
        (path(prefix="/"), request("*", method="OPTIONS"), False),
        (path(prefix="/v2"), request("/v2"), True),
        (path(prefix="/v2"), request("/v2/"), True),
        (path(prefix="/v2"), request("/v2/x"), True),
        (path(prefix="/v2"), request("/v2x"), False),
        (path(prefix="/v2"), request("/v2?x=/v2"), True),
        (path(prefix="/v2/"), request("/v2"), True),
        (path(prefix="/v2/"), request("/v2example"), False),
        (path(prefix="/V2", is_case_ignored=True), request("/v2/X"), True),
        (path(string_prefix="/v2"), request("/v2x"), True),
        (path(string_prefix="/v2/"), request("/v2"), False),
        (path(string_prefix="/V", is_case_ignored=True), request("/v2"), True),
        (pb.HttpMatch(method="GET"), request(), True),
        (pb.HttpMatch(method="GET"), request(method="HEAD"), False),
        (pb.HttpMatch(method="GET"), request(method="get"), False),
        (header(name="x", exact="1"), request("/", X1), True),
        (header(name="X", exact="1"), request("/", X1), True),
        (header(name="x", exact="1"), request("/", X2), False),
        (header(name="x", exact="1"), request(), False),
        (header(name="x", exact=""), request(), False),
        (header(name="x", exact="1,2"), request("/", X1, X2), True),
        (header(name="x", exact="1"), request("/", X1, X2), False),
        (header(name="x", prefix="1"), request("/", X1, X2), True),
        (header(name="x", is_present=True), request("/", X1), True),
        (header(name="x", is_present=True), request(), False),
        (header(name="x", regex="*"), request("/", X1), True),
        (
            header(name="cookie", exact="a=1; b=2"),
            request("/", (b"cookie", b"a=1"), (b"cookie", b"b=2")),
            True,
        ),
        (header(name=":method", exact="GET"), request(), True),
        (header(name="host", exact="web"), request(), True),
        (
            pb.HttpMatch(headers=[pb.ValueMatch(name="x", exact="1"), pb.ValueMatch(name="X", exact="2")]),
            request("/", X1),
            True,
        ),
        (parameter(name="q", exact="1"), request("/?q=1"), True),
        (parameter(name="q", exact="1"), request("/?q=1&q=2"), True),
        (parameter(name="q", exact="2"), request("/?q=1&q=2"), False),
        (parameter(name="Q", exact="1"), request("/?q=1"), False),
        (parameter(name="q", is_present=True), request("/?q"), True),
        (parameter(name="q", exact="a b"), request("/?q=a%20b"), False),
        (parameter(name="q", prefix="a"), request("/?x=1&q=ab"), True),
        (pb.HttpMatch(authority=pb.StringMatch(exact="web")), request(), True),
        (pb.HttpMatch(authority=pb.StringMatch(prefix="web")), request(authority="web:80"), True),
        (pb.HttpMatch(authority=pb.StringMatch(exact="web")), request(authority="api"), False),
        (pb.HttpMatch(scheme=pb.StringMatch(exact="https")), request(), False),
        (pb.HttpMatch(source_namespace="shop"), request(source_namespace="shop"), True),
        (pb.HttpMatch(source_namespace="shop"), request(source_namespace="other"), False),
        (without(name="x", exact="1"), request("/", X1), False),
        (without(name="x", exact="1"), request(), True),
        (without(name="x", exact=""), request(), False),
        (without(name="x", is_present=True), request(), True),
        (without(name="x", is_present=True), request("/", X1), False),
    ],
)
def test_a_match_agrees_in_all_its_clauses(match: pb.HttpMatch, facts: RequestFacts, is_match: bool) -> None:
    routes = table(rule(match))
    assert (routes.match(facts) is not None) is is_match
    assert (routes.explain(facts)[0] is not None) is is_match


@needs_re2
@pytest.mark.parametrize(
    ("match", "facts", "is_match"),
    [
        (path(regex="/v[0-9]+/.*"), request("/v12/x"), True),
        (path(regex="/v[0-9]+"), request("/v12/x"), False),
        (path(regex="/v[0-9]+"), request("/v1?x=/"), True),
        (path(regex="/V[0-9]", is_case_ignored=True), request("/v1"), True),
        (path(regex="/a|/b"), request("/b"), True),
        (path(regex=".*"), request("/b"), True),
        (header(name="x", regex="[12]"), request("/", X2), True),
        (header(name="x", regex="[12]"), request("/", X1, X2), False),
        (parameter(name="q", regex="a+"), request("/?q=aa"), True),
        (pb.HttpMatch(authority=pb.StringMatch(regex="w.b")), request(), True),
    ],
)
def test_regular_expressions_match_the_whole_value(
    match: pb.HttpMatch, facts: RequestFacts, is_match: bool
) -> None:
    assert (table(rule(match)).match(facts) is not None) is is_match


@needs_re2
@pytest.mark.parametrize("text", ["(a", r"(?=a)", r"(a)\1", "a" * 1025])
def test_an_expression_that_is_no_re2_is_refused(text: str) -> None:
    with pytest.raises(RoutesRejected, match="regular expression"):
        table(rule(path(regex=text)))


def test_without_the_engine_expressions_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_regex, "_module", None)
    with pytest.raises(RoutesRejected, match="RE2 engine is not installed") as refusal:
        table(rule(path(regex="/a"), name="HTTPRoute/shop/r/0"))
    assert "HTTPRoute/shop/r/0" in refusal.value.text
    assert "google-re2" in refusal.value.next_step


def test_the_first_rule_that_matches_decides_whatever_its_kind() -> None:
    routes = table(
        rule(pb.HttpMatch(path=pb.PathMatch(prefix="/a"), method="POST")),
        rule(path(exact="/a/b")),
        rule(path(string_prefix="/a")),
        rule(path(exact="/a/c")),
        rule(),
    )
    found = [
        routes.match(facts) for facts in (request("/a/b", method="POST"), request("/a/b"), request("/a/c"))
    ]
    assert [each.rule.name for each in found if each is not None] == ["0", "1", "2"]
    last = routes.match(request("/z"))
    assert last is not None
    assert last.rule.name == "4"


def test_no_rule_is_told_with_each_refusal() -> None:
    found, trace = table(
        rule(path(exact="/a"), name="one"), rule(header(name="x", exact="1"), name="two")
    ).explain(request("/b"))
    assert found is None
    assert trace == ("one: no, path exact /a", "two: no, header x = 1", "no rule matches")


def test_without_rules_requests_go_to_the_service_itself() -> None:
    message = pb.ServiceRoutes(namespace="shop", hostname="web", ports=[pb.PortRoutes(service_port=80)])
    found = parse_routes(message.SerializeToString()).ports[80].http.match(request("/x"))
    assert found is not None
    assert isinstance(found.rule.action, Forward)
    assert found.rule.action.backends[0].service == "shop/web"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (pb.HttpRule(name="r"), "does nothing"),
        (rule(path(exact="a")), "slash"),
        (rule(path(prefix="")), "slash"),
        (rule(pb.HttpMatch(headers=[pb.ValueMatch(name="x")])), "says nothing"),
        (rule(direct_response=pb.DirectResponse(status=100)), "no status"),
        (rule(request_headers=pb.HeaderChanges(remove=["content-length"])), "cannot be changed"),
        (
            rule(request_headers=pb.HeaderChanges(set=[pb.HeaderChanges.Field(name="x", value="a\r\nb")])),
            "control",
        ),
        (
            rule(request_headers=pb.HeaderChanges(add=[pb.HeaderChanges.Field(name=":path", value="/")])),
            "changed",
        ),
        (rule(request_headers=pb.HeaderChanges(remove=["Host"])), "removed"),
        (rule(request_headers=pb.HeaderChanges(remove=["a b"])), "no header name"),
        (
            rule(retries=pb.RetryPolicy(attempts=1, on=["5xx", "retriable-headers"])),
            "retriable-headers are not",
        ),
        (rule(fault=pb.Fault(abort_share=pb.Fraction(numerator=1))), "without a status"),
    ],
)
def test_what_cannot_be_meant_is_refused(broken: pb.HttpRule, reason: str) -> None:
    with pytest.raises(RoutesRejected, match=reason):
        table(broken)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(RoutesRejected, match="not a ServiceRoutes"):
        parse_routes(b"\xff\xff")


# --- weights ---


def weighed(*weights: int) -> Forward:
    return forward(
        backend(pb.Backend(weight=weight, service=f"shop/{number}", port=80))
        for number, weight in enumerate(weights)
    )


@pytest.mark.parametrize(
    ("weights", "random", "service"),
    [
        ((1,), 0.99, "shop/0"),
        ((90, 10), 0.0, "shop/0"),
        ((90, 10), 0.899, "shop/0"),
        ((90, 10), 0.9, "shop/1"),
        ((90, 10), 0.999999, "shop/1"),
        ((0, 1), 0.0, "shop/1"),
        ((0, 0), 0.5, None),
        ((), 0.5, None),
    ],
)
def test_backends_share_by_weight(weights: tuple[int, ...], random: float, service: str | None) -> None:
    chosen = weighed(*weights).choose(random)
    assert (chosen and chosen.service) == service


def test_an_invalid_backend_keeps_its_share() -> None:
    message = pb.Backend(weight=1, failure_status=500, problem="Service shop/none not found")
    chosen = forward([backend(message)]).choose(0.5)
    assert chosen is not None
    assert chosen.failure_status == 500


# --- TCP ---


@pytest.mark.parametrize(
    ("server_name", "name"),
    [
        ("a.example", "exact"), ("A.Example", "exact"),
        ("b.wild.example", "wild"), ("c.b.wild.example", "wild"),
        ("wild.example", "any"), (None, "any"),
    ],
)  # fmt: skip
def test_server_names_match_exactly_or_by_a_leading_wildcard(server_name: str | None, name: str) -> None:
    target = pb.Backend(weight=1, service="shop/web", port=80)
    port = pb.PortRoutes(
        service_port=PORT,
        protocol=pb.TCP,
        tcp_rules=[
            pb.TcpRule(name="exact", sni_hosts=["a.example"], backends=[target]),
            pb.TcpRule(name="wild", sni_hosts=["*.wild.example"], backends=[target]),
            pb.TcpRule(name="any", backends=[target]),
        ],
    )
    routes = service_table(pb.ServiceRoutes(namespace="shop", hostname="web", ports=[port]))
    found = routes.ports[PORT].match_tcp(server_name)
    assert found is not None
    assert found.name == name


# --- the index against a walk ---

_PATHS = st.lists(st.sampled_from(["a", "b", "ab", "A"]), max_size=4).map(lambda parts: "/" + "/".join(parts))
_VALUES = st.sampled_from(["1", "2", "12"])


def _value_matches(names: list[str]) -> st.SearchStrategy[list[pb.ValueMatch]]:
    one = st.one_of(
        st.builds(pb.ValueMatch, name=st.sampled_from(names), exact=_VALUES),
        st.builds(pb.ValueMatch, name=st.sampled_from(names), prefix=_VALUES),
        st.builds(pb.ValueMatch, name=st.sampled_from(names), is_present=st.just(value=True)),
    )
    return st.lists(one, max_size=2, unique_by=lambda match: match.name)


_PATH_MATCHES = st.one_of(
    st.none(),
    st.builds(pb.PathMatch, exact=_PATHS, is_case_ignored=st.booleans()),
    st.builds(pb.PathMatch, prefix=_PATHS, is_case_ignored=st.booleans()),
    st.builds(pb.PathMatch, string_prefix=_PATHS, is_case_ignored=st.booleans()),
)
_MATCHES = st.builds(
    pb.HttpMatch,
    path=_PATH_MATCHES,
    method=st.sampled_from(["", "", "GET", "POST"]),
    headers=_value_matches(["x", "y"]),
    query_parameters=_value_matches(["q", "r"]),
)
_REQUESTS = st.builds(
    lambda target, method, headers, query: request(
        target + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else ""),
        *((name.encode(), value.encode()) for name, value in headers),
        method=method,
    ),
    _PATHS,
    st.sampled_from(["GET", "POST"]),
    st.lists(st.tuples(st.sampled_from(["x", "y"]), _VALUES), max_size=2),
    st.lists(st.tuples(st.sampled_from(["q", "r"]), _VALUES), max_size=2),
)


def _naive_value(match: pb.ValueMatch, values: list[str]) -> bool:
    if not values:
        return False
    kind = match.WhichOneof("kind")
    joined = ",".join(values)
    return kind == "is_present" or (
        joined == match.exact if kind == "exact" else joined.startswith(match.prefix)
    )


def _naive_path(match: pb.PathMatch, target: str) -> bool:
    kind = match.WhichOneof("kind")
    wanted = getattr(match, str(kind))
    if match.is_case_ignored:
        wanted, target = wanted.lower(), target.lower()
    if kind == "exact":
        return bool(target == wanted)
    if kind == "string_prefix":
        return bool(target.startswith(wanted))
    pieces = wanted.rstrip("/").split("/")[1:]
    return bool(target.split("/")[1 : 1 + len(pieces)] == pieces)


def _naive(match: pb.HttpMatch, facts: RequestFacts) -> bool:
    target = facts.path.decode()
    pairs = [piece.split("=") for piece in facts.query.decode().split("&") if piece]
    return (
        (not match.HasField("path") or _naive_path(match.path, target))
        and match.method in ("", facts.method.decode())
        and all(
            _naive_value(each, [v.decode() for n, v in facts.headers if n.decode() == each.name])
            for each in match.headers
        )
        and all(
            _naive_value(each, [value for name, value in pairs if name == each.name][:1])
            for each in match.query_parameters
        )
    )


@given(
    st.lists(st.lists(_MATCHES, min_size=1, max_size=2), min_size=1, max_size=12),
    st.lists(_REQUESTS, min_size=1, max_size=4),
)
def test_the_index_finds_what_a_walk_finds(
    rules: list[list[pb.HttpMatch]], requests: list[RequestFacts]
) -> None:
    routes = table(*(rule(*matches) for matches in rules))
    for facts in requests:
        expected = next(
            (
                str(number)
                for number, matches in enumerate(rules)
                if any(_naive(each, facts) for each in matches)
            ),
            None,
        )
        found = routes.match(facts)
        assert (found and found.rule.name) == expected
        assert routes.explain(facts)[0] is found


def test_many_rules_of_one_path_are_found_by_header_parameter_or_method() -> None:
    rules = [rule(header(name="x", exact=str(number))) for number in range(50)]
    rules += [rule(parameter(name="q", exact=str(number))) for number in range(50)]
    rules += [rule(pb.HttpMatch(method="PUT")), rule(direct_response=pb.DirectResponse(status=404))]
    routes = table(*rules)
    for facts, name in (
        (request("/", (b"x", b"49")), "49"),
        (request("/?q=49"), "99"),
        (request("/?q=3", (b"x", b"7")), "7"),
        (request(method="PUT"), "100"),
    ):
        found = routes.match(facts)
        assert found is not None
        assert found.rule.name == name
    last = routes.match(request())
    assert last is not None
    assert last.rule.action == DirectResponse(404)
