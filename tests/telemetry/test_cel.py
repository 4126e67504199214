"""The subset of CEL: what it says of a request, and what it refuses by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.cel import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    ExpressionRejected,
    parse,
    parse_condition,
    parse_label,
)


class Facts:
    """A request to /cart of the identity of `web`, which got a 503."""

    def __init__(self) -> None:
        self.attributes: dict[str, str | int | bool] = {
            "request.path": "/cart?x=1",
            "request.url_path": "/cart",
            "request.method": "GET",
            "request.host": "shop.example",
            "response.code": 503,
            "response.code_details": "no_healthy_upstream",
            "connection.mtls": True,
            "source.address": "10.0.0.1",
        }
        self.headers = {
            ("request.headers", "x-tenant"): "blue",
            ("request.headers", "count"): "12",
            ("response.headers", "server"): "mycelia",
        }

    def attribute(self, path: str) -> str | int | bool | None:
        return self.attributes.get(path)

    def header(self, path: str, name: str) -> str | None:
        return self.headers.get((path, name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("response.code >= 400", True),
        ("response.code == 503 && request.method == 'GET'", True),
        ("response.code < 400 || request.method == 'GET'", True),
        ("!(response.code >= 400)", False),
        ("!!connection.mtls", True),
        ("connection.mtls == true", True),
        ("connection.mtls != true", False),
        ("request.method in ['GET', 'HEAD']", True),
        ("request.method in []", False),
        ("response.code in [200, 503]", True),
        ("'x-tenant' in request.headers", True),
        ("'X-Tenant' in request.headers", True),
        ("'x-other' in request.headers", False),
        ("has(request.headers['x-tenant'])", True),
        ("has(request.headers['x-other'])", False),
        ("has(response.grpc_status)", False),
        ("request.headers['x-tenant'] == \"blue\"", True),
        ("request.headers.count == '12'", True),
        ("int(request.headers['count']) > 11", True),
        ("response.headers['server'].startsWith('myc')", True),
        ("request.url_path.endsWith('art') && request.path.contains('x=')", True),
        (r"request.url_path.matches('^/c[ar]+t$')", True),
        (r"request.url_path.matches('ar')", True),
        (r"request.url_path.matches('^ar')", False),
        ("size(request.method) == 3", True),
        ("response.code >= 400 ? connection.mtls : false", True),
        ("(request.headers['x-other'] | 'none') == 'none'", True),
        ("request.method + ' ' + request.url_path == 'GET /cart'", True),
        ("string(response.code).startsWith('5')", True),
        ("-1 < response.code", True),
        (r"request.method == 'G\'T'", False),
        (r"r'a\b' == 'a\\b'", True),
        # What is not there decides nothing, unless the other side does alone.
        ("request.headers['x-other'] == 'a'", False),
        ("request.headers['x-other'] != 'a'", False),
        ("!(request.headers['x-other'] == 'a')", False),
        ("request.headers['x-other'] == 'a' || response.code == 503", True),
        ("response.code == 503 || request.headers['x-other'] == 'a'", True),
        ("!(request.headers['x-other'] == 'a' && response.code == 200)", True),
        ("int(request.headers['x-tenant']) == 1", False),
        ("response.grpc_status > 0", False),
    ],
)
def test_conditions(text: str, *, expected: bool) -> None:
    assert parse_condition(text).holds(Facts()) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'test'", "test"),
        ("request.host", "shop.example"),
        ("response.code", "503"),
        ("connection.mtls", "true"),
        ("request.headers['x-other'] | 'unknown'", "unknown"),
        ("response.code >= 500 ? 'bad' : 'good'", "bad"),
        ("request.headers['x-other']", None),
        ("request.id", None),
    ],
)
def test_values_of_labels(text: str, expected: str | None) -> None:
    assert parse_label(text).value(Facts()) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "the end"),
        ("response.code >=", "the end"),
        ("response.code >= '400'", "cannot compare a number with text"),
        ("response.code && true", "'&&' takes true or false"),
        ("connection.mtls < true", "cannot order"),
        ("request.tme == 1", "attribute 'request.tme' is not supported"),
        ("metadata.x == 1", "'metadata' is not supported"),
        ("filter_state['x']", "'filter_state' is not supported"),
        ("request.method.lower() == 'a'", "'lower' is not supported"),
        ("request.method.size() == 1", "'size' is not supported"),
        ("response.code - 1 == 2", "'-' between values"),
        ("response.code * 2 == 2", "'* 2 == 2' is not understood"),
        ("response.code % 2 == 0", "is not understood"),
        ("[1,2].exists(x, x > 1)", "'exists' is not supported"),
        ("has(response.code > 1)", "has() asks for"),
        ("has('x')", "has() asks for"),
        ("request.headers[request.method] == 'a'", "written as text"),
        ("request.method in request.headers", "written as text"),
        ("request.headers == 'a'", "cannot compare headers"),
        ("[request.method] == 'a'", "as they are written"),
        ("request.method.matches(request.path)", "written as text"),
        ("request.method.matches('(')", "expression"),
        ("response.code == 1.5", "is not understood"),
        ("response.code == 0x10", "is not understood"),
        ("response.code == 9999999999999999999", "was not expected"),
        ("request.method == 'a\\q'", "escape"),
        ("request.method == 'a", "is not understood"),
        ("true true", "was not expected"),
        ("(true", "')' is missing"),
        ("true ? 'a' : 1", "'? :' has text"),
        ("null == null", "was not expected"),
        ("response.code", "not a condition"),
    ],
)
def test_what_is_not_of_the_subset_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ExpressionRejected) as raised:
        parse_condition(text)
    assert named in str(raised.value)


def test_size_and_depth_are_bounded() -> None:
    for text in (
        "(" * (MAX_DEPTH + 1) + "true" + ")" * (MAX_DEPTH + 1),
        "!" * 1000 + "true",
        " || ".join(["true"] * 300),
        "true" + " " * MAX_CHARACTERS,
        "true ? true : " * 100 + "true",
    ):
        with pytest.raises(ExpressionRejected):
            parse(text)


def test_headers_that_are_asked_for_are_known() -> None:
    found = parse("request.headers['X-A'] == 'b' || 'c' in response.headers")
    assert found.headers == {("request.headers", "x-a"), ("response.headers", "c")}


def test_labels_are_one_value() -> None:
    for text in ("['a']", "request.headers"):
        with pytest.raises(ExpressionRejected, match="not one value"):
            parse_label(text)


_WORDS = st.sampled_from(
    [
        *("(", ")", "[", "]", "!", "&&", "||", "|", "?", ":", ".", ",", "==", "<", "+", "-", "in", "has"),
        *("'a'", "1", "true", "request", "response", "headers", "code", "method", "size", "matches"),
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_WORDS, max_size=24).map(" ".join)))
def test_any_text_is_refused_or_evaluates(text: str) -> None:
    try:
        found = parse(text)
    except ExpressionRejected:
        return
    found.holds(Facts())
    found.value(Facts())
